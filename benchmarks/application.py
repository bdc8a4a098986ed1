"""What it costs the application: its own statements, with our triggers and without."""

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from benchmarks import hosts, servers
from benchmarks.measuring import Ratio, alternate, cpu_seconds, wall
from benchmarks.pgbench import SCRIPTS, Run, pgbench
from benchmarks.progress import say
from benchmarks.reports import Figure, Report, Table, number
from benchmarks.scales import Scale
from pyscore.cluster import PrivateCluster

NAME = "application"
TITLE = "What the application pays"

OURS, ALONE, WITHOUT, UPSERT = "app", "alone", "without", "upsert"
"""Four databases of the same rows: with our triggers; with them disabled; never heard of us; with
them disabled and a queue by upsert in their place."""

NO_TRIGGERS = "no triggers"
SYNCHRONOUS = {"synchronous_commit": "on"}
ASYNCHRONOUS = {"synchronous_commit": "off"}

HOT_CLIENTS = 16

_REMARKS = (
    "*no triggers*: a copy of the same database, file by file, in the same server, where ours are "
    "disabled. Each round runs both, and each begins with its tables vacuumed and the queue empty; "
    "autovacuum is off, and so is the worker, but where it says otherwise. Every row that should "
    "be in the queue afterwards is counted.",
    "Single rows: pgbench with 2 clients on a random row, a statement a transaction, sent as "
    "pgbench does by default (the simple protocol); a prepared statement is cheaper, so that "
    "the same triggers weigh more: those are lines of their own.",
    "Hot users: each of the 16 clients updates projects of its own, so that nothing of the "
    "application's own makes one wait for another. The upsert queue is a trigger of five lines, "
    "`insert … on conflict (user_id) do update` (scripts/upsert_queue.sql), deadlock_timeout 1 s.",
)


@dataclass
class Bench:
    """What all of the measurements need.

    Attributes:
        cluster: The server with the databases.
        variables: How many people, projects and collaborations there are, for the scripts.
        figures, tables: What has been found so far.
    """

    cluster: PrivateCluster
    scale: Scale
    variables: Mapping[str, int]
    figures: list[Figure] = field(default_factory=list[Figure])
    tables: list[Table] = field(default_factory=list[Table])

    @property
    def rounds(self) -> int:
        return self.scale.pick(smoke=1, quick=3, ordinary=7)

    def value(self, database: str, query: LiteralString) -> Any:
        with servers.connect(self.cluster, database) as db:
            row = db.execute(query).fetchone()
        assert row is not None
        return row[0]

    def clear(self, database: str) -> None:
        """Empty the queue, and make room in the tables."""
        with servers.connect(self.cluster, database) as db:
            if database == OURS:
                db.execute("truncate builder_score.score_recalc_queue")
            if database == UPSERT:
                db.execute("truncate upsert_queue")
            db.execute("vacuum users, projects, project_collaborators")

    def queued(self) -> int:
        return self.value(OURS, "select count(*) from builder_score.score_recalc_queue")

    def pgbench(
        self,
        database: str,
        script: str,
        settings: Mapping[str, str],
        *,
        queued: int | None = None,
        length: float = 1,
        prepared: bool = False,
        clients: int = 2,
    ) -> Run:
        """Run a script for as long as the scale says; `queued`: rows that each appends."""
        self.clear(database)
        seconds = self.scale.pick(smoke=None, quick=max(1, 2 * length), ordinary=4 * length)
        run = pgbench(
            self.cluster,
            database,
            script,
            clients=clients,
            seconds=seconds,
            transactions=20,
            variables=self.variables,
            settings=settings,
            prepared=prepared,
        )
        if queued is not None and database == OURS:
            assert self.queued() == queued * run.transactions, f"{script}: {self.queued()} in queue"
        return run


def run(scale: Scale) -> Report:
    people = scale.pick(smoke=300, quick=20_000, ordinary=150_000)
    with servers.server(scale, autovacuum=False) as cluster:
        bench = Bench(cluster, scale, _make_databases(cluster, people))
        single_rows(bench)
        many_rows(bench)
        hot_users(bench)
        each_event(bench)
        return Report(
            NAME,
            TITLE,
            figures=bench.figures,
            tables=bench.tables,
            remarks=_REMARKS,
            server=servers.describe(cluster),
        )


