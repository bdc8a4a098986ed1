"""The score: every sentence of its definition, one test each."""

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection, sql

from tests.community import add_collaborator, add_project, add_user, configure, drain, queue, score
from tests.oracle import WHITE_SPACE, assert_all_right, scores

Db = Connection[Any]

EVERYONE = (None, None, 20)
PROFILE_FIELDS = ("avatar_url", "headline", "bio", "primary_role", "timezone", "contact_links")
A_MOMENT = datetime(2024, 3, 31, 12, tzinfo=UTC)


def explained(db: Db, user: UUID) -> dict[str, tuple[Decimal, float]]:
    """Raw value and points of each signal."""
    rows = db.execute("select signal, raw, points from builder_score.explain(%s)", [user])
    return {signal: (raw, points) for signal, raw, points in rows}


def points(db: Db, user: UUID, signal: str) -> float:
    return explained(db, user)[signal][1]


def age(db: Db, user: UUID, as_of: datetime) -> tuple[Decimal, float]:
    """Days and points of age at a moment."""
    query = (
        "select age, age_points from builder_score.compute("
        "array[%s]::builder_score.user_id[], array[%s]::timestamptz[])"
    )
    row = db.execute(query, [user, as_of]).fetchone()
    assert row is not None
    return row


def reattach(db: Db, *statements: LiteralString | sql.Composed) -> None:
    """What a DBA does around DDL on columns that triggers and views use."""
    with db.transaction():
        db.execute("select builder_score.detach()")
        for statement in statements:
            db.execute(statement)
        db.execute("select builder_score.attach()")


def set_signal(db: Db, signal: str, column: str, value: float) -> None:
    query = sql.SQL("update builder_score.signals set {} = %s where signal = %s")
    db.execute(query.format(sql.Identifier(column)), [value, signal])


# shipped ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("projects", "expected"),
    [(0, 0), (1, 10), (2, 10 * math.log2(3)), (3, 20), (7, 30), (8, 30)],
)
def test_shipped_projects_count_by_their_logarithm_up_to_30(
    scratch: Db, projects: int, expected: float
) -> None:
    ada = add_user(scratch, "ada")
    for _ in range(projects):
        add_project(scratch, ada, status="shipped")
    assert explained(scratch, ada)["shipped"] == (projects, pytest.approx(expected))


def test_only_own_projects_with_the_status_shipped_count(scratch: Db) -> None:
    ada, bob = add_user(scratch, "ada"), add_user(scratch, "bob")
    for status in ("in_progress", "idea", "SHIPPED", " shipped", ""):
        add_project(scratch, ada, status=status)
    add_collaborator(scratch, add_project(scratch, bob, status="shipped"), ada)
    assert explained(scratch, ada)["shipped"] == (0, 0)
    assert explained(scratch, bob)["shipped"] == (1, 10)


# vouches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("people", "expected"), [(0, 0), (1, 8), (2, 8 * math.log2(3)), (3, 16), (7, 24), (8, 25)]
)
def test_vouches_count_by_their_logarithm_up_to_25(
    scratch: Db, people: int, expected: float
) -> None:
    ada = add_user(scratch, "ada")
    project = add_project(scratch, ada)
    for number in range(people):
        add_collaborator(scratch, project, add_user(scratch, f"friend{number}"))
    assert explained(scratch, ada)["vouches"] == (people, pytest.approx(expected))


def test_both_sides_of_a_confirmed_collaboration_are_credited(scratch: Db) -> None:
    owner, helper = add_user(scratch, "owner"), add_user(scratch, "helper")
    add_collaborator(scratch, add_project(scratch, owner), helper)
    assert explained(scratch, owner)["vouches"] == (1, 8)
    assert explained(scratch, helper)["vouches"] == (1, 8)


def test_the_same_person_counts_once_however_many_projects_and_whoever_owns_them(
    scratch: Db,
) -> None:
    ada, bob = add_user(scratch, "ada"), add_user(scratch, "bob")
    add_collaborator(scratch, add_project(scratch, ada), bob)
    add_collaborator(scratch, add_project(scratch, ada), bob)
    add_collaborator(scratch, add_project(scratch, bob), ada)
    assert explained(scratch, ada)["vouches"] == (1, 8)
    assert explained(scratch, bob)["vouches"] == (1, 8)


