"""How fast scores are recomputed, beside whatever else computes and writes the same ones.

Each side works on a copy of a database of its own, all from the same files and in memory; whoever
writes other scores than verify() confirms has failed. Queues are filled before the clock starts.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any
from uuid import UUID

from psycopg import Connection

from benchmarks import hosts, servers
from benchmarks.measuring import Ratio, alternate, wall
from benchmarks.peers import procrastinate_worker
from benchmarks.peers.celery_workers import CeleryWorkers
from benchmarks.peers.redis_server import private_redis
from benchmarks.recomputing import (
    EVERYONE,
    PLAIN,
    QUEUED,
    assert_all_right,
    assert_verified,
    copy,
    count_wrong,
    prepare,
)
from benchmarks.reports import Figure, Report, Table
from benchmarks.scales import Scale
from benchmarks.usage import backend_seconds
from pyscore.cluster import PrivateCluster

NAME = "throughput"
TITLE = "How fast scores are recomputed"

WORKER = "our worker"
TWO_WORKERS = "two of our workers"
HELD_BACK = "our worker, vacuum held back"
BARE = "compute and write in batches"
ONE_STATEMENT = "one UPDATE of everyone"
CELERY = "Celery with Redis"
PROCRASTINATE = "procrastinate"

WADING = "wading"
DEAD_ROWS_A_PERSON = 10
WARM_UP = 20
PATIENCE_S = 300


class Sides:
    """Each method recomputes, and returns people a second.

    Attributes:
        cpu: Seconds of processor time of the server's process, a person, by side and round.
    """

    def __init__(self, cluster: PrivateCluster, people: int, few: int) -> None:
        """Prepare the databases that the sides work on copies of.

        Args:
            cluster: The server.
            people: How many there are.
            few: How many are enough for those that take a job a person.
        """
        self._cluster = cluster
        self._people = people
        self.cpu: dict[str, list[float]] = {}
        prepare(cluster, people)
        with servers.connect(cluster, PLAIN) as db:
            procrastinate_worker.install(cluster.conninfo(PLAIN), db)
            query = "select id from users order by md5('few' || id) limit %s"
            some: list[UUID] = [id for (id,) in db.execute(query, [few + WARM_UP])]
            self._first, self._few = some[:WARM_UP], some[WARM_UP:]
        hosts.twin(cluster, QUEUED, WADING)
        with servers.connect(cluster, WADING) as db:
            db.execute(
                """
                insert into builder_score.score_recalc_queue
                    (user_id, priority, not_before, reason, enqueued_at)
                select u.id, 10, m.moment, 'long done', m.moment
                from users as u, generate_series(1, %s) as g,
                     lateral (select now() - g * interval '1 minute' as moment) as m
                """,
                [DEAD_ROWS_A_PERSON],
            )
            db.execute("vacuum (analyze)")

    def worker(self) -> float:
        with copy(self._cluster, QUEUED) as db:
            return self._drain(WORKER, db)

    def two_workers(self) -> float:
        with (
            copy(self._cluster, QUEUED) as db,
            servers.connect(self._cluster, db.info.dbname) as other,
            ThreadPoolExecutor(2) as pool,
        ):

            def both() -> None:
                list(pool.map(_drain, [db, other]))

            rate = self._measure(TWO_WORKERS, [db, other], both)
            assert_verified(db)
            return rate

    def held_back(self) -> float:
        """The rows that a worker did while somebody's transaction was open, and is still."""
        with (
            copy(self._cluster, WADING) as db,
            servers.connect(self._cluster, db.info.dbname) as holder,
            holder.transaction(),
        ):
            holder.execute("set transaction isolation level repeatable read")
            holder.execute("select from users limit 1")
            db.execute("delete from builder_score.score_recalc_queue where reason = 'long done'")
            return self._drain(HELD_BACK, db)

    def bare(self) -> float:
        with copy(self._cluster, PLAIN) as db:
            db.execute("set synchronous_commit = off")  # as our worker, which can do it all again
            db.execute("set jit = off")
            return self._measure(BARE, [db], lambda: db.execute("call compute_and_write()"))

    def one_statement(self) -> float:
        with copy(self._cluster, PLAIN) as db:
            db.execute("set work_mem = '256MB'")
            return self._measure(ONE_STATEMENT, [db], lambda: db.execute(EVERYONE.encode()))

    def celery(self) -> float:
        with (
            copy(self._cluster, PLAIN) as db,
            private_redis() as broker,
            CeleryWorkers(self._cluster.conninfo(db.info.dbname), broker) as workers,
        ):
            workers.delay(self._first)
            _wait_for(db, workers, self._first)
            workers.hold()
            workers.delay(self._few)
            began = time.perf_counter()
            workers.go_on()
            _wait_for(db, workers, self._few)
            seconds = time.perf_counter() - began
            return len(self._few) / seconds

    def procrastinate(self) -> float:
        with copy(self._cluster, PLAIN) as db:
            database = self._cluster.conninfo(db.info.dbname)
            procrastinate_worker.defer(database, self._few)
            seconds = procrastinate_worker.work(database, db)
            assert_all_right(db, self._few)
            return len(self._few) / seconds

    def _drain(self, side: str, db: Connection[Any]) -> float:
        rate = self._measure(side, [db], lambda: _drain(db))
        assert_verified(db)
        return rate

    def _measure(
        self, side: str, sessions: Sequence[Connection[Any]], work: Callable[[], object]
    ) -> float:
        pids = [db.info.backend_pid for db in sessions]
        before = sum(map(backend_seconds, pids))
        seconds = wall(work)
        used = sum(map(backend_seconds, pids)) - before
        self.cpu.setdefault(side, []).append(used / self._people)
        assert_all_right(sessions[0])
        return self._people / seconds


