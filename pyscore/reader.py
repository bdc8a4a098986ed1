"""Reading scores from Python."""

from __future__ import annotations

import operator
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import psycopg
from sqlalchemy import FromClause, Table, TableClause
from sqlalchemy.exc import DBAPIError

from pyscore.errors import BadArgumentError, PyscoreError, UnknownUserError, from_database
from pyscore.reading import binds, conditions, cursors, host, queries, rows
from pyscore.reading.binds import Bind, Database
from pyscore.reading.conditions import Condition, Users
from pyscore.reading.host import HostUsers, Relation
from pyscore.reading.types import sendable, shown
from pyscore.scores import Explanation, Number, Page, UserScore

# What the catalogue said, by schema and table: while the engine's pool, or the connection, lives.
_learned: WeakKeyDictionary[object, dict[tuple[str | None, str], Relation]] = WeakKeyDictionary()

_LARGEST_PAGE = 1000

Function: TypeAlias = Literal["explain", "standing", "distribution", "recalculate"]
"""Functions of schema builder_score that readers call."""


class ScoreReader:
    """Reads scores, and what they are made of, from the application's own database.

    Scores are read from ``users.builder_score`` alone: that needs no privilege but SELECT on users,
    works on a standby and in a read-only transaction, and goes on working whatever happens to the
    rest. `explain`, `rank`, `percentile`, `distribution` and `recompute` call functions of schema
    builder_score, which a role needs a grant for; they say which.

    On an engine each call is a short transaction of its own. On anything else it is part of the
    caller's transaction, which is never committed, rolled back or broken by a bad argument; except
    by a ``where=`` that only the server can see is wrong, raw SQL such as ``text("bann")`` above
    all. A session is flushed first, as for a query of its own.

        reader = ScoreReader(engine)
        reader.leaderboard(20, where=User.deleted_at.is_(None))

    Args:
        bind: A SQLAlchemy Engine, Connection, Session or scoped_session for PostgreSQL, or a
            psycopg Connection.
        users: The application's users, as a SQLAlchemy Table or mapped class; ``users`` if not
            given. A session that is bound by class needs it.
        schema: The schema of users; where the search_path leads if not given.

    Raises:
        BadArgumentError: An argument is none of these.
    """

    def __init__(self, bind: Bind, *, users: Users | None = None, schema: str | None = None):
        binds.check(bind)
        table = conditions.table_of(users)
        if table is not None and table.schema is not None and schema not in (None, table.schema):
            raise BadArgumentError(
                f"users= is in schema {table.schema}, and schema= says {schema}: give one of them"
            )
        self._bind: Bind = bind
        self._table = table
        self._name = "users" if table is None else table.name
        self._schema = schema if table is None else table.schema or schema

    def score(self, user_id: Any) -> Number | None:
        """Return a user's score; None without such a user, or while it was not computed yet.

        Args:
            user_id: As ``users.id`` holds it, or as text.

        Raises:
            BadArgumentError: It has not the form of an id.
        """
        with self._open() as (db, users):
            found = db.rows(queries.score(users, users.id_type.text(user_id)))
        return rows.number(users, found[0][0]) if found else None

    def scores(self, user_ids: Iterable[Any]) -> dict[Any, Number | None]:
        """Return the scores of many users, in one query however many they are.

        Args:
            user_ids: As for `score`.

        Returns:
            Scores by id, as the id was given. Who does not exist is left out; who has no score yet
            has None.

        Raises:
            BadArgumentError: One of them has not the form of an id.
        """
        if isinstance(user_ids, str | bytes):
            raise BadArgumentError(f"{shown(user_ids)} is one id: expected several, such as a list")
        given = list(user_ids)
        if not given:
            return {}
        with self._open() as (db, users):
            texts = [users.id_type.text(user_id) for user_id in given]
            # each id once; that it was given in several forms does not matter
            places = {text: place for place, text in enumerate(dict.fromkeys(texts), 1)}
            found: dict[int, str | None] = {}
            for place, score in db.rows(queries.scores(users, list(places))):
                found[place] = score
        return {
            user_id: rows.number(users, found[places[text]])
            for user_id, text in zip(given, texts, strict=True)
            if places[text] in found
        }

    def by_username(self, name: str) -> UserScore | None:
        """Return the user with a name, None without one; where several have it, the lowest id's.

        Args:
            name: As ``users.username`` holds it.

        Raises:
            BadArgumentError: It is not text, or the connection's client_encoding cannot send it.
            PyscoreError: The application's users have no username.
        """
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise BadArgumentError(f"{shown(name)} is not a username: expected text")
        with self._open() as (db, users):
            if users.username_type is None:
                raise PyscoreError(
                    f"{users.schema}.{users.name} has no column username: find users by their id"
                )
            # what no column can hold is nobody's name
            plain = sendable(name, users.encoding)
            found = None if plain is None else db.rows(queries.by_username(users, plain))
        return rows.user_score(users, found[0]) if found else None

    def leaderboard(
        self, limit: int = 20, after: str | None = None, where: Condition | None = None
    ) -> Page:
        """Return a page of the ranking: the highest score first, among equals the highest id.

        Who has no score yet is not in it. Reading on with the page's ``next`` neither skips nor
        repeats anybody while scores stand still, however many share one, and though entries already
        read disappear.

        Args:
            limit: Entries on the page, 1 to 1000.
            after: ``next`` of the page before; None for the first page.
            where: A SQLAlchemy condition on the users, for instance to hide deleted or banned ones:
                ``User.deleted_at.is_(None)``, ``text("not banned")``. Other tables go into a
                subquery. Raw SQL is sent as it is: never make it of what a visitor typed, and put
                brackets around an ``or`` that is only part of a condition.

        Raises:
            BadArgumentError: A page cannot have that size, `after` is not a cursor of this ranking,
                or `where` is not a condition on the users alone.
            sqlalchemy.exc.DBAPIError: The server cannot make sense of `where`; psycopg.Error on a
                psycopg Connection.
        """
        return self._page(limit, after, where)

    def above(
        self,
        threshold: Number | Decimal,
        limit: int = 20,
        after: str | None = None,
        where: Condition | None = None,
    ) -> Page:
        """Return a page of the ranking of those whose score is greater than a threshold.

        Args:
            threshold: A score; 75 asks for more than 75.
            limit: As for `leaderboard`.
            after: As for `leaderboard`.
            where: As for `leaderboard`.

        Raises:
            BadArgumentError: As for `leaderboard`, or the threshold is not a number.
            sqlalchemy.exc.DBAPIError: As for `leaderboard`.
        """
        return self._page(limit, after, where, threshold)

    def explain(self, user_id: Any) -> Explanation:
        """Return what a user's score would be now, and why.

        Args:
            user_id: As for `score`.

        Raises:
            UnknownUserError: There is no such user.
            BadArgumentError: It has not the form of an id.
            PyscoreError: builder_score is missing or detached, or the role needs a grant.
        """
        with self._open() as (db, users):
            text = users.id_type.text(user_id)
            self._require(db, "explain", text)
            found = _ours(db, queries.explanation(users, text))
        if not found:
            raise _unknown(users, text)
        return rows.explanation(users, found)

    def rank(self, user_id: Any) -> int | None:
        """Return a user's place among all who have a score: 1 for the highest.

        Equal scores share it: 1 + the number of people with a higher score. As of the worker's last
        batch, exact, and as quick among millions as among few, since nobody is counted.

        Args:
            user_id: As for `score`.

        Returns:
            None while the user's score was not computed yet.

        Raises:
            UnknownUserError: There is no such user.
            BadArgumentError: It has not the form of an id.
            PyscoreError: builder_score is missing or detached, or the role needs a grant.
        """
        return self._standing(user_id)[0]

    def percentile(self, user_id: Any) -> float | None:
        """Return what share of the other people has a lower score, from 0 to 100.

        100 * (people with a lower score) / (people - 1), as SQL's ``percent_rank()`` has it; 0 for
        somebody who is alone. As of the worker's last batch, exact, and without counting anybody.

        Args:
            user_id: As for `score`.

        Returns:
            None while the user's score was not computed yet.

        Raises:
            UnknownUserError: There is no such user.
            BadArgumentError: It has not the form of an id.
            PyscoreError: builder_score is missing or detached, or the role needs a grant.
        """
        return self._standing(user_id)[1]

    def distribution(self) -> dict[Number, int]:
        """Return how many people have each score that somebody has, the highest score first.

        As of the worker's last batch; who has no score yet is not counted.

        Raises:
            PyscoreError: builder_score is missing, or the role needs a grant.
        """
        with self._open() as (db, users):
            self._require(db, "distribution")
            found = _ours(db, queries.distribution())
        return {users.score_type.number(score): people for score, people in found}

    def recompute(self, user_id: Any) -> Number:
        """Compute and write a user's score now, past the debounce, and return it.

        For services. May wait for whoever holds the user's row. On an engine it is committed; on
        anything else it is the caller's to commit, and needs a transaction at READ COMMITTED. An
        object that a session has already loaded keeps its old ``builder_score`` until refreshed.

        Args:
            user_id: As for `score`.

        Raises:
            UnknownUserError: There is no such user.
            BadArgumentError: It has not the form of an id.
            PyscoreError: builder_score is missing or detached, the role needs a grant, or the
                transaction is read only or of a higher isolation level.
        """
        with self._open(writes=True) as (db, users):
            text = users.id_type.text(user_id)
            self._require(db, "recalculate", text)
            found = _ours(db, queries.recomputation(users, text))
        if not found:
            raise _unknown(users, text)
        return users.score_type.number(found[0][0])

    def _standing(self, user_id: Any) -> tuple[int | None, float | None]:
        with self._open() as (db, users):
            text = users.id_type.text(user_id)
            self._require(db, "standing", text)
            found = _ours(db, queries.rank_and_percentile(users, text))
        if not found:
            raise _unknown(users, text)
        rank, percentile = found[0]
        return rank, percentile

    def _page(
        self, limit: Any, after: str | None, where: Condition | None, *threshold: Any
    ) -> Page:
        size = _page_size(limit)
        mentioned = None if where is None else conditions.mentions(where)
        with self._open() as (db, users):
            place = after if after is None else _place(users, after)
            above = users.score_type.threshold_text(*threshold) if threshold else None
            source: FromClause[Any] | None = None
            if mentioned is not None:
                known = {table: _mentioned(db, table) for table in mentioned.tables}
                source = conditions.source(mentioned, users, known, self._table)
            query = queries.ranking(
                users,
                queries.users_table(users) if source is None else source,
                limit=size + 1,
                after=place,
                above=above,
                where=None if mentioned is None else mentioned.clause,
            )
            found = db.rows(query)
        return rows.page(users, found, size)

    @contextmanager
    def _open(self, *, writes: bool = False) -> Generator[tuple[Database, HostUsers]]:
        with binds.opened(self._bind, self._table, writes=writes) as db:
            try:
                schema = db.schema(self._schema)
                found = _relation(db, schema, self._name)
                yield db, host.users_from(found, schema, self._name)
            except UnicodeEncodeError as error:
                # the driver's; nothing was sent
                unknown = shown(error.object[error.start : error.end])
                raise BadArgumentError(
                    f"{unknown} cannot be sent over this connection, whose client_encoding is "
                    f"{error.encoding}: expected text that it can hold, or client_encoding=utf8"
                ) from None
            except Exception:
                # a column may have got another type meanwhile: the next call learns anew
                _learned.pop(db.owner, None)
                raise

    def _require(self, db: Database, function: Function, user_id: str = "") -> None:
        # an error of the server's would cost the caller their transaction
        ((role, installed, attached, allowed, isolation, read_only),) = db.rows(
            queries.standing(function)
        )
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


