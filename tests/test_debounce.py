"""One recalculation a window and user, however many events; and what goes past the window."""

import itertools
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection

from tests.community import add_project, add_user, configure, drain, queue, score
from tests.interleave import Sessions, assert_right, close_windows, make_due, until
from tests.recalculations import note_recalculations


@pytest.fixture
def user(db: Connection[Any]) -> UUID:
    """Somebody whose window has just been opened, and of whom nothing is queued."""
    user = add_user(db, "ann")
    drain(db)
    assert (queue(db), recalculations(db)) == ([], 1)
    return user


def recalculations(db: Connection[Any]) -> int:
    row = db.execute("select recalculated from builder_score.health").fetchone()
    assert row is not None
    return row[0]


def dues(db: Connection[Any]) -> list[tuple[bool, int]]:
    """Of each queue row: whether it is due exactly when its user's window closes; its priority."""
    return db.execute("""
        select q.not_before = s.computed_at + w.debounce_window, q.priority
        from builder_score.score_recalc_queue as q
        join builder_score.score_state as s using (user_id)
        cross join builder_score.settings as w
        order by q.id
    """).fetchall()


def ship(db: Connection[Any], owner: UUID, count: int = 1) -> None:
    for _ in range(count):
        add_project(db, owner, status="shipped")


def test_the_first_event_is_due_at_once(db: Connection[Any]) -> None:
    user = add_user(db, "ann", bio="bio")
    drain(db)
    assert score(db, user) == 3
    assert_right(db)


def test_the_first_event_after_a_window_is_due_at_once(db: Connection[Any], user: UUID) -> None:
    close_windows(db)
    ship(db, user)
    drain(db)
    assert score(db, user) == 10
    assert_right(db)


def test_events_in_a_window_become_one_recalculation_when_it_closes(
    db: Connection[Any], user: UUID
) -> None:
    ship(db, user, 3)
    drain(db)
    assert (score(db, user), recalculations(db)) == (0, 1)
    assert dues(db) == [(True, 10)], "coalesced, and due when the window closes"

    close_windows(db)
    drain(db)
    assert (score(db, user), recalculations(db)) == (20, 2)
    assert_right(db)


def test_a_window_cannot_be_pushed_back(db: Connection[Any], user: UUID) -> None:
    for _ in range(3):
        ship(db, user)
        drain(db)
        assert dues(db) == [(True, 10)]
        # looked at too early, as a late commit or another worker would make it
        make_due(db)
        drain(db)
        assert dues(db) == [(True, 10)]
    assert recalculations(db) == 1


def test_what_is_put_off_keeps_the_best_priority_and_counts_no_attempt(
    db: Connection[Any], user: UUID
) -> None:
    for priority in (20, 10, 20):
        db.execute("select builder_score.enqueue(%s, %s)", [user, priority])
        drain(db)
    assert dues(db) == [(True, 10)]
    state = db.execute("select attempts, retry_at from builder_score.score_state").fetchall()
    assert state == [(0, None)]


def test_priority_0_goes_past_the_window_and_answers_what_waited(
    db: Connection[Any], user: UUID
) -> None:
    ship(db, user)
    drain(db)
    assert score(db, user) == 0
    db.execute("select builder_score.enqueue(%s, 0)", [user])
    drain(db)
    assert (score(db, user), recalculations(db)) == (10, 2)
    assert_right(db)


def test_a_forced_recalculation_opens_a_window_too(db: Connection[Any], user: UUID) -> None:
    close_windows(db)
    db.execute("select builder_score.enqueue(%s, 0)", [user])
    drain(db)
    ship(db, user)
    drain(db)
    assert dues(db) == [(True, 10)]
    assert (score(db, user), recalculations(db)) == (0, 2)


def test_recalculate_opens_a_window_too(db: Connection[Any], user: UUID) -> None:
    close_windows(db)
    db.execute("select builder_score.recalculate(%s)", [user])
    ship(db, user)
    drain(db)
    assert dues(db) == [(True, 10)]
    assert score(db, user) == 0


def test_one_users_window_is_not_anothers(db: Connection[Any], user: UUID) -> None:
    other = add_user(db, "bob", bio="bio")
    ship(db, user)
    drain(db)
    assert (score(db, user), score(db, other)) == (0, 3)


def test_a_window_of_0_is_none(db: Connection[Any], user: UUID) -> None:
    configure(db, debounce_window="0")
    for expected in (10, 16):
        ship(db, user)
        drain(db)
        assert score(db, user) == expected
    assert recalculations(db) == 3
    assert_right(db)


def test_a_changed_window_counts_from_the_next_batch(db: Connection[Any], user: UUID) -> None:
    ship(db, user)
    configure(db, debounce_window="1 hour")
    drain(db)
    assert dues(db) == [(True, 10)]
    configure(db, debounce_window="0")
    db.execute("select builder_score.enqueue(%s)", [user])
    drain(db)
    assert score(db, user) == 10
    assert_right(db)


def test_unforced_recalculations_are_a_window_apart_under_endless_events(
    db: Connection[Any], sessions: Sessions
) -> None:
    configure(db, debounce_window="0.4 seconds")
    note_recalculations(db)
    users = [add_user(db, "ann"), add_user(db, "bob")]
    worker = sessions("worker")
    worker.start("call builder_score.run_worker('30 seconds')")

    stars = itertools.count(1)
    projects = [add_project(db, user) for user in users]

    def written_again_and_recalculated_five_times() -> bool:
        db.execute(
            "update projects set github_stars = %s where id = any(%s)", [next(stars), projects]
        )
        row = db.execute(
            "select min(n) from (select count(*) as n from recalculations group by user_id) c"
        )
        return (row.fetchall()[0][0] or 0) >= 5

    until(written_again_and_recalculated_five_times, "five recalculations of each")
    configure(db, paused=True)
    worker.finish()
    (least,) = db.execute("""
        select min(gap) >= interval '0.4 seconds'
        from (
            select computed_at - lag(computed_at) over (partition by user_id order by computed_at)
                as gap
            from recalculations
        ) as g
    """).fetchall()
    assert least == (True,)
    configure(db, paused=False)
    close_windows(db)
    drain(db)
    assert_right(db)


def test_an_event_in_a_window_is_answered_when_the_window_closes(
    db: Connection[Any], sessions: Sessions
) -> None:
    configure(db, debounce_window="1 second")
    user = add_user(db, "ann")
    worker = sessions("worker")
    worker.start("call builder_score.run_worker('30 seconds')")
    until(lambda: recalculations(db) == 1, "the first recalculation")
    ship(db, user, 5)
    until(lambda: score(db, user) == 26, "the score of five shipped projects")
    configure(db, paused=True)
    worker.finish()
    assert recalculations(db) == 2
    assert_right(db)
