"""How long after an application's COMMIT the score is there, and what idling costs."""

import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, cast
from uuid import UUID

import redis
from psycopg import Connection, OperationalError

from benchmarks import arrivals, freshness_report, hosts, servers
from benchmarks.arrivals import Event
from benchmarks.freshness_report import Idleness, Round, Sides
from benchmarks.peers.celery_workers import CeleryWorkers
from benchmarks.peers.redis_server import private_redis
from benchmarks.progress import say
from benchmarks.reports import Report
from benchmarks.scales import Scale
from benchmarks.usage import Backends, backend_seconds, tree_seconds
from pyscore.cluster import PrivateCluster

NAME = "freshness"
TITLE = "How fresh scores are"

PER_SECOND = 200
SELDOM_PER_SECOND = 50
"""So many that Celery keeps up with them on two cores."""

OURS, THEIRS = "app", "peer"
"""Twin databases; the second has no trigger of ours."""

_OBSERVED = 20
"""Every so many events one that an observer looks for, in every other block of time."""
_GETTING_READY_S = 3.0
_PATIENCE_S = 120
"""After the last event: what Celery has not done by then it has not done."""

# People whose score 100,000 stars more change for certain: by two points or more.
_CANDIDATES = """
    select p.owner_id, min(p.id::text)::uuid
    from projects as p
    group by p.owner_id
    having sum(p.github_stars + coalesce((p.impact_metrics ->> 'users')::numeric, 0)) < 30000
    order by md5(p.owner_id::text)
"""
# When the transaction committed that wrote the score as it is now: nobody has to watch for it.
_WRITTEN = """
    select id, extract(epoch from pg_xact_commit_timestamp(xmin))::float8 from users
    where pg_xact_commit_timestamp(xmin) >= to_timestamp(%s)
"""
_WORKERS = "select pid from pg_stat_activity where application_name ~ '^builder-score-worker'"

Place = tuple[UUID, UUID]
"""A person, and a project of theirs."""


def run(scale: Scale) -> Report:
    rounds = scale.pick(smoke=1, quick=1, ordinary=2)
    # More than a minute holds a minute's end, wherever it begins.
    round_s = scale.pick(smoke=0.3, quick=65.0, ordinary=65.0)
    seldom_s = scale.pick(smoke=0.0, quick=10.0, ordinary=20.0)
    samples = scale.pick(smoke=1, quick=5, ordinary=24)
    idle_before_s = scale.pick(smoke=0.1, quick=5.0, ordinary=5.0)
    idle_s = scale.pick(smoke=0.5, quick=30.0, ordinary=61.0)
    often, seldom = Sides([], []), Sides([], [])
    everyone = scale.pick(smoke=200, quick=30_000, ordinary=60_000)
    # One Redis for all of it, which idles meanwhile: Celery keeps its connections to a broker.
    with _stage(scale, everyone) as cluster, private_redis() as broker:
        with servers.connect(cluster, OURS) as db:
            people = iter(cast(list[Place], db.execute(_CANDIDATES).fetchall()))

        def play(sides: Sides, number: int, seconds: float, per_second: int) -> None:
            places = list(islice(people, int(seconds * per_second)))
            # The other side is first in every other round.
            for is_ours in (True, False) if number % 2 == 0 else (False, True):
                if is_ours:
                    played = _play_ours(cluster, places, per_second)
                else:
                    played = _play_theirs(cluster, broker, places, per_second)
                (sides.ours if is_ours else sides.theirs).append(played)
                say(f"{'ours' if is_ours else 'Celery'}, {per_second}/s: {played.said()}")

        for number in range(rounds):
            play(often, number, round_s, PER_SECOND)
        if seldom_s:
            play(seldom, 1, seldom_s, SELDOM_PER_SECOND)
        with servers.connect(cluster, OURS) as db:
            idleness = _idle(cluster, db, idle_s)
            alone = list(islice(people, samples))
            assert len(alone) == samples, "too few people"
            idleness.first = [
                _first_after_idle(db, place, idle_before_s + 0.5 * n / samples)
                for n, place in enumerate(alone)
            ]
            say(f"first after {idle_before_s:g} s: {max(idleness.first):.3f} s at most")
        left_out = {person for person, _ in alone}
        for played in often.theirs + seldom.theirs:
            left_out |= played.unfinished
        _assert_equal(cluster, left_out)
        idleness.back_after_kill = _kill(cluster)
        with servers.connect(cluster, OURS) as db:
            idleness.gone_when_paused = _pause(db)
        return freshness_report.report(
            NAME, TITLE, often, seldom, idleness, servers.describe(cluster)
        )


