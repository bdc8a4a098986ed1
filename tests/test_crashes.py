"""kill -9 of everything there is, at each step of a batch and at random points under load.

fsync is off: a process that is killed takes nothing along of what it has written, only a machine
that goes down does, and then it is fsync that PostgreSQL relies on, not we.
"""

import os
import signal
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pyscore.cluster import ClusterError, PrivateCluster
from tests.attacks import Attack
from tests.commands import running
from tests.community import add_collaborator, add_project, add_user, configure, one, queue, score
from tests.interleave import (
    GATES,
    Session,
    Sessions,
    assert_right,
    close_windows,
    install_gates,
    is_quiet,
    settle,
    until,
)
from tests.journal import (
    Clients,
    assert_kept,
    assert_nothing_done_twice,
    fetch,
    prepare,
    workers_in_order,
)
from tests.load import Load
from tests.statements import connect

SETTINGS = {"fsync": False, "max_connections": 50, "max_prepared_transactions": 10}

# Ways to crash ------------------------------------------------------------------------------------


def gone(db: Connection[Any]) -> bool:
    """Whether the server has ended this session, as it ends all of them when one crashes."""
    try:
        db.execute("select 1")
    except psycopg.OperationalError:
        return True
    return False


def kill_backend(db: Connection[Any], pid: int) -> None:
    """Kill one process of the server's; the postmaster then restarts all others by itself."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(db), "the server ends every session")


def kill_everything(server: PrivateCluster) -> None:
    server.kill()
    server.start()


def kill_postmaster(server: PrivateCluster) -> None:
    """Kill the first process alone; the others go when they notice, and may write until then."""
    file = server.data_dir / "postmaster.pid"
    os.kill(int(file.read_text().split("\n", 1)[0]), signal.SIGKILL)
    until(lambda: not server.running, "the postmaster dies")
    # It may stay a zombie, as PrivateCluster.kill() knows.
    file.unlink(missing_ok=True)
    (server.directory / f".s.PGSQL.{server.port}.lock").unlink(missing_ok=True)

    def started() -> bool:
        try:
            server.start()
        except ClusterError:  # "pre-existing shared memory block is still in use"
            return False
        return True

    until(started, "the last of the old processes is gone")


def connect_again(address: str) -> Connection[Any]:
    found: list[Connection[Any]] = []

    def connected() -> bool:
        try:
            found.append(connect(address))
        except psycopg.OperationalError:
            return False
        return True

    until(connected, "the server recovers")
    return found[0]


# At each step of a batch --------------------------------------------------------------------------

STEPS = GATES | {
    "after writing": "select pg_advisory_lock(8)",
    "before its commit": "select pg_advisory_lock(9)",
}
"""What holds a batch at which step: see GATES."""

THREE_SHIPPED, VOUCH = 20, 8


@pytest.fixture(scope="module")
def stepped_server() -> Iterator[PrivateCluster]:
    with PrivateCluster(settings=SETTINGS, tcp=False) as server:
        server.psql("-c", "create database app")
        prepare(server.conninfo("app"))
        with connect(server.conninfo("app")) as db:
            install_gates(db)
            # as queue rows are deleted, and when all is done
            db.execute("""
                create function step() returns trigger language plpgsql as $$
                begin
                    perform pg_advisory_xact_lock_shared(tg_argv[0]::bigint);
                    return old;
                end $$;
                create trigger step before delete on builder_score.score_recalc_queue
                    for each row when (old.user_id is not null) execute function step(8);
                create constraint trigger step after update of builder_score on users
                    deferrable initially deferred for each row execute function step(9);
            """)
            settle_by_closing_windows(db)
        yield server


def settle_by_closing_windows(db: Connection[Any]) -> None:
    # one batch, however slow the machine is
    configure(db, debounce_window="0", batch_target="10 seconds")
    settle(db)
    configure(db, debounce_window="5 minutes")


def of_worker(server: PrivateCluster, db: Connection[Any], worker: Session) -> None:
    kill_backend(db, worker.pid)


def of_everything(server: PrivateCluster, db: Connection[Any], worker: Session) -> None:
    kill_everything(server)


def of_postmaster(server: PrivateCluster, db: Connection[Any], worker: Session) -> None:
    kill_postmaster(server)


Crash = Callable[[PrivateCluster, Connection[Any], Session], None]


@pytest.mark.parametrize("crash", [of_worker, of_everything, of_postmaster])
@pytest.mark.parametrize("step", [*STEPS, "after its commit"])
def test_a_batch_that_is_killed_at_any_step_is_undone_whole_and_done_again_once(
    stepped_server: PrivateCluster, step: str, crash: Crash
) -> None:
    address = stepped_server.conninfo("app")
    with connect(address) as db, Sessions(address) as sessions:
        name = f"{step}, {crash.__name__}"
        ann, bob = add_user(db, f"ann {name}"), add_user(db, f"bob {name}")
        settle_by_closing_windows(db)
        close_windows(db)
        db.execute("truncate recalculations")
        projects = [add_project(db, ann, status="shipped") for _ in range(3)]  # a burst
        add_collaborator(db, projects[0], bob)
        queued = queue(db)
        worker, keeper = sessions("worker"), sessions("keeper")
        if step in STEPS:
            keeper.run("begin")
            keeper.run(STEPS[step])
            worker.start("call builder_score.drain()")
            worker.waits_for(keeper)
            # writes the log up to here, and with it all that the batch has committed: nothing
            db.execute("insert into ledger values (%s, 0)", [name])
        else:
            worker.run("call builder_score.drain()")
        crash(stepped_server, db, worker)
    with connect_again(address) as db:
        # what the worker commits is written to the log a moment later, and may be lost as a whole
        if queue(db) == queued or step in STEPS:
            assert queue(db) == queued
            assert (score(db, ann), score(db, bob)) == (0, 0)
            assert one(db, "select count(*) from recalculations") == 0
            # the window never opened: what was undone is done at once, not in five minutes
            db.execute("call builder_score.drain()")
        assert (score(db, ann), score(db, bob)) == (THREE_SHIPPED + VOUCH, VOUCH)
        assert_right(db)
        done = "select user_id, count(*) from recalculations group by user_id"
        assert dict(fetch(db, done)) == {ann: 1, bob: 1}
        assert_nothing_done_twice(db)


# At random points under load ----------------------------------------------------------------------

WORKER = """
    select pid from pg_stat_activity
    where query ~ '^call builder_score.run_worker' and state = 'active'
