"""What a worker does while others hold what it needs: locks, its batch, its lock, the clock."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from tests.community import add_project, add_user, configure, drain, one, queue, score
from tests.interleave import Sessions, assert_right, close_windows, settle
from tests.statements import run


@pytest.fixture(autouse=True)
def no_window(db: Connection[Any]) -> None:
    configure(db, debounce_window="0")


def test_a_lock_that_stops_every_write_does_not_keep_people_locked_for_long(
    db: Connection[Any], sessions: Sessions
) -> None:
    for number in range(200):
        add_user(db, f"user{number}", bio="bio")
    db.execute("""
        create table hot (id int);
        insert into hot values (1);
        create function count_writes() returns trigger language plpgsql as $$
        begin
            perform from public.hot for update;
            return new;
        end $$;
        create trigger count_writes before update on users
            for each row execute function count_writes();
        grant select, update on hot to builder_score_owner;
    """)
    application, worker = sessions("application"), sessions("worker")
    application.run("begin")
    application.run("select from hot for update")
    worker.run("select from builder_score.run_batch()")  # a run begins with fewer people
    # halving a batch of 200 to its end would take 399 waits of lock_timeout, with all 200 locked
    assert one(db, "select passes from builder_score.worker_status where worker = 'drain'") < 40
    assert one(db, "select max(attempts) from builder_score.score_state") is None
    application.run("commit")
    settle(db)
    assert_right(db)


def test_a_table_that_is_locked_keeps_the_worker_for_one_lock_timeout(
    db: Connection[Any], sessions: Sessions
) -> None:
    for number in range(20):
        add_user(db, f"user{number}", bio="bio")
    ddl, worker = sessions("ddl"), sessions("worker")
    ddl.run("begin")
    ddl.run("lock table projects in access exclusive mode")
    worker.run("call builder_score.drain()")
    assert one(db, "select passes from builder_score.worker_status where worker = 'drain'") == 0
    assert one(db, "select last_error from builder_score.health").startswith("55P03")
    ddl.run("commit")
    settle(db)
    assert_right(db)


def test_a_transaction_that_holds_a_workers_status_holds_no_score(
    db: Connection[Any], sessions: Sessions
) -> None:
    ann = add_user(db, "ann", bio="bio")
    operator, worker = sessions("operator"), sessions("worker")
    operator.run("begin")
    operator.run("select builder_score.begin_run('resident'), builder_score.begin_run('drain')")
    worker.run("set lock_timeout = '10s'")  # whoever waits for it at all fails
    worker.run("call builder_score.run_worker('0.1 seconds')")
    assert score(db, ann) == 3
    db.execute("update users set bio = null")
    worker.run("call builder_score.drain()")
    assert score(db, ann) == 0
    operator.run("rollback")
    assert_right(db)


def test_a_run_beside_the_lock_of_a_dead_one_unlocks_nothing(
    db: Connection[Any], database: str, sessions: Sessions
) -> None:
    add_user(db, "ann")
    sessions("dead").run("select pg_advisory_lock(1651271539, 0)")
    said: list[str | None] = []
    with psycopg.connect(database, autocommit=True) as worker:
        worker.add_notice_handler(lambda notice: said.append(notice.message_primary))
        worker.execute("call builder_score.run_worker('3 seconds')")
    assert queue(db) == []
    assert said == []


def test_what_another_worker_holds_is_left_to_it(db: Connection[Any], sessions: Sessions) -> None:
    configure(db, batch_size=5)
    users = [add_user(db, f"user{number}", bio="bio") for number in range(5)]
    first, second = sessions("first"), sessions("second")
    first.run("begin")
    first.run("select builder_score.run_batch('resident')")
    # it neither waits nor spins
    second.start("call builder_score.drain()")
    second.finish_without_waiting()
    assert one(db, "select batches from builder_score.worker_status where worker = 'drain'") == 0
    first.run("commit")
    assert {score(db, user) for user in users} == {3}
    assert_right(db)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_people_whom_an_open_transaction_has_recalculated_keep_nobody_waiting(
    db: Connection[Any], sessions: Sessions, end: str
) -> None:
    # it holds their queue rows too, so they cannot even be put off; and they come first
    configure(db, batch_size=3)
    held = [add_user(db, f"held{number}", bio="bio") for number in range(8)]
    free = [add_user(db, f"free{number}", bio="bio") for number in range(8)]
    application = sessions("application")
    application.run("begin")
    for user in held:
        application.run("select builder_score.recalculate(%s)", [user])
    worker = sessions("worker")
    worker.start("call builder_score.drain()")
    worker.finish_without_waiting()
    assert [score(db, user) for user in free] == [3] * len(free)
    assert one(db, "select count(*) from builder_score.score_recalc_queue") == len(held)
    application.run(end)
    settle(db)
    assert_right(db)


def test_a_lock_that_a_dead_run_left_behind_is_no_obstacle(
    db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ada", bio="bio")
    # a run that was cancelled in a session that lives on
    left_behind, worker = sessions("left behind"), sessions("worker")
    left_behind.run("select pg_advisory_lock(1651271539, 0)")
    db.execute("update builder_score.worker_status set heartbeat_at = now() - interval '1 minute'")
    worker.run("call builder_score.run_worker('3 seconds')")
    assert score(db, user) == 3


def test_a_clock_that_was_set_back_keeps_nobody_waiting(db: Connection[Any]) -> None:
    configure(db, debounce_window="5 minutes")
    user = add_user(db, "ada", bio="bio")
    drain(db)
    db.execute(
        "update builder_score.score_state set computed_at = computed_at + interval '3 hours'"
    )
    add_project(db, user, status="shipped")
    drain(db)
    assert score(db, user) == 13


def test_a_shorter_window_counts_for_rows_put_off_by_a_longer_one(db: Connection[Any]) -> None:
    configure(db, debounce_window="1 day")
    user = add_user(db, "ada", bio="bio")
    drain(db)
    add_project(db, user, status="shipped")
    drain(db)
    assert score(db, user) == 3
    configure(db, debounce_window="0")
    drain(db)
    assert score(db, user) == 13
    assert_right(db)


@pytest.fixture
def operator(cron_database: str) -> Iterator[Connection[Any]]:
    """A login that is an operator and nothing else, where pg_cron is."""
    with psycopg.connect(cron_database, autocommit=True) as db:
        db.execute("create role pyscore_test_operator login in role builder_score_operator")
        try:
            address = make_conninfo(cron_database, user="pyscore_test_operator")
            with psycopg.connect(address, autocommit=True) as connection:
                yield connection
        finally:
            db.execute("drop role pyscore_test_operator")


def test_an_operator_sees_health_beside_pg_cron_and_may_run_the_worker(
    operator: Connection[Any],
) -> None:
    assert one(operator, "select attached from builder_score.health") is True
    operator.execute("call builder_score.drain()")
    for forbidden in (
        "select builder_score.write_scores('{}', '{}')",
        "select builder_score.score_users('{}', '{}')",
        "delete from builder_score.score_recalc_queue",
        "update builder_score.settings set debounce_window = '0'",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            operator.execute(forbidden.encode())


def test_a_worker_whose_role_has_row_security_switched_off_sees_every_row(
    operator: Connection[Any], cron_database: str
) -> None:
    with psycopg.connect(cron_database, autocommit=True) as db:
        configure(db, debounce_window="0")
        add_user(db, "ann", bio="ships")
        run(db, "alter table users enable row level security")
        operator.execute("set row_security = off")
        drain(operator)
        assert_right(db)
        add_user(db, "bob", bio="ships")
        operator.execute("call builder_score.run_worker('0.1 seconds')")
        assert_right(db)


def test_a_drain_ends_although_there_is_always_something_to_put_off(db: Connection[Any]) -> None:
    # people whose windows are open, on a host that goes on writing them
    configure(db, debounce_window="5 minutes")
    user = add_user(db, "ada", bio="bio")
    drain(db)
    run(
        db,
        f"""
        create function write_again() returns trigger language plpgsql as $$
        begin
            perform builder_score.enqueue('{user}');
            return null;
        end $$;
        create trigger write_again after insert on builder_score.score_recalc_queue
            for each row when (new.not_before > new.enqueued_at + interval '1 minute')
            execute function write_again();
        set statement_timeout = '20s';
        """,
    )
    db.execute("select builder_score.enqueue(%s)", [user])
    drain(db)
    assert len(queue(db)) == 2, "one that is put off, and one that came meanwhile"
    db.execute("drop trigger write_again on builder_score.score_recalc_queue")
    close_windows(db)
    drain(db)
    assert_right(db)


def test_a_walk_that_cannot_go_on_keeps_no_event_waiting(db: Connection[Any]) -> None:
    user = add_user(db, "ada", bio="bio")
    db.execute("select builder_score.enqueue_everyone()")
    db.execute("alter table builder_score.backfill add constraint broken check (false)")
    drain(db)
    assert score(db, user) == 3
    assert "broken" in one(db, "select last_error from builder_score.health")
    # nothing was lost: the row that stands for everyone is still there
    db.execute("alter table builder_score.backfill drop constraint broken")
    drain(db)
    assert_right(db)
