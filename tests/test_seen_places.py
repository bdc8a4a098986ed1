"""States are written where a batch has seen them, and found again where they are there no more."""

from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection

from tests.community import add_user, drain, one

WRITE = """
    select builder_score.write_states(
        array_agg(w.id::builder_score.user_id order by w.place),
        array_agg(w.score order by w.place),
        array_agg(null::bigint),
        '2030-01-01', 'stamp',
        array_agg(w.seen order by w.place))
    from unnest(%s::uuid[], %s::numeric[], %s::tid[]) with ordinality as w(id, score, seen, place)
"""


def places(db: Connection[Any], users: list[UUID]) -> list[str]:
    """Where the users' states are; (0,0) where there is none."""
    query = """
        select coalesce(s.ctid, '(0,0)')::text
        from unnest(%s::uuid[]) with ordinality as u(id, place)
        left join builder_score.score_state as s on s.user_id = u.id
        order by u.place
    """
    return [place for (place,) in db.execute(query, [users])]


def states(db: Connection[Any], users: list[UUID]) -> list[tuple[int, int | None, bool]]:
    """Score, the one before, and whether the state is the one that was written."""
    query = """
        select s.score::integer, s.previous_score::integer, s.formula_stamp = 'stamp'
        from unnest(%s::uuid[]) with ordinality as u(id, place)
        left join builder_score.score_state as s on s.user_id = u.id
        order by u.place
    """
    return db.execute(query, [users]).fetchall()


@pytest.fixture
def users(db: Connection[Any]) -> list[UUID]:
    """Two people with a score of 3."""
    people = [add_user(db, name, bio="bio") for name in ("ann", "bob")]
    drain(db)
    return people


def assert_counted(db: Connection[Any]) -> None:
    assert one(db, "select count(*) from builder_score.verify_score_counts()") == 0


def test_states_are_written_where_they_were_seen(db: Connection[Any], users: list[UUID]) -> None:
    db.execute(WRITE, [users, [5, 3], places(db, users)])
    assert states(db, users) == [(5, 3, True), (3, None, True)]
    assert_counted(db)


def test_a_state_that_was_written_elsewhere_meanwhile_is_found(
    db: Connection[Any], users: list[UUID]
) -> None:
    seen = places(db, users)
    db.execute(
        "update builder_score.score_state set retry_at = now() where user_id = %s", users[:1]
    )
    assert places(db, users) != seen
    db.execute(WRITE, [users, [5, 7], seen])
    assert states(db, users) == [(5, 3, True), (7, 3, True)]
    assert one(db, "select count(retry_at) from builder_score.score_state") == 0
    assert_counted(db)


def test_a_place_that_is_somebody_elses_by_now_is_left_to_them(
    db: Connection[Any], users: list[UUID]
) -> None:
    ann, bob = users
    db.execute(WRITE, [[ann], [5], places(db, [bob])])
    assert states(db, users) == [(5, 3, True), (3, None, False)]
    assert_counted(db)


def test_who_has_no_state_gets_one_beside_those_who_have(
    db: Connection[Any], users: list[UUID]
) -> None:
    db.execute("delete from builder_score.score_state where user_id = %s", users[1:])
    seen = places(db, users)
    assert seen[1] == "(0,0)"
    db.execute(WRITE, [users, [5, 7], seen])
    assert states(db, users) == [(5, 3, True), (7, None, True)]
    # and whose state was removed since it was seen
    seen = places(db, users)
    db.execute("delete from builder_score.score_state where user_id = %s", users[:1])
    db.execute(WRITE, [users, [5, 9], seen])
    assert states(db, users) == [(5, None, True), (9, 7, True)]
    assert_counted(db)


def test_compute_stops_in_time_but_not_before_fifty(db: Connection[Any]) -> None:
    people = db.execute("""
        insert into users (email, username)
        select 'u' || i, 'u' || i from generate_series(1, 60) as i returning id
    """).fetchall()
    ids = [user for (user,) in people]
    query = """
        select user_id, place
        from builder_score.compute(
            %s::uuid[]::builder_score.user_id[], array_fill(now(), array[60]), until => %s)
    """
    assert db.execute(query, [ids, "-infinity"]).fetchall() == list(
        zip(ids[:50], range(1, 51), strict=True)
    )
    assert db.execute(query, [ids, "infinity"]).fetchall() == list(
        zip(ids, range(1, 61), strict=True)
    )
    assert db.execute(query, [ids, None]).fetchall() == list(zip(ids, range(1, 61), strict=True))
