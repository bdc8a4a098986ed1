"""run_worker(): how long it runs, when it leaves, and what it says of itself."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator
from tests.community import add_project, add_user, configure, drain, one, score
from tests.interleave import Sessions, assert_right, until

WORKER = "call builder_score.run_worker('1 minute')"


@pytest.fixture(autouse=True)
def no_window(db: Connection[Any]) -> None:
    configure(db, debounce_window="0")


def resident(db: Connection[Any], column: str) -> Any:
    return one(db, f"select {column} from builder_score.worker_status where worker = 'resident'")


def holder(db: Connection[Any]) -> int | None:
    """Give the backend that is the resident worker of this database."""
    row = db.execute(
        "select pid from pg_locks where locktype = 'advisory' and classid = 1651271539"
        " and objid = 0 and granted"
        " and database = (select oid from pg_database where datname = current_database())"
    ).fetchone()
    return row and row[0]


def wait_for_holder(db: Connection[Any], pid: int) -> None:
    until(lambda: holder(db) == pid, "the worker runs")


def test_it_processes_what_is_due_and_what_comes_until_its_time_is_up(
    db: Connection[Any], sessions: Sessions
) -> None:
    early = add_user(db, "early", bio="bio")
    worker = sessions("worker")
    worker.start("call builder_score.run_worker('1.5 seconds')")
    until(lambda: score(db, early) == 3, "the score of who was there")
    late = add_user(db, "late", bio="bio")
    until(lambda: score(db, late) == 3, "the score of who came")
    worker.finish()
    assert holder(db) is None
    assert_right(db)


def test_monitoring_tells_its_session_by_the_name_it_has_meanwhile(
    db: Connection[Any], sessions: Sessions
) -> None:
    worker = sessions("an application's name")
    worker.start("call builder_score.run_worker('10 seconds')")
    name = f"select application_name from pg_stat_activity where pid = {worker.pid}"
    until(lambda: one(db, name) == "builder-score-worker", "the name is the worker's")
    configure(db, paused=True)
    worker.finish()
    assert one(db, name) == "an application's name"


def test_once_a_day_it_refreshes_whoever_still_ages(db: Connection[Any]) -> None:
    user = add_user(db, "ada")
    drain(db)
    db.execute("update builder_score.score_state set computed_at = now() - interval '8 days'")
    refreshed = "select computed_at > now() - interval '1 day' from builder_score.score_state"
    db.execute("call builder_score.run_worker('0 seconds')")
    assert not one(db, refreshed)
    db.execute("update builder_score.host set refreshed_at = now() - interval '25 hours'")
    db.execute("call builder_score.run_worker('0 seconds')")
    drain(db)
    assert one(db, refreshed)
    assert score(db, user) == 0


def test_max_runtime_0_is_one_batch(db: Connection[Any]) -> None:
    user = add_user(db, "ann", bio="bio")
    db.execute("call builder_score.run_worker('0')")
    assert score(db, user) == 3


def test_a_negative_max_runtime_is_refused(db: Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        db.execute("call builder_score.run_worker('-1 second')")
    assert caught.value.diag.message_primary == "max_runtime -00:00:01 is negative"
    assert "Expected an interval of zero or more" in (caught.value.diag.message_detail or "")
    assert holder(db) is None


def test_without_max_runtime_it_ends_just_after_the_next_minute_begins(
    db: Connection[Any],
) -> None:
    before = datetime.now(UTC)
    deadline: datetime = one(db, "select builder_score.run_deadline(null)")
    after = datetime.now(UTC)
    minutes = {
        moment.replace(second=0, microsecond=0) + timedelta(minutes=1, milliseconds=200)
        for moment in (before, after)
    }
    assert deadline in minutes


def test_it_leaves_before_statement_timeout_strikes(db: Connection[Any]) -> None:
    db.execute("set statement_timeout = '2s'")
    db.execute("call builder_score.run_worker('1 minute')")


def test_a_second_one_leaves_quietly(db: Connection[Any], sessions: Sessions) -> None:
    first, second = sessions("first"), sessions("second")
    first.start(WORKER)
    until(lambda: resident(db, "backend_pid") == first.pid, "the worker says that it runs")
    started = resident(db, "started_at")
    second.run(WORKER)
    assert holder(db) == first.pid
    assert (resident(db, "started_at"), resident(db, "backend_pid")) == (started, first.pid)
    configure(db, paused=True)
    first.finish()


def test_a_second_one_leaves_before_statement_timeout_strikes(
    db: Connection[Any], sessions: Sessions
) -> None:
    first, second = sessions("first"), sessions("second")
    first.start(WORKER)
    wait_for_holder(db, first.pid)
    second.run("set statement_timeout = '1s'")
    second.run(WORKER)
    configure(db, paused=True)
    first.finish()


def test_the_next_one_takes_over_when_the_first_one_ends(
    db: Connection[Any], sessions: Sessions
) -> None:
    first, second = sessions("first"), sessions("second")
    first.start("call builder_score.run_worker('1 second')")
    wait_for_holder(db, first.pid)
    second.start(WORKER)
    first.finish()
    wait_for_holder(db, second.pid)
    user = add_user(db, "ann", bio="bio")
    until(lambda: score(db, user) == 3, "the second one works")
    assert resident(db, "backend_pid") == second.pid
    configure(db, paused=True)
    second.finish()


def test_the_next_one_takes_over_when_the_first_one_is_terminated(
    db: Connection[Any], sessions: Sessions
) -> None:
    first, second = sessions("first"), sessions("second")
    first.start(WORKER)
    wait_for_holder(db, first.pid)
    second.start(WORKER)
    db.execute("select pg_terminate_backend(%s)", [first.pid])
    with pytest.raises(psycopg.errors.AdminShutdown):
        first.finish()
    wait_for_holder(db, second.pid)
    configure(db, paused=True)
    second.finish()


def test_workers_of_two_databases_do_not_know_each_other(
    db: Connection[Any], sessions: Sessions, empty_database: str
) -> None:
    migrator.upgrade(empty_database)
    first = sessions("first")
    first.start(WORKER)
    wait_for_holder(db, first.pid)
    with psycopg.connect(empty_database, autocommit=True) as other:
        user = add_user(other, "ann", bio="bio")
        other.execute("call builder_score.run_worker('0')")
        assert score(other, user) == 3
    configure(db, paused=True)
    first.finish()


@pytest.mark.parametrize(
    "stop",
    ["update builder_score.settings set paused = true", "select builder_score.detach()"],
)
def test_it_leaves_when_paused_or_detached(
    db: Connection[Any], sessions: Sessions, stop: str
) -> None:
    worker = sessions("worker")
    worker.start(WORKER)
    wait_for_holder(db, worker.pid)
    db.execute(stop.encode())
    worker.finish()
    assert holder(db) is None


def test_it_does_not_start_when_paused(db: Connection[Any]) -> None:
    user = add_user(db, "ann", bio="bio")
    configure(db, paused=True)
    db.execute(WORKER.encode())
    assert score(db, user) == 0
    assert resident(db, "started_at") is None
    assert holder(db) is None


def test_it_leaves_without_an_error_when_uninstalled(
    db: Connection[Any], sessions: Sessions, database: str
) -> None:
    worker = sessions("worker")
    worker.start(WORKER)
    wait_for_holder(db, worker.pid)
    migrator.downgrade(database)
    worker.finish()
    assert holder(db) is None


def test_it_leaves_without_an_error_when_uninstalled_under_its_feet(
    db: Connection[Any], sessions: Sessions
) -> None:
    worker, admin = sessions("worker"), sessions("admin")
    worker.start(WORKER)
    wait_for_holder(db, worker.pid)
    # the worker is past its look at what exists, and waits for what is being dropped
    admin.run("begin")
    admin.run("lock table builder_score.settings in access exclusive mode")
    worker.waits_for(admin)
    admin.run("drop schema builder_score cascade")
    admin.run("commit")
    worker.finish()
    assert holder(db) is None


def test_an_idle_worker_says_that_it_is_alive(db: Connection[Any], sessions: Sessions) -> None:
    worker = sessions("worker")
    worker.start(WORKER)
    until(lambda: resident(db, "backend_pid") == worker.pid, "its first words")
    # as if it had been silent for a minute
    db.execute(
        "update builder_score.worker_status"
        " set heartbeat_at = heartbeat_at - interval '1 minute', backend_pid = null"
    )
    until(
        lambda: one(db, "select heartbeat_age < interval '5 seconds' from builder_score.health"),
        "a new heartbeat",
        seconds=3,
    )
    assert resident(db, "backend_pid") == worker.pid
    # it does not write at every look
    beat = resident(db, "heartbeat_at")
    db.execute("select builder_score.beat('resident')")
    assert resident(db, "heartbeat_at") == beat
    configure(db, paused=True)
    worker.finish()


@pytest.mark.parametrize(
    ("poll_interval", "longest"), [("0.5 seconds", 0.5), ("0.1 seconds", 0.1), ("1 second", 1.0)]
)
def test_naps_grow_from_20_ms_to_poll_interval(
    db: Connection[Any], poll_interval: str, longest: float
) -> None:
    configure(db, poll_interval=poll_interval)
    naps = [
        one(db, "select builder_score.nap_seconds(%s, null)", idle) for idle in (*range(20), 10**6)
    ]
    assert naps[0] == 0.02
    assert naps == sorted(naps)
    assert naps[-1] == longest


def test_a_nap_ends_when_a_walk_may_go_on(db: Connection[Any]) -> None:
    nap = "select builder_score.nap_seconds(100, clock_timestamp() + %s::interval)"
    assert one(db, nap, "0.1 seconds") <= 0.1
    assert one(db, nap, "1 hour") == 0.1
    assert 0 < one(db, nap, "-1 second") < 0.01


def test_the_operators_role_is_enough_to_run_it(db: Connection[Any], database: str) -> None:
    name = f"operator_{one(db, 'select current_database()')}"
    db.execute(f"create role {name} login in role builder_score_operator".encode())
    try:
        user = add_user(db, "ann", bio="bio")
        with psycopg.connect(database, user=name, autocommit=True) as operator:
            operator.execute("call builder_score.run_worker('0')")
            assert score(db, user) == 3
            add_project(db, user, status="shipped")
            operator.execute("call builder_score.drain()")
        assert score(db, user) == 13
        assert_right(db)
    finally:
        db.execute(f"drop role {name}".encode())
