"""Workers in a batch at the same time: each takes its share, and all of it is done."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection

from tests.community import add_project, add_user, configure, drain, one, score
from tests.interleave import Session, Sessions, assert_right

BATCH = "select recalculated from builder_score.run_batch(%s)"
PLACE = "select place, places from builder_score.take_place()"
FIRST_PLACE = 101


@pytest.fixture(autouse=True)
def small_batches(db: Connection[Any]) -> None:
    configure(db, debounce_window="0", batch_size=10)


@pytest.fixture
def users(db: Connection[Any]) -> list[UUID]:
    """Forty people, due in this order; always the same ones, since shares go by the id."""
    return [add_user(db, f"user{number}", bio="bio", id=UUID(int=number)) for number in range(40)]


@pytest.fixture
def other(sessions: Sessions) -> Iterator[Session]:
    """Somebody who is in a batch all the time, and does nothing."""
    other = sessions("other")
    other.run("begin")
    assert other.run(PLACE) == [(0, 1)]
    yield other
    other.run("rollback")


def share(db: Connection[Any], users: list[UUID], place: int, places: int) -> list[UUID]:
    """Those of the people who are that worker's first, in the given order."""
    query = "select builder_score.is_share(%s, %s, %s)"
    return [user for user in users if one(db, query, user, place, places)]


def chosen(db: Connection[Any], number: int = 0, place: int = 1, places: int = 2) -> set[UUID]:
    query = """
        select u::uuid
        from builder_score.choose_due(10, %s, '{}', place => %s, places => %s) as c
        cross join unnest(c.user_ids) as u
    """
    return {user for (user,) in db.execute(query, [number, place, places]).fetchall()}


def done(db: Connection[Any], users: list[UUID]) -> list[UUID]:
    return [user for user in users if score(db, user) == 3]


def test_everyone_is_in_exactly_one_share(db: Connection[Any], users: list[UUID]) -> None:
    for places in (1, 2, 3, 16):
        shares = [share(db, users, place, places) for place in range(places)]
        assert sorted(user for part in shares for user in part) == sorted(users)


def test_two_in_a_batch_take_different_people_and_put_nobody_off(
    db: Connection[Any], sessions: Sessions, other: Session, users: list[UUID]
) -> None:
    due = "select user_id, not_before from builder_score.score_recalc_queue order by id"
    before = db.execute(due).fetchall()
    first, second = sessions("first"), sessions("second")
    first.run("begin")
    assert first.run(BATCH, ["resident"]) == [(10,)]
    other.run("rollback")
    second.start(BATCH, ["drain"])
    # nobody whom it chose is in the first one's hands
    assert second.finish_without_waiting() == [(10,)]
    assert done(db, users) == share(db, users, 0, 2)[:10]
    first.run("commit")
    both = {*share(db, users, 0, 2)[:10], *share(db, users, 1, 2)[:10]}
    assert set(done(db, users)) == both
    # what is left is due as it was
    assert db.execute(due).fetchall() == [row for row in before if row[0] not in both]
    drain(db)
    assert_right(db)


def test_whom_the_other_one_holds_from_when_it_was_alone_is_left_to_it(
    db: Connection[Any], sessions: Sessions, users: list[UUID]
) -> None:
    first, second = sessions("first"), sessions("second")
    first.run("begin")
    assert first.run(BATCH, ["resident"]) == [(10,)]
    second.start("call builder_score.drain()")
    second.finish_without_waiting()
    assert done(db, users) == users[10:]
    first.run("commit")
    assert_right(db)


def test_places_are_those_of_who_is_in_a_batch_now(sessions: Sessions) -> None:
    first, second, third = (sessions(name) for name in ("first", "second", "third"))
    for place, session in enumerate((first, second, third)):
        session.run("begin")
        assert session.run(PLACE) == [(place, place + 1)]
    second.run("commit")
    assert second.run(PLACE) == [(1, 3)]
    first.run("rollback")
    assert second.run(PLACE) == [(0, 2)]


def test_a_share_is_anybodys_as_soon_as_its_worker_is_killed(
    db: Connection[Any], sessions: Sessions, users: list[UUID]
) -> None:
    killed, worker = sessions("killed"), sessions("worker")
    killed.run("begin")
    assert killed.run(BATCH, ["resident"]) == [(10,)]
    worker.run("begin")
    assert worker.run(PLACE) == [(1, 2)]
    worker.run("rollback")
    one(db, "select pg_terminate_backend(%s, 20000)", killed.pid)
    assert worker.run(PLACE) == [(0, 1)]
    worker.run(BATCH, ["drain"])
    assert done(db, users) == users[:10]
    drain(db)
    assert_right(db)