def test_people_met_as_owner_and_as_collaborator_are_added_up(scratch: Db) -> None:
    ada, bob, eve = add_user(scratch, "ada"), add_user(scratch, "bob"), add_user(scratch, "eve")
    add_collaborator(scratch, add_project(scratch, ada), bob)
    add_collaborator(scratch, add_project(scratch, eve), ada)
    assert explained(scratch, ada)["vouches"][0] == 2


def test_an_owner_who_collaborates_with_themselves_gains_nothing(scratch: Db) -> None:
    ada = add_user(scratch, "ada")
    add_collaborator(scratch, add_project(scratch, ada), ada)
    assert explained(scratch, ada)["vouches"] == (0, 0)


def test_two_collaborators_on_a_third_persons_project_do_not_vouch_for_each_other(
    scratch: Db,
) -> None:
    owner, bob, eve = add_user(scratch, "owner"), add_user(scratch, "bob"), add_user(scratch, "eve")
    project = add_project(scratch, owner)
    add_collaborator(scratch, project, bob)
    add_collaborator(scratch, project, eve)
    assert explained(scratch, bob)["vouches"][0] == 1
    assert explained(scratch, eve)["vouches"][0] == 1
    assert explained(scratch, owner)["vouches"][0] == 2


MANY_PROJECTS: LiteralString = """
    with made as (
        insert into projects (owner_id, title, status, github_stars, impact_metrics)
        select %(owner)s, 'p', case n %% 500 when 0 then 'shipped' else 'in_progress' end, n %% 3,
               (array['{"users": -7}', '{"users": "1.5"}', '{"users": 2}', '{}'])[n %% 4 + 1]::jsonb
        from generate_series(1, %(n)s) as n
        returning id
    ), p as (select id, row_number() over () as place from made),
    u as (select id, substr(username, 5)::integer as place from users where username like 'user%%')
    insert into project_collaborators (project_id, user_id, status)
    select p.id, u.id, 'confirmed' from p join u on p.place %% 20 = u.place
    union all
    select p.id, u.id, 'invited' from p join u on u.place = 20 where p.place < 5
    union all
    select p.id, %(owner)s, 'confirmed' from p where p.place < 5
"""


@pytest.mark.parametrize("projects", [999, 1000, 1001, 1500])
def test_somebody_with_very_many_projects_is_vouched_for_like_anybody(
    scratch: Db, projects: int
) -> None:
    owner = add_user(scratch, "owner")
    people = [add_user(scratch, f"user{number}") for number in range(23)]
    scratch.execute(MANY_PROJECTS, {"owner": owner, "n": projects})
    assert explained(scratch, owner)["vouches"][0] == 20
    # one who is on a project of theirs too, and one who is not
    add_collaborator(scratch, add_project(scratch, people[0]), owner)
    add_collaborator(scratch, add_project(scratch, people[21]), owner)
    add_collaborator(scratch, add_project(scratch, people[22]), owner, "invited")
    assert explained(scratch, owner)["vouches"][0] == 21
    assert_by_the_book(scratch, owner)


MANY_COLLABORATIONS: LiteralString = """
    with u as (
        select id, substr(username, 5)::integer as place from users where username like 'user%%'
    ), made as (
        insert into projects (owner_id, title)
        select u.id, 'p' from generate_series(1, %(n)s) as n join u on n %% 20 = u.place
        returning id
    )
    insert into project_collaborators (project_id, user_id, status)
    select m.id, %(helper)s, 'confirmed' from made as m
"""


