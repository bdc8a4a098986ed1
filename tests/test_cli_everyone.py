"""``pyscore recompute --all``: one row, and when it counts as answered."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from pyscore.cli.everyone import Phase, follow
from pyscore.cli.options import installed
from pyscore.cli.problems import obstacles
from pyscore.errors import PyscoreError
from tests.commands import call, error_line, output, running
from tests.community import add_project, add_user, configure, drain, one, queue
from tests.interleave import Sessions, assert_right, until
from tests.poison import poison
from tests.terminal import on_terminal

Db = Connection[Any]
Step = Callable[[], None]

ROW = (None, None, 20, "pyscore recompute --all")
WAIT = ("recompute", "--all", "--wait")
# as if a worker ran: what it would do is done by the test, step by step
BEATING = (
    "update builder_score.worker_status set heartbeat_at = clock_timestamp()"
    " where worker = 'resident'"
)


@pytest.fixture
def people(db: Db) -> None:
    """Three people, whom nothing but --all would have computed."""
    for name in ("ada", "bob", "cyd"):
        add_user(db, name, bio="ships")
    db.execute("truncate builder_score.score_recalc_queue")
    db.execute(BEATING)


def batch(db: Db) -> None:
    db.execute("update builder_score.backfill set resume_at = clock_timestamp()")
    db.execute("select builder_score.run_batch()")


def wait_for_all(database: str, *steps: Step) -> tuple[list[str], DictRow]:
    """Enqueue everyone, and wait; one step of the worker's is taken after each look but the last.

    Returns:
        The names of the phases, and the last look.
    """
    phases: list[str] = []
    rest = iter(steps)

    def show(look: DictRow, phase: Phase) -> None:
        phases.append(phase.name)
        step = next(rest, None)
        assert step is not None, f"still waiting: {phase} {look}"
        connection.execute(BEATING)
        step()

    with installed(database) as connection:
        row = connection.execute("select builder_score.enqueue_everyone('test') as id").fetchone()
        assert row is not None
        last = follow(connection, row["id"], show)
    assert next(rest, None) is None, "done too early"
    return phases, last


@contextmanager
def waiting_process(database: str) -> Generator["subprocess.Popen[str]"]:
    """Wait in a process of its own, until nothing but the worker is waited for."""
    with running(*WAIT, "--dsn", database) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting for the worker\n"
        yield process


# enqueued -----------------------------------------------------------------------------------------


def test_all_is_one_row(database: str, db: Db, people: None) -> None:
    said = output(call("recompute", "--all", "--dsn", database))
    assert said == "everyone is enqueued; follow it with: pyscore status --watch\n"
    assert queue(db) == [ROW]
    answer = json.loads(output(call("recompute", "--all", "--json", "--dsn", database)))
    highest = one(db, "select max(id) from builder_score.score_recalc_queue")
    assert answer == {"row_id": highest, "done": False, "problems": []}
    drain(db)
    assert one(db, "select count(*) from users where builder_score = 3") == 3


TROUBLES = {
    "update builder_score.settings set paused = true, paused_reason = 'maintenance'": (
        "paused (maintenance): pyscore resume"
    ),
    "update builder_score.worker_status set heartbeat_at = null": "nothing runs the worker: ",
    "select builder_score.detach()": "detached: SELECT * FROM builder_score.attach()",
}


def waits(seconds: float) -> None:
    pytest.fail("it waits")


@pytest.mark.parametrize("statement", TROUBLES)
def test_waiting_in_vain_ends_at_once_and_the_row_stays(
    database: str, db: Db, people: None, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", waits)
    db.execute(statement.encode())
    line = error_line(call(*WAIT, "--dsn", database), 3)
    assert line.startswith(f"pyscore: not waiting: {TROUBLES[statement]}")
    assert line.endswith("; everyone stays enqueued")
    assert ";;" not in line
    assert queue(db) == [ROW]
    said = output(call("recompute", "--all", "--dsn", database))
    assert f"! nothing happens yet: {TROUBLES[statement]}" in said


def test_a_worker_that_was_not_heard_of_for_long() -> None:
    health: dict[str, Any] = {
        "attached": True,
        "paused": False,
        "scheduler": "pg_cron",
        "heartbeat_age": timedelta(seconds=70),
        "workers_heard": 0,
    }
    assert obstacles(health) == []
    health["heartbeat_age"] = timedelta(hours=3)
    assert [problem.what for problem in obstacles(health)] == [
        "nothing was heard of the worker for 3 h"
    ]
    # another one works
    assert obstacles({**health, "workers_heard": 1}) == []
    # a job that was just scheduled starts at the next minute
    health["heartbeat_age"] = None
    assert obstacles(health, timedelta(seconds=70)) == []
    assert len(obstacles(health, timedelta(minutes=3))) == 1


# when it is done ----------------------------------------------------------------------------------


def test_a_worker_does_it(database: str, db: Db, people: None, sessions: Sessions) -> None:
    worker = sessions("worker")
    worker.start("call builder_score.run_worker('1 minute')")
    until(lambda: one(db, "select max(started_at) from builder_score.worker_status"), "it runs")
    said = output(call(*WAIT, "--dsn", database)).splitlines()
    assert said[-1] == "done: 3 users recalculated, 3 scores changed; dead letters: 0"
    assert_right(db)
    configure(db, debounce_window="0")
    answer = json.loads(output(call(*WAIT, "--json", "--dsn", database)))
    del answer["row_id"]
    assert answer == {
        "done": True,
        "recalculated": 3,
        "changed": 0,
        "dead_letters": 0,
        "failing": 0,
    }
    configure(db, paused=True)
    worker.finish()


def test_every_step_of_the_walk_is_waited_for(database: str, db: Db, people: None) -> None:
    configure(db, backfill_per_second=1)  # one user a step
    phases, last = wait_for_all(database, *[lambda: batch(db)] * 4)
    assert phases == ["waiting for the worker", *["walking over everyone"] * 3]
    assert (last["waiting"], last["failing"]) == (0, 0)
    assert_right(db)


def test_what_the_walk_left_in_the_queue_is_waited_for(database: str, db: Db, people: None) -> None:
    configure(db, batch_size=1)
    phases, _ = wait_for_all(database, *[lambda: batch(db)] * 3)
    assert phases == ["waiting for the worker", "walking over everyone", "computing"]
    assert_right(db)


def test_what_comes_after_the_walk_is_not_waited_for(database: str, db: Db, people: None) -> None:
    configure(db, batch_size=1, debounce_window="1 day")

    def and_an_event() -> None:
        computed = one(db, "select user_id from builder_score.score_state limit 1")
        add_project(db, computed, status="shipped")
        drain(db)

    wait_for_all(database, lambda: batch(db), lambda: batch(db), and_an_event)
    assert [row[3] for row in queue(db)] == ["project inserted"]


def test_a_debounce_window_is_waited_for_whatever_row_was_there_first(
    database: str, db: Db, people: None
) -> None:
    ada = one(db, "select id from users where username = 'ada'")
    db.execute("select builder_score.recalculate(%s)", [ada])
    configure(db, debounce_window="1 day")
    add_project(db, ada, status="shipped")

    def close_the_window() -> None:
        assert len(queue(db)) == 1, "the walk's row was merged into the one that was there first"
        configure(db, debounce_window="0")
        drain(db)

    phases, _ = wait_for_all(database, lambda: drain(db), close_the_window)
    assert phases == ["waiting for the worker", "waiting for the debounce"]
    assert_right(db)


def test_users_in_backoff_are_not_waited_for(database: str, db: Db, people: None) -> None:
    poison(db)
    add_user(db, "eve", bio="ships")
    configure(db, retry_base="1 hour")
    _, last = wait_for_all(database, lambda: drain(db))
    assert (last["failing"], last["dead_letters"]) == (1, 0)
    assert len(queue(db)) == 1


def test_a_walk_that_is_under_way_comes_first(database: str, db: Db, people: None) -> None:
    configure(db, backfill_per_second=1, debounce_window="0")
    db.execute("select builder_score.start_backfill('another', false)")
    phases, _ = wait_for_all(database, *[lambda: batch(db)] * 8)
    ours = ["waiting for the worker", *["walking over everyone"] * 3]
    assert phases == [*["waiting"] * 4, *ours]


def test_being_paused_meanwhile_ends_the_waiting(database: str, db: Db, people: None) -> None:
    with pytest.raises(
        PyscoreError, match=r"not waiting: paused \(no reason given\): pyscore resume;"
    ) as caught:
        wait_for_all(database, lambda: configure(db, paused=True))
    assert caught.value.exit_code == 3
    assert [row[3] for row in queue(db)] == ["test"]


# in a shell ---------------------------------------------------------------------------------------


def test_ctrl_c_stops_the_waiting_not_the_recomputation(
    database: str, db: Db, people: None
) -> None:
    with waiting_process(database) as process:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 1
    assert stderr == "pyscore: stopped waiting; the recomputation goes on\n"
    assert queue(db) == [ROW]


def test_a_connection_that_breaks_is_one_line(database: str, db: Db, people: None) -> None:
    with waiting_process(database) as process:
        db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'pyscore' and datname = current_database()"
        )
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 1
    (line,) = stderr.splitlines()
    assert line.startswith("pyscore: stopped waiting: ")
    assert line.endswith("the recomputation goes on, see: pyscore status")
    assert queue(db) == [ROW]


def test_the_debounce_is_explained_in_one_line(database: str, db: Db, people: None) -> None:
    configure(db, debounce_window="1 day")
    db.execute("select builder_score.recalculate(id) from users where username = 'ada'")
    with waiting_process(database) as process:
        drain(db)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("1 user inside the debounce window, which is over by ")
        configure(db, debounce_window="0")
        drain(db)
        stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (0, "")
    assert stdout == "done: 3 users recalculated, 2 scores changed; dead letters: 0\n"


def test_a_terminal_shows_a_bar(database: str, db: Db, people: None) -> None:
    with on_terminal(*WAIT, "--dsn", database) as running:
        running.shows("waiting for the worker")
        drain(db)
        stdout = running.read_stdout()
    assert stdout == "done: 3 users recalculated, 3 scores changed; dead letters: 0\n"
    assert running.returncode == 0