def _relation(db: Database, schema: str | None, name: str) -> Relation:
    learned = _learned.setdefault(db.owner, {})
    if (schema, name) not in learned:
        learned[schema, name] = host.relation_from(db.rows(host.relation(schema, name)))
    return learned[schema, name]


def _mentioned(db: Database, table: TableClause[Any]) -> Relation:
    # schema_translate_map is for a Table only, not for the light table()
    schema = db.schema(table.schema) if isinstance(table, Table) else table.schema
    return _relation(db, schema, table.name)


def _page_size(limit: Any) -> int:
    try:
        size = 0 if isinstance(limit, bool) else operator.index(limit)
    except TypeError:
        size = 0
    if not 1 <= size <= _LARGEST_PAGE:
        raise BadArgumentError(f"limit is {shown(limit)}: expected 1 to {_LARGEST_PAGE}")
    return size


def _place(users: HostUsers, cursor: str) -> cursors.Position:
    return cursors.decode(cursor, users.id_type, users.score_type)


def _ours(db: Database, statement: binds.Statement) -> rows.Rows:
    """Run a function of ours; what it raises on purpose is put in our own words."""
    try:
        return db.rows(statement)
    except (DBAPIError, psycopg.Error) as error:
        cause: Any = error.orig if isinstance(error, DBAPIError) else error
        # psycopg2 has another name for it
        state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
        if state == _NO_DATA_FOUND:  # deleted a moment ago
            raise UnknownUserError(str(from_database(cause))) from error
        if state in _REFUSALS:
            raise from_database(cause) from error
        raise


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
