"""What people type: no stored value makes the computation raise, and each counts for what it is."""

import json
from decimal import Decimal
from typing import Any, LiteralString
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection, sql

from tests.community import add_project, add_user, drain
from tests.oracle import WHITE_SPACE, Score, assert_all_right, scores

Db = Connection[Any]

HUGE = 10**400
MANY_EXAMPLES = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    # The shared connection takes every example back.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def scratch(scratch: Db) -> Db:
    """The database for tests that commit nothing, with one user who owns one project."""
    add_project(scratch, add_user(scratch, "ada"))
    return scratch


def write(db: Db, table: str, column: str, value: object) -> None:
    """Write a value as the text of its literal, as an application's driver does."""
    query = sql.SQL("update {} set {} = %s").format(sql.Identifier(table), sql.Identifier(column))
    db.execute(query, [value])


def change_type(db: Db, table: str, column: str, type_name: LiteralString) -> None:
    query = sql.SQL(
        "alter table {0} alter {1} drop default, alter {1} type {2} using {1}::text::{2}"
    )
    db.execute("select builder_score.detach()")
    db.execute(query.format(sql.Identifier(table), sql.Identifier(column), sql.SQL(type_name)))
    db.execute("select builder_score.attach()")


def the_signal(db: Db, signal: str) -> tuple[Decimal, float]:
    """Raw value and points of the only user's signal."""
    query = "select e.raw, e.points from users, builder_score.explain(id) as e where signal = %s"
    (row,) = db.execute(query, [signal]).fetchall()
    return row


def the_oracles(db: Db) -> Score:
    (only,) = scores(db).values()
    return only


def assert_like_the_oracle(db: Db, signal: str, maximum: float) -> None:
    raw, points = the_signal(db, signal)
    expected = the_oracles(db).signals[signal]
    assert 0 <= points <= maximum
    assert points == pytest.approx(expected.points, abs=1e-9)
    # Nobody tells 10^400 from more.
    assert float(min(raw, Decimal(10) ** 30)) == pytest.approx(
        float(min(expected.raw, Decimal(10) ** 30)), abs=1e-15
    )


# impact_metrics -----------------------------------------------------------------------------------

COUNTS = [
    ("12", 12),
    ("12.5", 12.5),
    ("0", 0),
    ("1e3", 1000),
    ("1e-400", 0),
    ("1e-5000", 0),
    ('"12"', 12),
    ('"12.5"', 12.5),
    ('"0012"', 12),
    ('"0"', 0),
    ('"12.50000000000000000000000000000000000000000000000000000000001"', 12.5),
    (f'"0.{"0" * 500}1"', 0),
]
FAR_BEYOND = [
    ("10^400", str(HUGE)),
    ("1e400", "1e400"),
    ("1e100000", "1e100000"),
    ("10^400 as text", f'"{HUGE}"'),
    ("a number of 100,000 digits", "9" * 100_000),
    ("text of 401 digits", '"' + "9" * 401 + '"'),
    ("text of 1 and 500 zeros", '"1' + "0" * 500 + '"'),
    ("text of 10,000 digits", '"' + "9" * 10_000 + '"'),
    ("text of 20,000 digits", '"' + "9" * 20_000 + '"'),
    ("text of 1,000,000 digits", '"' + "9" * 1_000_000 + '"'),
    ("text of many digits and decimals", '"' + "9" * 500 + "." + "9" * 30_000 + '"'),
]
NOTHING = [
    "-1",
    "-12.5",
    "-1e400",
    "true",
    "false",
    "null",
    "[12]",
    "[]",
    '{"users": 12}',
    "{}",
    '""',
    '" "',
    '" 12 "',
    '"12 "',
    '"12\\n"',
    '"\\n12"',
    '"1.2k"',
    '"1e5"',
    '"-5"',
    '"+5"',
    '"12."',
    '".5"',
    '"."',
    '"1,000"',
    '"1_000"',
    '"1 000"',
    '"0x10"',
    '"NaN"',
    '"Infinity"',
    '"12.5.1"',
    '"true"',
    '"\u0661\u0662"',  # digits, but not of the form 12
    '"\uff11\uff12"',
    '"\u00bd"',
    f'"-{HUGE}"',
    '"' + "9" * 20_000 + 'k"',
]


