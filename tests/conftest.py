"""One private server with pg_cron for the whole run, one template, one clone of it per test."""

import itertools
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow
from pytest_postgresql.janitor import DatabaseJanitor

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.interleave import Sessions

CRON_DATABASE = "pyscore_cron"
TEMPLATE = "pyscore_template"

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[PrivateCluster]:
    """The server that all tests share. No pg_cron is a failure, not a reason to skip."""
    # fsync: nothing here outlives the machine
    settings = {"fsync": False, "max_connections": 200, "max_prepared_transactions": 20}
    with PrivateCluster(settings=settings, cron_database=CRON_DATABASE) as cluster:
        assert cluster.has_extension("pg_cron"), "install postgresql-NN-cron (make test does)"
        cluster.psql("-c", f"create database {CRON_DATABASE}")
        yield cluster


def dsn(server: PrivateCluster, database: str, user: str = "postgres") -> str:
    return server.conninfo(database, user=user)


@contextmanager
def janitor(
    server: PrivateCluster, name: str, *, template: str | None = None, as_template: bool = False
) -> Generator[str]:
    """Create a database, give its address, drop it."""
    keeper = DatabaseJanitor(
        user="postgres",
        host=str(server.host),
        port=server.port,
        dbname=name,
        template_dbname=template,
        as_template=as_template,
    )
    with keeper:
        yield dsn(server, name)


@pytest.fixture(scope="session")
def template(server: PrivateCluster) -> Iterator[str]:
    """The name of a database with the reference tables and our schema, at head."""
    with janitor(server, TEMPLATE, as_template=True) as address:
        migrator.upgrade(address)
        yield TEMPLATE


@pytest.fixture
def empty_database(server: PrivateCluster) -> Iterator[str]:
    """The address of an empty database."""
    with janitor(server, f"empty_{next(_numbers)}") as address:
        yield address


@pytest.fixture
def database(server: PrivateCluster, template: str) -> Iterator[str]:
    """The address of a migrated database of the test's own."""
    with janitor(server, f"test_{next(_numbers)}", template=template) as address:
        yield address


@pytest.fixture
def db(database: str) -> Iterator[Connection[TupleRow]]:
    """An autocommit connection to the test's own migrated database."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def shared_database(server: PrivateCluster, template: str) -> Iterator[Connection[TupleRow]]:
    with (
        janitor(server, "shared", template=template) as address,
        psycopg.connect(address) as connection,
    ):
        yield connection


@pytest.fixture
def scratch(shared_database: Connection[TupleRow]) -> Iterator[Connection[TupleRow]]:
    """For tests that commit nothing: one database for all of them, everything taken back."""
    with shared_database.transaction(force_rollback=True):
        yield shared_database


@pytest.fixture
def sessions(database: str) -> Iterator[Sessions]:
    """Opens sessions on the test's own migrated database, for fixed interleavings."""
    with Sessions(database) as opened:
        yield opened


@pytest.fixture
def cron_database(server: PrivateCluster) -> Iterator[str]:
    """The one database in which pg_cron works; migrated for the test and emptied after it.

    It is never dropped: that would end pg_cron's launcher until the server restarts.
    """
    address = dsn(server, CRON_DATABASE)
    migrator.upgrade(address)
    try:
        yield address
    finally:
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("truncate users, projects, project_collaborators")
        migrator.downgrade(address)
