"""Act one of the demo, played with a real worker and a window shorter than the demo's."""

from __future__ import annotations

import io
import os
import re
import signal
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow
from rich.console import Console

from pyscore.cluster import PrivateCluster
from pyscore.demo import community, signals, waiting, watching
from pyscore.demo.stage import Stage
from pyscore.demo.waiting import (
    look,
    refuse_failure,
    wait_for_worker,
    wait_until_idle,
    wait_until_scored,
)
from pyscore.demo.workers import PgCron, WorkerProcess
from pyscore.errors import PyscoreError
from tests.community import add_user, configure, one
from tests.demo_runs import counts_told, scores_told
from tests.oracle import assert_all_right
from tests.recalculations import note_recalculations

# Long enough for thirty commits on a machine that is busy with other things.
WINDOW = timedelta(seconds=3)


class Nobody:
    """A worker that never comes."""

    name = "nobody"

    def begin(self, stage: Stage) -> None:
        pass

    def check(self) -> None:
        pass


@pytest.fixture
def worker(database: str, tmp_path: Path) -> Iterator[WorkerProcess]:
    process = WorkerProcess(database, tmp_path / "worker.log")
    yield process
    process.close()


@pytest.fixture
def printed() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def stage(server: PrivateCluster, db: Connection[TupleRow], printed: io.StringIO) -> Stage:
    return Stage(Console(file=printed, width=80), server, db, Nobody())


def test_the_story_tells_what_the_database_did(
    stage: Stage, db: Connection[TupleRow], worker: WorkerProcess, printed: io.StringIO
) -> None:
    stage.worker = worker
    note_recalculations(db)

    community.play(stage, window=WINDOW, patience=20)

    story = scores_told(printed.getvalue())
    seen = db.execute("""
        select u.display_name, s.score::integer, s.computed_at
        from recalculations as s join users as u on u.id = s.user_id
        order by s.number""").fetchall()
    people = one(db, "select count(*) from users")
    first, later = seen[: people - 1], seen[people - 1 :]
    assert len({name for name, *_ in first}) == people - 1  # everyone once, in the first batch
    assert [(s.name, s.after) for s in story] == [(name, score) for name, score, _ in later]
    # bursts are one recalculation; two people are computed when one confirms
    assert counts_told(printed.getvalue()) == [(1, 1), (6, 1), (3, 2), (1, 1), (30, 1)]
    assert sum(n for _, n in counts_told(printed.getvalue())) == len(later)

    inses = [at for name, _, at in later if name == "Ines Marlow"]
    gaps = [after - before for before, after in pairwise(inses)]
    assert min(gaps) >= WINDOW
    at_once = [s for s in story if s.why.startswith("at once")]
    put_off = [s for s in story if s.why == "as the 3 s window closed"]
    assert [s.name for s in at_once] == ["Ines Marlow", "Tomas Lind", "Ines Marlow"]
    assert [s.name for s in put_off] == ["Ines Marlow"] * 3
    assert max(s.waited for s in at_once) < min(s.waited for s in put_off)
    assert_all_right(db)


def test_a_worker_that_never_comes_is_named(stage: Stage) -> None:
    with pytest.raises(PyscoreError) as caught:
        community.play(stage, patience=0.2)
    assert str(caught.value) == (
        "the worker did not start within 0.2 s; scheduler: none, last error: none"
    )


