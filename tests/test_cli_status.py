"""``pyscore status``: what it shows, what it calls a problem, and how it watches."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pyscore.cli import looking
from pyscore.cli.looking import Look, Lost
from pyscore.cli.status import History
from pyscore.drawing import sparkline
from tests.commands import PYSCORE, ROOT, call, environment, error_line, output, pyscore, running
from tests.community import add_project, add_user, configure, drain
from tests.interleave import until

BEATING = """
update builder_score.worker_status
set heartbeat_at = clock_timestamp(), started_at = clock_timestamp() where worker = 'resident'
"""


def problems(database: str) -> list[str]:
    """What status says is wrong, twice: for programs and for people, who are told the same."""
    shown, data = call("status", "--dsn", database), call("status", "--json", "--dsn", database)
    found: list[str] = json.loads(data.stdout)["problems"]
    assert (shown.stderr, data.stderr) == ("", "")
    assert shown.returncode == data.returncode == (3 if found else 0)
    lines = shown.stdout.splitlines()
    # their beginnings: an age may have grown between the two
    assert [line[:12] for line in lines if line.startswith("! ")] == [
        f"! {problem}"[:12] for problem in found
    ]
    assert (lines[-1] == "healthy") == (not found)
    return found


# What it shows ------------------------------------------------------------------------------------


def test_a_healthy_database_ends_status_with_0(database: str, db: Connection[Any]) -> None:
    add_user(db, "ada")
    db.execute("call builder_score.run_worker('0')")
    said = output(call("status", "--dsn", database))
    assert said.splitlines()[-1] == "healthy"
    answer = json.loads(output(call("status", "--json", "--dsn", database)))
    assert answer["problems"] == []
    assert (answer["scheduler"], answer["attached"], answer["paused"]) == ("worker", True, False)
    assert (answer["queue_depth"], answer["recalculated"], answer["dead_letters"]) == (0, 1, 0)
    assert answer["recalculated_per_second"] > 0
    assert 0 <= answer["heartbeat_age"] < 120
    assert (answer["backfill"], answer["job_runs"]) == (None, [])


def facts(said: str) -> dict[str, list[str]]:
    """The lines of each fact, by its name."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in said.splitlines():
        name = line[:14].strip() or name
        found.setdefault(name, []).append(line[14:].rstrip())
    return found


def test_many_in_backoff_while_nobody_is_computed_are_a_problem(
    database: str, db: Connection[Any]
) -> None:
    db.execute("update builder_score.settings set debounce_window = '0'")
    for number in range(10):
        add_user(db, f"user{number}", bio="bio")
    db.execute("""
        create function refuse() returns trigger language plpgsql as
            'begin raise exception ''nobody''; end';
        create trigger refuse before update of builder_score on users
            for each row execute function refuse();
    """)
    drain(db)
    db.execute(BEATING)
    done = call("status", "--dsn", database)
    assert done.returncode == 3
    said = " ".join(done.stdout.split())
    assert "10 users failed and wait for another attempt, and nobody was computed" in said
    assert "pyscore doctor" in said
    # one of them alone is a poison user
    db.execute(
        "update builder_score.score_state set retry_at = null where user_id in"
        " (select user_id from builder_score.score_state limit 1)"
    )
    assert "another attempt" not in call("status", "--dsn", database).stdout


