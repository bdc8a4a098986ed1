"""Four databases of the same rows, in one server."""

from collections.abc import Callable, Mapping
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
    """

    cluster: PrivateCluster
    scale: Scale
    variables: Mapping[str, int]

    def alternate(
        self, sides: Mapping[str, Callable[[], float]], rounds: int
    ) -> dict[str, list[float]]:
        """As its namesake; `rounds` are those of the ordinary scale."""
        rounds = self.scale.pick(smoke=1, quick=3, ordinary=rounds)
        return alternate(sides, rounds, warm_up=self.scale is not Scale.SMOKE)

    def value(self, database: str, query: LiteralString) -> Any:
        """The first column of a query's first row."""
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


def make(cluster: PrivateCluster, scale: Scale, people: int) -> Bench:
    """Fill one database, and copy it file by file."""
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
    return Bench(cluster, scale, variables)


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