"""
CLIENT = "select pid from pg_stat_activity where application_name ~ '^client' order by pid limit 1"
OTHER = "select pid from pg_stat_activity where backend_type = %s"
BACKENDS = ["pg_cron launcher", "autovacuum launcher", "checkpointer", "walwriter"]
VICTIMS = ["worker", "worker", "client", *BACKENDS, "everything", "all, twice", "postmaster"]


def strike(server: PrivateCluster, db: Connection[Any], victim: str) -> None:
    """Kill the victim, and see the server up again; it starts by itself unless all of it died."""
    match victim:
        case "everything":
            kill_everything(server)
        case "all, twice":
            kill_everything(server)
            kill_everything(server)
        case "postmaster":
            kill_postmaster(server)
        case "worker":
            until(lambda: fetch(db, WORKER) != [], "a run follows the one of the minute before")
            kill_backend(db, one(db, WORKER))
        case "client":
            kill_backend(db, one(db, CLIENT))
        case other:
            kill_backend(db, one(db, OTHER, other))


def back_at_work(address: str) -> Connection[Any]:
    """Give a new session once a worker runs and has said so, started by nobody here."""
    db = connect_again(address)
    since = one(db, "select clock_timestamp()")
    beat = "select heartbeat_at > %s from builder_score.worker_status where worker = 'resident'"
    until(lambda: len(fetch(db, WORKER)) == 1, "the worker comes back by itself")
    until(lambda: one(db, beat, since), "the worker's heartbeat is fresh")
    return db


def attack_under_load(
    server: PrivateCluster, dice: Random, victims: list[str], attack: Attack
) -> None:
    """Kill the victims one after the other while clients work; nothing is lost or done twice."""
    address = server.conninfo("app")
    db = connect(address)
    seed = dice.randrange(2**32)
    with (
        Load(address, None, clients=2, seed=seed, tolerant=True) as load,
        Clients(address, seed=seed) as clients,
    ):
        for victim in victims:
            clients.go_on(dice.randint(5, 150))
            strike(server, db, victim)
            db.close()
            db = back_at_work(address)
        clients.go_on(50)
    attack.count("kills", len(victims))
    attack.count("transactions", clients.committed + load.committed["transactions"])
    load.assert_kept(db)  # commits what was prepared before a crash
    assert clients.connections > len(clients.each)
    until(lambda: is_quiet(db), "the worker has done what was left, by itself")
    with db:
        assert_right(db)
        assert_kept(db, clients)
        assert_nothing_done_twice(db)
        workers = workers_in_order(db)
        assert len(workers) == len(set(workers)), "two at a time"
        until(lambda: len(fetch(db, WORKER)) == 1, "one worker is left")
        attack.count("recalculations", one(db, "select count(*) from recalculations"))


@pytest.mark.pg_cron
def test_nothing_is_lost_whatever_is_killed_and_pg_cron_carries_on_by_itself(
    attack: Attack,
) -> None:
    for dice in attack.rounds(1):
        with PrivateCluster(settings=SETTINGS, cron_database="app", tcp=False) as server:
            server.psql("-c", "create database app")
            prepare(server.conninfo("app"))
            server.restart()  # the @reboot job spares us the wait for the next minute
            attack_under_load(server, dice, dice.sample(VICTIMS, len(VICTIMS)), attack)


def test_nothing_is_lost_whatever_is_killed_and_the_command_carries_on_by_itself(
    attack: Attack,
) -> None:
    victims = [victim for victim in VICTIMS if victim != "pg_cron launcher"]
    for dice in attack.rounds(1):
        with PrivateCluster(settings=SETTINGS, tcp=False) as server:
            server.psql("-c", "create database app")
            address = server.conninfo("app")
            prepare(address)
            with running("worker", "--dsn", address) as worker:
                with connect(address) as db:
                    until(lambda: len(fetch(db, WORKER)) == 1, "the command works")
                # it waits longer from one failure to the next, up to five seconds
                attack_under_load(server, dice, dice.sample(victims, 3), attack)
                assert worker.poll() is None