@pytest.mark.parametrize("projects", [999, 1000, 1001, 1500])
def test_somebody_who_helps_with_very_many_projects_is_scored_like_anybody(
    scratch: Db, projects: int
) -> None:
    helper = add_user(scratch, "helper")
    people = [add_user(scratch, f"user{number}") for number in range(23)]
    scratch.execute(MANY_COLLABORATIONS, {"helper": helper, "n": projects})
    assert explained(scratch, helper)["vouches"][0] == 20
    own = add_project(
        scratch, helper, status="shipped", github_stars=40, impact_metrics={"users": "2.5"}
    )
    for user in (helper, people[0], people[21]):
        add_collaborator(scratch, own, user)
    add_collaborator(scratch, add_project(scratch, people[22]), helper, "invited")
    assert explained(scratch, helper)["vouches"][0] == 21
    assert_by_the_book(scratch, helper)


def assert_by_the_book(db: Db, user: UUID) -> None:
    signals = scores(db)[user].signals
    assert {name: raw for name, (raw, _) in explained(db, user).items() if name != "age"} == {
        name: pytest.approx(float(signal.raw)) for name, signal in signals.items() if name != "age"
    }


@pytest.mark.parametrize("status", ["pending", "declined", "removed", "Confirmed", ""])
def test_a_collaboration_that_is_not_confirmed_counts_nothing(scratch: Db, status: str) -> None:
    owner, helper = add_user(scratch, "owner"), add_user(scratch, "helper")
    add_collaborator(scratch, add_project(scratch, owner), helper, status)
    assert explained(scratch, owner)["vouches"] == (0, 0)
    assert explained(scratch, helper)["vouches"] == (0, 0)


# impact (odd values: test_values.py) --------------------------------------------------------------


@pytest.mark.parametrize(
    ("stars", "users", "expected"),
    [(0, 0, 0), (9, 0, 4), (0, 9, 4), (4, 5, 4), (1, 0, 4 * math.log10(2)), (99_999, 0, 20)],
)
def test_stars_and_users_count_by_the_logarithm_of_their_sum_up_to_20(
    scratch: Db, stars: int, users: int, expected: float
) -> None:
    ada = add_user(scratch, "ada")
    add_project(scratch, ada, github_stars=stars, impact_metrics={"users": users})
    assert explained(scratch, ada)["impact"] == (stars + users, pytest.approx(expected))
    add_project(scratch, ada, github_stars=10**9)
    assert points(scratch, ada, "impact") == 20


def test_impact_is_summed_over_all_own_projects_shipped_or_not(scratch: Db) -> None:
    ada, bob = add_user(scratch, "ada"), add_user(scratch, "bob")
    add_project(scratch, ada, github_stars=40, status="shipped")
    add_project(scratch, ada, github_stars=9, impact_metrics={"users": 50, "downloads": 1000})
    add_collaborator(scratch, add_project(scratch, bob, github_stars=5000), ada)
    assert explained(scratch, ada)["impact"] == (99, pytest.approx(8))


# profile ------------------------------------------------------------------------------------------


def fill(db: Db, user: UUID, field: str, value: str) -> None:
    query = sql.SQL("update users set {} = %s where id = %s").format(sql.Identifier(field))
    db.execute(query, [value, user])


@pytest.mark.parametrize("field", PROFILE_FIELDS)
def test_each_profile_field_is_worth_a_sixth_of_15_points(scratch: Db, field: str) -> None:
    ada = add_user(scratch, "ada")
    assert explained(scratch, ada)["profile"] == (0, 0)
    fill(scratch, ada, field, '{"web": "https://example.org"}')
    assert points(scratch, ada, "profile") == pytest.approx(2.5)


def test_a_complete_profile_is_worth_15_points_and_no_other_column_counts(scratch: Db) -> None:
    ada = add_user(scratch, "ada", display_name="Ada", availability="open")
    assert points(scratch, ada, "profile") == 0
    for field in PROFILE_FIELDS:
        fill(scratch, ada, field, '{"any": "thing"}')
    assert explained(scratch, ada)["profile"] == (1, 15)


@pytest.mark.parametrize("field", PROFILE_FIELDS[:-1])
def test_a_text_field_of_nothing_but_white_space_is_not_filled(scratch: Db, field: str) -> None:
    ada = add_user(scratch, "ada")
    for blank in ("", " ", "\t", "\r\n", " \t\n ", *WHITE_SPACE, WHITE_SPACE):
        fill(scratch, ada, field, blank)
        assert points(scratch, ada, "profile") == 0, ascii(blank)
        fill(scratch, ada, field, f"{blank}0{blank}")
        assert points(scratch, ada, "profile") == pytest.approx(2.5), ascii(blank)


