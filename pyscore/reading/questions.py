"""What readers ask, and what they make of the answers: once, for readers of both kinds.

A question is a generator. It first yields None, and is sent the whereabouts of the database that
was opened for it; what is wrong with an argument whatever the database is has been raised by then.
From then on it yields statements, is sent their rows, or is thrown what they raised, and returns
the answer. Who drives it waits for rows in their own way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from sqlalchemy import FromClause, Table, TableClause
from sqlalchemy.exc import DBAPIError

from pyscore.errors import BadArgumentError, PyscoreError, UnknownUserError, from_database
from pyscore.reading import conditions, cursors, host, queries, rows
from pyscore.reading.binds import Rows, Statement, Whereabouts
from pyscore.reading.conditions import Condition, Users
from pyscore.reading.host import HostUsers, Relation
from pyscore.reading.types import sendable, shown
from pyscore.scores import Explanation, Number, Page, Profile, UserScore

T = TypeVar("T")

Question: TypeAlias = Generator["Statement | None", Any, T]
"""What becomes a T; see above."""

Asking: TypeAlias = Generator["Statement", Any, T]
"""A part of a question that is already where the database is."""

Function: TypeAlias = Literal["explain", "standing", "distribution", "recalculate"]
"""Functions of schema builder_score that readers call."""

# What the catalogue said, by schema and table: while the engine's pool, or the connection, lives.
_learned: WeakKeyDictionary[object, dict[tuple[str | None, str], Relation]] = WeakKeyDictionary()

_LARGEST_PAGE = 1000


class Questions:
    """The questions about one table of users.

    Args:
        users: As for `pyscore.ScoreReader`.
        schema: As for `pyscore.ScoreReader`.

    Attributes:
        table: What ``users=`` stands for; None if it was not given.
    """

    def __init__(self, users: Users | None, schema: str | None):
        table = conditions.table_of(users)
        if table is not None and table.schema is not None and schema not in (None, table.schema):
            raise BadArgumentError(
                f"users= is in schema {table.schema}, and schema= says {schema}: give one of them"
            )
        self.table = table
        self._name = "users" if table is None else table.name
        self._schema = schema if table is None else table.schema or schema

    def score(self, user_id: Any) -> Question[Number | None]:
        """Ask for one score."""
        where: Whereabouts = yield None
        with self._anew_after_failure(where):
            users = yield from self._users(where)
            found: Rows = yield queries.score(users, users.id_type.text(user_id))
        return rows.number(users, found[0][0]) if found else None

    def scores(self, user_ids: Iterable[Any]) -> Question[dict[Any, Number | None]]:
        """Ask for many scores at once."""
        given = several(user_ids)
        if not given:
            return {}
        where: Whereabouts = yield None
        with self._anew_after_failure(where):
            users = yield from self._users(where)
            asked = _Places(users, given)
            found: Rows = yield queries.scores(users, asked.texts)
        return asked.by_id({place: rows.number(users, score) for place, score in found})

    def by_username(self, name: str) -> Question[UserScore | None]:
        """Ask who has a name."""
        _check_name(name)
        where: Whereabouts = yield None
        with self._anew_after_failure(where):
            users = yield from self._users(where)
            plain = _name_to_send(users, name)
            found: Rows = [] if plain is None else (yield queries.by_username(users, plain))
        return rows.user_score(users, found[0]) if found else None

    def profile(self, username: str) -> Question[Profile | None]:
        """Ask for the profile of whoever has a name."""
        _check_name(username)
        where: Whereabouts = yield None
        with self._anew_after_failure(where):
            users = yield from self._users(where)
            plain = _name_to_send(users, username)
            found: Rows = [] if plain is None else (yield queries.profile(users, plain))
        return rows.profile(users, found[0]) if found else None

    def profiles(self, user_ids: Iterable[Any]) -> Question[dict[Any, Profile]]:
        """Ask for many profiles at once."""
        given = several(user_ids)
        if not given:
            return {}
        where: Whereabouts = yield None
        with self._anew_after_failure(where):
            users = yield from self._users(where)
            asked = _Places(users, given)
            found: Rows = yield queries.profiles(users, asked.texts)
        return asked.by_id({place: rows.profile(users, row) for place, *row in found})

    def scores_in_order(self, user_ids: Iterable[Any]) -> Question[list[Any]]:
        """Ask for a score in the place of each id, a BadArgumentError in that of what is none."""
        return self._in_order(
            user_ids, queries.scores, lambda users, row: rows.number(users, row[0])
        )

    def profiles_in_order(self, user_ids: Iterable[Any]) -> Question[list[Any]]:
        """Ask for a profile in the place of each id, as `scores_in_order` asks for scores."""
        return self._in_order(user_ids, queries.profiles, rows.profile)

    def _in_order(
        self,
        user_ids: Iterable[Any],
        query: Callable[[HostUsers, Sequence[str]], Statement],
        made: Callable[[HostUsers, rows.Row], Any],
    ) -> Question[list[Any]]:
        given = several(user_ids)
        if not given:
            return []
        where: Whereabouts = yield None
        with self._anew_after_failure(where):
            users = yield from self._users(where)
            errors = [_refusal(users, user_id) for user_id in given]
            pairs = list(zip(given, errors, strict=True))
            asked = _Places(users, [user_id for user_id, error in pairs if error is None])
            found: Rows = (yield query(users, asked.texts)) if asked.texts else []
        answers = asked.by_id({place: made(users, row) for place, *row in found})
        return [error or answers.get(user_id) for user_id, error in pairs]

    def page(
        self, limit: Any, after: str | None, where: Condition | None, *threshold: Any
    ) -> Question[Page]:
        """Ask for a page of the ranking; with a threshold, of those above it."""
        size = _page_size(limit)
        mentioned = None if where is None else conditions.mentions(where)
        db: Whereabouts = yield None
        with self._anew_after_failure(db):
            users = yield from self._users(db)
            place = (
                None if after is None else cursors.decode(after, users.id_type, users.score_type)
            )
            above = users.score_type.threshold_text(*threshold) if threshold else None
            source: FromClause[Any] | None = None
            if mentioned is not None:
                known: dict[TableClause[Any], Relation] = {}
                for table in mentioned.tables:
                    known[table] = yield from _mentioned(db, table)
                source = conditions.source(mentioned, users, known, self.table)
            found: Rows = yield queries.ranking(
                users,
                queries.users_table(users) if source is None else source,
                limit=size + 1,
                after=place,
                above=above,
                where=None if mentioned is None else mentioned.clause,
            )
        return rows.page(users, found, size)

    def explain(self, user_id: Any) -> Question[Explanation]:
        """Ask why a score is what it is."""
        where: Whereabouts = yield None
        with self._anew_after_failure(where):
            users = yield from self._users(where)
            text = users.id_type.text(user_id)
            yield from _require("explain", text)
            found = yield from _ours(queries.explanation(users, text))
            if not found:
                raise _unknown(users, text)
        return rows.explanation(users, found)

    def standing(self, user_id: Any) -> Question[tuple[int | None, float | None]]:
        """Ask for rank and percentile."""
        where: Whereabouts = yield None
        with self._anew_after_failure(where):
            users = yield from self._users(where)
            text = users.id_type.text(user_id)
            yield from _require("standing", text)
            found = yield from _ours(queries.rank_and_percentile(users, text))
            if not found:
                raise _unknown(users, text)
        rank, percentile = found[0]
        return rank, percentile

    def distribution(self) -> Question[dict[Number, int]]:
        """Ask how many people have each score."""
        where: Whereabouts = yield None
        with self._anew_after_failure(where):
            users = yield from self._users(where)
            yield from _require("distribution")
            found = yield from _ours(queries.distribution())
        return {users.score_type.number(score): people for score, people in found}

    def recompute(self, user_id: Any) -> Question[Number]:
        """Have a score computed and written."""
        where: Whereabouts = yield None
        with self._anew_after_failure(where):
            users = yield from self._users(where)
            text = users.id_type.text(user_id)
            yield from _require("recalculate", text)
            found = yield from _ours(queries.recomputation(users, text))
            if not found:
                raise _unknown(users, text)
        return users.score_type.number(found[0][0])

    def _users(self, where: Whereabouts) -> Asking[HostUsers]:
        schema = where.schema(self._schema)
        found = yield from _relation(where, schema, self._name)
        return host.users_from(found, schema, self._name)

    @contextmanager
    def _anew_after_failure(self, where: Whereabouts) -> Generator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            # the driver's; nothing was sent
            unknown = shown(error.object[error.start : error.end])
            raise BadArgumentError(
                f"{unknown} cannot be sent over this connection, whose client_encoding is "
                f"{error.encoding}: expected text that it can hold, or client_encoding=utf8"
            ) from None
        except Exception:
            # a column may have got another type meanwhile: the next call learns anew
            _learned.pop(where.owner, None)
            raise


class _Places:
    """Ids as they were given, and the places of their texts in one query, each text once.

    That somebody was given in several forms does not matter.
    """

    def __init__(self, users: HostUsers, given: list[Any]):
        self._given = given
        self._texts = [users.id_type.text(user_id) for user_id in given]
        self._places = {text: place for place, text in enumerate(dict.fromkeys(self._texts), 1)}

    @property
    def texts(self) -> list[str]:
        """What to ask for; places count from 1."""
        return list(self._places)

    def by_id(self, found: dict[int, T]) -> dict[Any, T]:
        """Return what was found at each place, by the ids as they were given."""
        return {
            user_id: found[self._places[text]]
            for user_id, text in zip(self._given, self._texts, strict=True)
            if self._places[text] in found
        }


def several(user_ids: Iterable[Any]) -> list[Any]:
    """Return ids as a list.

    Raises:
        BadArgumentError: It is a text, whose letters would be taken for ids.
    """
    if isinstance(user_ids, str | bytes):
        raise BadArgumentError(f"{shown(user_ids)} is one id: expected several, such as a list")
    return list(user_ids)


def _refusal(users: HostUsers, user_id: Any) -> BadArgumentError | None:
    try:
        users.id_type.text(user_id)
    except BadArgumentError as error:
        return error
    return None


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise BadArgumentError(f"{shown(name)} is not a username: expected text")


def _name_to_send(users: HostUsers, name: str) -> str | None:
    """A name as it is sent; None for what no column can hold: it is nobody's."""
    if users.username_type is None:
        raise PyscoreError(
            f"{users.schema}.{users.name} has no column username: find users by their id"
        )
    return sendable(name, users.encoding)


