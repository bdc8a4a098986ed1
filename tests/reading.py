"""What tests of the reader share: everything a reader may be given, and bare tables of users."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, LiteralString, cast
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import dict_row, tuple_row
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pyscore import BadArgumentError, PyscoreError, UnknownUserError
from pyscore.reading.binds import Bind
from pyscore.scores import Page
from tests.community import add_project, add_user, drain
from tests.statements import run

BINDS = ("engine", "connection", "session", "scoped session", "psycopg", "psycopg autocommit")
"""All that a reader may be given."""

CALLERS = BINDS[1:-1]
"""Those that bring a transaction."""


NOBODY = UUID(int=0)

BAD_ARGUMENTS: list[tuple[type[PyscoreError], str, str, tuple[Any, ...]]] = [
    (BadArgumentError, "'ann' is not the id of a user: .* uuid; expected", "score", ("ann",)),
    (BadArgumentError, "17 is not the id", "scores", ([NOBODY, 17],)),
    (BadArgumentError, "expected several", "scores", (str(NOBODY),)),
    (BadArgumentError, "None is not the id", "explain", (None,)),
    (BadArgumentError, "None is not the id", "rank", (None,)),
    (BadArgumentError, "is not the id", "recompute", ("urn:uuid:" + str(NOBODY),)),
    (UnknownUserError, f"no user with id '{NOBODY}' in public.users", "explain", (NOBODY,)),
    (UnknownUserError, f"no user with id '{NOBODY}' in public.users", "rank", (NOBODY,)),
    (UnknownUserError, f"no user with id '{NOBODY}' in public.users", "percentile", (NOBODY,)),
    (UnknownUserError, f"no user with id '{NOBODY}' in public.users", "recompute", (NOBODY,)),
    (BadArgumentError, "limit is 0: expected 1 to 1000", "leaderboard", (0,)),
    (BadArgumentError, "limit is 1001", "leaderboard", (1001,)),
    (BadArgumentError, "limit is True", "leaderboard", (True,)),
    (BadArgumentError, "limit is '5'", "above", (50, "5")),
    (BadArgumentError, "not a cursor", "leaderboard", (20, "garbage")),
    (BadArgumentError, "expected text, not int", "leaderboard", (20, 7)),
    (BadArgumentError, "'x' is not a threshold", "above", ("x",)),
    (BadArgumentError, "nan is not a threshold", "above", (float("nan"),)),
    (BadArgumentError, "None is not a threshold", "above", (None,)),
    (BadArgumentError, "True is not a threshold", "above", (True,)),
    (BadArgumentError, "sNaN.* is not a threshold", "above", (Decimal("sNaN"),)),
    (BadArgumentError, "where= takes .* False is not one", "leaderboard", (20, None, False)),
]
"""Error, message, method and arguments: what costs no transaction."""


@dataclass(frozen=True)
class Community:
    """Ann has 10, Bob and Cyd 3 each, Dee nothing yet."""

    address: str
    ann: UUID
    bob: UUID
    cyd: UUID
    dee: UUID


def settle(address: str) -> Community:
    with psycopg.connect(address, autocommit=True) as db:
        ann = add_user(db, "ann")
        add_project(db, ann, status="shipped")
        bob, cyd = (add_user(db, name, bio="x") for name in ("bob", "cyd"))
        drain(db)
        return Community(address, ann, bob, cyd, add_user(db, "dee", builder_score=None))


@contextmanager
def engine_for(address: str, **options: Any) -> Generator[Engine]:
    """An engine whose connections are closed at the end."""
    engine = create_engine(address.replace("postgresql:", "postgresql+psycopg:", 1), **options)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def bind_for(kind: str, address: str, **options: Any) -> Generator[Bind]:
    """One of BINDS; options are those of an engine."""
    if kind.startswith("psycopg"):
        # rows that are no tuples, to see that a reader does not rely on the caller's choice
        factory = cast(Any, dict_row)
        raw = psycopg.connect(address, autocommit=kind.endswith("autocommit"), row_factory=factory)
        try:
            yield raw
        finally:
            raw.close()  # leaving it by `with` would commit
        return
    with engine_for(address, **options) as engine:
        match kind:
            case "engine":
                yield engine
            case "connection":
                with engine.connect() as connection:
                    yield connection
            case "session":
                with Session(engine) as session:
                    yield session
            case _:
                scoped = scoped_session(sessionmaker(engine))
                yield scoped
                scoped.remove()


def execute(bind: Bind, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement in the caller's transaction and return its rows."""
    if isinstance(bind, psycopg.Connection):
        cursor = psycopg.Cursor(bind, row_factory=tuple_row).execute(statement.encode())
        return cursor.fetchall() if cursor.description else []
    if isinstance(bind, Engine):
        with bind.begin() as connection:
            return execute(connection, statement)
    connection = bind if not isinstance(bind, Session | scoped_session) else bind.connection()
    result = connection.exec_driver_sql(statement)
    return [tuple(row) for row in result] if result.returns_rows else []


def create_users(
    db: Connection[Any],
    rows: Sequence[tuple[object, ...]] = (),
    *,
    key: str = "bigint",
    score: str = "integer",
    schema: str = "public",
    more: str = "",
) -> None:
    """Create and fill a table of users that has never heard of us: id, username, score, more."""
    run(db, f"create schema if not exists {schema}")
    run(
        db,
        f"create table {schema}.users (id {key} primary key, username text, builder_score {score}"
        f"{', ' + more if more else ''});"
        f"create index on {schema}.users (builder_score desc, id desc)",
    )
    for row in rows:
        marks = ", ".join(["%s"] * len(row))
        db.execute(cast(LiteralString, f"insert into {schema}.users values ({marks})"), row)


def ids(page: Page) -> list[Any]:
    return [entry.user_id for entry in page]


@contextmanager
def counted(bind: Bind, monkeypatch: pytest.MonkeyPatch) -> Generator[list[str]]:
    """Collect the statements that reach the server."""
    seen: list[str] = []
    if isinstance(bind, psycopg.Connection):
        original = psycopg.Cursor[Any].execute

        def spy(self: Any, query: Any, *rest: Any, **named: Any) -> Any:
            seen.append(str(query))
            return original(self, query, *rest, **named)

        with monkeypatch.context() as patch:
            patch.setattr(psycopg.Cursor, "execute", spy)
            yield seen
        return
    if isinstance(bind, Engine):
        engine = bind
    elif isinstance(bind, Session | scoped_session):
        engine = bind.connection().engine
    else:
        engine = bind.engine

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)
