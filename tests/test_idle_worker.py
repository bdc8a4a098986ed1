"""The short looks of an idle worker: they find whatever is due; a whole round follows soon."""

from typing import Any

import pytest
from psycopg import Connection

from tests.community import add_project, add_user, configure, drain, one, score
from tests.interleave import Sessions, is_quiet, until


def seems_idle(
    db: Connection[Any], looked: float = -0.05, full: float = -0.04, whole: float | None = 0.95
) -> bool:
    """Ask for a worker that has looked at everything, has found nothing, and knows when.

    `looked`: when that was, in seconds from now; `full`: when it may look at everything again;
    `whole`: when its next whole round is due.
    """
    query = """
        select builder_score.seems_idle(jsonb_populate_record(
            null::builder_score.run_memory, jsonb_build_object(
            'marks', array_fill(now.t + make_interval(secs => %s - 1), array[4]),
            'looked_at', now.t + make_interval(secs => %s),
            'full_look_at', now.t + make_interval(secs => %s),
            'round_at', now.t + make_interval(secs => %s))))
        from (select clock_timestamp() as t) as now
    """
    return one(db, query, looked, looked, full, whole)


@pytest.fixture(autouse=True)
def quiet(db: Connection[Any]) -> None:
    configure(db, debounce_window="0")
    drain(db)
    assert is_quiet(db)


def test_where_nothing_is_due_it_seems_idle(db: Connection[Any]) -> None:
    assert seems_idle(db)
    add_user(db, "ann")
    db.execute(
        "update builder_score.score_recalc_queue"
        " set not_before = clock_timestamp() + interval '1 minute'"
    )
    assert seems_idle(db)


@pytest.mark.parametrize("since", ["0 seconds", "1 hour"], ids=["now", "of a late commit"])
@pytest.mark.parametrize(
    "row",
    [
        "user_id, priority) values (gen_random_uuid(), 0",
        "user_id, priority) values (gen_random_uuid(), 10",
        "user_id, priority) values (gen_random_uuid(), 20",
        "project_id, priority) values (gen_random_uuid(), 10",
        "priority) values (20",
    ],
)
def test_whatever_is_due_is_seen(db: Connection[Any], row: str, since: str) -> None:
    columns, values = row.split(") values (")
    db.execute(
        f"insert into builder_score.score_recalc_queue ({columns}, reason, not_before)"
        f" values ({values}, 'test', clock_timestamp() - interval '{since}')".encode()
    )
    assert not seems_idle(db)


def test_a_walk_under_way_is_seen(db: Connection[Any]) -> None:
    db.execute("select builder_score.start_backfill('test', false)")
    assert not seems_idle(db)


@pytest.mark.parametrize(
    "whole", [None, -0.001, 3600], ids=["none yet", "due", "from before the clock was set back"]
)
def test_a_whole_round_comes_at_least_every_second(
    db: Connection[Any], whole: float | None
) -> None:
    assert not seems_idle(db, whole=whole)


def test_the_first_round_is_a_whole_one(db: Connection[Any]) -> None:
    assert not one(db, "select builder_score.seems_idle(null)")


def test_where_looking_takes_long_it_begins_where_the_last_look_found_nothing(
    db: Connection[Any],
) -> None:
    assert seems_idle(db, full=20)
    add_user(db, "ann")
    assert not seems_idle(db, full=20)
    db.execute(
        "update builder_score.score_recalc_queue"
        " set not_before = clock_timestamp() - interval '1 hour'"
    )
    assert seems_idle(db, full=20), "committed late: found when it may look at everything again"
    drain(db)
    assert seems_idle(db)
    assert not seems_idle(db, looked=-20, full=-0.1), "which is a whole round's to do"


def test_an_idle_worker_does_whole_rounds_and_finds_what_was_committed_late(
    db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ann")
    drain(db)
    worker, application = sessions("worker"), sessions("application")
    application.run("begin")
    application.run("update users set bio = 'bio' where username = 'ann'")
    worker.start("call builder_score.run_worker('1 minute')")
    # as if its transaction had begun long ago
    application.run(
        "update builder_score.score_recalc_queue"
        " set not_before = clock_timestamp() - interval '1 hour'"
    )
    until(
        lambda: (
            one(db, "select backend_pid from builder_score.worker_status where worker = 'resident'")
            == worker.pid
        ),
        "the worker runs",
    )
    application.run("commit")
    until(lambda: score(db, user) == 3, "its score")
    # what only a whole round does
    db.execute("update builder_score.host set clock_set_back = true")
    until(lambda: not one(db, "select clock_set_back from builder_score.host"), "a whole round")
    add_project(db, user, status="shipped")
    until(lambda: score(db, user) == 13, "the next score")
    configure(db, paused=True)
    worker.finish()
