"""settings.workers: numbered workers, what each says of itself, and who leaves."""

import signal
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator
from tests.commands import call, output, running
from tests.community import add_user, configure, drain, one, score
from tests.interleave import Sessions, assert_right, until

WORKER = "call builder_score.run_worker('1 minute', {})"
RUN = "call builder_score.run_worker('0', {})"
KEYS = {1: 0, 2: 202, 16: 216}


@pytest.fixture(autouse=True)
def two_workers(db: Connection[Any]) -> None:
    configure(db, debounce_window="0", workers=2)


def status(db: Connection[Any], worker: str, column: str) -> Any:
    row = db.execute(
        f"select {column} from builder_score.worker_status where worker = %s".encode(), [worker]
    ).fetchone()
    return row and row[0]


def holders(db: Connection[Any]) -> dict[int, int]:
    """Give the backends that are resident workers of this database, by the key of their lock."""
    rows = db.execute(
        "select objid::integer, pid from pg_locks where locktype = 'advisory'"
        " and classid = 1651271539 and objid not between 1 and 199 and granted"
        " and database = (select oid from pg_database where datname = current_database())"
    ).fetchall()
    return dict(rows)


def health(db: Connection[Any], columns: str) -> tuple[Any, ...]:
    (row,) = db.execute(f"select {columns} from builder_score.health".encode()).fetchall()
    return row


def test_each_number_has_a_lock_and_a_row_of_its_own(
    db: Connection[Any], sessions: Sessions
) -> None:
    first, second = sessions("first"), sessions("second")
    first.start(WORKER.format(1))
    second.start(WORKER.format(2))
    both = {KEYS[1]: first.pid, KEYS[2]: second.pid}
    until(lambda: holders(db) == both, "both run")
    users = [add_user(db, f"user{number}", bio="bio") for number in range(20)]
    until(lambda: {score(db, user) for user in users} == {3}, "all scores")
    until(lambda: status(db, "resident-2", "backend_pid") == second.pid, "it says that it runs")
    assert status(db, "resident", "backend_pid") == first.pid
    configure(db, paused=True)
    first.finish()
    second.finish()
    assert holders(db) == {}
    totals = db.execute("select number, recalculated from builder_score.worker_status").fetchall()
    assert sorted(number for number, _ in totals if number) == [1, 2]
    assert health(db, "recalculated")[0] == sum(count for _, count in totals) == 20
    configure(db, paused=False)
    drain(db)
    assert_right(db)


def test_a_second_run_of_a_number_leaves_quietly(db: Connection[Any], sessions: Sessions) -> None:
    first, second = sessions("first"), sessions("second")
    first.start(WORKER.format(2))
    until(lambda: status(db, "resident-2", "backend_pid") == first.pid, "it runs")
    second.run(WORKER.format(2))
    assert holders(db) == {KEYS[2]: first.pid}
    configure(db, paused=True)
    first.finish()


def test_a_number_above_settings_workers_leaves_at_once(db: Connection[Any]) -> None:
    user = add_user(db, "ada", bio="bio")
    notices: list[str] = []
    db.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    db.execute(WORKER.format(3).encode())
    assert notices == ["builder_score has fewer workers: resident-3 has nothing to do"]
    assert score(db, user) == 0
    assert status(db, "resident-3", "worker") is None
    assert holders(db) == {}


def test_a_worker_leaves_when_settings_workers_is_lowered(
    db: Connection[Any], sessions: Sessions
) -> None:
    first, second = sessions("first"), sessions("second")
    first.start(WORKER.format(1))
    second.start(WORKER.format(2))
    until(lambda: len(holders(db)) == 2, "both run")
    configure(db, workers=1)
    second.finish()
    assert holders(db) == {KEYS[1]: first.pid}
    configure(db, paused=True)
    first.finish()


