"""Running one statement over whatever a reader was given."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import Connection, Engine, Select, TableClause, TextClause, make_url
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from pyscore.errors import BadArgumentError

Bind: TypeAlias = Engine | Connection | Session | scoped_session[Any] | psycopg.Connection[Any]
"""What a reader may be given."""

Statement: TypeAlias = "Select[*tuple[Any, ...]] | TextClause"

Rows: TypeAlias = Sequence[Sequence[Any]]
"""What a statement returns."""

# Only compiles; it is connected to nothing.
_DIALECT = make_url("postgresql+psycopg://").get_dialect()()


class Whereabouts(Protocol):
    """What is known of a database without asking it."""

    @property
    def owner(self) -> object:
        """What lives as long as what was learned about the database stays true."""
        ...

    def schema(self, written: str | None) -> str | None:
        """Return the schema that is meant where a statement names `written`."""
        ...


class Database(Whereabouts, Protocol):
    """Where statements run, inside whatever transaction there is."""

    def rows(self, statement: Statement) -> Rows:
        """Run a statement and return its rows."""
        ...


class AlchemyWhereabouts:
    """Where a connection of SQLAlchemy's leads."""

    def __init__(self, connection: Connection):
        self._connection = connection

    @property
    def owner(self) -> object:
        """The pool."""
        # engines that differ in their execution options share it
        return self._connection.engine.pool

    def schema(self, written: str | None) -> str | None:
        """Return what ``schema_translate_map`` makes of `written`."""
        renamed: Any = self._connection.get_execution_options().get("schema_translate_map")
        return renamed.get(written, written) if renamed else written


class PsycopgWhereabouts:
    """Where a connection of psycopg's leads."""

    def __init__(self, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]):
        self._owner = connection

    @property
    def owner(self) -> object:
        """The connection."""
        return self._owner

    def schema(self, written: str | None) -> str | None:
        """Return `written`: there is nothing to translate it."""
        return written


class _ByAlchemy(AlchemyWhereabouts):
    def __init__(self, connection: Connection):
        if connection.dialect.name != "postgresql":
            raise _refusal(f"one to {connection.dialect.name}")
        super().__init__(connection)

    def rows(self, statement: Statement) -> Rows:
        return self._connection.execute(statement).all()


class _ByPsycopg(PsycopgWhereabouts):
    def __init__(self, connection: psycopg.Connection[Any]):
        super().__init__(connection)
        self._connection = connection

    def rows(self, statement: Statement) -> Rows:
        query, parameters = compiled(statement)
        # a cursor of our own: the connection's may make dictionaries, or want other placeholders
        with psycopg.Cursor(self._connection, row_factory=tuple_row) as cursor:
            return cursor.execute(query.encode(), parameters).fetchall()


def compiled(statement: Statement) -> tuple[str, dict[str, Any]]:
    """Return a statement, and its parameters, as psycopg takes them.

    Args:
        statement: Whatever values a condition holds, such as enums, go through their types.
    """
    compiler: Any = statement.compile(dialect=_DIALECT)
    expanded = compiler.construct_expanded_state()
    # those of the values of in_(); every other value has its own type's
    processors = dict(expanded.processors)
    for bind, key in compiler.bind_names.items():
        name = compiler.escaped_bind_names.get(key, key)
        if name in expanded.parameters:
            processors[name] = bind.type.dialect_impl(_DIALECT).bind_processor(_DIALECT)
    parameters = {
        name: processors[name](value) if processors.get(name) else value
        for name, value in expanded.parameters.items()
    }
    return expanded.statement, parameters


def check(bind: Any) -> None:
    """Raise unless `bind` is something that a reader can use.

    Raises:
        BadArgumentError: It is not.
    """
    if isinstance(bind, Engine):
        if bind.dialect.name != "postgresql":
            raise _refusal(f"one to {bind.dialect.name}")
    elif not isinstance(bind, Connection | Session | scoped_session | psycopg.Connection):
        raise _refusal(type(bind).__name__)


@contextmanager
def opened(
    bind: Bind, users: TableClause[Any] | None, *, writes: bool = False
) -> Generator[Database]:
    """Open a bind for one call of a reader.

    An engine gives a transaction of the call's own. Anything else is the caller's, and so is its
    transaction: nothing is committed, rolled back or set.

    Args:
        bind: Checked by `check`.
        users: The host's users, for a session that has several databases.
        writes: Whether to commit, on an engine.
    """
    match bind:
        case Engine() if writes:
            committing = bind.connect().execution_options(isolation_level="READ COMMITTED")
            with committing as connection, connection.begin():
                yield _ByAlchemy(connection)
        case Engine():
            with bind.connect() as connection:
                yield _ByAlchemy(connection)
        case Connection():
            yield _ByAlchemy(bind)
        case psycopg.Connection():
            yield _ByPsycopg(bind)
        case Session() | scoped_session():
            if bind.autoflush:
                bind.flush()
            try:
                connection = bind.connection(bind_arguments={"clause": users})
            except UnboundExecutionError:
                raise unbound("ScoreReader") from None
            yield _ByAlchemy(connection)


def unbound(reader: str) -> BadArgumentError:
    """Return the error for a session that cannot say which database is meant.

    Args:
        reader: What was given the session.
    """
    return BadArgumentError(
        "the session does not know which database holds the users: "
        f"bind it to an engine, or name their class: {reader}(session, users=User)"
    )


def _refusal(given: str) -> BadArgumentError:
    return BadArgumentError(
        "a ScoreReader takes a SQLAlchemy Engine, Connection or Session for PostgreSQL, "
        "or a psycopg Connection, none of them asynchronous (an AsyncScoreReader takes those); "
        f"not {given}"
    )