def test_it_shows_the_queue_the_backfill_and_what_fails(database: str, db: Connection[Any]) -> None:
    for name in ("ada", "grace", "linus"):
        add_user(db, name)
    drain(db)
    configure(db, debounce_window="0")
    db.execute("analyze users")
    db.execute("""
        insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)
        select u.id, 10, 'test', now() + d
        from users as u cross join unnest(array['-70 seconds', '1 hour']::interval[]) as d;
        select builder_score.start_backfill('a new formula', false);
        update builder_score.backfill set seen = 1;
        update builder_score.score_state set retry_at = now() + interval '1 hour'
        where user_id = (select id from users limit 1);
        update builder_score.worker_status set last_error = 'P0001: no, thank you',
            last_error_at = now() - interval '2 hours';
    """)
    db.execute(BEATING)
    said = facts(output(call("status", "--dsn", database)))
    assert said["scheduler"] == ["`pyscore worker`"]
    assert [line.split()[:6] for line in said["queue"][1:]] == [
        ["0", "high", "0", "0"],
        ["10", "medium", "6", "3", "1", "min"],
        ["20", "low", "0", "0"],
    ]
    bar, whom = said["backfill"]
    assert bar == "█" * 8 + "░" * 16 + " 1 of about 3 users seen"
    assert whom.startswith("everyone (a new formula), since ")
    assert said["retrying"] == ["1"]
    assert said["so far"] == ["3 recalculated, 0 changed, 0 failed"]
    assert said["last error"] == ["2 h ago: P0001: no, thank you"]

    data = json.loads(output(call("status", "--json", "--dsn", database)))
    assert [(row["priority"], row["queue_depth"], row["due_now"]) for row in data["queue"]] == [
        (0, 0, 0),
        (10, 6, 3),
        (20, 0, 0),
    ]
    assert 70 <= data["queue"][1]["oldest_due_age"] < 120
    assert (data["backfill"]["reason"], data["backfill"]["seen"]) == ("a new formula", 1)


def test_what_is_piped_is_neither_folded_nor_filled_up(database: str, db: Connection[Any]) -> None:
    reason = "a long story " * 20
    configure(db, paused=True, paused_reason=reason)
    for width in ("80", "0"):
        lines = call("status", "--dsn", database, COLUMNS=width).stdout.splitlines()
        assert f"paused        yes: {reason}".rstrip() in lines
        assert [line for line in lines if line != line.rstrip()] == []


def test_a_backfill_of_unknown_size_has_no_bar(database: str, db: Connection[Any]) -> None:
    db.execute("select builder_score.start_backfill('age', true)")
    db.execute("update builder_score.backfill set estimated_total = 0")
    (line,) = facts(call("status", "--dsn", database).stdout)["backfill"]
    assert line.startswith("0 users seen; ageing accounts (age), since ")


def test_a_console_without_unicode_gets_none(database: str, db: Connection[Any]) -> None:
    db.execute(
        "insert into builder_score.backfill (reason, only_ageing, seen, estimated_total)"
        " values ('x', false, 1, 4)"
    )
    done = pyscore("status", "--dsn", database, PYTHONIOENCODING="ascii")
    assert facts(done.stdout)["backfill"][0] == "######.................. 1 of about 4 users seen"


# What it calls a problem --------------------------------------------------------------------------

PROBLEMS = {
    "select builder_score.detach()": "detached: SELECT * FROM builder_score.attach();",
    "update builder_score.settings set paused = true, paused_reason = 'maintenance'": (
        "paused (maintenance): pyscore resume"
    ),
    "update builder_score.worker_status set heartbeat_at = null": "nothing runs the worker: "
    "`pyscore schedule`, or keep `pyscore worker` running",
    "insert into builder_score.score_recalc_queue (priority, reason, not_before)"
    " values (20, 'x', now() - interval '1 hour')": "the oldest due row waits since 1 h",
    "insert into builder_score.score_dead_letter"
    " values (gen_random_uuid(), 5, '22012', 'division by zero', now(), now())": (
        "1 dead letter: pyscore dead-letter list"
    ),
}


@pytest.mark.parametrize("statement", PROBLEMS)
def test_a_problem_ends_status_with_3_and_says_what_to_do(
    database: str, db: Connection[Any], statement: str
) -> None:
    db.execute(BEATING)
    assert problems(database) == []
    db.execute(statement.encode())
    (problem,) = problems(database)
    assert problem.startswith(PROBLEMS[statement])


def test_several_problems_are_all_told(database: str, db: Connection[Any]) -> None:
    configure(db, paused=True)
    db.execute("select builder_score.detach()")
    assert problems(database) == [
        "detached: SELECT * FROM builder_score.attach();",
        "paused (no reason given): pyscore resume",
    ]


def test_an_error_that_lies_behind_us_is_no_problem(database: str, db: Connection[Any]) -> None:
    db.execute(BEATING)
    db.execute(
        "update builder_score.worker_status set last_error = 'P0001: no', last_error_at = now()"
    )
    assert problems(database) == []