def _drain(db: Connection[Any]) -> None:
    db.execute("call builder_score.drain()")


def _wait_for(db: Connection[Any], workers: CeleryWorkers, people: Sequence[UUID]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while workers.queued() or count_wrong(db, people):
        if time.monotonic() > deadline:
            raise RuntimeError(f"Celery was not done after {PATIENCE_S} s")
        time.sleep(0.02)


def run(scale: Scale) -> Report:
    people = scale.pick(smoke=300, quick=20_000, ordinary=100_000)
    few = scale.pick(smoke=20, quick=500, ordinary=1_000)
    rounds = scale.pick(smoke=2, quick=2, ordinary=3)
    with servers.server(scale, autovacuum=False) as cluster:
        sides = Sides(cluster, people, few)
        rates = alternate(
            {
                WORKER: sides.worker,
                BARE: sides.bare,
                ONE_STATEMENT: sides.one_statement,
                TWO_WORKERS: sides.two_workers,
                HELD_BACK: sides.held_back,
                CELERY: sides.celery,
                PROCRASTINATE: sides.procrastinate,
            },
            rounds,
            warm_up=False,
        )
        server = servers.describe(cluster)

    def figure(what: str, against: str, reach: str, note: str = "") -> Figure:
        return Figure.of(what, against, reach, Ratio.of(rates[what], rates[against]), note=note)

    def row(side: str) -> tuple[object, ...]:
        cpu = sides.cpu.get(side)
        return (side, median(rates[side]), "" if cpu is None else round(median(cpu) * 1e6, 1))

    return Report(
        NAME,
        TITLE,
        figures=[
            figure(WORKER, BARE, "≥ 0.8", "all of the same batches' scores change"),
            figure(WORKER, ONE_STATEMENT, "≥ 0.5"),
            figure(WORKER, CELERY, "≥ 50", "an ORM's service function in two processes"),
            figure(WORKER, PROCRASTINATE, "≥ 30", "a job a user that calls a function in SQL"),
            figure(TWO_WORKERS, WORKER, "≥ 1.4"),
            figure(
                HELD_BACK,
                WORKER,
                "≥ 0.8",
                f"{people * DEAD_ROWS_A_PERSON:,} dead rows, a transaction open for the whole run",
            ),
        ],
        tables=[
            Table(
                "People a second",
                ("side", "people a second", "µs of processor time a person"),
                [row(side) for side in rates],
            )
        ],
        remarks=[
            "Processor time is that of the server's processes that do the work; that of the "
            "others' own processes comes on top.",
            f"{people:,} people, each with a row in the queue and a score that has to change; "
            f"Celery and procrastinate do {few:,} of them. {rounds} rounds; each side has a copy "
            "of the database, in memory. All end with the same scores, which verify() confirms. "
            "Batches, and compute and write in batches too, commit with synchronous_commit off; "
            "Celery's and procrastinate's transactions wait for the disk, as the application's do.",
        ],
        server=server,
    )