@pytest.mark.parametrize(
    "value", ["{}", "[]", '["https://example.org"]', '"https://example.org"', "null", "7", "true"]
)
def test_contact_links_other_than_a_non_empty_object_are_not_filled(
    scratch: Db, value: str
) -> None:
    ada = add_user(scratch, "ada")
    fill(scratch, ada, "contact_links", value)
    assert points(scratch, ada, "profile") == 0


def test_contact_links_that_are_null_are_not_filled(scratch: Db) -> None:
    scratch.execute("alter table users alter column contact_links drop not null")
    ada = add_user(scratch, "ada", contact_links=None)
    assert points(scratch, ada, "profile") == 0


@pytest.mark.parametrize("type_name", ["json", "text"])
def test_contact_links_may_be_kept_as_json_or_text(scratch: Db, type_name: LiteralString) -> None:
    ada = add_user(scratch, "ada")
    statement = sql.SQL("alter table users alter contact_links type {}").format(sql.SQL(type_name))
    reattach(scratch, "alter table users alter contact_links drop default", statement)
    for value, expected in [("{}", 0), (" { } ", 0), ("[1]", 0), ("null", 0), ('{"a": 1}', 2.5)]:
        fill(scratch, ada, "contact_links", value)
        assert points(scratch, ada, "profile") == pytest.approx(expected), value


def test_primary_role_may_be_an_enum(scratch: Db) -> None:
    reattach(
        scratch,
        "create type role as enum ('designer', '')",
        "alter table users alter primary_role type role using primary_role::role",
    )
    ada = add_user(scratch, "ada", primary_role="designer")
    bob = add_user(scratch, "bob", primary_role="")
    eve = add_user(scratch, "eve")
    assert [points(scratch, user, "profile") for user in (ada, bob, eve)] == [
        pytest.approx(2.5),
        0,
        0,
    ]


@pytest.mark.parametrize("field", PROFILE_FIELDS)
def test_a_field_whose_column_the_host_lacks_is_left_out_of_the_share(db: Db, field: str) -> None:
    ada = add_user(db, "ada")
    fill(db, ada, "bio" if field != "bio" else "headline", "builds things")
    reattach(db, sql.SQL("alter table users drop column {}").format(sql.Identifier(field)))
    assert points(db, ada, "profile") == pytest.approx(15 / 5)
    drain(db)
    assert_all_right(db)


def test_without_any_profile_column_the_profile_is_worth_nothing(db: Db) -> None:
    drop = sql.SQL(", ").join(
        sql.SQL("drop column {}").format(sql.Identifier(field)) for field in PROFILE_FIELDS
    )
    reattach(db, sql.SQL("alter table users {}").format(drop))
    ada = add_user(db, "ada")
    add_project(db, ada, status="shipped")
    assert explained(db, ada)["profile"] == (0, 0)
    drain(db)
    assert score(db, ada) == 10
    assert_all_right(db)


# age ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "expected"), [(0, 0), (1, 10 / 365), (73, 2), (364, 3640 / 365), (365, 10), (9999, 10)]
)
def test_age_counts_ten_points_a_year_up_to_10(scratch: Db, days: int, expected: float) -> None:
    ada = add_user(scratch, "ada", created_at=A_MOMENT)
    as_of = A_MOMENT + timedelta(days=days)
    assert age(scratch, ada, as_of) == (days, pytest.approx(expected))


def test_only_whole_days_count(scratch: Db) -> None:
    ada = add_user(scratch, "ada", created_at=A_MOMENT)
    an_instant = timedelta(microseconds=1)
    day = timedelta(days=1)
    assert age(scratch, ada, A_MOMENT + day - an_instant)[0] == 0
    assert age(scratch, ada, A_MOMENT + day)[0] == 1
    assert age(scratch, ada, A_MOMENT + 2 * day - an_instant)[0] == 1


