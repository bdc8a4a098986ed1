"""One statement over many rows."""

from pathlib import Path
from typing import Any

from psycopg import Connection

from benchmarks import servers
from benchmarks.measuring import Ratio, wall
from benchmarks.paying.databases import ALONE, NO_TRIGGERS, OURS, Bench
from benchmarks.progress import say
from benchmarks.reports import Figure, Table
from benchmarks.usage import backend_seconds

_TITLE = "A copied project"


def many_rows(bench: Bench) -> tuple[list[Figure], Table]:
    """How many times as long they take."""
    wanted = bench.scale.pick(smoke=200, quick=30_000, ordinary=300_000)
    count = min(wanted, bench.variables["projects"])
    owners = bench.scale.pick(smoke=20, quick=1_000, ordinary=1_000)
    copy = _prepare_copy(bench, count, owners)
    chosen = f"where id in (select project_id(n) from generate_series(1, {count}) as n)"
    theirs = f"select count(distinct owner_id) from projects {chosen}"
    figures: list[Figure] = []
    rows: list[list[object]] = []
    for what, reach, statement, people in (
        (
            *(f"{count:,}-row update that matters", "≤ 1.6"),
            *(f"update projects set github_stars = github_stars + 1 {chosen}", theirs),
        ),
        (
            *(f"{count:,}-row COPY into projects, {owners:,} owners", "≤ 1.15"),
            *(copy, f"select {owners}"),
        ),
        (
            *(f"{count:,}-row update that does not matter", ""),
            *(f"update projects set views = views + 1 {chosen}", "select 0"),
        ),
        (
            *(f"{count:,}-row delete of projects, {owners:,} owners", ""),
            *(f"delete from projects where title = '{_TITLE}'", f"select {owners}"),
        ),
    ):
        seconds, cpu = _measure(bench, what, statement, people, copy, rounds=7 if reach else 3)
        ratio = Ratio.of(seconds[OURS], seconds[ALONE])
        figures.append(Figure.of(what, NO_TRIGGERS, reach, ratio, note="times as long"))
        values = (seconds[OURS], seconds[ALONE], cpu[OURS], cpu[ALONE])
        rows.append([what, *(Ratio.among(each).got for each in values)])
    headings = ["", "with triggers, s", "without, s", "CPU with, s", "CPU without, s"]
    return figures, Table("Many rows", headings, rows)


def _prepare_copy(bench: Bench, count: int, owners: int) -> str:
    """Let the server write a file of projects whose owners take turns; return what copies it."""
    file = Path(bench.cluster.directory, "projects.copy")
    rows = f"select person_id(1 + n % {owners}), '{_TITLE}', 'What it is for.'"
    copied = f"copy ({rows} from generate_series(1, {count}) as n) to '{file}'"
    bench.connections[OURS].execute(copied.encode())
    return f"copy projects (owner_id, title, description) from '{file}'"


def _measure(
    bench: Bench, what: str, statement: str, people: str, copy: str, *, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return a statement's seconds, and its processor time, of each side."""
    say(what)
    cpu: dict[str, list[float]] = {OURS: [], ALONE: []}

    def side(database: str) -> float:
        with servers.connect(bench.cluster, database) as db:
            db.execute("set synchronous_commit = off")
            if statement.startswith("delete"):
                db.execute(copy.encode())
            bench.clear(database)
            pid = db.info.backend_pid
            before = backend_seconds(pid)
            seconds = wall(lambda: db.execute(statement.encode()))
            cpu[database].append(backend_seconds(pid) - before)
            if database == OURS:
                _assert_queued(db, people)
            # COPY's rows go as if they had not come: no trigger of ours, no foreign key looks.
            db.execute("set session_replication_role = replica")
            db.execute("delete from projects where title = %s", [_TITLE])
        return seconds

    seconds = bench.alternate({name: lambda name=name: side(name) for name in cpu}, rounds)
    return seconds, {name: found[-len(seconds[name]) :] for name, found in cpu.items()}


def _assert_queued(db: Connection[Any], people: str) -> None:
    """Assert that as many people are queued as a query says."""
    queued = "select count(distinct user_id) from builder_score.score_recalc_queue"
    row = db.execute(f"select ({queued}), ({people})".encode()).fetchone()
    assert row is not None
    assert row[0] == row[1], f"{row[0]} people are queued, not {row[1]}"