@pytest.mark.parametrize("priority", [0, 10, 20])
def test_the_lag_of_a_backfill_is_a_problem_only_while_nothing_gets_done(
    database: str, db: Connection[Any], priority: int
) -> None:
    db.execute(BEATING)
    db.execute(
        "insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)"
        " values (gen_random_uuid(), %s, 'x', now() - interval '1 hour')",
        [priority],
    )
    assert len(problems(database)) == 1
    # "minute" is the one that began last
    db.execute(
        "update builder_score.worker_status set minute = date_trunc('minute', clock_timestamp()),"
        " minute_recalculated = 100, minute_before_recalculated = 100 where worker = 'drain'"
    )
    assert len(problems(database)) == (0 if priority == 20 else 1)


@pytest.fixture
def quiet_cron(cron_database: str) -> Iterator[Connection[Any]]:
    """The database with the pg_cron jobs, which do not run while the test looks."""
    with psycopg.connect(cron_database, autocommit=True) as connection:
        connection.execute("update builder_score.settings set paused = true")
        connection.execute(
            "update cron.job set schedule = '0 0 1 1 *' where jobname = 'builder-score-worker'"
        )
        connection.execute("truncate cron.job_run_details")
        connection.execute("update builder_score.settings set paused = false")
        connection.execute("update builder_score.worker_status set heartbeat_at = null")
        yield connection


def add_run(
    db: Connection[Any], status: str, message: str | None = None, *, seconds_ago: int = 60
) -> None:
    """Have pg_cron remember one more run of our job."""
    ended = status in ("succeeded", "failed")
    db.execute(
        """
        insert into cron.job_run_details
            (jobid, runid, database, username, status, return_message, start_time, end_time)
        select j.jobid, 1 + (select coalesce(max(runid), 1000000) from cron.job_run_details),
               j.database, j.username, %(status)s, %(message)s,
               clock_timestamp() - make_interval(secs => %(ago)s),
               case when %(ended)s then clock_timestamp() end
        from cron.job as j where j.jobname = 'builder-score-worker'
        """,
        {"status": status, "message": message, "ago": seconds_ago, "ended": ended},
    )


def test_pg_cron_that_was_just_installed_is_healthy(
    cron_database: str, quiet_cron: Connection[Any]
) -> None:
    assert problems(cron_database) == []
    said = facts(output(call("status", "--dsn", cron_database)))
    assert said["scheduler"] == ["pg_cron"]
    assert said["last runs"] == ["none yet, or cron.log_run is off, or this role may not see them"]


def test_it_shows_whose_job_it_is_and_how_the_last_runs_ended(
    cron_database: str, quiet_cron: Connection[Any]
) -> None:
    add_run(quiet_cron, "failed", "ERROR:  relation\n does not exist")
    add_run(quiet_cron, "succeeded", "1 row", seconds_ago=65)
    add_run(quiet_cron, "running", seconds_ago=61)
    assert problems(cron_database) == [], "it runs now"
    said = facts(output(call("status", "--dsn", cron_database)))
    assert said["scheduler"] == ["pg_cron, as postgres"]
    running, succeeded, failed = said["last runs"]
    assert running.startswith("running for 1 min")
    assert succeeded.startswith("succeeded ")
    assert succeeded.endswith(" ago, after 1 min 5 s")
    assert failed.endswith("after 1 min: ERROR: relation does not exist")
    data = json.loads(output(call("status", "--json", "--dsn", cron_database)))
    assert [(run["status"], run["run_as"]) for run in data["job_runs"]] == [
        ("running", "postgres"),
        ("succeeded", "postgres"),
        ("failed", "postgres"),
    ]


USUAL_CAUSES = {
    "connection failed": "cron.host as role postgres, which must be able to log in: pg_hba.conf",
    "could not start background process; more details": "raise max_worker_processes",
    "ERROR:  schema does not exist": "role postgres: see the server's log",
}


def test_a_failed_last_run_is_a_problem_with_its_usual_cause(
    cron_database: str, quiet_cron: Connection[Any]
) -> None:
    for message, cause in USUAL_CAUSES.items():
        add_run(quiet_cron, "failed", message)
        add_run(quiet_cron, "connecting")
        (problem,) = problems(cron_database)
        assert problem.startswith(f"the last pg_cron run failed ({' '.join(message.split())}): ")
        assert cause in problem
        add_run(quiet_cron, "succeeded")
        assert problems(cron_database) == []