def test_an_account_from_the_future_has_no_age(scratch: Db) -> None:
    ada = add_user(scratch, "ada", created_at=A_MOMENT)
    assert age(scratch, ada, A_MOMENT - timedelta(days=400)) == (0, 0)


@pytest.mark.parametrize("type_name", ["timestamptz", "timestamp", "date"])
@pytest.mark.parametrize(
    ("created_at", "expected"),
    [
        ("infinity", 0),
        ("-infinity", 10),
        ("4714-12-31 BC", 10),
        ("294276-12-31", 0),
    ],
)
def test_created_at_at_the_ends_of_time_does_not_raise(
    scratch: Db, type_name: LiteralString, created_at: str, expected: float
) -> None:
    statement = sql.SQL("alter table users alter created_at type {}").format(sql.SQL(type_name))
    reattach(scratch, "alter table users alter created_at drop default", statement)
    ada = add_user(scratch, "ada", created_at=created_at)
    assert points(scratch, ada, "age") == expected


def test_a_date_beyond_the_last_timestamp_does_not_raise(scratch: Db) -> None:
    reattach(
        scratch,
        "alter table users alter created_at drop default",
        "alter table users alter created_at type date",
    )
    ada = add_user(scratch, "ada", created_at="5874897-12-31")
    assert points(scratch, ada, "age") == 0


def test_a_host_without_created_at_gives_no_points_for_age(scratch: Db) -> None:
    ada = add_user(scratch, "ada", created_at="2000-01-01")
    reattach(scratch, "alter table users drop column created_at")
    assert explained(scratch, ada)["age"] == (0, 0)


def test_an_unknown_created_at_gives_no_points_for_age(scratch: Db) -> None:
    scratch.execute("alter table users alter column created_at drop not null")
    ada = add_user(scratch, "ada", created_at=None)
    assert explained(scratch, ada)["age"] == (0, 0)


@pytest.mark.parametrize("time_zone", ["America/Los_Angeles", "Asia/Kolkata", "UTC"])
def test_a_naive_timestamp_is_utc_whatever_the_time_zone(
    db: Db, database: str, time_zone: str
) -> None:
    reattach(
        db,
        "alter table users alter created_at type timestamp using created_at at time zone 'UTC'",
    )
    naive = A_MOMENT.replace(tzinfo=None)
    ada = add_user(db, "ada", created_at=naive)
    name = sql.Identifier(db.info.dbname)
    db.execute(sql.SQL("alter database {} set timezone = {}").format(name, sql.Literal(time_zone)))
    with psycopg.connect(database, autocommit=True) as elsewhere:
        shown = elsewhere.execute("show timezone").fetchone()
        assert shown == (time_zone,)
        day = timedelta(days=1)
        assert age(elsewhere, ada, A_MOMENT + day - timedelta(microseconds=1))[0] == 0
        assert age(elsewhere, ada, A_MOMENT + day)[0] == 1
        # Both edges of the day also in what is stored: a wrong offset shifts one of them.
        set_signal(elsewhere, "age", "max_points", 100)
        set_signal(elsewhere, "age", "scale", 365)
        for hours, whole_days in [(23, 0), (25, 1), (47, 1), (49, 2)]:
            elsewhere.execute(
                "update users set created_at = clock_timestamp() at time zone 'UTC' - %s",
                [timedelta(hours=hours)],
            )
            assert explained(elsewhere, ada)["age"] == (whole_days, whole_days)


def test_days_last_24_hours_where_clocks_change(scratch: Db) -> None:
    """On 31 March 2024 Berlin's day had 23 hours."""
    scratch.execute("set timezone = 'Europe/Berlin'")
    ada = add_user(scratch, "ada", created_at="2024-03-30 12:00+01")
    assert age(scratch, ada, datetime(2024, 3, 31, 10, 59, 59, tzinfo=UTC))[0] == 0
    assert age(scratch, ada, datetime(2024, 3, 31, 11, tzinfo=UTC))[0] == 1