def _make_databases(cluster: PrivateCluster, people: int) -> dict[str, int]:
    hosts.fill(cluster, WITHOUT, people)
    with servers.connect(cluster, WITHOUT) as db:
        _execute_script(db, "hot_users_setup")
    hosts.twin(cluster, WITHOUT, OURS)
    hosts.install(cluster, OURS)
    with servers.connect(cluster, OURS) as db:
        db.execute("vacuum (analyze)")
    for name in (ALONE, UPSERT):
        hosts.twin(cluster, OURS, name)
        with servers.connect(cluster, name) as db:
            for table in ("users", "projects", "project_collaborators"):
                statement = sql.SQL("alter table {} disable trigger user")
                db.execute(statement.format(sql.Identifier(table)))
    with servers.connect(cluster, UPSERT) as db:
        _execute_script(db, "upsert_queue")
    with servers.connect(cluster, WITHOUT) as db:
        query = """
            select (select count(*) from users where username ~ '^person') as people,
                   (select count(*) from projects where title ~ '^Project') as projects,
                   (select count(*) from project_collaborators) as collaborations"""
        with db.cursor(row_factory=dict_row) as cursor:
            counts = cursor.execute(query).fetchone()
    assert counts is not None
    assert counts["people"] == people
    return counts


def _execute_script(db: psycopg.Connection[Any], name: str) -> None:
    db.execute((SCRIPTS / f"{name}.sql").read_bytes())


# Single rows -------------------------------------------------------------------------------------


def single_rows(bench: Bench) -> None:
    """One statement a transaction, on a random row."""
    rows: list[list[object]] = []
    matters, does_not = "update_that_matters", "update_that_does_not_matter"
    for what, reach, script, settings, queued, prepared in (
        (
            *("single-row update that matters, synchronous commit", "≥ 0.90"),
            *(matters, SYNCHRONOUS, 1, False),
        ),
        ("the same, synchronous_commit off", "≥ 0.75", matters, ASYNCHRONOUS, 1, False),
        (
            *("the same, synchronous_commit off, prepared statement", ""),
            *(matters, ASYNCHRONOUS, 1, True),
        ),
        (
            *("update that does not matter (last_seen), synchronous_commit off", "≥ 0.97"),
            *(does_not, ASYNCHRONOUS, 0, False),
        ),
        (
            *("the same, synchronous_commit off, prepared statement", ""),
            *(does_not, ASYNCHRONOUS, 0, True),
        ),
    ):
        runs = _runs(bench, what, (OURS, ALONE), script, settings, queued=queued, prepared=prepared)
        ratio = _ratio(runs, OURS, ALONE)
        bench.figures.append(
            Figure.of(what, NO_TRIGGERS, reach, ratio, note="share of the throughput")
        )
        rows.append([what, *_speeds(runs, OURS, ALONE)])
    headings = ["", "with triggers, per s", "without, per s", "CPU with, µs", "CPU without, µs"]
    bench.tables.append(Table("Single rows", headings, rows))
    _with_worker(bench)


def _with_worker(bench: Bench) -> None:
    what = "update that matters, synchronous_commit off, the worker beside it"
    sides = {OURS: lambda: _beside_worker(bench), ALONE: lambda: _alone(bench)}
    values = alternate(sides, bench.rounds)
    bench.figures.append(
        Figure.of(
            *(what, NO_TRIGGERS, "", Ratio.of(values[OURS], values[ALONE])),
            note="on two cores the worker takes its share of them",
        )
    )


def _beside_worker(bench: Bench) -> float:
    with _worker(bench.cluster):
        run = bench.pgbench(OURS, "update_that_matters", ASYNCHRONOUS)
    return run.per_second


def _alone(bench: Bench) -> float:
    return bench.pgbench(ALONE, "update_that_matters", ASYNCHRONOUS).per_second


@contextmanager
def _worker(cluster: PrivateCluster) -> Generator[None]:
    """The resident worker, as pg_cron would run it, in a session of its own."""
    with servers.connect(cluster, OURS) as watching, servers.connect(cluster, OURS) as db:
        started = threading.Thread(target=_call_worker, args=(db,))
        started.start()
        try:
            yield
        finally:
            watching.execute("update builder_score.settings set paused = true")
            started.join()
            watching.execute("update builder_score.settings set paused = false")


def _call_worker(db: psycopg.Connection[Any]) -> None:
    db.execute("call builder_score.run_worker('1 hour')")


# Many rows ----------------------------------------------------------------------------------------

