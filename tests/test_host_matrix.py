"""The life of an application beside us, on every host schema: scored right, and left as it was."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, LiteralString, cast
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection, sql

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.catalogue import schema_dump
from tests.commands import call, output
from tests.community import configure
from tests.host_schemas import HOSTS, HostSchema
from tests.interleave import settle
from tests.oracle import assert_all_right


def run(db: Connection[Any], statement: str) -> None:
    db.execute(cast(LiteralString, statement))


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> HostSchema:
    return HOSTS[request.param]


@pytest.fixture
def role(server: PrivateCluster) -> Iterator[str]:
    """The application's role: it may read and write rows, and nothing else."""
    name = f"app_{uuid4().hex[:12]}"
    server.psql("-c", f"create role {name}")
    yield name
    server.psql("-c", f"drop role {name}")


@pytest.fixture
def db(empty_database: str, host: HostSchema, role: str) -> Iterator[Connection[Any]]:
    """The application's database before us, as its owner."""
    with psycopg.connect(empty_database, autocommit=True) as db:
        run(db, host.tables.replace("{role}", role))
        run(db, f"grant usage on schema {host.schema} to {role}")
        privileges = "select, insert, update, delete, truncate"
        run(db, f"grant {privileges} on all tables in schema {host.schema} to {role}")
        run(db, f"set search_path = {host.schema}")
        yield db
        run(db, f"drop owned by {role}")


class Application:
    """What an application does, in the words of its schema, as its own role."""

    def __init__(self, db: Connection[Any], host: HostSchema) -> None:
        self._db = db
        self._host = host

    def sign_up(self, username: str) -> Any:
        return self._insert("users", username=username)

    def start(self, owner: Any, status: str = "in_progress") -> Any:
        return self._insert("projects", owner_id=owner, status=status)

    def invite(self, project: Any, user: Any) -> None:
        self.run(
            "insert into project_collaborators (project_id, user_id, status)"
            " values (%s, %s, 'pending')",
            project,
            user,
        )

    def run(self, statement: LiteralString, *values: Any) -> None:
        self._db.execute(statement, values or None)

    def _insert(self, table: LiteralString, **columns: Any) -> Any:
        if self._host.new_id is not None:
            columns["id"] = self._host.new_id()
        query = sql.SQL("insert into {} ({}) values ({}) returning id").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.SQL(", ").join(sql.Placeholder() * len(columns)),
        )
        return self._db.execute(query, list(columns.values())).fetchall()[0][0]


@contextmanager
def acting_as(db: Connection[Any], role: str) -> Generator[None]:
    run(db, f"set role {role}")
    try:
        yield
    finally:
        run(db, "reset role")


def install(address: str, db: Connection[Any], host: HostSchema) -> None:
    """Migrate, and do what migrate says is still to be done."""
    said = output(call("migrate", "--host-schema", host.schema, "--dsn", address))
    advice = [line.partition("mend it with: ")[2] for line in said.splitlines()]
    mends = [line for line in advice if line]
    for mend in mends:
        run(db, mend)
    if mends:
        run(db, "select * from builder_score.attach()")
    configure(db, debounce_window="0")


def test_every_event_is_scored_right(
    empty_database: str, db: Connection[Any], host: HostSchema, role: str
) -> None:
    app = Application(db, host)
    with acting_as(db, role):
        before = app.sign_up("before")
        app.start(before, "shipped")
    install(empty_database, db, host)
    settle(db)
    assert_all_right(db)

    with acting_as(db, role):
        ann, bob, eve = (app.sign_up(name) for name in ("ann", "bob", "eve"))
        engine, radio = app.start(ann), app.start(bob, "shipped")
        app.invite(engine, bob)
        app.invite(radio, eve)
    settle(db)
    assert_all_right(db)

    with acting_as(db, role):
        app.run("update project_collaborators set status = 'confirmed'")
        app.run("update projects set status = 'shipped' where id = %s", engine)
        if host.profile:
            query = sql.SQL("update users set {} = 'ships'").format(sql.Identifier(host.profile))
            db.execute(query)
        app.run("update users set builder_score = 77 where id = %s", eve)
    settle(db)
    assert_all_right(db)

    with acting_as(db, role):
        app.run("update projects set owner_id = %s where id = %s", before, engine)
        app.run("update project_collaborators set status = 'pending' where user_id = %s", eve)
    settle(db)
    assert_all_right(db)

    with acting_as(db, role):
        app.run("delete from projects where id = %s", engine)
        app.run("delete from users where id = %s", bob)
    settle(db)
    assert_all_right(db)

    with acting_as(db, role):
        app.run("truncate users, projects, project_collaborators")
    settle(db)
    assert_all_right(db)


def test_uninstalling_leaves_the_hosts_schema_as_it_was(
    server: PrivateCluster,
    template: str,  # another database that uses our roles
    empty_database: str,
    db: Connection[Any],
    host: HostSchema,
    role: str,
) -> None:
    app = Application(db, host)
    with acting_as(db, role):
        app.sign_up("before")
    before = schema_dump(server, empty_database)
    install(empty_database, db, host)
    settle(db)
    with acting_as(db, role):
        app.start(app.sign_up("ann"), "shipped")
    assert schema_dump(server, empty_database) != before
    migrator.downgrade(empty_database)
    assert schema_dump(server, empty_database) == before
    with acting_as(db, role):
        app.start(app.sign_up("after"), "shipped")
