"""Real concurrency: clients and workers on the same few users, and nobody's order of turns.

A load runs alone, and then beside everything of ours at once. It meets no error beside us that it
does not meet alone, nothing is lost, and no worker is ever seen waiting for a lock of its.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, Self

import psycopg
import pytest
from psycopg import Connection

from pyscore.cluster import PrivateCluster
from tests.attacks import Attack
from tests.community import add_project, add_user, configure, one
from tests.host_databases import APPLICATION, HostDatabase, HostDatabases, as_application
from tests.host_schemas import HOSTS
from tests.interleave import (
    Sessions,
    assert_right,
    batch_stopped,
    install_gates,
    settle,
)
from tests.load import ISOLATION_LEVELS, Load
from tests.statements import run

# Which locks of the application's a worker waits for at this moment.
WAITS = f"""
    select distinct l.locktype, l.mode, l.relation
    from pg_stat_activity as w
    join pg_locks as l on l.pid = w.pid and not l.granted
    cross join unnest(pg_blocking_pids(w.pid)) as b(pid)
    left join pg_stat_activity as a on a.pid = b.pid
    where w.datname = current_database()
      and w.application_name in ('worker', 'builder-score-worker')
      and (a.usename = '{APPLICATION}' or b.pid = 0)  -- 0: a prepared transaction
      and l.locktype <> 'extend'                      -- held while a file grows, not until COMMIT
"""


# What a load locks that truncates: the indexes too, whose locks may go after their table's.
TRUNCATED = """
    select 'project_collaborators'::regclass::oid
    union all
    select indexrelid from pg_index where indrelid = 'project_collaborators'::regclass
"""

# A batch takes its time between computing and COMMIT.
SLOW_TRIGGER = f"""
    create function take_time() returns trigger language plpgsql as
        'begin perform pg_sleep(0.003); return new; end';
    create trigger take_time before update of builder_score on users
        for each row when (current_user <> '{APPLICATION}') execute function take_time();
"""


# A trigger of the host's for builder_score alone.
TALLY = """
    create table tally (changes integer);
    insert into tally values (0);
    grant select, update on tally to builder_score_owner;
    create function count_change() returns trigger language plpgsql as $$
    begin
        update public.tally set changes = changes + 1;
        return new;
    end $$;
    create trigger count_change after update of builder_score on users
        for each row execute function count_change();
"""


class Beside:
    """What goes on beside a load until the end of the context, each in a session of its own."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self.pids: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        if kind is None and self._failures:
            raise self._failures[0]

    def repeat(
        self, name: str, what: Callable[[Connection[Any]], object], pause: float = 0.005
    ) -> None:
        def loop() -> None:
            try:
                with psycopg.connect(
                    self._address, autocommit=True, application_name=name
                ) as connection:
                    self.pids.add(connection.info.backend_pid)
                    if name == "worker":
                        # the log tells of every wait that is longer, and what for
                        run(connection, "set log_lock_waits = on; set deadlock_timeout = '1ms'")
                    while not self._ending.is_set():
                        what(connection)
                        self._ending.wait(pause)
            except BaseException as failure:
                self._failures.append(failure)

        thread = threading.Thread(target=loop, name=name)
        thread.start()
        self._threads.append(thread)


def application_of(host: HostDatabase) -> str:
    """The application's address, where it looks for deadlocks early, but after our lock_timeout."""
    in_database = f"in database {host.db.info.dbname}"
    run(host.db, f"alter role {APPLICATION} {in_database} set deadlock_timeout = '200ms'")
    return as_application(host.address)