def test_a_crowd_that_leaves_no_place_still_works(
    db: Connection[Any], sessions: Sessions, users: list[UUID]
) -> None:
    crowd = sessions("crowd")
    crowd.run(f"select pg_advisory_lock(1651271539, n) from generate_series({FIRST_PLACE}, 124) n")
    assert sessions("worker").run(PLACE) == [(0, 1)]
    drain(db)
    assert done(db, users) == users
    assert_right(db)


def test_places_are_let_go_with_the_batch(db: Connection[Any]) -> None:
    db.execute(BATCH, ["drain"])
    assert one(db, "select count(*) from pg_locks where classid = 1651271539") == 0


def test_ones_own_share_comes_first_by_age_then_what_others_would_come_to_last(
    db: Connection[Any], users: list[UUID]
) -> None:
    window = users[:30]  # half as much again as two batches
    ours, theirs = share(db, window, 1, 2), share(db, window, 0, 2)
    assert chosen(db) == set([*ours, *reversed(theirs)][:10])
    db.execute("delete from builder_score.score_recalc_queue where user_id = any(%s)", [ours[3:]])
    window = [user for user in users if user not in ours[3:]][:30]
    ours, theirs = share(db, window, 1, 2), share(db, window, 0, 2)
    assert chosen(db) == set([*ours, *reversed(theirs)][:10])


def test_priority_comes_before_shares(db: Connection[Any], users: list[UUID]) -> None:
    urgent = share(db, users, 0, 2)[-5:]
    for user in urgent:
        db.execute("select builder_score.enqueue(%s, 0)", [user])
    assert set(urgent) < chosen(db)


def test_every_hundredth_place_is_for_the_oldest_of_any_share(
    db: Connection[Any], users: list[UUID]
) -> None:
    ours = share(db, users, 1, 2)
    (oldest,) = share(db, users, 0, 2)[:1]
    moment = "update builder_score.score_recalc_queue set not_before = now() - interval '1 hour'"
    db.execute(f"{moment} where user_id = %s".encode(), [oldest])
    assert len(ours) >= 10
    takes = [oldest in chosen(db, number) for number in range(20)]
    assert takes == [number % 10 == 9 for number in range(20)]


def test_a_share_whose_worker_does_nothing_is_done_by_the_others(
    db: Connection[Any], other: Session, users: list[UUID]
) -> None:
    assert other.run(PLACE) == [(0, 1)]
    drain(db)
    assert done(db, users) == users
    assert_right(db)


def test_who_is_locked_is_put_off_by_the_worker_whose_share_it_is(
    db: Connection[Any], sessions: Sessions, other: Session, users: list[UUID]
) -> None:
    application = sessions("application")
    application.run("begin")
    application.run("update users set username = username || 'x'")
    drain(db)
    put_off = db.execute("""
        select user_id from builder_score.score_recalc_queue
        where not_before > clock_timestamp() order by id
    """).fetchall()
    assert [user for (user,) in put_off] == share(db, users, 1, 2)
    other.run("rollback")
    drain(db)
    still = """
        select count(*) from builder_score.score_recalc_queue
        where not_before > enqueued_at + interval '1 second'
    """
    assert one(db, still) == len(users)
    application.run("rollback")
    other.run("begin")


def test_nobody_waits_for_who_begins_a_walk(
    db: Connection[Any], sessions: Sessions, users: list[UUID]
) -> None:
    db.execute("select builder_score.enqueue_everyone('test')")
    first, second = sessions("first"), sessions("second")
    first.run("begin")
    first.run(BATCH, ["resident"])
    second.start(BATCH, ["drain"])
    second.finish_without_waiting()
    assert one(db, "select last_error from builder_score.health") is None
    first.run("commit")
    assert one(db, "select reason from builder_score.backfill") == "test"
    drain(db)
    assert done(db, users) == users
    assert_right(db)


def test_project_rows_are_expanded_by_either(
    db: Connection[Any], sessions: Sessions, users: list[UUID]
) -> None:
    configure(db, batch_size=1)  # two times twenty project rows a batch
    drain(db)
    projects = [add_project(db, user) for user in users]
    db.execute("delete from builder_score.score_recalc_queue")
    db.execute(
        "insert into builder_score.score_recalc_queue (project_id, priority, reason)"
        " select p, 10, 'test' from unnest(%s::uuid[]) as p cross join generate_series(1, 2)",
        [projects],
    )
    first, second = sessions("first"), sessions("second")
    first.run("begin")
    first.run(BATCH, ["resident"])
    second.start(BATCH, ["drain"])
    second.finish_without_waiting()
    first.run("commit")
    left = "select count(*) from builder_score.score_recalc_queue where project_id is not null"
    assert one(db, left) == 0
    drain(db)
    assert_right(db)