def a_day_passes(db: Db) -> None:
    """And the worker does what it then does, up to the queue."""
    db.execute("update builder_score.host set refreshed_at = now() - interval '25 hours'")
    keep_house(db)


def keep_house(db: Db) -> None:
    db.execute("select builder_score.housekeeping()")
    db.execute("select builder_score.advance_backfill()")


def test_the_daily_job_enqueues_at_low_priority_who_still_ages_and_has_an_old_score(
    db: Db,
) -> None:
    def add(name: str, *, account_days: int, score_days: int) -> UUID:
        now = datetime.now(UTC)
        user = add_user(db, name, created_at=now - timedelta(days=account_days))
        computed.append((now - timedelta(days=score_days), user))
        return user

    computed: list[tuple[datetime, UUID]] = []
    stale = add(name="stale", account_days=100, score_days=8)
    # Its last points of age came after the last recalculation.
    grown_up = add(name="grown_up", account_days=366, score_days=10)
    add(name="fresh", account_days=100, score_days=6)
    add(name="old", account_days=500, score_days=50)
    drain(db)
    for computed_at, user in computed:
        db.execute(
            "update builder_score.score_state set computed_at = %s where user_id = %s",
            [computed_at, user],
        )

    a_day_passes(db)
    rows = db.execute(
        "select user_id, project_id, priority from builder_score.score_recalc_queue"
    ).fetchall()
    assert set(rows) == {(stale, None, 20), (grown_up, None, 20)}
    drain(db)
    assert score(db, grown_up) == 10

    # Once a day: the next run has nothing to do.
    db.execute("update builder_score.score_state set computed_at = now() - interval '9 days'")
    keep_house(db)
    assert queue(db) == []


def test_nobody_ages_when_age_is_switched_off(db: Db) -> None:
    add_user(db, "ada")
    set_signal(db, "age", "max_points", 0)
    drain(db)
    db.execute("update builder_score.score_state set computed_at = now() - interval '9 days'")
    a_day_passes(db)
    assert queue(db) == []


# the sum ------------------------------------------------------------------------------------------


def test_points_are_added_before_they_are_rounded(db: Db) -> None:
    """18.58 and 1.91 are 20.48, which is 20; rounded first they would be 21."""
    ada = add_user(db, "ada")
    project = add_project(db, ada, github_stars=2)
    for number in range(4):
        add_collaborator(db, project, add_user(db, f"friend{number}"))
    drain(db)
    assert points(db, ada, "vouches") == pytest.approx(18.575, abs=0.001)
    assert points(db, ada, "impact") == pytest.approx(1.908, abs=0.001)
    assert score(db, ada) == 20


@pytest.mark.parametrize(
    ("type_name", "scale", "expected"),
    [
        # one field of six is filled: the sum is a sixth of the scale
        ("integer", 15, "3"),  # 2.5
        ("integer", 3, "1"),  # 0.5
        ("integer", 2.9, "0"),  # 0.48
        ("integer", 14.9999976, "3"),  # 2.4999996, which is 2.500000 with 6 decimals
        ("integer", 14.999994, "2"),  # 2.499999
        ("smallint", 15, "3"),
        ("bigint", 15, "3"),
        ("numeric(5,0)", 15, "3"),
        ("double precision", 1.5, "0.3"),  # 0.25
        ("double precision", 2.7, "0.5"),  # 0.45
        ("double precision", 15, "2.5"),
        ("real", 1.5, "0.3"),
        ("real", 2.7, "0.5"),
        ("numeric", 1.5, "0.3"),
        ("numeric", 2.7, "0.5"),
        ("numeric(6,3)", 2.7, "0.500"),
    ],
)
def test_halves_are_rounded_away_from_zero_to_what_the_column_holds(
    db: Db, type_name: LiteralString, scale: float, expected: str
) -> None:
    ada = add_user(db, "ada", bio="builds things")
    set_signal(db, "profile", "scale", scale)
    statement = sql.SQL("alter table users alter builder_score type {}").format(sql.SQL(type_name))
    reattach(db, statement)
    drain(db)
    stored = db.execute("select builder_score::text from users where id = %s", [ada]).fetchone()
    assert stored == (expected,)
    assert_all_right(db)