def _relation(where: Whereabouts, schema: str | None, name: str) -> Asking[Relation]:
    learned = _learned.setdefault(where.owner, {})
    if (schema, name) not in learned:
        found: Rows = yield host.relation(schema, name)
        learned[schema, name] = host.relation_from(found)
    return learned[schema, name]


def _mentioned(where: Whereabouts, table: TableClause[Any]) -> Asking[Relation]:
    # schema_translate_map is for a Table only, not for the light table()
    schema = where.schema(table.schema) if isinstance(table, Table) else table.schema
    return (yield from _relation(where, schema, table.name))


def _page_size(limit: Any) -> int:
    try:
        size = 0 if isinstance(limit, bool) else operator.index(limit)
    except TypeError:
        size = 0
    if not 1 <= size <= _LARGEST_PAGE:
        raise BadArgumentError(f"limit is {shown(limit)}: expected 1 to {_LARGEST_PAGE}")
    return size


def _require(function: Function, user_id: str = "") -> Asking[None]:
    # an error of the server's would cost the caller their transaction
    found: Rows = yield queries.standing(function)
    ((role, installed, attached, allowed, isolation, read_only),) = found
    if not installed:
        raise PyscoreError(
            "builder_score is not installed in this database; install it with: pyscore migrate"
        )
    if not allowed:
        arguments = "" if function == "distribution" else "builder_score.user_id"
        signature = f"builder_score.{function}({arguments})"
        raise PyscoreError(
            f"role {role} may not call {signature}; a DBA allows it with: "
            f"GRANT USAGE ON SCHEMA builder_score TO {role}; "
            f"GRANT EXECUTE ON FUNCTION {signature} TO {role};"
        )
    if not attached and function != "distribution":
        raise PyscoreError(
            "builder_score is detached from the application's tables; "
            "attach it with: SELECT * FROM builder_score.attach();"
        )
    if function != "recalculate":
        return
    if read_only:
        raise PyscoreError(
            "recompute() writes, and this transaction is read only; "
            "use a read-write transaction on the primary server"
        )
    if isolation not in ("read committed", "read uncommitted"):
        raise PyscoreError(
            f"recompute() cannot run at isolation level {isolation}: it could write a score "
            "from data that is no longer true; expected read committed. Who may enqueue "
            f"can instead: SELECT builder_score.enqueue({_quoted(user_id)}, 0); "
            "the worker then computes it at once, past the debounce"
        )