_COPIED = "A copied project"


def many_rows(bench: Bench) -> None:
    """One statement over many rows."""
    count = min(
        bench.scale.pick(smoke=200, quick=30_000, ordinary=300_000), bench.variables["projects"]
    )
    owners = bench.scale.pick(smoke=20, quick=1_000, ordinary=1_000)
    file = bench.cluster.directory / "projects.copy"
    _write_projects(bench, file, count, owners)
    chosen = f"where id in (select project_id(n) from generate_series(1, {count}) as n)"
    update = f"update projects set github_stars = github_stars + 1 {chosen}"
    copy = f"copy projects (owner_id, title, description) from '{file}'"
    rows: list[list[object]] = []
    for what, reach, statement, people in (
        (f"{count:,}-row update that matters", "≤ 1.6", update, _owners_of_first(count)),
        (
            *(f"{count:,}-row COPY into projects, {owners:,} owners", "≤ 1.15"),
            *(copy, f"select {owners}"),
        ),
        (
            *(f"{count:,}-row update that does not matter", ""),
            *(f"update projects set views = views + 1 {chosen}", "select 0"),
        ),
        (
            *(f"{count:,}-row delete of projects", ""),
            *(f"delete from projects where title = '{_COPIED}'", f"select {owners}"),
        ),
    ):
        seconds, cpu = _statement(bench, what, statement, people, copy)
        ratio = Ratio.of(seconds[OURS], seconds[ALONE])
        bench.figures.append(Figure.of(what, NO_TRIGGERS, reach, ratio, note="times as long"))
        medians = [Ratio.among(values).got for values in (seconds[OURS], seconds[ALONE])]
        of_cpu = Ratio.of(cpu[OURS], cpu[ALONE]).got if min(cpu[ALONE]) > 0 else 0
        rows.append([what, *medians, of_cpu])
    headings = ["", "with triggers, s", "without, s", "CPU, ratio"]
    bench.tables.append(Table("Many rows", headings, rows))


def _owners_of_first(count: int) -> str:
    return (
        "select count(distinct owner_id) from projects"
        f" where id in (select project_id(n) from generate_series(1, {count}) as n)"
    )


def _write_projects(bench: Bench, file: Path, count: int, owners: int) -> None:
    """Let the server write a file to COPY from; the owners take turns."""
    rows = f"select person_id(1 + n % {owners}), '{_COPIED}', 'What it is for.'"
    with servers.connect(bench.cluster, OURS) as db:
        db.execute(f"copy ({rows} from generate_series(1, {count}) as n) to '{file}'".encode())


