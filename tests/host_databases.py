"""Databases of applications, before us and with us installed, and what they do there."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Self, cast
from uuid import uuid4

import psycopg
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo

from pyscore.cluster import PrivateCluster
from tests.commands import call, output
from tests.community import configure
from tests.databases import end_sessions
from tests.host_schemas import HostSchema
from tests.interleave import settle
from tests.statements import run

APPLICATION = "application_of_a_host"
"""The application's role: it may log in, read and write rows, and nothing else."""

PROFILE = ("avatar_url", "headline", "bio", "primary_role", "timezone", "contact_links")

_PRIVILEGES = "select, insert, update, delete, truncate"


class Application:
    """What an application does, in the words of its schema.

    It is its own role, by login or, where a role is given, for a statement at a time: then its
    connection is somebody else's, in a transaction that is taken back.
    """

    def __init__(self, db: Connection[Any], schema: HostSchema, role: str | None = None) -> None:
        self.db = db
        self._schema = schema
        self._role = role
        self._types: dict[str, dict[str, str]] = {}

    def sign_up(self, username: str, **columns: Any) -> Any:
        return self._insert("users", username=username, **columns)

    def start(self, owner: Any, status: str = "in_progress", **columns: Any) -> Any:
        return self._insert("projects", owner_id=owner, status=status, **columns)

    def invite(self, project: Any, user: Any, status: str = "pending") -> None:
        self.run(
            "insert into project_collaborators (project_id, user_id, status) values (%s, %s, %s)",
            *(project, user, status),
        )

    def vouch(self, owner: Any, user: Any) -> Any:
        """Let the user collaborate on a new project of the owner's, confirmed."""
        project = self.start(owner)
        self.invite(project, user, "confirmed")
        return project

    def run(self, statement: str | sql.Composed, *values: Any) -> list[tuple[Any, ...]]:
        query = statement.encode() if isinstance(statement, str) else statement
        with self._acting():
            cursor = self.db.execute(query, values or None)
            return cursor.fetchall() if cursor.description else []

    def copy_in(self, table: str, **columns: Any) -> Any:
        """Write one row with COPY, as the tables' owner loads data; give its id, if it has one."""
        columns = self._complete(table, columns)
        if self.has(table, "id"):
            columns["id"] = self._free_id(table)
        query = sql.SQL("copy {} ({}) from stdin").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with self.db.cursor().copy(query) as copy:
            copy.write_row(list(columns.values()))
        return columns.get("id")

    def has(self, table: str, column: str) -> bool:
        return column in self.types(table)

    def types(self, table: str) -> dict[str, str]:
        """A table's columns and their types."""
        if table not in self._types:
            columns = self.run(
                "select attname, format_type(atttypid, -1) from pg_attribute"
                " where attrelid = %s::regclass and attnum > 0 and not attisdropped",
                table,
            )
            self._types[table] = dict(cast(list[tuple[str, str]], columns))
        return self._types[table]

    @contextmanager
    def _acting(self) -> Generator[None]:
        if self._role is None:
            yield
            return
        self.db.execute(sql.SQL("set local role {}").format(sql.Identifier(self._role)))
        yield  # after an error nothing can be reset, nor need it be
        self.db.execute("reset role")

    def _free_id(self, table: str) -> Any:
        if self._schema.new_id is not None:
            return self._schema.new_id()
        return uuid4() if self.types(table)["id"] == "uuid" else next(_far_ids)

    def _complete(self, table: str, columns: dict[str, Any]) -> dict[str, Any]:
        texts = {name: uuid4().hex for name in self._schema.texts.get(table, ())}
        return texts | columns

    def _insert(self, table: str, **columns: Any) -> Any:
        columns = self._complete(table, columns)
        if self._schema.new_id is not None:
            columns["id"] = self._schema.new_id()
        query = sql.SQL("insert into {} ({}) values ({}) returning id").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.SQL(", ").join(sql.Placeholder() * len(columns)),
        )
        return self.run(query, *columns.values())[0][0]


_far_ids = count(1_000_000)


@dataclass(frozen=True)
class HostDatabase:
    """One application's database.

    Attributes:
        schema: The application's.
        address: For its owner and for us.
        db: An autocommit connection of the owner's.
        app: The application, by its own login; on `scratch`, in the owner's transaction.
    """

    schema: HostSchema
    address: str
    db: Connection[Any]
    app: Application