def test_waiting_for_pg_crons_minute_is_said_once(
    stage: Stage, printed: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SOON", 0)
    stage.worker = PgCron()
    with pytest.raises(PyscoreError, match="did not start within 1 s"):
        wait_for_worker(stage, look(stage)["now"], patience=1)
    (line,) = printed.getvalue().splitlines()
    assert re.fullmatch(r"no @reboot job came; pg_cron's next minute begins in \d+ s \.\.\.", line)


def test_a_failed_run_of_pg_crons_job_is_told_and_one_before_a_restart_is_not(
    server: PrivateCluster, cron_database: str
) -> None:
    with psycopg.connect(cron_database) as connection:
        stage = Stage(Console(), server, connection, PgCron())
        started = stage.one("select pg_postmaster_start_time()")
        fail = (
            "insert into cron.job_run_details (jobid, runid, status, return_message, start_time)"
            " values (1, %s, 'failed', %s, %s)"
        )
        long_ago = started - timedelta(days=1)
        connection.execute(fail, [10**9, "server restarted", started - timedelta(seconds=1)])
        refuse_failure(stage, long_ago)
        connection.execute(fail, [10**9 + 1, "no room", started + timedelta(seconds=1)])
        with pytest.raises(PyscoreError, match=r"^pg_cron's job failed: no room$"):
            refuse_failure(stage, long_ago)
        refuse_failure(stage, started + timedelta(seconds=2))
        connection.rollback()


def test_a_score_that_does_not_arrive_ends_the_story(
    stage: Stage, db: Connection[TupleRow]
) -> None:
    story = community.Story(stage, WINDOW, 0.2)
    db.execute("update builder_score.settings set paused = true")
    story.commit(community.SIGN_UP)
    with pytest.raises(PyscoreError) as caught:
        story.settle()
    assert str(caught.value) == (
        "no score arrived for 0.2 s, though 1 events are queued; scheduler: none, last error: none"
    )


def test_a_worker_process_that_ends_is_told_with_its_last_words(
    stage: Stage, tmp_path: Path
) -> None:
    process = WorkerProcess("host=/nowhere", tmp_path / "worker.log")
    process.begin(stage)
    stage.worker = process
    try:
        with pytest.raises(PyscoreError, match=r"^`pyscore worker` has ended: .*cannot connect"):
            wait_for_worker(stage, look(stage)["now"], patience=20)
    finally:
        process.close()


def test_a_queue_that_is_not_emptied_is_told(stage: Stage) -> None:
    add_user(stage.connection, "ada")
    with pytest.raises(PyscoreError, match=r"^\d events are still queued after 0\.2 s; scheduler"):
        wait_until_idle(stage, patience=0.2)


def test_waiting_counts_what_the_worker_did(stage: Stage, worker: WorkerProcess) -> None:
    configure(stage.connection, paused=True)
    for name in ("ada", "bo", "cy"):
        add_user(stage.connection, name)
    before = look(stage)
    configure(stage.connection, paused=False)
    worker.begin(stage)
    began = wait_for_worker(stage, before["now"], patience=20)
    scored = wait_until_scored(stage, before, began, patience=20)
    assert (scored.people, scored.recalculated, scored.put_off) == (3, 3, 0)
    assert before["now"] < began
    assert scored.worked.total_seconds() >= 0


def test_people_who_stay_without_a_score_are_counted(stage: Stage) -> None:
    add_user(stage.connection, "ada")
    before = look(stage)
    with pytest.raises(PyscoreError) as caught:
        wait_until_scored(stage, before, before["now"], patience=0.3)
    assert str(caught.value) == (
        "0 of 1 people are scored and nothing has moved for 0.3 s; "
        "scheduler: none, last error: none"
    )


def test_a_window_closes_when_it_has_passed_since_the_last_score(stage: Stage) -> None:
    ada = add_user(stage.connection, "ada")
    assert watching.view(stage).closes_in("ada", WINDOW) == 0
    stage.connection.execute("select builder_score.recalculate(%s)", [ada])
    seen = watching.view(stage)
    assert 0 < seen.closes_in("ada", timedelta(hours=1)) <= 3600
    assert seen.closes_in("ada", timedelta(0)) == 0
    assert seen.closes_in("nobody", WINDOW) == 0


def test_a_signal_waits_until_a_process_is_started() -> None:
    done: list[str] = []
    before = signal.getsignal(signal.SIGTERM)

    def start_a_process() -> None:
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("started")
            raise PyscoreError("the terminal's signal has ended it too")

    with signals.stoppable():
        with pytest.raises(KeyboardInterrupt):
            start_a_process()
        assert done == ["started"]
        with signals.ignored():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with signals.stoppable(), signals.held():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