def _statement(
    bench: Bench, what: str, statement: str, people: str, copy: str
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Run a statement once a round and side; return its seconds, and its processor time."""
    say(what)
    cpu: dict[str, list[float]] = {OURS: [], ALONE: []}
    deletes = statement.startswith("delete")

    def side(database: str) -> float:
        with servers.connect(bench.cluster, database) as db:
            db.execute("set synchronous_commit = off")
            if deletes:
                db.execute(copy.encode())
            bench.clear(database)
            pid = db.info.backend_pid
            before = cpu_seconds(pid)
            seconds = wall(lambda: db.execute(statement.encode()))
            cpu[database].append(cpu_seconds(pid) - before)
            if database == OURS:
                _assert_queued(db, people)
            # COPY's rows go as they came; neither our triggers nor foreign keys look at them.
            db.execute("set session_replication_role = replica")
            db.execute("delete from projects where title = %s", [_COPIED])
        return seconds

    sides = {name: lambda name=name: side(name) for name in cpu}
    seconds = alternate(sides, bench.rounds)
    return seconds, {name: values[1:] for name, values in cpu.items()}


def _assert_queued(db: psycopg.Connection[Any], people: str) -> None:
    """Assert that as many people are queued as a query counts, and nobody twice a statement."""
    queued = "select count(distinct user_id) from builder_score.score_recalc_queue"
    row = db.execute(f"select ({queued}), ({people})".encode()).fetchone()
    assert row is not None
    assert row[0] == row[1], f"{row[0]} people are queued, not {row[1]}"


# Hot users ----------------------------------------------------------------------------------------


def hot_users(bench: Bench) -> None:
    """Many clients that change what belongs to few people."""
    rows: list[list[object]] = []
    names = {OURS: "our queue", ALONE: NO_TRIGGERS, UPSERT: "upsert queue"}
    for settings, suffix in ((SYNCHRONOUS, "synchronous commit"), (ASYNCHRONOUS, "asynchronous")):
        what = f"{HOT_CLIENTS} clients on 50 hot users, two projects a transaction, {suffix}"
        before = {name: _deadlocks(bench, name) for name in names}
        runs = _runs(
            bench,
            *(what, tuple(names), "hot_users", settings),
            queued=2,
            clients=HOT_CLIENTS,
            length=1.25,
        )
        deadlocks = {name: _deadlocks(bench, name) - before[name] for name in names}
        for side, reach, note in (
            (ALONE, "≥ 0.75", "share of the throughput"),
            (UPSERT, "≥ 3", "times the throughput"),
        ):
            ratio = _ratio(runs, OURS, side)
            bench.figures.append(Figure.of(what, names[side], reach, ratio, note=note))
        ours = float(deadlocks[OURS])
        bench.figures.append(Figure(f"{what}: deadlocks", "", "= 0", ours, ours, ours))
        for name, label in names.items():
            speed = Ratio.among([run.per_second for run in runs[name]])
            failed = sum(run.failed for run in runs[name])
            rows.append([what, label, speed.got, deadlocks[name], failed])
    headings = ["", "queue", "transactions/s", "deadlocks in all", "failed transactions"]
    bench.tables.append(Table("Hot users", headings, rows))


def _deadlocks(bench: Bench, database: str) -> int:
    # What a backend has counted is there when it has ended.
    return bench.value(
        database, "select deadlocks from pg_stat_database where datname = current_database()"
    )


# Each event ---------------------------------------------------------------------------------------

_EVENTS = (
    ("update of a project's stars", "update_that_matters", 1),
    ("update of a project's views", "update_of_a_project_that_does_not_matter", 0),
    ("update of a profile", "update_of_a_profile", 1),
    ("update of a user's last_seen", "update_that_does_not_matter", 0),
    ("a collaboration is confirmed, or no more", "collaboration_confirmed_or_not", 2),
    ("insert of a person", "insert_of_a_person", 1),
    ("insert of a project", "insert_of_a_project", 1),
)


def each_event(bench: Bench) -> None:
    """Each kind of event by itself: what it costs the processor."""
    rows: list[list[object]] = []
    sides = (OURS, ALONE, WITHOUT)
    for what, script, queued in _EVENTS:
        runs = _runs(bench, what, sides, script, ASYNCHRONOUS, queued=queued, length=0.5)
        cpu = [1e6 * Ratio.among([run.cpu for run in runs[side]]).got for side in sides]
        shares = [_ratio(runs, OURS, side) for side in (ALONE, WITHOUT)]
        rows.append([what, *map(_said, shares), *cpu])
    headings = (
        *("", "share of the throughput without triggers", "without pyscore"),
        *("CPU µs", "without triggers", "without pyscore"),
    )
    bench.tables.append(Table("Each event, synchronous_commit off", headings, rows))


# What they share ----------------------------------------------------------------------------------


def _runs(
    bench: Bench,
    what: str,
    sides: Sequence[str],
    script: str,
    settings: Mapping[str, str],
    *,
    queued: int,
    prepared: bool = False,
    clients: int = 2,
    length: float = 1,
) -> dict[str, list[Run]]:
    say(what)
    runs: dict[str, list[Run]] = {name: [] for name in sides}

    def side(name: str) -> float:
        run = bench.pgbench(
            name,
            *(script, settings),
            queued=queued,
            prepared=prepared,
            clients=clients,
            length=length,
        )
        runs[name].append(run)
        return run.per_second

    alternate({name: lambda name=name: side(name) for name in sides}, bench.rounds)
    return {name: found[1:] for name, found in runs.items()}


def _ratio(runs: Mapping[str, Sequence[Run]], side: str, other: str) -> Ratio:
    return Ratio.of([run.per_second for run in runs[side]], [run.per_second for run in runs[other]])


def _speeds(runs: Mapping[str, Sequence[Run]], *sides: str) -> list[float]:
    speeds = [Ratio.among([run.per_second for run in runs[side]]).got for side in sides]
    cpu = [1e6 * Ratio.among([run.cpu for run in runs[side]]).got for side in sides]
    return [*speeds, *cpu]


def _said(ratio: Ratio) -> str:
    return f"{number(ratio.got)} ({number(ratio.low)} to {number(ratio.high)})"