def test_a_silent_pg_cron_job_is_a_problem(cron_database: str, quiet_cron: Connection[Any]) -> None:
    quiet_cron.execute(
        "update builder_score.worker_status set heartbeat_at = now() - interval '1 hour'"
    )
    (problem,) = problems(cron_database)
    assert problem.startswith("nothing was heard of the worker for 1 h")
    assert "cron.job_run_details" in problem


# How it watches -----------------------------------------------------------------------------------


def watching(database: str, *options: str) -> AbstractContextManager["subprocess.Popen[str]"]:
    return running("status", "--watch", "--interval", "0.1", "--dsn", database, *options)


def test_watching_without_a_terminal_prints_a_line_a_look(
    database: str, db: Connection[Any]
) -> None:
    add_user(db, "ada")
    db.execute(BEATING)
    arguments = ("status", "--watch", "--looks", "3", "--interval", "0.1", "--dsn", database)
    lines = output(call(*arguments)).splitlines()
    assert len(lines) == 3
    for line in lines:
        clock, *parts = line.split("  ")
        datetime.strptime(clock, "%H:%M:%S")
        assert parts[:2] == ["queue 1", "due 1"]
        assert parts[2].startswith("lag ")
        assert parts[3:] == ["0.0/s", "healthy"]
    configure(db, paused=True)
    done = call(*arguments)
    assert done.returncode == 3
    assert [line.split("  ")[-1] for line in done.stdout.splitlines()] == [
        "paused (no reason given)"
    ] * 3


def test_watching_for_programs_prints_an_object_a_line(database: str, db: Connection[Any]) -> None:
    db.execute(BEATING)
    add_user(db, "ada")
    arguments = ("--watch", "--looks", "2", "--interval", "0.1", "--json", "--dsn", database)
    first, second = map(json.loads, output(call("status", *arguments)).splitlines())
    once = json.loads(output(call("status", "--json", "--dsn", database)))
    assert set(first) == set(second) == {*once, "throughput"}
    assert (first["throughput"], second["throughput"]) == (None, 0)
    assert first["at"] < second["at"]
    assert 0 <= first["oldest_due_age"] < 60


def test_ctrl_c_ends_watching_with_0(database: str, db: Connection[Any]) -> None:
    configure(db, paused=True)
    with watching(database) as process:
        assert process.stdout is not None
        assert "paused" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (0, "")


def test_watching_survives_the_loss_of_its_connection(database: str, db: Connection[Any]) -> None:
    def pids() -> list[tuple[int]]:
        return db.execute(
            "select pid from pg_stat_activity"
            " where application_name = 'pyscore' and datname = current_database()"
        ).fetchall()

    with watching(database) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        (old,) = pids()
        db.execute("select pg_terminate_backend(%s)", old)
        trouble = process.stderr.readline()
        assert trouble.startswith("pyscore: terminating connection due to administrator command")
        assert trouble.endswith("; trying again\n")
        until(lambda: pids() not in ([], [old]), "it is connected again")
        # an hour of lag that only the new connection can have seen
        db.execute(
            "insert into builder_score.score_recalc_queue (priority, reason, not_before)"
            " values (20, 'x', now() - interval '1 hour')"
        )
        while "lag 1 h" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (0, "")


def test_a_first_look_that_fails_ends_watching(empty_database: str) -> None:
    arguments = ("--watch", "--looks", "2", "--interval", "0.1", "--dsn", empty_database)
    line = error_line(call("status", *arguments))
    assert "builder_score is not installed in this database" in line


class Clock:
    """Time as `looking` sees it: it passes while somebody looks or sleeps."""

    def __init__(self, took: list[float]) -> None:
        self.now = 0.0
        self.took = took
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def look(self, connection: object) -> Look:
        self.now += self.took.pop(0)
        return look(0, 0)