@pytest.mark.parametrize(("value", "expected"), COUNTS, ids=lambda value: str(value)[:20])
def test_numbers_and_text_of_the_form_12_or_12_5_count(
    scratch: Db, value: str, expected: float
) -> None:
    write(scratch, "projects", "impact_metrics", f'{{"users": {value}}}')
    assert float(the_signal(scratch, "impact")[0]) == pytest.approx(expected, abs=1e-19)
    assert_like_the_oracle(scratch, "impact", 20)


@pytest.mark.parametrize(
    "value", [value for _, value in FAR_BEYOND], ids=[n for n, _ in FAR_BEYOND]
)
def test_a_number_beyond_all_types_is_merely_large(scratch: Db, value: str) -> None:
    write(scratch, "projects", "impact_metrics", f'{{"users": {value}}}')
    assert the_signal(scratch, "impact")[1] == 20
    # Its logarithm is at least 400.
    scratch.execute("update builder_score.signals set scale = 0.01 where signal = 'impact'")
    assert the_signal(scratch, "impact")[1] >= 0.01 * 400 * (1 - 1e-9)


@pytest.mark.parametrize("value", NOTHING, ids=lambda value: ascii(value)[:20])
def test_anything_else_counts_nothing(scratch: Db, value: str) -> None:
    write(scratch, "projects", "impact_metrics", f'{{"users": {value}}}')
    assert the_signal(scratch, "impact") == (0, 0)


@pytest.mark.parametrize(
    "value", ["{}", "[]", "null", "7", '"users"', '["users"]', '[{"users": 9}]', '{"Users": 9}']
)
def test_metrics_without_the_key_count_nothing(scratch: Db, value: str) -> None:
    write(scratch, "projects", "impact_metrics", value)
    assert the_signal(scratch, "impact") == (0, 0)


def test_metrics_that_are_null_count_nothing(scratch: Db) -> None:
    scratch.execute("alter table projects alter impact_metrics drop not null")
    write(scratch, "projects", "impact_metrics", None)
    assert the_signal(scratch, "impact") == (0, 0)


def test_a_value_below_zero_takes_nothing_from_the_others(scratch: Db) -> None:
    write(scratch, "projects", "impact_metrics", '{"users": -90}')
    write(scratch, "projects", "github_stars", 9)
    ((owner,),) = scratch.execute("select owner_id from projects").fetchall()
    add_project(scratch, owner, github_stars=-1000, impact_metrics={"users": 90})
    assert the_signal(scratch, "impact") == (99, pytest.approx(8))


def test_many_numbers_beyond_all_types_add_up(scratch: Db) -> None:
    ((owner,),) = scratch.execute("select owner_id from projects").fetchall()
    for _ in range(30):
        add_project(scratch, owner)
    for value in ("9" * 131_072, "1e131071", "1e-16000", '"' + "9" * 9000 + '"'):
        write(scratch, "projects", "impact_metrics", f'{{"users": {value}}}')
        assert 0 <= the_signal(scratch, "impact")[1] <= 20


def test_one_odd_value_does_not_keep_another_from_counting(scratch: Db) -> None:
    scratch.execute("insert into builder_score.impact_keys values ('downloads')")
    write(scratch, "projects", "impact_metrics", '{"users": "1.2k", "downloads": 9}')
    assert the_signal(scratch, "impact")[0] == 9


# hosts that keep them in other types --------------------------------------------------------------


