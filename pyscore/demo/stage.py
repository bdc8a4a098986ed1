"""What every act plays on: a private server with our schema, a connection, and timed steps."""

import os
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from rich.console import Console

from pyscore import address, migrator
from pyscore.cluster import PrivateCluster
from pyscore.errors import PyscoreError

DATABASE = "pyscore_demo"


@dataclass(frozen=True)
class Stage:
    """What an act gets.

    Attributes:
        console: Where it prints.
        cluster: The private server.
        connection: To its migrated database; each statement is a transaction of its own.
    """

    console: Console
    cluster: PrivateCluster
    connection: Connection[Any]

    def one(self, query: Any, *parameters: Any) -> Any:
        """Return the first column of a query's first row."""
        row = self.connection.execute(query, parameters).fetchone()
        if row is None:
            raise PyscoreError(f"no row came back from: {query}")
        return row[0]


def print_step(console: Console, title: str, seconds: float, *remarks: str) -> None:
    """Print a step, how long it took, and what there is to say about it."""
    first, *others = remarks or ("",)
    console.print(f"{title:<21}{seconds:>6.1f} s   {first}".rstrip(), markup=False, soft_wrap=True)
    for remark in others:
        console.print(f"{'':<32}{remark}", markup=False, soft_wrap=True)


@contextmanager
def step(console: Console, title: str) -> Generator[list[str], None, None]:
    """Time a step; on a terminal something turns meanwhile.

    Yields:
        A list for remarks, which are printed beside the time.
    """
    remarks: list[str] = []
    began = time.monotonic()
    with console.status(title):
        yield remarks
    print_step(console, title, time.monotonic() - began, *remarks)


@contextmanager
def open_stage(console: Console, *, keep: bool) -> Generator[Stage, None, None]:
    """Start a server that nothing else knows about, and migrate its database.

    Args:
        console: Where acts print.
        keep: Leave the server running, unless something goes wrong; else stop and remove it.
    """
    _forget_callers_server()
    cluster = PrivateCluster(tcp=False, cron_database=DATABASE)
    finished = False
    try:
        with step(console, "start a server") as remarks:
            cluster.start()
            cluster.psql("-c", f"create database {DATABASE}")
            remarks += [_versions(cluster), f"private, in {cluster.directory}"]
        with step(console, "pyscore migrate") as remarks:
            migrator.upgrade(cluster.conninfo(DATABASE))
            remarks.append(f"to revision {migrator.head()}")
        with address.connect(cluster.conninfo(DATABASE)) as connection:
            yield Stage(console, cluster, connection)
        finished = True
    finally:
        if not (keep and finished):
            # a second Ctrl-C must not leave half of it behind
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            cluster.close()


def _versions(cluster: PrivateCluster) -> str:
    query = (
        "select format('PostgreSQL %s, pg_cron %s',"
        " split_part(current_setting('server_version'), ' ', 1), default_version)"
        " from pg_available_extensions where name = 'pg_cron'"
    )
    return cluster.psql("-Atc", query).strip()


def _forget_callers_server() -> None:
    """Drop libpq's variables: they mean another server, and would bend connections to this one."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
