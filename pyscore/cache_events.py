"""What SQLAlchemy writes to users goes from the caches of profiles as it is committed.

    watch(User, cache)

From then on every session of the process is seen, those of AsyncSession too: objects that a flush
inserts, changes or deletes, by id and by name, the old name and the new one; and ``update()`` and
``delete()`` statements, by the ids or names that they compare with, else everybody goes. What is
rolled back, savepoints included, takes nobody out.

Not seen are statements past the ORM: text(), those on a Connection, and legacy bulk_save_objects()
and bulk_update_mappings(). After those say `pyscore.cache.Cache.invalidate` yourself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy import FromClause, event, inspect
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.orm import (
    InstanceState,
    Mapper,
    ORMExecuteState,
    Session,
    SessionTransaction,
    UOWTransaction,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList

from pyscore.errors import BadArgumentError
from pyscore.reading.types import shown

__all__ = ["watch"]

Sessions: TypeAlias = "type[Session] | Session | sessionmaker[Any] | scoped_session[Any]"


class Forgets(Protocol):
    """A `pyscore.cache.ProfileCache` or `pyscore.cache.AsyncProfileCache`."""

    def invalidate_many(
        self, *, user_ids: Iterable[Any] = (), usernames: Iterable[str] = ()
    ) -> None:
        """Forget these."""
        ...

    def clear(self) -> None:
        """Forget everybody."""
        ...


def watch(users: type[Any], *caches: Forgets, sessions: Sessions = Session) -> Callable[[], None]:
    """Drop from caches, as it is committed, whatever a session changes of the users.

    Args:
        users: The class that is mapped to them, with its subclasses. The columns ``id`` and
            ``username`` are found by their names in the database, whatever the attributes are
            called.
        caches: Which.
        sessions: Which sessions are seen; all of the process unless it is narrowed to a subclass
            of Session, a sessionmaker, a scoped_session, or one Session. Of an AsyncSession it is
            the ``sync_session``, of an async_sessionmaker the ``sync_session_class``.

    Returns:
        A function that ends it.

    Raises:
        BadArgumentError: `users` is not mapped, or has no column id.
    """
    watched = _Watch(users, caches)
    heard = (
        ("after_flush", watched.after_flush),
        ("do_orm_execute", watched.do_orm_execute),
        ("after_commit", watched.after_commit),
    )
    for name, hears in heard:
        event.listen(sessions, name, hears)

    def stop() -> None:
        for name, hears in heard:
            event.remove(sessions, name, hears)

    return stop


class _Changes:
    """Whom a transaction changed."""

    def __init__(self) -> None:
        self.everybody = False
        self.user_ids: set[Any] = set()
        self.usernames: set[str] = set()

    def add(self, other: _Changes) -> None:
        self.everybody |= other.everybody
        self.user_ids |= other.user_ids
        self.usernames |= other.usernames


class _Watch:
    def __init__(self, users: type[Any], caches: tuple[Forgets, ...]) -> None:
        mapper: Mapper[Any] | None = inspect(users, raiseerr=False)
        if mapper is None or not mapper.is_mapper:
            raise BadArgumentError(
                f"{shown(users)} is not the users: expected a class that is mapped to them"
            )
        user_id = _column(mapper, "id")
        if user_id is None:
            raise BadArgumentError(
                f"{shown(users)} has no column id: expected the application's users"
            )
        self._users = users
        self._mapper = mapper
        self._caches = caches
        self._user_id = user_id
        self._username = _column(mapper, "username")
        # of a transaction that is rolled back nobody asks again
        self._changes: WeakKeyDictionary[SessionTransaction, _Changes] = WeakKeyDictionary()

    # What changes

    def after_flush(self, session: Session, context: UOWTransaction) -> None:
        # of those that are dirty some have been given the values that they had
        modified = (user for user in session.dirty if session.is_modified(user))
        for user in chain(session.new, modified, session.deleted):
            if isinstance(user, self._users):
                changes = self._of(session)
                changes.user_ids.update(self._user_id.of(user))
                if self._username is not None:
                    changes.usernames.update(self._username.of(user))

    def do_orm_execute(self, execution: ORMExecuteState) -> None:
        statement: Any = execution.statement
        while execution.is_from_statement and not hasattr(statement, "table"):
            statement = statement.element
        if not execution.is_update and not execution.is_delete and not execution.is_insert:
            return
        # of a subclass too, or the plain table
        mappers: Any = self._mapper.self_and_descendants
        if not any(statement.table in mapper.tables for mapper in mappers):
            return
        # a user who was not there is in no cache; an upsert may be of one who was
        if execution.is_insert and getattr(statement, "_post_values_clause", None) is None:
            return
        changes = self._of(execution.session)
        if execution.is_insert or not self._find_compared(execution, statement, changes):
            changes.everybody = True

    def _find_compared(self, execution: ORMExecuteState, statement: Any, changes: _Changes) -> bool:
        """Note whose rows a statement can only be about; False when that may be anybody's."""
        given = execution.parameters or {}
        if not isinstance(given, Mapping):
            # by primary key, a row each
            if not all(self._user_id.key in row for row in given):
                return False
            changes.user_ids.update(self._user_id.values(row[self._user_id.key] for row in given))
            return True
        found = False
        for column, compared in _equalities(statement.whereclause):
            # bindparam() may have its value elsewhere
            values = [] if compared.key in given else [compared.effective_value]
            if self._user_id.is_in(column):
                ids = list(self._user_id.values(values))
                changes.user_ids.update(ids)
                found |= bool(ids)
            elif self._username is not None and self._username.is_in(column):
                names = list(self._username.values(values))
                changes.usernames.update(names)
                found |= bool(names)
        return found

    # What becomes of it

    def after_commit(self, session: Session) -> None:
        savepoint = session.get_nested_transaction()
        transaction = savepoint or session.get_transaction()
        changes = self._changes.pop(transaction, None) if transaction else None
        if changes is None:
            return
        if savepoint is not None and savepoint.parent is not None:
            self._in(savepoint.parent).add(changes)
            return
        for cache in self._caches:
            if changes.everybody:
                cache.clear()
            else:
                cache.invalidate_many(user_ids=changes.user_ids, usernames=changes.usernames)

    def _of(self, session: Session) -> _Changes:
        transaction = session.get_nested_transaction() or session.get_transaction()
        if transaction is None:
            transaction = session.begin()
        return self._in(transaction)

    def _in(self, transaction: SessionTransaction) -> _Changes:
        return self._changes.setdefault(transaction, _Changes())