@pytest.mark.parametrize("number", ["0", "17", "-1", "null"])
def test_a_number_that_cannot_be_is_refused(db: Connection[Any], number: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        db.execute(RUN.format(number).encode())
    assert caught.value.diag.message_primary == f"there is no worker number {number}"
    assert "Expected 1 to 16" in (caught.value.diag.message_detail or "")
    assert holders(db) == {}


def test_the_last_number_that_can_be(db: Connection[Any]) -> None:
    configure(db, workers=16)
    user = add_user(db, "ada", bio="bio")
    db.execute(RUN.format(16).encode())
    assert score(db, user) == 3
    assert status(db, "resident-16", "number") == 16
    with pytest.raises(psycopg.errors.CheckViolation, match="workers must be between 1 and 16"):
        configure(db, workers=17)


def test_one_that_is_killed_leaves_its_share_to_the_other(
    db: Connection[Any], sessions: Sessions
) -> None:
    first, second, keeper = sessions("first"), sessions("second"), sessions("keeper")
    # the second one is stopped in a batch, with its place taken and its people locked
    db.execute("""
        create function hold() returns trigger language plpgsql as $$
        begin
            if current_setting('test.hold', true) = 'yes' then
                perform pg_advisory_xact_lock_shared(7);
            end if;
            return new;
        end $$;
        create trigger hold before update of builder_score on users
            for each row execute function hold();
    """)
    configure(db, lock_timeout="10 seconds", batch_size=5)
    users = [add_user(db, f"user{number}", bio="bio") for number in range(40)]
    keeper.run("select pg_advisory_lock(7)")
    second.run("set test.hold = 'yes'")
    second.start(WORKER.format(2))
    second.waits_for(keeper)
    first.start(WORKER.format(1))
    done = "select count(*) from users where builder_score = 3"
    until(lambda: one(db, done) == 35, "all but those whom the second one holds")
    db.execute("select pg_terminate_backend(%s)", [second.pid])
    until(lambda: one(db, done) == 40, "theirs too")
    with pytest.raises(psycopg.errors.AdminShutdown):
        second.finish()
    assert {score(db, user) for user in users} == {3}
    configure(db, paused=True)
    first.finish()


def test_uninstalling_ends_both(db: Connection[Any], sessions: Sessions, database: str) -> None:
    first, second = sessions("first"), sessions("second")
    first.start(WORKER.format(1))
    second.start(WORKER.format(2))
    until(lambda: len(holders(db)) == 2, "both run")
    migrator.downgrade(database)
    first.finish()
    second.finish()
    assert holders(db) == {}


def test_the_second_keeps_house_only_while_the_first_is_silent(db: Connection[Any]) -> None:
    refreshed = "select refreshed_at > now() - interval '1 hour' from builder_score.host"
    long_ago = "update builder_score.host set refreshed_at = now() - interval '2 days'"
    round_of_2 = "select chosen from builder_score.run_round('resident-2', 1, null)"
    db.execute(RUN.format(1).encode())
    db.execute(RUN.format(2).encode())
    db.execute(long_ago)
    db.execute(round_of_2)
    assert not one(db, refreshed)
    db.execute(
        "update builder_score.worker_status set heartbeat_at = now() - interval '1 minute'"
        " where worker = 'resident'"
    )
    db.execute(round_of_2)
    assert one(db, refreshed)


# What is told of them -----------------------------------------------------------------------------


def beat(db: Connection[Any], worker: str, ago: str) -> None:
    db.execute(
        "update builder_score.worker_status set run_by = 'test',"
        " heartbeat_at = now() - %s::interval where worker = %s",
        [ago, worker],
    )


def test_health_shows_the_one_that_was_not_heard_of_for_longest(db: Connection[Any]) -> None:
    told = "workers, workers_heard, heartbeat_age > interval '1 hour', scheduler"
    assert health(db, told) == (2, 0, None, "none")
    db.execute(RUN.format(2).encode())
    # the first one never ran
    assert health(db, told) == (2, 1, None, "worker")
    db.execute(RUN.format(1).encode())
    assert health(db, told) == (2, 2, False, "worker")
    beat(db, "resident-2", "2 hours")
    assert health(db, told) == (2, 1, True, "worker")
    beat(db, "resident-2", "0")
    beat(db, "resident", "2 hours")
    assert health(db, told) == (2, 1, True, "worker")
    # one that has had its day is of no interest
    db.execute(RUN.format(1).encode())
    beat(db, "resident-2", "2 hours")
    configure(db, workers=1)
    assert health(db, told) == (1, 1, False, "worker")


def test_status_tells_one_that_is_silent_among_two(database: str, db: Connection[Any]) -> None:
    for number in (1, 2):
        db.execute(RUN.format(number).encode())
    done = call("status", "--dsn", database)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "healthy")
    assert "2 of 2 heard of in the last 2 minutes" in done.stdout
    beat(db, "resident-2", "3 minutes")
    done = call("status", "--dsn", database)
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1] == (
        "! 1 of 2 workers not heard of for 2 min: "
        "`pyscore schedule` if settings.workers was raised, else `pyscore doctor`"
    )
    beat(db, "resident", "3 minutes")
    last = call("status", "--dsn", database).stdout.splitlines()[-1]
    assert last.startswith("! nothing runs the worker: ")


