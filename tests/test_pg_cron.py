"""The real pg_cron jobs: a minute's end, a crash and a stop. How fast is benchmarks' to say."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.community import add_project, add_user, configure, score
from tests.interleave import assert_right, is_quiet, until

pytestmark = pytest.mark.pg_cron

RUNS = """
    select pid from pg_stat_activity
    where query ~ '^call builder_score.run_worker\\(' and state = 'active' order by query
"""
SERVER: dict[str, str | int | float | bool] = {"fsync": False, "max_connections": 50}


def connect(server: PrivateCluster) -> Connection[Any]:
    return psycopg.connect(server.conninfo("app"), autocommit=True)


def runs(db: Connection[Any]) -> list[int]:
    return [row[0] for row in db.execute(RUNS).fetchall()]


def start_with_job(server: PrivateCluster) -> None:
    """Migrate, and restart: the @reboot job spares us the wait for the next minute."""
    server.psql("-c", "create database app")
    migrator.upgrade(server.conninfo("app"))
    server.restart()
    with connect(server) as db:
        configure(db, debounce_window="0")
        until(lambda: len(runs(db)) == 1, "the job starts with the server")


def is_up(server: PrivateCluster) -> bool:
    try:
        connect(server).close()
    except psycopg.OperationalError:
        return False
    return True


def is_alive(db: Connection[Any]) -> bool:
    try:
        db.execute("select 1")
    except psycopg.OperationalError:
        return False
    return True


@dataclass
class Observed:
    """What one run over the end of a minute has shown."""

    writers: list[int] = field(default_factory=list[int])
    minutes_begun: int = 0
    back_by: str = ""
    servers: tuple[PrivateCluster, ...] = ()


def watch(server: PrivateCluster, observed: Observed, minute: float) -> None:
    """Change one user again and again, each time once the score is visible, over the minute."""
    with connect(server) as db:
        db.execute("""
            create table writers (id bigint generated always as identity, pid integer);
            create function note() returns trigger language plpgsql as $$
            begin
                insert into writers (pid) values (pg_backend_pid());
                return null;
            end $$;
            create trigger note after update of builder_score on users
                for each row execute function note();
            grant all on writers to builder_score_owner;
        """)
        user = add_user(db, "ann")
        add_project(db, user)
        # well into a minute, whose run is the one that writes
        until(lambda: time.time() % 60 > 2, "the minute's run has begun")
        first_minute = time.time() // 60
        changes = 0
        while time.time() < minute + 3:
            old = score(db, user)
            # a score of 4 with 10 stars, and of 8 with 100: each of these is a change
            stars = 10 if changes % 2 else 100
            db.execute("update projects set github_stars = %s where owner_id = %s", [stars, user])
            until(lambda old=old: score(db, user) != old, "the score is visible")
            changes += 1
        observed.minutes_begun = int(time.time() // 60 - first_minute)
        until(lambda: is_quiet(db), "the queue is empty")
        assert_right(db)
        written = db.execute("select pid from writers order by id").fetchall()
        observed.writers = [row[0] for row in written]


def crash(server: PrivateCluster, observed: Observed) -> None:
    """Kill the job's backend with signal 9, and terminate the one that comes after it."""
    with connect(server) as db:
        (killed,) = runs(db)
        os.kill(killed, signal.SIGKILL)
        until(lambda: not is_alive(db), "the server ends every session")
    until(lambda: is_up(server), "the server recovers")
    with connect(server) as db:
        until(lambda: len(runs(db)) == 1, "the job comes back")
        (pid,) = runs(db)
        assert pid != killed
        back_by = """
            select j.jobname from cron.job_run_details as d join cron.job as j using (jobid)
            where d.status = 'running' order by d.runid desc
        """
        ((observed.back_by,), *_) = db.execute(back_by).fetchall()
        db.execute("select pg_terminate_backend(%s)", [pid])
        until(lambda: not runs(db), "the run ends")


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    """Wait for the end of one minute, once, with everything that needs it prepared."""
    with (
        PrivateCluster(settings=SERVER, cron_database="app") as watched,
        PrivateCluster(settings=SERVER, cron_database="app") as crashed,
    ):
        observed = Observed(servers=(watched, crashed))
        start_with_job(crashed)
        start_with_job(watched)
        minute = (time.time() // 60 + 1) * 60
        if minute - time.time() < 10:
            minute += 60
        crash(crashed, observed)
        with connect(crashed) as db:
            configure(db, workers=2)
            db.execute("select builder_score.schedule()")
        watch(watched, observed, minute)
        with connect(crashed) as db:
            until(lambda: len(runs(db)) == 2, "both workers come with the minute")
        yield observed


def test_runs_follow_each_other_and_never_overlap(observed: Observed) -> None:
    order = [
        pid
        for place, pid in enumerate(observed.writers)
        if place == 0 or pid != observed.writers[place - 1]
    ]
    assert observed.minutes_begun >= 1
    assert len(order) == 1 + observed.minutes_begun, "a run for each minute"


def test_a_run_outlives_its_minute_so_that_the_next_one_waits_for_it(observed: Observed) -> None:
    with connect(observed.servers[0]) as db:
        ended = db.execute("""
            select date_trunc('minute', end_time) - date_trunc('minute', start_time)
            from cron.job_run_details as d join cron.job as j using (jobid)
            where end_time is not null and return_message !~ 'terminat' order by runid
        """).fetchall()
        assert len(runs(db)) == 1
    assert ended
    assert {minutes for (minutes,) in ended} == {timedelta(minutes=1)}


def test_after_a_crash_the_job_comes_back_with_the_server_not_with_the_minute(
    observed: Observed,
) -> None:
    assert observed.back_by == "builder-score-worker-at-start"


def test_each_worker_has_a_run_of_its_own(observed: Observed) -> None:
    # the one whose backend was terminated is back with the minute, and the second one came
    with connect(observed.servers[1]) as db:
        until(
            lambda: (
                db.execute("select workers_heard, scheduler from builder_score.health").fetchone()
                == (2, "pg_cron")
            ),
            "both are heard of",
        )
        pids = db.execute("""
            select backend_pid from builder_score.worker_status
            where run_by = 'pg_cron' order by number
        """).fetchall()
        assert [pid for (pid,) in pids] == runs(db)
        users = [add_user(db, f"user{number}", bio="bio") for number in range(100)]
        until(lambda: is_quiet(db), "the queue is empty")
        assert {score(db, user) for user in users} == {3}
        assert_right(db)


def test_no_run_failed(observed: Observed) -> None:
    with connect(observed.servers[0]) as db:
        failed = db.execute(
            "select command, return_message from cron.job_run_details where status = 'failed'"
        ).fetchall()
    assert failed == []


def test_a_paused_worker_leaves(observed: Observed) -> None:
    with connect(observed.servers[0]) as db:
        configure(db, paused=True)
        until(lambda: not runs(db), "the worker leaves")
        add_user(db, "late", bio="bio")
        assert db.execute("select paused, due_now from builder_score.health").fetchone() == (
            True,
            1,
        )


def test_uninstall_stops_both_running_workers_and_removes_the_jobs(observed: Observed) -> None:
    server = observed.servers[1]
    with connect(server) as db:
        both = runs(db)
        assert len(both) == 2
        migrator.downgrade(server.conninfo("app"))
        until(lambda: not set(both) & set(runs(db)), "the workers leave")
        gone = db.execute("select to_regnamespace('builder_score'), to_regnamespace('cron')")
        assert gone.fetchone() == (None, None)

    def is_tried_again(line: str) -> bool:
        """Whether uninstalling waited for no longer for a lock, as on a busy machine it may."""
        of_a_worker = any(f"[{pid}]" in line for pid in both)
        return line.endswith("canceling statement due to lock timeout") and not of_a_worker

    log = server.log_file.read_text().splitlines()
    assert [line for line in log if "ERROR" in line and not is_tried_again(line)] == []


# The job itself, and where there is none ----------------------------------------------------------


def jobs(db: Connection[Any]) -> list[tuple[Any, ...]]:
    return db.execute(
        "select jobname, schedule, command, active from cron.job order by jobname"
    ).fetchall()


def test_migrating_or_scheduling_again_makes_no_second_job(cron_database: str) -> None:
    expected = [
        ("builder-score-worker", "* * * * *", "call builder_score.run_worker()", True),
        ("builder-score-worker-at-start", "@reboot", "call builder_score.run_worker()", True),
    ]
    with psycopg.connect(cron_database, autocommit=True) as db:
        assert jobs(db) == expected
        migrator.upgrade(cron_database)
        db.execute("select builder_score.schedule()")
        assert jobs(db) == expected
        assert db.execute("select scheduler from builder_score.health").fetchone() == ("pg_cron",)
        db.execute("select builder_score.unschedule()")
        assert db.execute("select to_regclass('cron.job')").fetchone() == (None,)


def test_scheduling_makes_a_job_for_each_worker_and_removes_those_beyond(
    cron_database: str,
) -> None:
    minute, start = ("builder-score-worker", "* * * * *"), "builder-score-worker-at-start"
    with psycopg.connect(cron_database, autocommit=True) as db:
        for workers, said in (
            (3, ["pg_cron jobs builder-score-worker to builder-score-worker-3, as postgres"]),
            (
                1,
                [
                    "pg_cron job builder-score-worker-2, as postgres, removed",
                    "pg_cron job builder-score-worker-3, as postgres, removed",
                    "pg_cron job builder-score-worker, as postgres",
                ],
            ),
        ):
            configure(db, workers=workers)
            lines = db.execute("select s from builder_score.schedule() as s").fetchall()
            assert [line for (line,) in lines] == said
            others = [
                (f"{minute[0]}-{n}", minute[1], f"call builder_score.run_worker(null, {n})", True)
                for n in range(2, workers + 1)
            ]
            call = "call builder_score.run_worker()"
            assert jobs(db) == [(*minute, call, True), *others, (start, "@reboot", call, True)]
            known = db.execute("select count(*) from builder_score.known_jobs()").fetchone()
            assert known == (workers + 1,)
        configure(db, workers=2)
        db.execute("select builder_score.schedule()")
        db.execute("select builder_score.unschedule()")
        assert db.execute("select to_regclass('cron.job')").fetchone() == (None,)


def test_unschedule_leaves_other_jobs_alone(cron_database: str) -> None:
    with psycopg.connect(cron_database, autocommit=True) as db:
        db.execute("select cron.schedule('backup', '0 4 * * *', 'select 1')")
        db.execute("select builder_score.unschedule()")
        assert [job[0] for job in jobs(db)] == ["backup"]
        db.execute("select builder_score.schedule()")
        db.execute("select cron.unschedule('backup')")


def test_purge_deletes_only_old_runs_of_our_own_jobs(cron_database: str) -> None:
    with psycopg.connect(cron_database, autocommit=True) as db:
        db.execute("""
            select cron.schedule('backup', '0 4 * * *', 'select 1');
            truncate cron.job_run_details;
            insert into cron.job_run_details (jobid, runid, status, end_time)
            select j.jobid, row_number() over () + 1000000, j.jobname || ' ' || age.days,
                   now() - make_interval(days => age.days)
            from cron.job as j cross join (values (6), (8)) as age(days);
        """)
        assert db.execute("select builder_score.purge_job_runs()").fetchone() == (2,)
        left = db.execute(
            "select status from cron.job_run_details where runid > 1000000 order by status"
        ).fetchall()
        db.execute("select cron.unschedule('backup')")
    assert [row[0] for row in left] == [
        "backup 6",
        "backup 8",
        "builder-score-worker 6",
        "builder-score-worker-at-start 6",
    ]


def test_job_runs_are_the_newest_of_our_own_jobs(cron_database: str) -> None:
    with psycopg.connect(cron_database, autocommit=True) as db:
        db.execute("""
            update builder_score.settings set paused = true;
            select cron.schedule('backup', '0 4 * * *', 'select 1');
            truncate cron.job_run_details;
            insert into cron.job_run_details
                (jobid, runid, status, return_message, start_time, end_time)
            select j.jobid, 1000000 + row_number() over (order by n), j.jobname || n, 'message',
                   now() - '1 h'::interval, now()
            from cron.job as j cross join generate_series(1, 2) as n
            where j.jobname <> 'builder-score-worker-at-start';
        """)
        query = "select job, run_as, ended_at - started_at, status, message"
        runs = db.execute(f"{query} from builder_score.job_runs()".encode()).fetchall()
        (newest,) = db.execute("select status from builder_score.job_runs(1)").fetchall()
        db.execute("select cron.unschedule('backup')")
    told = [row for row in runs if row[4] == "message"]
    hour = timedelta(hours=1)
    assert told == [
        ("builder-score-worker", "postgres", hour, f"builder-score-worker{n}", "message")
        for n in (2, 1)
    ]
    assert newest[0] == "builder-score-worker2"


def test_without_pg_cron_there_are_no_job_runs(scratch: Connection[Any]) -> None:
    assert scratch.execute("select * from builder_score.job_runs()").fetchall() == []


def said_by_schedule(conninfo: str) -> str:
    with psycopg.connect(conninfo, autocommit=True) as db:
        assert db.execute("select scheduler from builder_score.health").fetchone() == ("none",)
        (said,) = db.execute("select * from builder_score.schedule()").fetchall()
    return said[0]


def test_where_pg_cron_works_elsewhere_migrate_succeeds_and_says_what_runs_instead(
    empty_database: str,
) -> None:
    migrator.upgrade(empty_database)
    said = said_by_schedule(empty_database)
    assert said.startswith('no pg_cron job: pg_cron works in database "pyscore_cron"')
    assert "keep `pyscore worker` running instead" in said


def test_where_pg_cron_is_not_loaded_migrate_succeeds_and_says_what_runs_instead() -> None:
    with PrivateCluster(settings=SERVER) as server:
        migrator.upgrade(server.conninfo())
        said = said_by_schedule(server.conninfo())
    assert "shared_preload_libraries does not name it" in said
    assert "keep `pyscore worker` running instead" in said