def test_the_sum_is_clamped_to_100(db: Db) -> None:
    ada = add_user(db, "ada", bio="builds things")
    add_project(db, ada, status="shipped")
    db.execute("update builder_score.signals set max_points = 100, scale = 600")
    drain(db)
    assert points(db, ada, "shipped") == 100
    assert points(db, ada, "profile") == pytest.approx(100)
    assert score(db, ada) == 100
    assert_all_right(db)


def test_the_highest_score_is_100(db: Db) -> None:
    ada = add_user(db, "ada", created_at=A_MOMENT - timedelta(days=365))
    for field in PROFILE_FIELDS:
        fill(db, ada, field, '{"any": "thing"}')
    for number in range(8):
        project = add_project(db, ada, status="shipped", github_stars=10**6)
        add_collaborator(db, project, add_user(db, f"friend{number}"))
    drain(db)
    assert score(db, ada) == 100
    assert_all_right(db)


def test_a_new_user_has_nothing(db: Db) -> None:
    ada = add_user(db, "ada", builder_score=None)
    drain(db)
    assert score(db, ada) == 0
    assert_all_right(db)


# the formula's tables -----------------------------------------------------------------------------


def shining_user(db: Db) -> UUID:
    """Points in every signal."""
    ada = add_user(db, "ada", bio="builds things", created_at=A_MOMENT)
    project = add_project(db, ada, status="shipped", github_stars=9)
    add_collaborator(db, project, add_user(db, "bob"))
    return ada


@pytest.mark.parametrize("signal", ["shipped", "vouches", "impact", "profile", "age"])
def test_a_signal_with_maximum_0_is_off(db: Db, signal: str) -> None:
    ada = shining_user(db)
    before = {name: value[1] for name, value in explained(db, ada).items()}
    assert before[signal] > 0
    set_signal(db, signal, "max_points", 0)
    after = {name: value[1] for name, value in explained(db, ada).items()}
    assert after == before | {signal: 0}
    drain(db)
    assert_all_right(db)


@pytest.mark.parametrize("signal", ["shipped", "vouches", "impact", "profile", "age"])
def test_maxima_and_scales_are_rows(db: Db, signal: str) -> None:
    ada = shining_user(db)
    before = points(db, ada, signal)
    set_signal(db, signal, "max_points", before / 2)
    assert points(db, ada, signal) == pytest.approx(before / 2)
    set_signal(db, signal, "scale", 0.001)
    assert 0 < points(db, ada, signal) < 0.1
    drain(db)
    assert_all_right(db)


def test_statuses_that_mean_shipped_are_rows(scratch: Db) -> None:
    ada = add_user(scratch, "ada")
    for status in ("shipped", "launched", "idea"):
        add_project(scratch, ada, status=status)
    scratch.execute("insert into builder_score.statuses values ('shipped', 'launched')")
    assert explained(scratch, ada)["shipped"][0] == 2
    scratch.execute("delete from builder_score.statuses where status = 'shipped'")
    assert explained(scratch, ada)["shipped"][0] == 1
    scratch.execute("truncate builder_score.statuses")
    assert explained(scratch, ada)["shipped"][0] == 0


def test_statuses_that_mean_confirmed_are_rows(scratch: Db) -> None:
    ada, bob = add_user(scratch, "ada"), add_user(scratch, "bob")
    add_collaborator(scratch, add_project(scratch, ada), bob, "accepted")
    assert explained(scratch, bob)["vouches"][0] == 0
    scratch.execute("insert into builder_score.statuses values ('confirmed', 'accepted')")
    assert explained(scratch, ada)["vouches"][0] == 1
    assert explained(scratch, bob)["vouches"][0] == 1
    # "shipped" says nothing of a collaboration, nor "confirmed" of a project.
    add_collaborator(
        scratch, add_project(scratch, add_user(scratch, "eve"), status="confirmed"), ada, "shipped"
    )
    assert explained(scratch, ada)["vouches"][0] == 1


