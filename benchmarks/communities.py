"""Applications of several sizes in one server, which the benchmarks that want them share."""

from contextlib import ExitStack
from functools import cached_property
from typing import Any

from psycopg import Connection

from benchmarks import hosts, servers
from benchmarks.scales import Scale
from pyscore.cluster import PrivateCluster


class Communities:
    """Databases by how many people they have, made when they are first asked for."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self._open = ExitStack()
        self._there: set[int] = set()

    @cached_property
    def cluster(self) -> PrivateCluster:
        # for a look at who was written together
        return self._open.enter_context(servers.server(self.scale, track_commit_timestamp=True))

    def connect(self, people: int) -> Connection[Any]:
        """Connect to the community of this size; nobody is debounced, nothing is queued."""
        name = f"people_{people}"
        if people not in self._there:
            hosts.fill(self.cluster, name, people)
            hosts.install(self.cluster, name, scored=False)
            with servers.connect(self.cluster, name) as db:
                db.execute("update builder_score.settings set debounce_window = '0'")
                db.execute("create extension pg_prewarm")
            self._there.add(people)
        return servers.connect(self.cluster, name)

    def scored(self, people: int) -> Connection[Any]:
        """Connect to the community of this size, in which everyone has a score."""
        db = self.connect(people)
        if db.execute("select from builder_score.score_state limit 1").fetchone() is None:
            hosts.score_everyone(db)
            rest(db)
        return db

    def close(self) -> None:
        self._open.close()


def rest(db: Connection[Any]) -> None:
    """Leave a database as it is when nothing has happened for a while, and in memory."""
    db.execute("vacuum (analyze)")
    db.execute("""
        select sum(pg_prewarm(c.oid)) from pg_class as c
        join pg_namespace as n on n.oid = c.relnamespace
        where c.relkind in ('r', 'i') and n.nspname in ('public', 'builder_score')
    """)


_shared: dict[Scale, Communities] = {}


def shared(scale: Scale) -> Communities:
    """Return those of this run; whoever runs benchmarks calls `close` after the last one."""
    return _shared.setdefault(scale, Communities(scale))


def close() -> None:
    """Remove what `shared` has made."""
    while _shared:
        _shared.popitem()[1].close()
