"""Uninstalling leaves the host's schema byte for byte as it was, and what is not ours in place."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.catalogue import dump, schema_dump
from tests.commands import alembic, output, psql, pyscore
from tests.conftest import dsn, janitor
from tests.hosts import create_application

OTHER_OWNER = "uninstall_test_host"


@pytest.fixture(scope="module")
def other_owner(server: PrivateCluster) -> Generator[str]:
    server.psql("-c", f"create role {OTHER_OWNER} login")
    yield OTHER_OWNER
    server.psql("-c", f"drop role {OTHER_OWNER}")


@contextmanager
def database_of(
    server: PrivateCluster, prepare: Callable[[Connection[Any]], None]
) -> Generator[str]:
    with janitor(server, f"uninstall_{uuid4().hex[:12]}") as address:
        with psycopg.connect(address, autocommit=True) as db:
            prepare(db)
        yield address


# Hosts --------------------------------------------------------------------------------------------


def empty(db: Connection[Any]) -> None:
    """No tables: the reference tables come and go."""


def without_column(db: Connection[Any]) -> None:
    create_application(db, key="bigint")


def with_column(db: Connection[Any]) -> None:
    create_application(db, score="double precision not null default 0")


def with_row_security(db: Connection[Any]) -> None:
    create_application(db)
    for table in ("users", "projects"):
        db.execute(f"alter table {table} enable row level security")  # type: ignore[arg-type]
        db.execute(f"create policy everybody on {table} using (true)")  # type: ignore[arg-type]
    db.execute("alter table users force row level security")


def of_another_owner(db: Connection[Any]) -> None:
    create_application(db, key="varchar(26)")
    db.execute("revoke usage on schema public from public")
    for table in ("users", "projects", "project_collaborators"):
        db.execute(f"alter table {table} owner to {OTHER_OWNER}")  # type: ignore[arg-type]
        db.execute(f"grant select on {table} to pg_monitor")  # type: ignore[arg-type]


def with_indexes_and_triggers(db: Connection[Any]) -> None:
    create_application(db, score="integer")
    db.execute("create index idx_users_builder_score on users (builder_score desc, id desc)")
    db.execute("create index mine on projects (owner_id)")
    db.execute("comment on column users.builder_score is 'the host''s own comment'")
    db.execute(
        "create function audit() returns trigger language plpgsql as 'begin return new; end'"
    )
    db.execute("create trigger audit before update on users for each row execute function audit()")


HOSTS = (
    empty,
    without_column,
    with_column,
    with_row_security,
    of_another_owner,
    with_indexes_and_triggers,
)


# Ways ---------------------------------------------------------------------------------------------


def by_package(server: PrivateCluster, address: str) -> None:
    migrator.downgrade(address)


def by_command(server: PrivateCluster, address: str) -> None:
    output(pyscore("uninstall", "--yes", "--dsn", address))


def by_commands_script(server: PrivateCluster, address: str) -> None:
    psql(server, address, output(pyscore("uninstall", "--sql")))


def by_alembic(server: PrivateCluster, address: str) -> None:
    output(alembic("downgrade", "base", DATABASE_URL=address))


def by_alembics_script(server: PrivateCluster, address: str) -> None:
    psql(server, address, output(alembic("downgrade", "head:base", "--sql")))


Way = Callable[[PrivateCluster, str], None]


@pytest.mark.usefixtures("other_owner")
@pytest.mark.parametrize(
    ("prepare", "uninstall"),
    [(host, by_package) for host in HOSTS]
    + [
        (without_column, way)
        for way in (by_command, by_commands_script, by_alembic, by_alembics_script)
    ]
    + [(empty, by_commands_script)],
)
def test_the_hosts_schema_is_as_it_was(
    server: PrivateCluster, prepare: Callable[[Connection[Any]], None], uninstall: Way
) -> None:
    with database_of(server, prepare) as address:
        before = schema_dump(server, address)
        migrator.upgrade(address)
        assert schema_dump(server, address) != before
        uninstall(server, address)
        assert schema_dump(server, address) == before


@pytest.mark.parametrize("uninstall", [by_package, by_commands_script])
def test_a_column_that_was_there_first_keeps_its_scores(
    server: PrivateCluster, uninstall: Way
) -> None:
    with (
        database_of(server, with_column) as address,
        psycopg.connect(address, autocommit=True) as db,
    ):
        migrator.upgrade(address)
        db.execute("insert into users (username, email) values ('ada', 'ada@example.org')")
        db.execute(
            "insert into projects (owner_id, title, status) select id, 'x', 'shipped' from users"
        )
        db.execute("call builder_score.drain()")
        uninstall(server, address)
        assert db.execute("select builder_score from users").fetchall() == [(10.0,)]
        db.execute("update users set builder_score = 1, username = 'it is the host''s again'")


@pytest.mark.parametrize("uninstall", [by_package, by_commands_script])
def test_reference_tables_that_hold_rows_stay(
    server: PrivateCluster, empty_database: str, uninstall: Way
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        migrator.upgrade(empty_database)
        db.execute("insert into users (username, email) values ('ada', 'ada@example.org')")
        uninstall(server, empty_database)
        tables = "select tablename from pg_tables where schemaname = 'public' order by 1"
        assert db.execute(tables).fetchall() == [
            ("project_collaborators",),
            ("projects",),
            ("users",),
        ]
        assert db.execute("select username from users").fetchall() == [("ada",)]
        triggers = "select tgname from pg_trigger where not tgisinternal"
        assert db.execute(triggers).fetchall() == []
        assert "builder_score_owner" not in schema_dump(server, empty_database)

        # from now on they are the host's own
        before = schema_dump(server, empty_database)
        migrator.upgrade(empty_database)
        db.execute("truncate users cascade")
        uninstall(server, empty_database)
        assert schema_dump(server, empty_database) == before


def test_what_was_never_installed_is_left_alone(
    server: PrivateCluster, empty_database: str
) -> None:
    before = dump(server, empty_database)
    output(pyscore("uninstall", "--yes", "--dsn", empty_database))
    assert dump(server, empty_database) == before


@pytest.mark.parametrize("uninstall", [by_package, by_commands_script])
def test_roles_go_with_the_last_database_that_uses_them(uninstall: Way) -> None:
    # a server of its own: the other tests' databases use the roles too
    with PrivateCluster(settings={"fsync": False}) as server:
        addresses = [dsn(server, name) for name in ("one", "two")]
        for name, address in zip(("one", "two"), addresses, strict=True):
            server.psql("-c", f"create database {name}")
            migrator.upgrade(address)

        def roles() -> str:
            query = "select rolname from pg_roles where rolname like 'builder%' order by 1"
            return server.psql("-Atc", query)

        both = "builder_score_operator\nbuilder_score_owner\n"
        assert roles() == both
        uninstall(server, addresses[0])
        assert roles() == both
        with psycopg.connect(addresses[1], autocommit=True) as db:
            db.execute(
                "insert into users (username, email, bio) values ('ada', 'a@example.org', 'x')"
            )
            db.execute("call builder_score.drain()")
            db.execute("truncate users cascade")
        uninstall(server, addresses[1])
        assert roles() == ""
