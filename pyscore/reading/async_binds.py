"""Running one statement over whatever an asynchronous reader was given; see `binds`."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import TableClause
from sqlalchemy.exc import UnboundExecutionError

from pyscore.errors import BadArgumentError
from pyscore.reading.binds import (
    AlchemyWhereabouts,
    PsycopgWhereabouts,
    Rows,
    Statement,
    Whereabouts,
    compiled,
    unbound,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import (
        AsyncConnection,
        AsyncEngine,
        AsyncSession,
        async_scoped_session,
    )

    AsyncBind: TypeAlias = (
        AsyncEngine
        | AsyncConnection
        | AsyncSession
        | async_scoped_session[Any]
        | psycopg.AsyncConnection[Any]
    )
    """What an asynchronous reader may be given."""


class AsyncDatabase(Whereabouts, Protocol):
    """Where statements run, inside whatever transaction there is."""

    async def rows(self, statement: Statement) -> Rows:
        """Run a statement and return its rows."""
        ...


class _ByAlchemy(AlchemyWhereabouts):
    def __init__(self, connection: AsyncConnection):
        if connection.dialect.name != "postgresql":
            raise _refusal(f"one to {connection.dialect.name}")
        assert connection.sync_connection is not None  # it is open
        super().__init__(connection.sync_connection)
        self._asynchronous = connection

    async def rows(self, statement: Statement) -> Rows:
        return (await self._asynchronous.execute(statement)).all()


class _ByPsycopg(PsycopgWhereabouts):
    def __init__(self, connection: psycopg.AsyncConnection[Any]):
        super().__init__(connection)
        self._connection = connection

    async def rows(self, statement: Statement) -> Rows:
        query, parameters = compiled(statement)
        async with psycopg.AsyncCursor(self._connection, row_factory=tuple_row) as cursor:
            await cursor.execute(query.encode(), parameters)
            return await cursor.fetchall()


def check(bind: Any) -> None:
    """Raise unless `bind` is something that an asynchronous reader can use.

    Raises:
        BadArgumentError: It is not.
    """
    # Whoever has one of these has loaded it; it cannot be loaded where greenlet is not installed.
    alchemy: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    if isinstance(bind, psycopg.AsyncConnection):
        return
    if alchemy is not None:
        if isinstance(bind, alchemy.AsyncEngine):
            if bind.dialect.name != "postgresql":
                raise _refusal(f"one to {bind.dialect.name}")
            return
        sessions = (alchemy.AsyncConnection, alchemy.AsyncSession, alchemy.async_scoped_session)
        if isinstance(bind, sessions):
            return
    raise _refusal(type(bind).__name__)


@asynccontextmanager
async def opened(
    bind: AsyncBind, users: TableClause[Any] | None, *, writes: bool = False
) -> AsyncGenerator[AsyncDatabase]:
    """Open a bind for one call of an asynchronous reader, as `binds.opened` does for others.

    Args:
        bind: Checked by `check`.
        users: The host's users, for a session that has several databases.
        writes: Whether to commit, on an engine.
    """
    if isinstance(bind, psycopg.AsyncConnection):
        yield _ByPsycopg(bind)
        return
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    match bind:
        case AsyncEngine() if writes:
            committing = bind.execution_options(isolation_level="READ COMMITTED")
            async with committing.begin() as connection:
                yield _ByAlchemy(connection)
        case AsyncEngine():
            async with bind.connect() as connection:
                yield _ByAlchemy(connection)
        case AsyncConnection():
            # one that was not awaited yet is started by whoever made it
            yield _ByAlchemy(bind)
        case session:
            if session.autoflush:
                await session.flush()
            try:
                connection = await session.connection(bind_arguments={"clause": users})
            except UnboundExecutionError:
                raise unbound("AsyncScoreReader") from None
            yield _ByAlchemy(connection)


def _refusal(given: str) -> BadArgumentError:
    return BadArgumentError(
        "an AsyncScoreReader takes a SQLAlchemy AsyncEngine, AsyncConnection or AsyncSession for "
        "PostgreSQL, or a psycopg AsyncConnection (a ScoreReader takes those that are not "
        f"asynchronous); not {given}"
    )