@pytest.mark.parametrize("type_name", ["json", "text"])
def test_metrics_may_be_kept_as_json_or_text(scratch: Db, type_name: LiteralString) -> None:
    change_type(scratch, "projects", "impact_metrics", type_name)
    for value, expected in [
        ('{"users": 12}', 12),
        (' {"users" :\n"12.5"} ', 12.5),
        ('{"users": 1, "users": 2}', 2),
        ('{"users": -1}', 0),
        ("[1]", 0),
        ("null", 0),
        ('{"users": {"users": 3}}', 0),
    ]:
        write(scratch, "projects", "impact_metrics", value)
        assert the_signal(scratch, "impact")[0] == Decimal(str(expected)), value
    write(scratch, "projects", "impact_metrics", f'{{"users": {HUGE}}}')
    assert the_signal(scratch, "impact")[1] == 20


@pytest.mark.parametrize("value", ["", " ", "12", "users", "{users: 12}", '{"users": 12', "NaN"])
def test_metrics_kept_as_text_that_is_not_json_count_nothing(scratch: Db, value: str) -> None:
    change_type(scratch, "projects", "impact_metrics", "text")
    write(scratch, "projects", "impact_metrics", value)
    assert the_signal(scratch, "impact") == (0, 0)


@pytest.mark.parametrize("value", ['{"users": 9, "x": "\\u0000"}', '{"users": 1e999999}'])
def test_json_that_jsonb_cannot_hold_does_not_raise(scratch: Db, value: str) -> None:
    change_type(scratch, "projects", "impact_metrics", "json")
    write(scratch, "projects", "impact_metrics", value)
    assert 0 <= the_signal(scratch, "impact")[1] <= 20


@pytest.mark.parametrize(
    ("type_name", "values"),
    [
        ("integer", [(None, 0), (-5, 0), (0, 0), (7, 7), (2**31 - 1, 2**31 - 1)]),
        ("bigint", [(None, 0), (-(2**63), 0), (2**63 - 1, 2**63 - 1)]),
        ("smallint", [(None, 0), (-1, 0), (9, 9)]),
        (
            "numeric",
            [(None, 0), (-1, 0), ("NaN", 0), ("Infinity", 0), ("12.5", 12.5), ("1e-400", 0)],
        ),
        (
            "double precision",
            [(None, 0), (-1, 0), ("NaN", 0), ("Infinity", 0), ("12.5", 12.5), ("5e-324", 0)],
        ),
        ("real", [(None, 0), ("NaN", 0), ("Infinity", 0), ("-1", 0), ("12.5", 12.5)]),
        ("text", [(None, 0), ("", 0), ("1.2k", 0), (" 12 ", 0), ("-5", 0), ("12.5", 12.5)]),
        ("char(12)", [(None, 0), ("", 0), ("1.2k", 0), ("12", 12), ("12.5", 12.5)]),
        ("jsonb", [(None, 0), ("null", 0), ("12.5", 12.5), ('"12"', 12), ('{"12": 12}', 0)]),
        ("json", [(None, 0), ("12.5", 12.5), ('"12"', 12), (r'"\u0000"', 0)]),
    ],
)
def test_stars_may_be_kept_in_any_type(
    scratch: Db, type_name: LiteralString, values: list[tuple[object, float]]
) -> None:
    scratch.execute("alter table projects alter github_stars drop not null")
    change_type(scratch, "projects", "github_stars", type_name)
    for value, expected in values:
        write(scratch, "projects", "github_stars", value)
        assert float(the_signal(scratch, "impact")[0]) == pytest.approx(expected), value
        assert_like_the_oracle(scratch, "impact", 20)


@pytest.mark.parametrize(
    ("type_name", "value"),
    [("numeric", str(HUGE)), ("numeric", "9" * 131_000), ("double precision", "1.7e308")],
)
def test_stars_beyond_all_types_are_merely_many(
    scratch: Db, type_name: LiteralString, value: str
) -> None:
    change_type(scratch, "projects", "github_stars", type_name)
    write(scratch, "projects", "github_stars", value)
    assert the_signal(scratch, "impact")[1] == 20