def start_all_of_ours(beside: Beside, load: Load, dice: Random, workers: int) -> None:
    """Workers, services that recalculate and enqueue, an operator, and somebody who verifies."""
    of_service, of_queue, of_operator = (Random(dice.random()) for _ in range(3))
    # what asks for people to whom nothing has happened would also mend what was lost
    everyone = dice.random() > 0.7
    asked_for = len(load.users) if everyone else 2

    def recalculate(db: Connection[Any]) -> None:
        # two in one transaction are locked like two by any client: only where all have one order
        places = of_service.sample(range(asked_for), 2 if load.ordered else 1)
        try:
            with db.transaction():
                for place in sorted(places):
                    db.execute("select builder_score.recalculate(%s)", [load.users[place]])
        except (psycopg.errors.NoDataFound, psycopg.errors.DeadlockDetected):
            assert not load.ordered  # else nobody deletes the users that all share

    def enqueue(db: Connection[Any]) -> None:
        user, priority = of_queue.choice(load.users[:asked_for]), of_queue.choice((0, 0, 10, 20))
        db.execute("select builder_score.enqueue(%s, %s)", [user, priority])

    def operate(db: Connection[Any]) -> None:
        match of_operator.randrange(6 if everyone else 4):
            case 0:
                configure(db, paused=True)
                configure(db, paused=False)
            case 1:
                configure(db, batch_size=of_operator.choice((1, 3, 20, 500)))
            case 2:
                configure(db, debounce_window=of_operator.choice(("0", "0.03 seconds")))
            case 3:
                configure(db, backfill_per_second=of_operator.choice((100, 1000)))
            case 4:
                db.execute("select builder_score.enqueue_everyone()")
            case _:
                scale = of_operator.choice((4, 8))
                statement = "update builder_score.signals set scale = %s where signal = 'vouches'"
                db.execute(statement, [scale])

    for _ in range(workers):
        beside.repeat("worker", lambda db: db.execute("call builder_score.drain()"))
    beside.repeat("worker", lambda db: db.execute("call builder_score.run_worker('0.3 seconds')"))
    beside.repeat("service", recalculate)
    beside.repeat("service", enqueue)
    beside.repeat("operator", operate, 0.02)
    beside.repeat("operator", lambda db: run(db, "select * from builder_score.verify()"), 0.02)


MORE = r"(?:(?:.*(?:DETAIL|HINT|CONTEXT|STATEMENT):|\t).*\n)*"
"""The lines of a report after its first."""

AMID_AN_UPDATE = "while locking updated version"
"""PostgreSQL's own exception from SKIP LOCKED. When a row is updated while it is looked at, it goes
on to the row's next version, and waits for whoever updates that: lock_users() gives up soon."""


def let_the_log_tell(db: Connection[Any]) -> None:
    """Let lock_users() wait for longer than it takes until a wait is logged, which is 1 ms."""
    (found,) = run(db, "select pg_get_functiondef('builder_score.lock_users'::regproc)")
    assert found[0].count("'1ms'") == 1
    run(db, found[0].replace("'1ms'", "'3ms'"))


def log_since(server: PrivateCluster, position: int) -> str:
    with server.log_file.open(encoding="utf-8") as log:
        log.seek(position)
        return log.read()


def deadlocks(log: str) -> list[str]:
    """A server's reports of deadlocks: who waited for whom, each with its statement."""
    return re.findall(rf"^.*ERROR:  deadlock detected\n{MORE}", log, re.MULTILINE)


def waits_for_others(log: str, ours: set[int]) -> list[str]:
    """A server's reports of a worker's waiting for a lock that somebody else than ours holds.

    A batch catches the error of a deadlock that ends its wait, which is then told here alone.
    """
    report = (
        r"^.* (?:still waiting|(?:detected|avoided) deadlock(?: while waiting)?) for .*\n"
        rf".*DETAIL:  Process(?:es)? holding the lock: (.*)\. .*\n{MORE}"
    )
    return [
        found[0]
        for found in re.finditer(report, log, re.MULTILINE)
        if not {int(pid) for pid in found[1].split(", ")} <= ours
        # held while a file grows, not until COMMIT
        and "on extension of relation" not in found[0]
    ]


