"""Nothing is lost beside the worker on any host schema, and uninstalling stops it.

The interleavings are those of test_interleavings that matter most. The application is its own role,
which is all it needs: also under row level security, and where a table may be written by it alone.
"""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.catalogue import schema_dump
from tests.commands import running
from tests.community import one, queue, score
from tests.host_databases import (
    APPLICATION,
    Application,
    HostDatabase,
    HostDatabases,
    as_application,
    create_host,
    install,
    run,
)
from tests.host_schemas import ULID_ENUM, HostSchema
from tests.interleave import (
    Sessions,
    assert_right,
    batch_stopped,
    install_gates,
    settle,
    until,
)
from tests.load import Load

SHIPPED = 10  # points of one shipped project
VOUCH = 8  # points of the first confirmed collaboration

SHIP = "update projects set status = 'shipped' where id = %s"
WORKER = "call builder_score.run_worker('1 minute')"


@pytest.fixture
def sessions(host: HostDatabase) -> Iterator[Sessions]:
    """Sessions of the owner's: workers, and whoever holds a gate."""
    with Sessions(host.address) as opened:
        yield opened


@pytest.fixture
def clients(host: HostDatabase) -> Iterator[Sessions]:
    """Sessions of the application's role."""
    with Sessions(as_application(host.address)) as opened:
        yield opened


@pytest.fixture
def gates(host: HostDatabase) -> None:
    install_gates(host.db)


@pytest.mark.usefixtures("gates")
def test_an_event_between_any_two_steps_of_a_batch_is_not_lost(
    host: HostDatabase, sessions: Sessions, clients: Sessions
) -> None:
    app, db = host.app, host.db
    worker, keeper, client = sessions("worker"), sessions("keeper"), clients("client")
    projects: list[Any] = []
    owner = app.sign_up("owner")
    # after choosing, the keeper's lock lets nobody else write the host's tables
    for number, gate in enumerate(("after choosing", "after re-reading", "after computing")):
        projects += [app.start(owner), app.start(owner)]
        settle(db)
        app.run(SHIP, projects[-2])
        with batch_stopped(worker, keeper, gate):
            (keeper if gate == "after choosing" else client).run(SHIP, [projects[-1]])
        settle(db)
        assert_right(db)
        shipped = "select raw from builder_score.explain(%s) where signal = 'shipped'"
        assert db.execute(shipped, [owner]).fetchone() == (2 * number + 2,)


@pytest.mark.parametrize("first", ["transfer", "confirm"])
def test_a_transfer_beside_a_confirm_is_not_lost_and_raises_nothing(
    host: HostDatabase, clients: Sessions, first: str
) -> None:
    app, db = host.app, host.db
    old, new, helper = (app.sign_up(name) for name in ("old", "new", "helper"))
    project = app.start(old)
    app.invite(project, helper)
    app.vouch(old, helper)
    settle(db)

    transfer, confirm = clients("transfer"), clients("confirm")
    for session in (transfer, confirm):
        session.run("begin transaction isolation level serializable")
    transfer.run("update projects set owner_id = %s where id = %s", [new, project])
    confirm.run(
        "update project_collaborators set status = 'confirmed' where project_id = %s", [project]
    )
    order = [transfer, confirm] if first == "transfer" else [confirm, transfer]
    order[0].run("commit")
    db.execute("call builder_score.drain()")
    order[1].run("commit")
    settle(db)
    assert_right(db)
    vouches = "select raw from builder_score.explain(%s) where signal = 'vouches'"
    counted = [db.execute(vouches, [user]).fetchall()[0][0] for user in (old, new, helper)]
    assert counted == [1, 1, 2]


@pytest.mark.usefixtures("gates")
@pytest.mark.parametrize("gate", ["after choosing", "after computing"])
def test_a_user_deleted_while_being_scored_is_forgotten(
    host: HostDatabase, sessions: Sessions, clients: Sessions, gate: str
) -> None:
    app, db = host.app, host.db
    user, other = app.sign_up("ann"), app.sign_up("bob")
    settle(db)
    app.start(user, "shipped")
    app.start(other, "shipped")

    delete = "delete from users where username = 'ann'"
    worker, keeper, client = sessions("worker"), sessions("keeper"), clients("client")
    with batch_stopped(worker, keeper, gate):
        if gate == "after choosing":
            keeper.run(delete)
        else:
            client.start(delete)
            client.waits_for(worker)  # for the rest of one short batch
    if gate == "after computing":
        client.finish()
    settle(db)
    assert_right(db)
    remembered = db.execute("select user_id from builder_score.score_state").fetchall()
    assert (user,) not in remembered
    assert (other,) in remembered