def as_application(address: str) -> str:
    return make_conninfo(address, user=APPLICATION)


def create_host(db: Connection[Any], schema: HostSchema) -> None:
    """Create an application's tables, and let its role write them."""
    run(db, schema.tables.replace("{role}", APPLICATION))
    run(db, f"grant usage on schema {schema.schema} to {APPLICATION}")
    run(db, f"grant {_PRIVILEGES} on all tables in schema {schema.schema} to {APPLICATION}")


def install(address: str, db: Connection[Any], schema: HostSchema) -> None:
    """Migrate, and do what migrate says is still to be done."""
    said = output(call("migrate", "--host-schema", schema.schema, "--dsn", address))
    advice = [line.partition("mend it with: ")[2] for line in said.splitlines()]
    mends = [line for line in advice if line]
    for mend in mends:
        run(db, mend)
    if mends:
        run(db, "select * from builder_score.attach()")
    configure(db, debounce_window="0", poll_interval="0.05 seconds")


class HostDatabases:
    """Makes databases on one server: for each schema one with us installed, then copies of it."""

    def __init__(self, server: PrivateCluster) -> None:
        self._server = server
        self._installed: dict[str, str] = {}
        self._scratch: dict[str, HostDatabase] = {}
        self._numbers = count(1)

    def __enter__(self) -> Self:
        self._admin = psycopg.connect(self._server.conninfo(), autocommit=True)
        run(self._admin, f"create role {APPLICATION} login")
        return self

    def __exit__(self, *_: object) -> None:
        for scratch in self._scratch.values():
            scratch.db.close()
        self._admin.close()  # the databases that are left go with the server

    @contextmanager
    def before_us(self, schema: HostSchema) -> Generator[HostDatabase]:
        """An application's database without anything of ours."""
        with self._database("template1") as name:
            self._create_tables(name, schema)
            with self._opened(name, schema) as host:
                yield host

    @contextmanager
    def installed(self, schema: HostSchema) -> Generator[HostDatabase]:
        """A database with us installed, without a debounce window, and nothing queued."""
        with self._database(self._template(schema)) as name, self._opened(name, schema) as host:
            yield host

    @contextmanager
    def scratch(self, schema: HostSchema) -> Generator[HostDatabase]:
        """Like `installed`, for tests that commit nothing: one for all of them."""
        if schema.tables not in self._scratch:
            address = self._address(self._create(self._template(schema)), schema)
            db = psycopg.connect(address, autocommit=True)
            app = Application(db, schema, role=APPLICATION)
            self._scratch[schema.tables] = HostDatabase(schema, address, db, app)
        host = self._scratch[schema.tables]
        with host.db.transaction(force_rollback=True):
            yield host

    def _template(self, schema: HostSchema) -> str:
        if schema.tables not in self._installed:
            name = self._create("template1")
            self._installed[schema.tables] = name
            self._create_tables(name, schema)
            with self._opened(name, schema) as host:
                install(host.address, host.db, schema)
                settle(host.db)
        return self._installed[schema.tables]

    def _create_tables(self, name: str, schema: HostSchema) -> None:
        with psycopg.connect(self._server.conninfo(name), autocommit=True) as db:
            create_host(db, schema)

    def _create(self, template: str) -> str:
        name = f"host_{next(self._numbers)}"
        run(self._admin, f"create database {name} template {template}")
        return name

    @contextmanager
    def _database(self, template: str) -> Generator[str]:
        name = self._create(template)
        try:
            yield name
        finally:
            end_sessions(self._admin, name)
            run(self._admin, f"drop database {name} with (force)")

    def _address(self, name: str, schema: HostSchema) -> str:
        # as an application says it whose tables are not in public
        options = {} if schema.schema == "public" else {"options": f"-csearch_path={schema.schema}"}
        return make_conninfo(self._server.conninfo(name), **options)

    @contextmanager
    def _opened(self, name: str, schema: HostSchema) -> Generator[HostDatabase]:
        address = self._address(name, schema)
        with (
            psycopg.connect(address, autocommit=True) as db,
            psycopg.connect(as_application(address), autocommit=True) as application,
        ):
            yield HostDatabase(schema, address, db, Application(application, schema))