@pytest.mark.parametrize("kind", ["ordered", "unordered", "truncating"])
def test_a_load_meets_no_error_beside_us_that_it_does_not_meet_alone(
    server: PrivateCluster, host_databases: HostDatabases, attack: Attack, kind: str
) -> None:
    """No other kind of error, that is: by its SQLSTATE, of those the load may meet alone.

    How many there are is chance, beside us as alone: both are counted, and not compared.
    """
    for dice in attack.rounds(3 if kind == "ordered" else 1):
        assert attack.seed is not None
        level = ISOLATION_LEVELS[attack.seed % 3]
        if kind == "unordered":
            level = ISOLATION_LEVELS[(attack.seed - 1) % 3]
        schema = list(HOSTS.values())[(attack.seed // 3 + 2) % len(HOSTS)]
        clients, workers, bursts, transactions = 3, 2, 3, 7
        if attack.soaking:
            clients, workers = dice.randint(2, 8), dice.randint(1, 4)
            bursts, transactions = dice.randint(2, 10), dice.randint(3, 20)
        # each on people of its own: what is lost at the end of one, nothing that follows mends
        seeds = [dice.randrange(1_000_000_000) for _ in range(bursts)]
        options: dict[str, Any] = {"clients": clients, "transactions": transactions}
        options |= {"isolation": level, "ordered": kind != "unordered"}
        options |= {"truncating": kind == "truncating"}
        alone, beside_us, committed = Counter[str](), Counter[str](), Counter[str]()
        waits = set[tuple[Any, ...]]()
        sampled = attack.tally["samples"]
        ours: set[int] = set()

        def sample(
            db: Connection[Any], waits: set[tuple[Any, ...]] = waits, attack: Attack = attack
        ) -> None:
            attack.count("samples")
            waits.update(db.execute(WAITS).fetchall())

        with host_databases.before_us(schema) as host:
            for seed in seeds:
                with Load(application_of(host), schema, seed=seed, **options) as load:
                    load.finish()
                load.assert_kept(host.db)
                alone += load.errors

        with host_databases.installed(schema) as host:
            run(host.db, SLOW_TRIGGER)
            let_the_log_tell(host.db)
            truncated = {oid for (oid,) in run(host.db, TRUNCATED)}
            before = server.log_file.stat().st_size
            for seed in seeds:
                with (
                    Beside(host.address) as beside,
                    Load(application_of(host), schema, seed=seed, **options) as load,
                ):
                    start_all_of_ours(beside, load, dice, workers)
                    beside.repeat("sampler", sample, 0.01)
                    load.finish()
                load.assert_kept(host.db)
                ours |= beside.pids
                beside_us += load.errors
                committed += load.committed
            configure(host.db, debounce_window="0", backfill_per_second=5000, batch_size=500)
            settle(host.db)
            assert_right(host.db)
            failed = one(host.db, "select sum(failed) from builder_score.worker_status")
            recalculated = one(host.db, "select recalculated from builder_score.health")
        text = log_since(server, before)
        reports = deadlocks(text)
        waited = waits_for_others(text, ours)

        # what a load may meet alone; anything else, 55P03 for one, has ended the client at once
        expected = set[str]() if level == "read committed" else {"40001"}
        expected |= {"ordered": set(), "unordered": {"40P01", "23503"}, "truncating": {"23505"}}[
            kind
        ]
        assert set(alone) <= expected
        assert set(beside_us) <= expected
        if kind == "truncating":
            # a worker may wait for a TRUNCATE, for one lock_timeout, while it holds nobody
            tables = re.compile(rf" on relation (?:{'|'.join(map(str, truncated))}) ")
            waited = [report for report in waited if not tables.search(report)]
            waits = {wait for wait in waits if wait[2] not in truncated}
        unexcused = [report for report in waited if AMID_AN_UPDATE not in report]
        assert not unexcused, "\n".join(unexcused)
        # these are for who updates; what else ends before it is logged would be seen here alone
        assert {lock for lock, *_ in waits} <= ({"transactionid"} if waited else set()), waits
        assert attack.tally["samples"] > sampled
        assert not reports or kind == "unordered", "\n".join(reports)
        # recalculate() queues for a row like any client; a worker, or what our triggers do, never
        by_us = [report for report in reports if re.search("call builder_score|_queue", report)]
        assert not by_us, "\n".join(by_us)
        assert failed == 0

        attack.count("transactions", committed["transactions"])
        attack.count("recalculations", recalculated)
        attack.count("waits amid an update", len(waited))
        for what, sqlstate in (("deadlocks", "40P01"), ("serialization failures", "40001")):
            attack.count(f"{what} alone", alone[sqlstate])
            attack.count(f"{what} beside us", beside_us[sqlstate])


# what a load would meet once in a while, in a fixed order --------------------------------------


def test_the_log_tells_of_a_workers_deadlock_that_its_batch_has_caught(
    server: PrivateCluster, db: Connection[Any], sessions: Sessions
) -> None:
    """The control of what is asserted of a load: the load's reader sees what no client is told."""
    configure(db, debounce_window="0")
    add_user(db, "ann", bio="bio")
    run(db, TALLY)
    install_gates(db)
    worker, application, keeper = sessions("worker"), sessions("application"), sessions("keeper")
    application.run("set deadlock_timeout = '1min'")  # it is the worker that looks, and gives way
    before = server.log_file.stat().st_size
    worker.run("set log_lock_waits = on; set deadlock_timeout = '10ms'")
    application.run("begin")
    application.run("update tally set changes = 0")
    with batch_stopped(worker, keeper, "after computing"):
        application.start("update users set headline = 'a headline'")
        application.waits_for(worker)
    application.finish()
    application.run("commit")
    assert one(db, "select last_error from builder_score.health").startswith("40P01: ")
    text = log_since(server, before)
    assert deadlocks(text) == []
    assert waits_for_others(text, {worker.pid, keeper.pid, application.pid}) == []
    (told,) = waits_for_others(text, {worker.pid, keeper.pid})
    assert "detected deadlock while waiting for" in told
    settle(db)
    assert_right(db)


def test_a_deadlock_by_way_of_a_trigger_of_the_hosts_is_not_the_applications_end(
    db: Connection[Any], sessions: Sessions
) -> None:
    """The trigger is for builder_score alone: without us these two never meet."""
    configure(db, debounce_window="0")
    for number in range(200):
        add_user(db, f"user{number}", bio="bio")
    run(db, TALLY)
    application, worker = sessions("application"), sessions("worker")
    application.run("begin")
    application.run("update tally set changes = 0")
    worker.start("call builder_score.drain()")
    worker.waits_for(application)
    # the worker holds them all, and lets go before anybody looks for a deadlock
    application.run("update users set headline = 'a headline'")
    worker.finish()
    application.run("commit")
    assert one(db, "select coalesce(sum(attempts), 0) from builder_score.score_state") == 0
    settle(db)
    assert_right(db)


@pytest.mark.parametrize("meanwhile", ["computed", "put off"])
def test_somebody_who_comes_back_while_being_forgotten_is_not_lost(
    db: Connection[Any], sessions: Sessions, meanwhile: str
) -> None:
    """Nobody can hold the row of a user who is gone: another worker may find one there again."""
    install_gates(db)
    configure(db, debounce_window="0")
    ann, bob = add_user(db, "ann", bio="bio"), add_user(db, "bob", bio="bio")
    settle(db)
    add_project(db, bob, status="shipped")
    run(db, "delete from users where username = 'ann'")
    with batch_stopped(sessions("worker"), sessions("keeper"), "after computing"):
        # the gate is in the way of writes: a right score, or an open window, needs none
        right = 3 if meanwhile == "computed" else None
        configure(db, debounce_window="0" if meanwhile == "computed" else "1 day")
        add_user(db, "ann", id=ann, bio="another bio", builder_score=right)
        sessions("another worker").run("call builder_score.drain()")
    configure(db, debounce_window="0")
    settle(db)
    assert_right(db)