def test_users_whom_the_application_holds_are_skipped_then_done(
    host: HostDatabase, sessions: Sessions, clients: Sessions
) -> None:
    app, db = host.app, host.db
    held, free = app.sign_up("held"), app.sign_up("free")
    settle(db)
    before = score(db, held)
    app.start(held, "shipped")
    app.start(free, "shipped")
    client, worker = clients("client"), sessions("worker")
    client.run("begin")
    client.run("select id from users where id = %s for update", [held])
    worker.start("call builder_score.drain()")
    worker.finish_without_waiting()
    assert score(db, held) == before
    assert score(db, free) == SHIPPED
    assert {row[0] for row in queue(db)} == {held}
    assert one(db, "select coalesce(sum(attempts), 0) from builder_score.score_state") == 0

    client.run("commit")
    settle(db)
    assert score(db, held) == SHIPPED
    assert_right(db)


@pytest.mark.usefixtures("gates")
def test_two_workers_that_chose_the_same_user_recalculate_it_once(
    host: HostDatabase, sessions: Sessions
) -> None:
    recalculated = "select recalculated from builder_score.health"
    app, db = host.app, host.db
    user = app.sign_up("ann")
    settle(db)
    before = one(db, recalculated)
    app.start(user, "shipped")
    with batch_stopped(sessions("first"), sessions("keeper"), "after computing"):
        second = sessions("second")
        second.start("call builder_score.drain()")
        second.finish_without_waiting()
        assert score(db, user) == 0
        assert {row[0] for row in queue(db)} - {None} == {user}
    settle(db)
    assert one(db, recalculated) == before + 1
    assert score(db, user) == SHIPPED
    assert_right(db)


# many at once -------------------------------------------------------------------------------------


def test_many_clients_beside_two_workers_see_no_error_and_lose_nothing(
    host: HostDatabase, sessions: Sessions
) -> None:
    """All lock in one order, so alone they see none. Other loads: test_real_concurrency."""
    app, db = host.app, host.db
    resident, other = sessions("resident"), sessions("other")
    resident.start(WORKER)
    address = as_application(host.address)
    with Load(address, host.schema, clients=4, seed=1, transactions=20) as load:
        while load.running:
            other.run("call builder_score.drain()")
        load.finish()
    assert not load.errors
    load.assert_kept(db)
    app.run("update users set builder_score = 50")
    until(lambda: queue(db) == [], "the resident worker has done what was left")
    db.execute("update builder_score.settings set paused = true")
    resident.finish()
    db.execute("update builder_score.settings set paused = false")
    settle(db)
    assert_right(db)
    assert one(db, "select last_error from builder_score.health") is None
    by_resident = "select recalculated from builder_score.worker_status where worker = 'resident'"
    assert one(db, by_resident) >= len(load.users)


# What a trigger of the host's on users may wait for, and how somebody holds it.
WAITS_FOR = {
    "an advisory lock": ("perform pg_advisory_xact_lock(11)", "select pg_advisory_xact_lock(11)"),
    "a row": ("update tally set n = n + 1", "update tally set n = 0"),
    "a table": ("perform from tally", "lock table tally in access exclusive mode"),
}