def test_settings_set_says_what_makes_the_jobs(database: str) -> None:
    done = call("settings", "set", "workers", "3", "--dsn", database)
    assert done.stdout == "workers: 2 -> 3\n"
    assert done.stderr == "`pyscore schedule` makes pg_cron's jobs as many\n"
    done = call("settings", "set", "workers", "3", "--dsn", database)
    assert (done.stdout, done.stderr) == ("workers: 3, as it was\n", "")


# pyscore worker -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_pyscore_worker_runs_all_of_them_and_a_signal_ends_them(
    database: str, db: Connection[Any], number: signal.Signals
) -> None:
    with running("worker", "--dsn", database) as worker:
        until(lambda: holders(db).keys() == {KEYS[1], KEYS[2]}, "both run")
        ada = add_user(db, "ada", bio="bio")
        until(lambda: score(db, ada) == 3, "the score")
        worker.send_signal(number)
        _, stderr = worker.communicate(timeout=20)
    assert worker.returncode == 0
    assert stderr.splitlines()[1:] == ["stopped"]
    assert holders(db) == {}


def test_pyscore_worker_runs_one_alone(database: str, db: Connection[Any]) -> None:
    with running("worker", "--number", "2", "--dsn", database) as worker:
        until(lambda: holders(db).keys() == {KEYS[2]}, "it runs")
        configure(db, workers=1)
        assert worker.stderr is not None
        assert worker.stderr.readline().startswith("working on ")
        said = worker.stderr.readline()
        assert said == "worker 2: nothing is processed: settings.workers is 1\n"
        configure(db, workers=2)
        assert worker.stderr.readline() == "worker 2: going on\n"
        until(lambda: holders(db).keys() == {KEYS[2]}, "it runs again")
        worker.send_signal(signal.SIGTERM)
        _, stderr = worker.communicate(timeout=20)
    assert (worker.returncode, stderr) == (0, "stopped\n")


def test_another_worker_comes_back_after_the_loss_of_its_backend(
    database: str, db: Connection[Any]
) -> None:
    with running("worker", "--dsn", database) as worker:
        until(lambda: len(holders(db)) == 2, "both run")
        lost = holders(db)[KEYS[2]]
        db.execute("select pg_terminate_backend(%s)", [lost])
        until(lambda: holders(db).get(KEYS[2]) not in (None, lost), "it comes back")
        worker.send_signal(signal.SIGTERM)
        _, stderr = worker.communicate(timeout=20)
    assert worker.returncode == 0
    _, trouble, stopped = stderr.splitlines()
    assert trouble.startswith("worker 2: pyscore: ")
    assert trouble.endswith("; trying again")
    assert stopped == "stopped"


def test_once_is_for_all_of_them(database: str, db: Connection[Any]) -> None:
    assert call("worker", "--once", "--number", "2", "--dsn", database).returncode == 2
    ada = add_user(db, "ada", bio="bio")
    output(call("worker", "--once", "--dsn", database))
    assert score(db, ada) == 3
