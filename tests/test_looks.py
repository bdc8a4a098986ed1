"""Where a look begins, and who is alone in a batch: nobody is left out, and nobody starves."""

from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection

from tests.batches import Run
from tests.community import add_project, add_user, configure, drain, one, queue, score
from tests.interleave import Sessions, assert_right, settle
from tests.statements import run

MANY = 1_001
"""Projects with which somebody is alone in a batch."""


@pytest.fixture(autouse=True)
def no_window(db: Connection[Any]) -> None:
    configure(db, debounce_window="0")


def enqueue_long_ago(session: Any, user: UUID, ago: str = "1 hour") -> None:
    session.run(
        "insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)"
        f" values ('{user}', 10, 'long ago', clock_timestamp() - interval '{ago}')"
    )


# Late commits -------------------------------------------------------------------------------------


def test_who_is_committed_late_is_found_by_the_next_look_in_full(
    db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ann", bio="bio")
    settle(db)
    worker = Run(db)
    app = sessions("app")
    app.run("begin")
    enqueue_long_ago(app, user)
    assert worker.batch() == (0, True, True)
    worker.put_off_the_full_look()
    app.run("commit")
    assert worker.batch() == (0, True, False), "it began behind the row"
    worker.let_it_be_time()
    assert worker.batch()[0] == 1
    assert queue(db) == []
    assert_right(db)


def test_who_commits_within_a_second_is_found_by_any_look(
    db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ann", bio="bio")
    settle(db)
    worker = Run(db)
    app = sessions("app")
    app.run("begin")
    app.run(f"select builder_score.enqueue('{user}')")
    assert worker.batch() == (0, True, True)
    worker.put_off_the_full_look()
    app.run("commit")
    assert worker.batch() == (1, True, False)


def test_a_look_begins_with_the_first_row_that_was_left(db: Connection[Any]) -> None:
    users = [add_user(db, name, bio="bio") for name in "abc"]
    settle(db)
    configure(db, batch_size=1)
    worker = Run(db)
    for number, user in enumerate(users):
        db.execute(
            "insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)"
            " values (%s, 20, 'test', clock_timestamp() - make_interval(hours => %s))",
            [user, 5 - number],
        )
    assert worker.batch()[0] == 1
    worker.put_off_the_full_look()
    for _ in users[1:]:
        assert worker.batch()[::2] == (1, False)
    assert queue(db) == []


def test_drain_ends_only_after_it_has_looked_in_full(
    db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ann", bio="bio")
    settle(db)
    app = sessions("app")
    app.run("begin")
    enqueue_long_ago(app, user)
    drain(db)
    app.run("commit")
    drain(db)
    assert queue(db) == []


def test_projects_committed_late_are_found_by_the_next_look_in_full(
    db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ann", bio="bio")
    project = add_project(db, user)
    settle(db)
    worker = Run(db)
    app = sessions("app")
    app.run("begin")
    app.run(
        "insert into builder_score.score_recalc_queue (project_id, priority, reason, not_before)"
        f" values ('{project}', 10, 'long ago', clock_timestamp() - interval '1 hour')"
    )
    worker.batch()
    worker.put_off_the_full_look()
    app.run("commit")
    assert worker.batch() == (0, True, False)
    worker.let_it_be_time()
    worker.batch()
    drain(db)
    assert queue(db) == []


def test_after_the_clock_was_set_back_a_look_is_in_full(db: Connection[Any]) -> None:
    worker = Run(db)
    worker.batch()
    run(
        db,
        "update memory set it.looked_at = clock_timestamp() + interval '1 hour',"
        " it.full_look_at = clock_timestamp() + interval '2 hours'",
    )
    assert worker.batch()[2]


# Whoever takes as long as many others -------------------------------------------------------------


def with_many_projects(db: Connection[Any], name: str) -> UUID:
    user = add_user(db, name, bio="bio")
    db.execute(
        "insert into projects (owner_id, title, status)"
        " select %s, 'p', 'shipped' from generate_series(1, %s::integer)",
        [user, MANY],
    )
    return user


def transactions(db: Connection[Any], *users: UUID) -> list[str]:
    """Name the transactions that recalculated them."""
    rows = db.execute(
        "select s.xmin::text from unnest(%s::uuid[]) with ordinality as i(id, place)"
        " join builder_score.score_state as s on s.user_id = i.id order by place",
        [list(users)],
    ).fetchall()
    return [row[0] for row in rows]


def test_nobody_is_written_with_somebody_who_has_many_projects(db: Connection[Any]) -> None:
    heavy = with_many_projects(db, "heavy")
    light = [add_user(db, f"light{n}", bio="bio") for n in range(3)]
    drain(db)  # of whom nothing is known
    alone, *together = transactions(db, heavy, *light)
    assert alone not in together
    assert len(set(together)) == 1
    rows = "select rows_read from builder_score.score_state where user_id = %s"
    assert one(db, rows, heavy) == MANY
    assert one(db, rows, light[0]) is None
    for user in (light[0], heavy, *light[1:]):
        db.execute("select builder_score.enqueue(%s)", [user])
    drain(db)  # and of whom it is known
    alone, *together = transactions(db, heavy, *light)
    assert alone not in together
    assert len(set(together)) == 1
    assert score(db, heavy) == 33
    assert_right(db)


def test_whoever_has_few_projects_again_is_one_of_many_again(db: Connection[Any]) -> None:
    heavy = with_many_projects(db, "heavy")
    light = add_user(db, "light")
    drain(db)
    db.execute("delete from projects")
    drain(db)
    assert (
        one(db, "select rows_read from builder_score.score_state where user_id = %s", heavy) is None
    )
    for user in (heavy, light):
        db.execute("select builder_score.enqueue(%s)", [user])
    drain(db)
    assert len(set(transactions(db, heavy, light))) == 1
    assert_right(db)


def test_those_who_are_alone_and_the_others_take_turns(db: Connection[Any]) -> None:
    heavy = [with_many_projects(db, f"heavy{n}") for n in range(3)]
    light = add_user(db, "light")
    settle(db)
    worker = Run(db)
    for user in heavy:  # longer due than all others
        enqueue_by(db, user, 60)
    seen: list[bool] = []
    while len(queue(db)) > 0:
        if not seen or seen[-1]:
            enqueue_by(db, light, 1)
        before = {row[0] for row in queue(db)}
        worker.batch()
        gone = before - {row[0] for row in queue(db)}
        if gone:
            seen.append(bool(gone & set(heavy)))
        run(db, "update memory set it.others_until = (it).others_until + interval '1 hour'")
        if seen and not seen[-1]:
            run(db, "update memory set it.others_until = null")
    assert seen == [True, False, True, False, True]


def test_a_batch_of_nobody_but_those_who_are_alone_takes_one_of_them(db: Connection[Any]) -> None:
    heavy = [with_many_projects(db, f"heavy{n}") for n in range(3)]
    settle(db)
    configure(db, batch_size=2)
    for user in heavy:
        enqueue_by(db, user, 60)
    drain(db)
    assert queue(db) == []
    for user in heavy[:2]:
        enqueue_by(db, user, 60)
    worker = Run(db)
    run(db, "update memory set it.others_until = clock_timestamp() + interval '1 hour'")
    assert worker.batch()[0] == 1  # a whole batch that was to be passed over
    settle(db)
    assert_right(db)


@pytest.mark.parametrize("priority", [0, 20])
def test_whoever_is_alone_does_not_wait_for_all_others(db: Connection[Any], priority: int) -> None:
    """An old row of low priority, or a young one of the best, beside what never ends."""
    heavy = with_many_projects(db, "heavy")
    others = [add_user(db, f"other{n}") for n in range(30)]
    settle(db)
    configure(db, batch_size=20)
    db.execute(
        "insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)"
        " values (%s, %s, 'test', clock_timestamp() - make_interval(mins => %s))",
        [heavy, priority, priority],
    )
    worker = Run(db)
    for _ in range(3):
        for user in others:
            enqueue_by(db, user, 10)
        worker.batch()
        if heavy not in {row[0] for row in queue(db)}:
            break
    else:
        pytest.fail("it waited for the others")


def enqueue_by(db: Connection[Any], user: UUID, minutes: int) -> None:
    db.execute(
        "insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)"
        " values (%s, 10, 'test', clock_timestamp() - make_interval(mins => %s))",
        [user, minutes],
    )


def test_expanding_a_project_is_no_look(db: Connection[Any]) -> None:
    """The more people it has, the longer a row that was committed late would be overlooked."""
    run(
        db,
        """
        create function public.dawdle() returns trigger language plpgsql as $$
        begin
            perform pg_sleep(0.3);  -- as long as many people take
            return null;
        end $$;
        create trigger dawdle after insert on builder_score.score_recalc_queue
            for each row when (new.reason = 'slow') execute function public.dawdle();
        alter table builder_score.score_recalc_queue disable trigger dawdle;
        """,
    )
    project = add_project(db, add_user(db, "ann"))
    settle(db)
    db.execute(
        "insert into builder_score.score_recalc_queue (project_id, priority, reason)"
        " values (%s, 10, 'slow')",
        [project],
    )
    run(db, "alter table builder_score.score_recalc_queue enable trigger dawdle")
    configure(db, batch_target="0.05 seconds")
    run(db, "update builder_score.worker_status set batches = 1")  # else that was all of the batch
    Run(db, batch_size=50).batch()
    assert one(db, "select (it).full_look_at - (it).looked_at < interval '3 seconds' from memory")


# Batches that stay short --------------------------------------------------------------------------


def test_a_batch_that_takes_too_long_stops_and_the_next_is_half_as_large(
    db: Connection[Any],
) -> None:
    configure(db, batch_target="0.001 seconds")  # no batch is that fast
    db.execute(
        "insert into users (email, username, bio)"
        " select 'u' || i, 'u' || i, 'bio' from generate_series(1, 120) as i"
    )
    worker = Run(db, batch_size=100)
    assert worker.batch()[:2] == (50, False), "of a hundred the first fifty were computed"
    assert one(db, "select (it).batch_size from memory") == 50
    waiting = "select count(*), max(attempts), bool_and(q.not_before <= clock_timestamp())"
    left = db.execute(
        waiting + " from builder_score.score_recalc_queue as q"
        " left join builder_score.score_state as s using (user_id)"
    ).fetchall()
    assert left == [(70, None, True)], "the others are due as before"
    drain(db)
    assert_right(db)


def test_batches_grow_while_they_are_fast(db: Connection[Any]) -> None:
    configure(db, batch_target="10 seconds")
    db.execute(
        "insert into users (email, username, bio)"
        " select 'u' || i, 'u' || i, 'bio' from generate_series(1, 40) as i"
    )
    worker = Run(db, batch_size=10)
    assert [worker.batch()[0] for _ in range(3)] == [10, 20, 10]