@pytest.mark.parametrize("what", WAITS_FOR)
def test_a_trigger_of_the_hosts_that_waits_meets_the_workers_lock_timeout(
    host: HostDatabase, sessions: Sessions, what: str
) -> None:
    wait, hold = WAITS_FOR[what]
    app, db = host.app, host.db
    held, free = app.sign_up("held"), [app.sign_up(f"free{number}") for number in range(3)]
    settle(db)
    db.execute("update builder_score.settings set lock_timeout = '50 ms'")
    run(
        db,
        f"""
        create table tally (n integer);
        insert into tally values (0);
        grant select, update on tally to public;
        create function waits() returns trigger language plpgsql as $$
        begin
            if new.username = 'held' then
                {wait};
            end if;
            return new;
        end $$;
        create trigger waits before update on users for each row execute function waits();
        """,
    )
    for user in (held, *free):
        app.start(user, "shipped")
    holder, worker = sessions("holder"), sessions("worker")
    holder.run("begin")
    holder.run(hold)
    worker.run("call builder_score.drain()")  # and not only when the holder lets go

    assert [score(db, user) for user in (held, *free)] == [0, SHIPPED, SHIPPED, SHIPPED]
    assert {row[0] for row in queue(db)} == {held}
    assert one(db, "select last_error from builder_score.health").startswith("55P03")
    failures = "select sum(failed) from builder_score.worker_status"
    attempts = "select coalesce(sum(attempts), 0) from builder_score.score_state"
    assert (one(db, failures), one(db, attempts)) == (0, 0)

    holder.run("commit")
    settle(db)
    assert score(db, held) == SHIPPED
    assert_right(db)


# uninstalling while it runs -----------------------------------------------------------------------


def test_uninstalling_stops_running_workers_and_leaves_the_hosts_schema_as_it_was(
    server: PrivateCluster, host_databases: HostDatabases, host_schema: HostSchema
) -> None:
    with host_databases.before_us(host_schema) as host, Sessions(host.address) as sessions:
        app, db, address = host.app, host.db, host.address
        app.sign_up("before")
        before = schema_dump(server, address)
        install(address, db, host_schema)
        assert schema_dump(server, address) != before
        resident, late = sessions("resident"), sessions("late")
        resident.start(WORKER)
        user = app.sign_up("ann")
        app.start(user, "shipped")
        until(lambda: score(db, user) == SHIPPED, "the worker runs")
        late.start(WORKER)
        naps = "select coalesce(wait_event = 'PgSleep', false) from pg_stat_activity where pid = %s"
        until(lambda: one(db, naps, late.pid), "the second one waits for its turn")
        migrator.downgrade(address, lock_wait=20)
        resident.finish()
        late.finish()
        assert schema_dump(server, address) == before
        app.start(user, "shipped")


def test_uninstalling_ends_the_command_too(host_databases: HostDatabases) -> None:
    with host_databases.installed(ULID_ENUM) as host:
        with running("worker", "--dsn", host.address) as worker:
            user = host.app.sign_up("ann")
            host.app.start(user, "shipped")
            until(lambda: score(host.db, user) == SHIPPED, "the worker runs")
            migrator.downgrade(host.address, lock_wait=20)
            _, stderr = worker.communicate(timeout=20)
        assert worker.returncode == 1
        last = stderr.splitlines()[-1]
        assert last.startswith("pyscore: builder_score is not installed in this database")


@pytest.mark.pg_cron
def test_uninstalling_stops_a_running_job_of_pg_cron() -> None:
    """On a host with triggers and scores of its own; on the reference one: test_pg_cron."""
    runs = "select pid from pg_stat_activity where query = 'call builder_score.run_worker()'"
    with PrivateCluster(settings={"fsync": False}, cron_database="app") as server:
        server.psql("-c", f"create role {APPLICATION} login", "-c", "create database app")
        address = server.conninfo("app")
        with psycopg.connect(address, autocommit=True) as db:
            create_host(db, ULID_ENUM)
            before = schema_dump(server, address)
            install(address, db, ULID_ENUM)
        server.restart()  # the @reboot job spares us the wait for the next minute
        with (
            psycopg.connect(address, autocommit=True) as db,
            psycopg.connect(as_application(address), autocommit=True) as theirs,
        ):
            app = Application(theirs, ULID_ENUM)
            user = app.sign_up("ann")
            app.start(user, "shipped")
            until(lambda: score(db, user) == SHIPPED, "the job runs")
            ((pid,),) = run(db, runs)
            migrator.downgrade(address, lock_wait=20)
            until(lambda: (pid,) not in run(db, runs), "the job ends")
            assert schema_dump(server, address) == before
            app.start(user, "shipped")
        # the job's: uninstalling may have had to ask for its locks again
        assert f"[{pid}] ERROR" not in server.log_file.read_text()
