"""Four databases of the same rows, in one server."""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import Connection, sql
from psycopg.rows import dict_row

from benchmarks import hosts, servers
from benchmarks.measuring import alternate
from benchmarks.pgbench import SCRIPTS
from benchmarks.scales import Scale
from pyscore.cluster import PrivateCluster

OURS = "app"
"""With our triggers."""
ALONE = "alone"
"""With our triggers disabled."""
WITHOUT = "without"
"""Has never heard of us."""
UPSERT = "upsert"
"""With our triggers disabled, and a queue by upsert in their place."""

NO_TRIGGERS = "no triggers"


@dataclass(frozen=True)
class Bench:
    """The databases, and how much is to be measured.

    Attributes:
        cluster: Their server.
        scale: How much.
        variables: How many people, projects and collaborations there are, for the scripts.
        connections: To each, for what is not measured; each statement is a transaction.
    """

    cluster: PrivateCluster
    scale: Scale
    variables: Mapping[str, int]
    connections: Mapping[str, Connection[Any]]

    def alternate(
        self, sides: Mapping[str, Callable[[], float]], rounds: int
    ) -> dict[str, list[float]]:
        """As its namesake; `rounds` are those of the ordinary scale."""
        rounds = self.scale.pick(smoke=1, quick=3, ordinary=rounds)
        return alternate(sides, rounds, warm_up=self.scale is not Scale.SMOKE)

    def value(self, database: str, query: LiteralString) -> Any:
        """The first column of a query's first row."""
        row = self.connections[database].execute(query).fetchone()
        assert row is not None
        return row[0]

    def clear(self, database: str) -> None:
        """Empty the queue, and make room in the tables."""
        db = self.connections[database]
        if database == OURS:
            db.execute("truncate builder_score.score_recalc_queue")
        if database == UPSERT:
            db.execute("truncate upsert_queue")
        if self.scale is not Scale.SMOKE:
            db.execute("vacuum users, projects, project_collaborators")


@contextmanager
def make(cluster: PrivateCluster, scale: Scale, people: int) -> Generator[Bench]:
    """Fill one database, copy it file by file, and stay connected to all."""
    hosts.fill(cluster, WITHOUT, people)
    with servers.connect(cluster, WITHOUT) as db:
        _execute_script(db, "hot_users_setup")
        variables = _count(db)
    assert variables["people"] == people
    hosts.twin(cluster, WITHOUT, OURS)
    hosts.install(cluster, OURS)
    for name in (ALONE, UPSERT):
        hosts.twin(cluster, OURS, name)
        with servers.connect(cluster, name) as db:
            for table in ("users", "projects", "project_collaborators"):
                statement = sql.SQL("alter table {} disable trigger user")
                db.execute(statement.format(sql.Identifier(table)))
    with servers.connect(cluster, UPSERT) as db:
        _execute_script(db, "upsert_queue")
    with ExitStack() as open_ones:
        connections = {
            name: open_ones.enter_context(servers.connect(cluster, name))
            for name in (OURS, ALONE, WITHOUT, UPSERT)
        }
        yield Bench(cluster, scale, variables, connections)


def _count(db: Connection[Any]) -> dict[str, int]:
    query = """
        select (select count(*) from users where username ~ '^person') as people,
               (select count(*) from projects where title ~ '^Project') as projects,
               (select count(*) from project_collaborators) as collaborations"""
    with db.cursor(row_factory=dict_row) as cursor:
        counts = cursor.execute(query).fetchone()
    assert counts is not None
    return counts


def _execute_script(db: Connection[Any], name: str) -> None:
    db.execute((SCRIPTS / f"{name}.sql").read_bytes())
