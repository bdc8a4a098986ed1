"""The plans of all that a session runs, those of statements in functions too, as they ran."""

import json
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg import Connection
from psycopg.errors import Diagnostic

from tests.host_schemas import HostSchema
from tests.statements import run

PlanMode = Literal["custom", "generic"]
"""What a session's sixth execution chooses between."""

_RECORDING = """
    load 'auto_explain';
    set auto_explain.log_min_duration = 0;
    set auto_explain.log_analyze = on;
    set auto_explain.log_buffers = on;
    set auto_explain.log_timing = off;
    set auto_explain.log_nested_statements = on;
    set auto_explain.log_format = json;
    set auto_explain.log_level = notice;
"""

_BY_PLACE = {"Tid Scan": "ctid"}


@dataclass(frozen=True)
class Scan:
    """One look at a table.

    Attributes:
        node: The plan's word for how.
        table: Where.
        index: The index, if it goes by one; ctid where it knows the place of each row.
        rows: Rows it went through, whether or not they were wanted; at least one a time.
        blocks: Blocks it touched.
    """

    node: str
    table: str
    index: str | None
    rows: int
    blocks: int


@dataclass(frozen=True)
class Statement:
    """A statement that ran.

    Attributes:
        function: The function it stands in, innermost; None for the caller's own.
        query: Its text.
        plan: Its plan, as EXPLAIN gives it.
    """

    function: str | None
    query: str
    plan: dict[str, Any]

    @property
    def nodes(self) -> Iterator[dict[str, Any]]:
        """All nodes that ran."""
        waiting = [self.plan["Plan"]]
        while waiting:
            node = waiting.pop()
            waiting += node.get("Plans", [])
            if node["Actual Loops"]:
                yield node

    @property
    def scans(self) -> Iterator[Scan]:
        """All looks at tables."""
        for node in self.nodes:
            if "Relation Name" in node and node["Node Type"].endswith("Scan"):
                inner = [*node.get("Plans", []), node]
                indexes = [n["Index Name"] for n in inner if "Index Name" in n]
                yield Scan(
                    node=node["Node Type"],
                    table=node["Relation Name"],
                    index=indexes[0] if indexes else _BY_PLACE.get(node["Node Type"]),
                    rows=max(_rows(n) for n in inner),
                    blocks=node["Shared Hit Blocks"] + node["Shared Read Blocks"],
                )

    @property
    def sorted_rows(self) -> int:
        """Rows that went into its largest sort, however often that ran."""
        return max((_rows(n["Plans"][0]) for n in self._sorts), default=0)

    @property
    def sorted_at_once(self) -> float:
        """Rows of its largest sort in one of that one's runs."""
        each = (_rows(n["Plans"][0]) / n["Actual Loops"] for n in self._sorts)
        return max(each, default=0)

    @property
    def _sorts(self) -> list[dict[str, Any]]:
        return [n for n in self.nodes if n["Node Type"].endswith("Sort")]


class Recording(list[Statement]):
    """Statements, in the order in which they ended."""

    def of(self, function: str) -> "Recording":
        """Those in one function of ours; at least one."""
        found = Recording(s for s in self if s.function == function)
        assert found, (
            f"no statement of {function}() among {sorted({str(s.function) for s in self})}"
        )
        return found

    def scans(self, *tables: str) -> list[Scan]:
        """All looks at these tables; at least one."""
        found = [scan for s in self for scan in s.scans if scan.table in tables]
        assert found, f"nothing looked at {', '.join(tables)}"
        return found

    def indexes(self, *tables: str) -> set[str | None]:
        """The indexes by which they go; None where one goes by none."""
        return {scan.index for scan in self.scans(*tables)}

    @property
    def rows(self) -> int:
        """Rows of the look that went through most of them."""
        return max((scan.rows for s in self for scan in s.scans), default=0)

    @property
    def blocks(self) -> int:
        """Blocks of the look that touched most of them."""
        return max((scan.blocks for s in self for scan in s.scans), default=0)

    @property
    def sorted_rows(self) -> int:
        """Rows of the largest sort, however often it ran."""
        return max((s.sorted_rows for s in self), default=0)

    @property
    def sorted_at_once(self) -> float:
        """Rows of the largest sort in one run."""
        return max((s.sorted_at_once for s in self), default=0)

    @property
    def compiled(self) -> list[str]:
        """Queries that were compiled first, which takes longer than they do."""
        return [s.query for s in self if "JIT" in s.plan]


@contextmanager
def recorded(db: Connection[Any]) -> Generator[Recording]:
    """Record what a connection's session runs; as a superuser."""
    recording = Recording()

    def note(diagnostic: Diagnostic) -> None:
        message = diagnostic.message_primary or ""
        if message.startswith("duration: "):
            plan: dict[str, Any] = json.loads(message[message.index("{") :])
            where = re.search(r"function builder_score\.(\w+)", diagnostic.context or "")
            recording.append(Statement(where and where[1], plan["Query Text"], plan))

    db.execute(_RECORDING, prepare=False)
    db.add_notice_handler(note)
    try:
        yield recording
    finally:
        # a plan is told when its portal goes, which is when the next one comes
        db.execute("set auto_explain.log_min_duration = -1")
        db.remove_notice_handler(note)


@contextmanager
def planning(address: str, mode: PlanMode) -> Generator[Connection[Any]]:
    """A session that prepares all it sends, and always makes one kind of plan."""
    with psycopg.connect(address, prepare_threshold=0) as db:
        db.execute(f"set plan_cache_mode = force_{mode}_plan".encode())
        db.commit()
        yield db
        db.rollback()


def _rows(node: dict[str, Any]) -> int:
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    each = node["Actual Rows"] + sum(node.get(name, 0) for name in removed)
    return max(each, 1) * node["Actual Loops"]


def fill(db: Connection[Any], schema: HostSchema, people: int) -> None:
    """Fill an application's tables past all triggers, and keep autovacuum from analyzing them.

    Everyone owns two projects, collaborates on two, and has a score of 0 to 100.
    """
    # an id of each kind from a number
    as_id = "md5(({})::text)::uuid" if "uuid primary key" in schema.tables else "({})::bigint"
    insert = {
        table: f"insert into {schema.schema}.{table} (%s) overriding system value select %s"
        f" from generate_series(1, {people if table == 'users' else 2 * people}) as i"
        for table in ("users", "projects", "project_collaborators")
    }
    texts = {table: schema.texts.get(table, ()) for table in insert}
    columns = {
        "users": {
            "id": as_id.format("i"),
            "username": "'user' || i",
            "builder_score": "abs(hashint4(i)) % 101",
        },
        "projects": {
            "id": as_id.format("i"),
            "owner_id": as_id.format(f"i % {people} + 1"),
            "status": "'shipped'",
        },
        "project_collaborators": {
            "project_id": as_id.format("i"),
            "user_id": as_id.format(f"i * 7 % {people} + 1"),
            "status": "'confirmed'",
        },
    }
    run(db, "set session_replication_role = replica")
    for table, insertion in insert.items():
        run(db, f"alter table {schema.schema}.{table} set (autovacuum_enabled = false)")
        values = {**columns[table], **{name: f"'{name}' || i" for name in texts[table]}}
        run(db, insertion % (", ".join(values), ", ".join(values.values())))
    run(
        db,
        "insert into builder_score.score_state (user_id, score, computed_at)"
        f" select id, builder_score, now() - interval '1 hour' from {schema.schema}.users",
    )
    run(db, "set session_replication_role = origin")
