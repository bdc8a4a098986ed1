"""What every act plays on: a private server with our schema, a connection, and timed steps."""

import os
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from rich.console import Console

from pyscore import address, migrator
from pyscore.cluster import PrivateCluster
from pyscore.demo import embedded, signals
from pyscore.demo.servers import Server
from pyscore.demo.workers import PgCron, Worker, WorkerProcess
from pyscore.errors import PyscoreError

DATABASE = "pyscore_demo"


@dataclass
class Stage:
    """What an act gets.

    Attributes:
        console: Where it prints.
        cluster: The private server.
        connection: To its migrated database; each statement is a transaction of its own.
        worker: What runs the worker.
    """

    console: Console
    cluster: PrivateCluster
    connection: Connection[Any]
    worker: Worker

    def one(self, query: Any, *parameters: Any) -> Any:
        """Return the first column of a query's first row."""
        row = self.connection.execute(query, parameters).fetchone()
        if row is None:
            raise PyscoreError(f"no row came back from: {query}")
        return row[0]

    def restart(self) -> None:
        """Restart the server and connect to it again."""
        self.connection.close()
        with signals.held():
            self.cluster.restart()
        self.connection = address.connect(self.cluster.conninfo(DATABASE))


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
def open_stage(
    console: Console,
    server: Server,
    *,
    keep: bool,
    owner: str = "postgres",
    prepare: Callable[[PrivateCluster], None] | None = None,
) -> Generator[Stage, None, None]:
    """Start a server that nothing else knows about, and migrate its database.

    Args:
        console: Where acts print.
        server: What to start.
        keep: Leave all of it running, unless something goes wrong; else stop and remove it.
        owner: The role that migrates, and for which the worker runs.
        prepare: Makes that role, and tables of an application's own, in the empty database.
    """
    _forget_callers_server()
    cron = DATABASE if server.has_pg_cron else None
    cluster = PrivateCluster(bin_dir=server.bin_dir, tcp=False, cron_database=cron)
    conninfo = cluster.conninfo(DATABASE, user=owner)
    process = WorkerProcess(conninfo, cluster.directory / "worker.log")
    stage: Stage | None = None
    finished = False
    try:
        with step(console, "start a server") as remarks:
            if server.is_embedded:
                embedded.bring_within_reach(cluster)
            with signals.held():
                cluster.start()
            cluster.psql("-c", f"create database {DATABASE}")
            remarks.append(_versions(cluster))
            if server.is_embedded:
                remarks.append(f"from PyPI's {embedded.PACKAGE.replace('_', '-')}")
            remarks.append(f"private, in {cluster.directory}")
        if not server.has_pg_cron:
            console.print("no pg_cron here: `pyscore worker` in its place", markup=False)
        if prepare is not None:
            prepare(cluster)
        with step(console, "pyscore migrate") as remarks:
            migrator.upgrade(conninfo)
            remarks.append(f"to revision {migrator.head()}")
        worker = PgCron() if server.has_pg_cron else process
        superuser = address.connect(cluster.conninfo(DATABASE))
        stage = Stage(console, cluster, superuser, worker)
        yield stage
        finished = True
    finally:
        if stage is not None:
            stage.connection.close()
        if not (keep and finished):
            with signals.ignored():
                process.close()
                cluster.close()
                shutil.rmtree(embedded.programs_of(cluster), ignore_errors=True)


def _versions(cluster: PrivateCluster) -> str:
    query = (
        "select concat_ws(', ',"
        " 'PostgreSQL ' || split_part(current_setting('server_version'), ' ', 1),"
        " (select 'pg_cron ' || default_version from pg_available_extensions"
        " where name = 'pg_cron' and current_setting('cron.database_name', true) is not null))"
    )
    return cluster.psql("-Atc", query).strip()


def _forget_callers_server() -> None:
    """Drop libpq's variables: they mean another server, and would bend connections to this one."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
