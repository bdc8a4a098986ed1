"""One private server with pg_cron for the whole run, one template, one clone of it per test."""

import itertools
import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.databases import Janitor, memory
from tests.host_databases import HostDatabase, HostDatabases
from tests.host_schemas import HOSTS, HostSchema
from tests.interleave import Sessions

pytest_plugins = ["tests.attacks"]

CRON_DATABASE = "pyscore_cron"
TEMPLATE = "pyscore_template"

SLOWEST = (
    *(
        "benchmarks",
        "migrations",
        "pg_cron",
        "demo",
        "dba_guide",
        "wheel",
        "migrations_concurrent",
        "uninstall",
    ),
    *("pytest_plugin", "cli", "crashes", "failover", "real_concurrency", "overload", "clocks"),
    *("random_histories", "permutations", "host_concurrency", "restore_under_load", "unseen"),
    *("random_failures", "hostile_values", "isolation", "readme", "doctor", "plans", "dry_run"),
    *("scoring", "host_alembic", "doctor_running", "demo_embedded", "roles", "reader_pages"),
    *("migrations_script", "dump_restore", "schedule", "demo_community", "django", "example"),
    "report_page",
)
"""The files that take longest: begun first, so that no process is left with one at the end."""

_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-pg-cron",
        action="store_true",
        help="skip what needs pg_cron: for the servers of `make test-matrix` that have none",
    )
    parser.addoption(
        "--without-contrib",
        action="store_true",
        help="skip what needs the modules that come with PostgreSQL's source: likewise",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep the servers in memory, and what tests write themselves (tmp_path) where it was.

    The processes that xdist starts inherit it; whoever sets TMPDIR has it otherwise.
    """
    # What a shell starts in the background ignores Ctrl-C, and so would the commands of tests.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):
        return
    processes = config.getoption("numprocesses", None) or 1
    if "TMPDIR" not in os.environ and (directory := memory(processes)):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        tempfile.tempdir = os.environ["TMPDIR"] = str(directory)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    for name in ("pg_cron", "contrib"):
        if not config.getoption(f"--without-{name.replace('_', '-')}"):
            continue
        needs_it = pytest.mark.skip(reason=f"this server has no {name}")
        for item in items:
            fixtures = getattr(item, "fixturenames", ())
            by_fixture = name == "pg_cron" and "cron_database" in fixtures
            if by_fixture or item.get_closest_marker(name):
                item.add_marker(needs_it)


def with_pg_cron(config: pytest.Config, database: str) -> str | None:
    """Where pg_cron is to work on a server whose tests need no more of it than to be there."""
    return None if config.getoption("--without-pg-cron") else database


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[PrivateCluster]:
    """The server that all tests share. No pg_cron is a failure, not a reason to skip."""
    # fsync: nothing here outlives the machine
    settings = {"fsync": False, "max_connections": 200, "max_prepared_transactions": 20}
    cron_database = with_pg_cron(request.config, CRON_DATABASE)
    with PrivateCluster(settings=settings, cron_database=cron_database) as cluster:
        cluster.psql("-c", f"create database {CRON_DATABASE}")
        yield cluster


@pytest.fixture(scope="session")
def managed_server(request: pytest.FixtureRequest) -> Iterator[PrivateCluster]:
    """A server as services run it: pg_cron works in the database postgres; roles of ours are none.

    Tests drop their databases, and with the last one go the roles.
    """
    settings = {"fsync": False, "max_connections": 50}
    cron_database = with_pg_cron(request.config, "postgres")
    with PrivateCluster(settings=settings, cron_database=cron_database) as cluster:
        if cron_database:
            cluster.psql("-c", "create extension pg_cron")
        yield cluster


def dsn(server: PrivateCluster, database: str, user: str = "postgres") -> str:
    return server.conninfo(database, user=user)


@contextmanager
def janitor(
    server: PrivateCluster, name: str, *, template: str | None = None, as_template: bool = False
) -> Generator[str]:
    """Create a database, give its address, drop it."""
    keeper = Janitor(
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


@pytest.fixture(scope="session")
def bare_database(server: PrivateCluster) -> Iterator[str]:
    """The address of a database without us, for `bare`."""
    with janitor(server, "bare") as address:
        yield address


@pytest.fixture
def bare(bare_database: str) -> Iterator[Connection[Any]]:
    """An autocommit connection to a database without us, while it is empty."""
    with psycopg.connect(bare_database, autocommit=True) as connection:
        yield connection
        connection.execute("drop schema public cascade; create schema public")


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


@pytest.fixture(scope="session")
def host_databases(server: PrivateCluster, template: str) -> Iterator[HostDatabases]:
    # with the template another database uses our roles: uninstalling one leaves them
    with HostDatabases(server) as databases:
        yield databases


@pytest.fixture(params=HOSTS)
def host_schema(request: pytest.FixtureRequest) -> HostSchema:
    return HOSTS[request.param]


@pytest.fixture
def host(host_databases: HostDatabases, host_schema: HostSchema) -> Iterator[HostDatabase]:
    """An application's database of the test's own, with us installed, for each host schema."""
    with host_databases.installed(host_schema) as host:
        yield host


@pytest.fixture
def scratch_host(host_databases: HostDatabases, host_schema: HostSchema) -> Iterator[HostDatabase]:
    """For tests that commit nothing: everything is taken back."""
    with host_databases.scratch(host_schema) as host:
        yield host