@pytest.mark.parametrize("column", ["github_stars", "impact_metrics"])
def test_a_host_without_stars_or_metrics_has_the_other(scratch: Db, column: str) -> None:
    write(scratch, "projects", "github_stars", 9)
    write(scratch, "projects", "impact_metrics", '{"users": 9}')
    scratch.execute("select builder_score.detach()")
    scratch.execute(sql.SQL("alter table projects drop column {}").format(sql.Identifier(column)))
    scratch.execute("select builder_score.attach()")
    assert the_signal(scratch, "impact")[0] == 9


# arbitrary values ---------------------------------------------------------------------------------

# PostgreSQL's text holds every character but this one; half a surrogate pair is no character.
CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
NUMBERS = st.from_regex(
    r"-?(0|[1-9][0-9]{0,30}|[1-9][0-9]{300,420})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,4})?",
    fullmatch=True,
)
TYPED = st.one_of(
    st.from_regex(r"[0-9]{1,30}(\.[0-9]{1,30})?", fullmatch=True),
    st.text(alphabet="0123456789.eE+-k, \n", max_size=12),
    st.text(alphabet=CHARACTERS, max_size=12),
)
SCALARS = st.one_of(NUMBERS, TYPED.map(json.dumps), st.sampled_from(["null", "true", "false"]))


def _json_texts(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """JSON as text, because Python has no number for 1e400."""
    keys = st.one_of(st.just("users"), st.text(alphabet=CHARACTERS, max_size=5))
    return st.one_of(
        st.lists(values, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(keys, values, max_size=3).map(
            lambda items: (
                "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in items.items()) + "}"
            )
        ),
    )


JSON = st.recursive(SCALARS, _json_texts, max_leaves=6)
METRICS = st.one_of(JSON, JSON.map(lambda value: f'{{"users": {value}}}'))


@MANY_EXAMPLES
@given(metrics=METRICS)
def test_no_json_in_impact_metrics_raises(scratch: Db, metrics: str) -> None:
    write(scratch, "projects", "impact_metrics", metrics)
    assert_like_the_oracle(scratch, "impact", 20)


@MANY_EXAMPLES
@given(links=JSON)
def test_no_json_in_contact_links_raises(scratch: Db, links: str) -> None:
    write(scratch, "users", "contact_links", links)
    assert_like_the_oracle(scratch, "profile", 15)


@MANY_EXAMPLES
@given(
    field=st.sampled_from(["avatar_url", "headline", "bio", "primary_role", "timezone"]),
    text=st.one_of(
        st.text(alphabet=CHARACTERS),
        st.text(alphabet=WHITE_SPACE),
        st.text(alphabet=WHITE_SPACE + "\x01\x1b\x1c\x1f\x7f\x9f\u180e\u200b\u2060\ufeff"),
    ),
)
def test_no_text_in_a_profile_field_raises(scratch: Db, field: str, text: str) -> None:
    write(scratch, "users", field, text)
    assert_like_the_oracle(scratch, "profile", 15)


def test_odd_values_become_scores_like_any_other(db: Db) -> None:
    """Through the worker, in one batch: nobody becomes a dead letter."""
    users: list[UUID] = []
    values = [value for _, value in FAR_BEYOND] + [value for value, _ in COUNTS] + NOTHING
    for number, value in enumerate(values):
        users.append(add_user(db, f"user{number}"))
        add_project(db, users[-1])
        db.execute(
            "update projects set impact_metrics = %s where owner_id = %s",
            [f'{{"users": {value}}}', users[-1]],
        )
    drain(db)
    failed = db.execute("select sum(failed) from builder_score.worker_status").fetchone()
    assert failed == (0,)
    assert_all_right(db)