@contextmanager
def _stage(scale: Scale, people: int) -> Generator[PrivateCluster]:
    """A server with both databases, and our worker under pg_cron."""
    with servers.server(scale, track_commit_timestamp=True) as cluster:
        hosts.fill(cluster, OURS, people)
        hosts.install(cluster, OURS)
        hosts.twin(cluster, OURS, THEIRS)
        with servers.connect(cluster, THEIRS) as db:
            db.execute("select builder_score.detach()")
        cluster.settings.update(cluster.pg_cron_settings(OURS))
        cluster.restart()
        with servers.connect(cluster, OURS) as db:
            db.execute("update builder_score.settings set debounce_window = '0'")
            db.execute("select builder_score.schedule()")
        # The job starts with the server, or else with the next minute.
        cluster.restart()
        with servers.connect(cluster, OURS) as db:
            _until(lambda: bool(_workers(db)), "the worker runs")
        yield cluster


def _play_ours(cluster: PrivateCluster, places: Sequence[Place], per_second: int) -> Round:
    with servers.connect(cluster, OURS) as watching:
        worker = Backends(lambda: _workers(watching))
        with servers.connect(cluster, OURS) as db:
            before = _changed(db)
            played = _play(cluster, OURS, places, per_second, within=worker)
            _until(lambda: _changed(db) - before >= len(places), "the worker has counted them")
            if (changed := _changed(db) - before) != len(places):
                raise RuntimeError(f"{len(places)} events, and {changed} scores were written")
        played.busy["of it our worker"] = worker.seconds
        return played


def _play_theirs(
    cluster: PrivateCluster, broker: str, places: Sequence[Place], per_second: int
) -> Round:
    client = cast(Any, redis.Redis).from_url(broker)
    serving = int(client.info()["process_id"])
    client.flushall()  # what the last round may have left undone
    client.close()
    with CeleryWorkers(cluster.conninfo(THEIRS), broker) as workers:
        processes = {"Celery": workers.pid, "Redis": serving}
        return _play(cluster, THEIRS, places, per_second, broker=broker, processes=processes)


def _play(
    cluster: PrivateCluster,
    database: str,
    places: Sequence[Place],
    per_second: int,
    *,
    broker: str | None = None,
    processes: dict[str, int] | None = None,
    within: Backends | None = None,
) -> Round:
    """Send one event a person, and wait until all of them are to be seen."""
    pids = {"PostgreSQL": servers.postmaster(cluster)} | (processes or {})
    seconds = len(places) / per_second
    block_s = min(5.0, seconds / 4)
    with ExitStack() as stack:
        pool = stack.enter_context(arrivals.in_processes(2))
        db = stack.enter_context(servers.connect(cluster, database))
        # both of them at once, so that there are two
        for ready in [pool.submit(time.sleep, 0.2) for _ in range(2)]:
            ready.result()
        start = time.time() + _GETTING_READY_S
        events = [
            Event(person, project, start + number / per_second)
            for number, (person, project) in enumerate(places)
        ]

        def is_observed(event: Event) -> bool:
            return int((event.at - start) / block_s) % 2 == 1

        observed = pool.submit(
            arrivals.watch,
            cluster.conninfo(database),
            [event for event in events[::_OBSERVED] if is_observed(event)],
            patience=60.0,
        )
        sending = pool.submit(arrivals.send, cluster.conninfo(database), events, broker)
        time.sleep(max(0.0, start - time.time()))
        if within:
            stack.enter_context(within)
        used = {name: tree_seconds(pid) for name, pid in pids.items()}
        sent = sending.result()
        written: dict[UUID, float] = {}

        def all_written() -> bool:
            written.clear()
            written.update(db.execute(_WRITTEN, [start]).fetchall())
            return len(written) >= len(events)

        try:
            _until(all_written, "all scores are written", seconds=_PATIENCE_S, every_s=0.5)
        except RuntimeError:
            if broker is None:
                raise
        took = time.time() - start
        used = {name: tree_seconds(pid) - used[name] for name, pid in pids.items()}
        people = {event.person for event in events}
        if set(written) - people:
            raise RuntimeError("scores of people were written to whom nothing had happened")
        unfinished = people - set(written)
        # At least so late.
        written |= dict.fromkeys(unfinished, time.time())
        seen = observed.result()
    return Round(
        per_second=per_second,
        start=start,
        seconds=seconds,
        took=took,
        sent=sorted(sent, key=lambda each: each.event.at),
        visible=written,
        unfinished=unfinished,
        seen=seen,
        is_observed=[is_observed(event) for event in events],
        busy=used,
    )