# Columns

_DIALECT = PGDialect()


@dataclass(frozen=True, slots=True)
class _Column:
    """A column, and the attribute that it is mapped to."""

    key: str
    table: FromClause
    name: str
    stored: Callable[[Any], Any] | None

    def is_in(self, expression: Any) -> bool:
        """Tell whether an expression is this column."""
        table, name = getattr(expression, "table", None), getattr(expression, "name", None)
        return table is self.table and name == self.name

    def values(self, known: Iterable[Any]) -> Iterator[Any]:
        """Give values as they are in Python, and as they are in the database."""
        for value in known:
            if value is not None:
                yield value
                if self.stored is not None:
                    yield self.stored(value)

    def of(self, user: Any) -> Iterator[Any]:
        """Give what a user has in it and what they had, as far as that needs no query."""
        state: InstanceState[Any] = inspect(user)
        history = state.attrs[self.key].history
        return self.values(value for values in history for value in values or ())


def _column(mapper: Mapper[Any], name: str) -> _Column | None:
    for attribute in mapper.column_attrs:
        for column in attribute.columns:
            table: Any = getattr(column, "table", None)
            if table is not None and column.name == name:
                kind: Any = column.type.dialect_impl(_DIALECT)
                return _Column(attribute.key, table, name, kind.bind_processor(_DIALECT))
    return None


def _equalities(where: Any) -> Iterator[tuple[Any, BindParameter[Any]]]:
    """Give the columns that a condition demands to be equal to a value, and the value."""
    if isinstance(where, BooleanClauseList) and where.operator is operators.and_:
        for clause in where.clauses:
            yield from _equalities(clause)
    elif (
        isinstance(where, BinaryExpression)
        and where.operator is operators.eq
        and isinstance(where.right, BindParameter)
    ):
        yield where.left, where.right