def _ours(statement: Statement) -> Asking[Rows]:
    """Run a function of ours; what it raises on purpose is put in our own words."""
    try:
        return (yield statement)
    except (DBAPIError, psycopg.Error) as error:
        cause: Any = error.orig if isinstance(error, DBAPIError) else error
        # psycopg2 has another name for it
        state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
        if state == _NO_DATA_FOUND:  # deleted a moment ago
            raise UnknownUserError(_said(cause)) from error
        if state in _REFUSALS:
            raise PyscoreError(_said(cause)) from error
        raise


def _said(cause: Any) -> str:
    if hasattr(cause, "diag"):
        return str(from_database(cause))
    # asyncpg's, inside SQLAlchemy's own
    raised = cause.__cause__ or cause
    parts = (raised, getattr(raised, "detail", None), getattr(raised, "hint", None))
    return ". ".join(str(part).rstrip(".;") for part in parts if part)


_NO_DATA_FOUND = "P0002"
# active_sql_transaction, insufficient_privilege, object_not_in_prerequisite_state
_REFUSALS = ("25001", "42501", "55000")


def _unknown(users: HostUsers, user_id: str) -> UnknownUserError:
    return UnknownUserError(
        f"there is no user with id {shown(user_id)} in {users.schema}.{users.name}; "
        "expected an id of that table"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