def test_watching_slows_down_where_looking_takes_long(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock([0.5, 0.125, 8, 0])
    monkeypatch.setattr(looking, "time", clock)
    monkeypatch.setattr(looking, "look", clock.look)
    assert len(list(looking.keep_looking(database, interval=1, looks=4))) == 4
    assert clock.slept == [2, 1, 32]
    said = " ".join(output(call("status", "--help")).split())
    assert "four times as long as a look takes, where that is more" in said


def test_no_number_is_no_interval(database: str) -> None:
    arguments = ("status", "--watch", "--interval", "nan", "--dsn", database)
    line = error_line(call(*arguments), 2)
    assert "'--interval': 'nan' is not a number of seconds" in line


@pytest.mark.parametrize("options", [("--looks", "3"), ("--interval", "2")])
def test_options_of_watching_need_it(options: tuple[str, str]) -> None:
    assert "--interval and --looks go with --watch" in error_line(call("status", *options), 2)


def on_terminal(database: str, *options: str, **variables: str) -> str:
    """What a terminal of 80 columns is sent, the colours and movements of the cursor included."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    process = subprocess.Popen(
        [*PYSCORE, "status", "--watch", "--interval", "0.1", "--dsn", database, *options],
        cwd=ROOT,
        env=environment(TERM="xterm", **variables),
        stdout=its,
        stderr=its,
    )
    os.close(its)
    said = b""
    with process, os.fdopen(ours, "rb", buffering=0) as screen:
        while True:
            try:
                part = screen.read(65536)
            except OSError:
                break  # a terminal whose last program has ended
            if not part:
                break
            said += part
    assert process.wait() == 0
    return said.decode()


@pytest.mark.parametrize(
    ("encoding", "lag", "bar"),
    [("utf-8", "███", "██████░░░░░░░░░░░░░░░░░░"), ("ascii", "###", "######..................")],
)
def test_on_a_terminal_watching_draws_lag_and_rate(
    database: str, db: Connection[Any], encoding: str, lag: str, bar: str
) -> None:
    db.execute(BEATING)
    db.execute("""
        insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)
        values (gen_random_uuid(), 10, 'x', now() - interval '60 seconds');
        insert into builder_score.backfill (reason, only_ageing, seen, estimated_total)
        values ('x', false, 1, 4);
    """)
    screen = on_terminal(database, "--looks", "3", PYTHONIOENCODING=encoding)
    last = screen[screen.rindex("scheduler") :]
    assert f"lag           {lag}" in last
    assert re.search(r"\d\d\.\d s, at most \d\d\.\d s", last)
    assert "0.0 /s, at most 0.0 /s" in last
    assert bar in last
    assert "healthy" in last


def look(seconds: float, recalculated: int, lag: float | None = None) -> Look:
    health = {
        "recalculated": recalculated,
        "oldest_due_age": None if lag is None else timedelta(seconds=lag),
    }
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return Look(at, health, [], None, [])


def test_the_rate_is_what_was_done_between_two_looks() -> None:
    history = History()
    # a loss of the connection, an installation from scratch
    for seen in (look(0, 100), look(2, 110, 7), Lost("gone"), look(12, 120, 5), look(13, 3)):
        history.add(seen)
    assert list(history.rates) == [None, 5, None, 1, 0]
    assert list(history.lags) == [0, 7, None, 5, 0]


def test_the_history_is_as_long_as_its_sparkline() -> None:
    history = History()
    for number in range(100):
        history.add(look(number, number))
    assert len(history.rates) == len(history.lags) == 60


def test_a_sparkline_shows_zero_the_largest_and_what_is_unknown() -> None:
    assert sparkline([0, 1, 4, None, 8]) == "▁▂▅ █"
    assert sparkline([0, 1, 4, None, 8], ascii_only=True) == "_.= #"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([0.001, 1000]) == "▂█", "what is not zero is seen"
    assert sparkline([]) == ""
    assert sparkline([0.005]) == "█", "7 times this, divided by it, is more than 7"


def test_the_throughput_counts_what_a_drain_did(database: str, db: Connection[Any]) -> None:
    db.execute(BEATING)
    ada = add_user(db, "ada")
    add_project(db, ada)
    drain(db)
    data = json.loads(output(call("status", "--json", "--dsn", database)))
    assert 0 < data["recalculated_per_second"] <= 1 / 60
