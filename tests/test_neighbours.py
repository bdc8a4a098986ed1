"""While more is due than a batch takes: eight batches at once, taken in the order of ids."""

from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection

from tests.batches import Run
from tests.community import configure, one
from tests.interleave import assert_right, settle
from tests.statements import run

BATCH = 10
CROWD = 9 * BATCH


@pytest.fixture(autouse=True)
def no_window(db: Connection[Any]) -> None:
    configure(db, debounce_window="0", batch_size=BATCH, batch_target="10 seconds")


def person(number: int) -> UUID:
    return UUID(int=number)


@pytest.fixture
def crowd(db: Connection[Any]) -> list[UUID]:
    """People in the order of their ids, due in another one."""
    people = [person(number) for number in range(1, CROWD + 1)]
    for number, user in enumerate(people):
        db.execute(
            "insert into users (id, email, username, bio) values (%s, %s, %s, 'bio')",
            [user, f"{number}@example.org", f"user{number}"],
        )
    settle(db)
    for place, number in enumerate(number * 37 % CROWD for number in range(CROWD)):
        enqueue(db, people[number], 10, CROWD - place)
    return people


def enqueue(db: Connection[Any], user: UUID, priority: int = 10, seconds_ago: int = 0) -> None:
    db.execute(
        "insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)"
        " values (%s, %s, 'test', clock_timestamp() - make_interval(secs => %s))",
        [user, priority, seconds_ago],
    )


def due(db: Connection[Any]) -> set[UUID]:
    return {user for (user,) in db.execute("select user_id from builder_score.score_recalc_queue")}


def taken(db: Connection[Any], worker: Run) -> list[UUID]:
    """Run a batch; name whom it took, in the order of their ids."""
    before = due(db)
    assert worker.batch()[0] > 0
    return sorted(before - due(db))


def in_a_circle(crowd: list[UUID], waiting: set[UUID], last: UUID) -> list[UUID]:
    """Give the plain computation: who waits, from the last one on."""
    start = crowd.index(last) + 1
    return [user for user in crowd[start:] + crowd[:start] if user in waiting]


def test_neighbours_are_taken_together(db: Connection[Any], crowd: list[UUID]) -> None:
    by_age = [crowd[number * 37 % CROWD] for number in range(CROWD)]
    worker = Run(db, BATCH)
    first = taken(db, worker)
    assert set(first) == set(by_age[:BATCH])
    oldest = by_age[BATCH]  # comes at once
    order = in_a_circle(crowd, due(db) - {oldest}, first[-1])
    assert set(taken(db, worker)) == {oldest, *order[: BATCH - 1]}
    for start in range(BATCH - 1, len(order), BATCH):
        assert set(taken(db, worker)) == set(order[start : start + BATCH])
    assert due(db) == set()
    assert_right(db)


def test_those_behind_wait_for_no_longer_than_patience(
    db: Connection[Any], crowd: list[UUID]
) -> None:
    by_age = [crowd[number * 37 % CROWD] for number in range(CROWD)]
    worker = Run(db, BATCH)
    last = taken(db, worker)[-1]
    for _ in range(3):
        # what is ahead is from long ago: another eight, from where these ended
        run(db, "update memory set it.ahead_since = (it).ahead_since - interval '1 hour'")
        waiting = due(db)
        oldest = next(user for user in by_age if user in waiting)
        expected = in_a_circle(crowd, waiting - {oldest}, last)[: BATCH - 1]
        assert set(taken(db, worker)) == {oldest, *expected}
        last = expected[-1]
    settle(db)
    assert_right(db)


@pytest.mark.parametrize("batches", [2, 3])
@pytest.mark.parametrize(("priority", "at_once"), [(0, True), (10, False), (20, False)])
def test_who_comes_with_a_better_priority_does_not_wait_for_those_ahead(
    db: Connection[Any], crowd: list[UUID], batches: int, priority: int, at_once: bool
) -> None:
    worker = Run(db, BATCH)
    for _ in range(batches):
        taken(db, worker)
    assert one(db, "select cardinality((it).ahead) from memory") == (9 - batches) * BATCH
    late = [person(CROWD + number) for number in range(1, 5)]
    for user in late:
        db.execute(
            "insert into users (id, email, username) values (%s, %s, %s)",
            [user, str(user), str(user)],
        )
    db.execute("delete from builder_score.score_recalc_queue where user_id = any(%s)", [late])
    for user in late:
        enqueue(db, user, priority)
    assert set(taken(db, worker)) >= set(late) or not at_once
    assert at_once or not due(db).isdisjoint(late)
    settle(db)
    assert_right(db)


def test_among_several_priorities_the_best_is_taken_first(
    db: Connection[Any], crowd: list[UUID]
) -> None:
    """As many as three batches take, of a better priority than the crowd, and younger."""
    worker = Run(db, BATCH)
    taken(db, worker)
    better = [user for user in crowd if user in due(db)][-3 * BATCH :]
    db.execute(
        "update builder_score.score_recalc_queue set priority = 0, not_before = clock_timestamp()"
        " where user_id = any(%s)",
        [better],
    )
    for _ in range(4):  # in each a tenth is for those who wait for longest
        taken(db, worker)
    assert due(db).isdisjoint(better)
    settle(db)
    assert_right(db)


def test_who_was_done_by_another_worker_is_not_done_again(
    db: Connection[Any], crowd: list[UUID]
) -> None:
    worker = Run(db, BATCH)
    taken(db, worker)
    taken(db, worker)
    waiting = len(due(db))
    before = one(db, "select recalculated from builder_score.worker_status where worker = 'drain'")
    run(db, "call builder_score.drain()")
    done = one(db, "select recalculated from builder_score.worker_status where worker = 'drain'")
    assert done - before == waiting
    assert worker.batch()[0] == 0
    assert_right(db)


def test_without_a_crowd_nobody_is_ahead(db: Connection[Any], crowd: list[UUID]) -> None:
    worker = Run(db, BATCH)
    settle(db)
    for user in crowd[: BATCH - 1]:
        enqueue(db, user)
    assert taken(db, worker) == crowd[: BATCH - 1]
    assert one(db, "select (it).swept_to is null and (it).ahead is null from memory")


def test_beside_another_worker_our_share_alone_is_swept_through(
    db: Connection[Any], crowd: list[UUID]
) -> None:
    Run(db, BATCH)
    run(db, f"update memory set it.swept_to = '{crowd[0]}'")
    next_of_two = """
        select array_remove(c.user_ids || (c.memory).ahead, c.first_of_them)::uuid[]
        from memory as m
        cross join lateral builder_score.choose_next(
            10, 0, '{}', null, 0, 2, '1 hour', m.it) as c
    """
    swept = one(db, next_of_two)
    assert len(swept) > BATCH
    shares = "select bool_and(builder_score.is_share(id, 0, 2)) from unnest(%s::uuid[]) as id"
    assert one(db, shares, swept)
    # chosen while there was nobody else
    run(
        db,
        f"update memory set it.ahead = '{{{','.join(map(str, crowd))}}}', it.ahead_priority = 10,"
        " it.ahead_since = clock_timestamp()",
    )
    slice_of_two = next_of_two.replace("|| (c.memory).ahead", "")
    assert set(one(db, slice_of_two)) < set(crowd[:BATCH])
    assert one(db, shares, one(db, slice_of_two))