def _idle(cluster: PrivateCluster, db: Connection[Any], seconds: float) -> Idleness:
    """Let nothing happen, and see what that costs."""
    (launcher,) = _one(
        db, "select pid from pg_stat_activity where backend_type = 'pg_cron launcher'"
    )
    time.sleep(min(2.0, seconds))  # naps grow until then
    postmaster = servers.postmaster(cluster)
    (wal,) = _one(db, "select pg_current_wal_insert_lsn()")
    everything, launching = tree_seconds(postmaster), backend_seconds(launcher)
    began = time.monotonic()
    with servers.connect(cluster, OURS) as watching:
        asking = backend_seconds(watching.info.backend_pid)
        with Backends(lambda: _workers(watching), every_s=2.0) as worker:
            time.sleep(seconds)
        asking = backend_seconds(watching.info.backend_pid) - asking
    took = time.monotonic() - began
    (written,) = _one(db, "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::float8", wal)
    idleness = Idleness(
        seconds=took,
        worker=worker.seconds / took,
        launcher=(backend_seconds(launcher) - launching) / took,
        server=(tree_seconds(postmaster) - everything - asking) / took,
        wal_per_second=written / took,
    )
    say(f"idle for {took:.0f} s: the worker takes {idleness.worker:.2%} of a core")
    return idleness


def _first_after_idle(db: Connection[Any], place: Place, idle_s: float) -> float:
    person, project = place
    time.sleep(idle_s)
    db.execute(arrivals.EVENT, [project])
    committed = time.time()
    written: list[float] = []

    def is_written() -> bool:
        query = f"{_WRITTEN} and id = %s"
        written.extend(at for _, at in db.execute(query.encode(), [committed, person]))
        return bool(written)

    _until(is_written, "the score is written", every_s=0.05)
    return written[0] - committed


def _kill(cluster: PrivateCluster) -> float:
    """Crash the worker's backend, and return the seconds until there is a worker again.

    The server ends every session and recovers, which is most of it.
    """
    with servers.connect(cluster, OURS) as db:
        db.execute("checkpoint")
        killed = _workers(db)
    began = time.monotonic()
    os.kill(killed[0], signal.SIGKILL)

    def is_back() -> bool:
        try:
            with servers.connect(cluster, OURS) as db:
                return bool(set(_workers(db)) - set(killed))
        except OperationalError:
            return False

    _until(is_back, "the worker is back", every_s=0.01)
    return time.monotonic() - began


def _pause(db: Connection[Any]) -> float:
    """Return the seconds until a worker that is paused has gone."""
    began = time.monotonic()
    db.execute("update builder_score.settings set paused = true")
    _until(lambda: not _workers(db), "the worker leaves", every_s=0.01)
    return time.monotonic() - began


def _assert_equal(cluster: PrivateCluster, but: set[UUID]) -> None:
    """The same events have led to the same scores, and ours are what compute says."""
    query = "select id, builder_score from users where id <> all(%s) order by id"
    with servers.connect(cluster, OURS) as ours, servers.connect(cluster, THEIRS) as theirs:
        if (
            ours.execute(query, [list(but)]).fetchall()
            != theirs.execute(query, [list(but)]).fetchall()
        ):
            raise RuntimeError("the scores differ")
        if wrong := ours.execute("select * from builder_score.verify()").fetchall():
            raise RuntimeError(f"{len(wrong)} scores are wrong")


def _workers(db: Connection[Any]) -> list[int]:
    return [pid for (pid,) in db.execute(_WORKERS.encode())]


def _changed(db: Connection[Any]) -> int:
    return _one(db, "select sum(changed)::bigint from builder_score.worker_status")[0]


def _one(db: Connection[Any], query: str, *parameters: object) -> tuple[Any, ...]:
    row = db.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return row


def _until(
    condition: Callable[[], bool], what: str, *, seconds: float = 90, every_s: float = 0.1
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds:g} s: {what}")
        time.sleep(every_s)
