"""Has a cache forget the users that SQLAlchemy's ORM has written, once that is committed.

from pyscore.cache_events import watch

watch(profiles, User)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import event, inspect
from sqlalchemy.orm import InstanceState, Mapper, ORMExecuteState, Session, SessionTransaction

from pyscore.cache import AsyncProfileCache, ProfileCache
from pyscore.errors import BadArgumentError
from pyscore.reading.types import shown


def watch(
    cache: ProfileCache[Any] | AsyncProfileCache[Any],
    model: type[Any],
    *,
    user_id: str = "id",
    username: str | None = "username",
) -> Callable[[], None]:
    """Have a cache forget users after the COMMIT of whatever the ORM has written about them.

    That holds for every Session of the process, AsyncSessions and savepoints included; what is
    rolled back changes nothing. After a rename both names are forgotten. After an UPDATE or DELETE
    of many, by ``update(User)`` or ``delete(User)``, everybody is, and after an INSERT that may
    update. What no Session is told of it cannot see: ``text()``, SQL beside the Session, what the
    database does by itself, ``bulk_update_mappings()``; then say `invalidate()` yourself.

    Args:
        cache: A ProfileCache or an AsyncProfileCache.
        model: The class that is mapped to users, its subclasses included; or to something else
            that belongs to a user and that your profiles show.
        user_id: Its attribute with the user's id.
        username: Its attribute with the user's name; None without one.

    Returns:
        A function that ends it.

    Raises:
        BadArgumentError: It is not mapped, or has no such attribute.
    """
    mapper: object = inspect(model, raiseerr=False)
    if not isinstance(mapper, Mapper):
        raise BadArgumentError(f"watch() takes a mapped class, not {shown(model)}")
    attributes: Any = mapper.attrs
    for name in (user_id, username):
        if name is not None and name not in attributes:
            raise BadArgumentError(
                f"{model.__name__} has no mapped attribute {name}: "
                "name it with user_id= or username="
            )
    watching = _Watching(cache, model, user_id, username)
    listeners = (
        ("after_flush", watching.after_flush),
        ("do_orm_execute", watching.before_execute),
        ("after_commit", watching.after_commit),
    )
    for name, listener in listeners:
        event.listen(Session, name, listener)

    def stop() -> None:
        for name, listener in listeners:
            if event.contains(Session, name, listener):
                event.remove(Session, name, listener)

    return stop


class _Written:
    """What was written in one transaction, or below one savepoint."""

    def __init__(self) -> None:
        self.user_ids: set[Any] = set()
        self.usernames: set[str] = set()
        self.anybody = False

    def add(self, other: _Written) -> None:
        self.user_ids |= other.user_ids
        self.usernames |= other.usernames
        self.anybody |= other.anybody


class _Watching:
    def __init__(self, cache: Any, model: type[Any], user_id: str, username: str | None):
        self._cache = cache
        self._model = model
        self._mapper: Mapper[Any] = inspect(model)
        self._user_id = user_id
        self._username = username
        # of one that is rolled back nothing is left
        self._written: WeakKeyDictionary[SessionTransaction, _Written] = WeakKeyDictionary()

    def after_flush(self, session: Session, _context: Any) -> None:
        # before it they are as they were found, with what they were changed from
        changed = (user for user in session.dirty if self._is_modified(session, user))
        for users in (session.new, changed, session.deleted):
            self._note(session, users)

    def before_execute(self, state: ORMExecuteState) -> None:
        statement: Any = state.statement
        if not (state.is_update or state.is_delete or state.is_insert):
            return
        if state.is_insert and statement._post_values_clause is None:
            return  # nobody who is new is kept
        # of a subclass, a class above, or the plain table
        if statement.table in {
            table for mapper in self._mapper.self_and_descendants for table in mapper.tables
        }:
            self._of(state.session).anybody = True

    def after_commit(self, session: Session) -> None:
        ended = _innermost(session)
        written = self._written.pop(ended, None) if ended is not None else None
        if ended is None or written is None:
            return
        if ended.nested:
            self._of(session, ended).add(written)
            return
        if written.anybody:
            self._cache.clear()
            return
        self._cache.invalidate_user(*written.user_ids)
        self._cache.invalidate(*written.usernames)

    def _note(self, session: Session, users: Iterable[Any]) -> None:
        for user in users:
            if not isinstance(user, self._model):
                continue
            state: InstanceState[Any] = inspect(user)
            written = self._of(session)
            user_ids = _values(state, self._user_id)
            if not user_ids:
                written.anybody = True
            written.user_ids.update(user_ids)
            if self._username is not None:
                written.usernames.update(
                    name for name in _values(state, self._username) if isinstance(name, str)
                )

    def _is_modified(self, session: Session, user: Any) -> bool:
        return isinstance(user, self._model) and session.is_modified(user)

    def _of(self, session: Session, below: SessionTransaction | None = None) -> _Written:
        # a statement may be the first of its transaction
        transaction = _innermost(session) or session.begin() if below is None else _around(below)
        return self._written.setdefault(transaction, _Written())


def _innermost(session: Session) -> SessionTransaction | None:
    """Return the savepoint, or else the transaction, that a session is in."""
    return session.get_nested_transaction() or session.get_transaction()


def _around(savepoint: SessionTransaction) -> SessionTransaction:
    outer = savepoint.parent
    while outer is not None and outer.parent is not None and not outer.nested:
        outer = outer.parent
    assert outer is not None
    return outer


def _values(state: InstanceState[Any], name: str) -> set[Any]:
    """Return what an attribute has been since it was loaded, and nothing that is not loaded."""
    history = state.attrs[name].history
    values = {*history.added, *history.unchanged, *history.deleted} - {None}
    if not values and state.identity is not None:
        mapper = state.mapper
        keys = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        if name in keys:
            values = {state.identity[keys.index(name)]}
    return values