def test_statuses_may_be_enums(db: Db) -> None:
    ada, bob = add_user(db, "ada"), add_user(db, "bob")
    reattach(
        db,
        "create type project_status as enum ('in_progress', 'shipped')",
        "create type collaboration_status as enum ('pending', 'confirmed')",
        "alter table projects alter status drop default, "
        "alter status type project_status using status::project_status",
        "alter table project_collaborators alter status drop default, "
        "alter status type collaboration_status using status::collaboration_status",
    )
    project = add_project(db, ada, status="in_progress")
    invite = add_collaborator(db, project, bob, "pending")
    drain(db)
    db.execute("update projects set status = 'shipped'")
    db.execute("update project_collaborators set status = 'confirmed' where id = %s", [invite])
    assert explained(db, ada)["shipped"][0] == 1
    assert explained(db, bob)["vouches"][0] == 1
    configure(db, debounce_window="0")
    drain(db)
    assert (score(db, ada), score(db, bob)) == (18, 8)
    assert_all_right(db)


def test_impact_keys_are_rows(scratch: Db) -> None:
    ada = add_user(scratch, "ada")
    metrics = {"users": 9, "downloads": 90, "nested": {"downloads": 1000}, "": 5}
    add_project(scratch, ada, impact_metrics=metrics)
    assert explained(scratch, ada)["impact"][0] == 9
    scratch.execute("insert into builder_score.impact_keys values ('downloads')")
    assert explained(scratch, ada)["impact"] == (99, pytest.approx(8))
    scratch.execute("delete from builder_score.impact_keys where key = 'users'")
    assert explained(scratch, ada)["impact"][0] == 90
    scratch.execute("truncate builder_score.impact_keys")
    assert explained(scratch, ada)["impact"][0] == 0


@pytest.mark.parametrize(
    "statement",
    [
        "update builder_score.signals set max_points = 29 where signal = 'shipped'",
        "update builder_score.signals set scale = 9 where signal = 'shipped'",
        "update builder_score.signals set scale = scale / 2",
        "delete from builder_score.signals where signal = 'age'",
        "truncate builder_score.signals",
        "insert into builder_score.statuses values ('shipped', 'launched')",
        "insert into builder_score.statuses values ('shipped', 'x'), ('confirmed', 'y')",
        "update builder_score.statuses set status = 'live' where meaning = 'shipped'",
        "delete from builder_score.statuses where meaning = 'confirmed'",
        "truncate builder_score.statuses",
        "insert into builder_score.impact_keys values ('downloads')",
        "update builder_score.impact_keys set key = 'downloads'",
        "delete from builder_score.impact_keys",
        "truncate builder_score.impact_keys",
    ],
)
def test_changing_the_formula_enqueues_everyone_with_one_row(
    scratch: Db, statement: LiteralString
) -> None:
    shining_user(scratch)
    scratch.execute("delete from builder_score.score_recalc_queue")
    scratch.execute(statement)
    assert [row[:3] for row in queue(scratch)] == [EVERYONE]


@pytest.mark.parametrize(
    "statement",
    [
        "update builder_score.signals set max_points = max_points, scale = scale",
        "update builder_score.signals set description = 'other words'",
        "update builder_score.statuses set status = status",
        "update builder_score.impact_keys set key = key",
        "delete from builder_score.impact_keys where key = 'no such key'",
    ],
)
def test_a_formula_that_stays_the_same_enqueues_nobody(
    scratch: Db, statement: LiteralString
) -> None:
    shining_user(scratch)
    scratch.execute("delete from builder_score.score_recalc_queue")
    scratch.execute(statement)
    assert queue(scratch) == []


def test_a_changed_formula_reaches_every_stored_score(db: Db) -> None:
    ada = shining_user(db)
    configure(db, debounce_window="0")
    drain(db)
    before = score(db, ada)
    db.execute("update builder_score.signals set scale = scale / 2")
    db.execute("insert into builder_score.statuses values ('shipped', 'in_progress')")
    drain(db)
    assert score(db, ada) != before
    assert_all_right(db)
