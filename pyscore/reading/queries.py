"""Every statement that a reader sends, as SQLAlchemy builds them. Nothing here talks to a server.

All values are text, which is cast in SQL to the type that was learned from the catalogue: the same
statements then serve every driver, and compare without loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnClause,
    Double,
    FromClause,
    Select,
    Subquery,
    TableClause,
    TableValuedAlias,
    Text,
    TextClause,
    cast,
    column,
    extract,
    func,
    literal,
    null,
    select,
    table,
    text,
    true,
    tuple_,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement, Grouping
from sqlalchemy.types import UserDefinedType

from pyscore.reading.cursors import Position
from pyscore.reading.host import MOMENTS, HostUsers

if TYPE_CHECKING:
    Selected: TypeAlias = Select[*tuple[Any, ...]]


class _Named(UserDefinedType[Any]):
    """A type by the name that SQL has for it."""

    cache_ok = True

    def __init__(self, name: str):
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        return self.name


class _Bracketed(Grouping[Any]):
    """A condition that stays one whatever raw text it is made of: ``a or b -- why``."""

    inherit_cache = True


@compiles(_Bracketed)
def _bracketed(element: _Bracketed, compiler: Any, **options: Any) -> str:
    # the line break ends a comment, which would swallow the bracket and all that follows
    return f"({compiler.process(element.element, **options)}\n)"


def users_table(host: HostUsers, *more: str) -> TableClause[Any]:
    """Return the host's users, for FROM.

    Args:
        host: The host's users.
        more: Columns of theirs, beside id, score and username.
    """
    names = ["id", "builder_score", *(["username"] if host.username_type else []), *more]
    return table(host.name, *map(_column, names), schema=host.written_schema)


def score(host: HostUsers, user_id: str) -> Selected:
    """Select the score of one user; no row without the user.

    Args:
        host: The host's users.
        user_id: The id as text.
    """
    users = users_table(host)
    return _select(_text(users.c.builder_score)).where(users.c.id == _id(host, user_id))


def scores(host: HostUsers, user_ids: Sequence[str]) -> Selected:
    """Select place and score of those of many users who exist.

    Args:
        host: The host's users.
        user_ids: Ids as text; places count from 1.
    """
    asked = _asked(host, user_ids)
    users = users_table(host)
    # one probe each: a plain join may scan all users for a few
    found = select(users.c.builder_score).where(users.c.id == asked.c.id).limit(1).lateral("found")
    return _select(cast(asked.c.place, BigInteger), _text(found.c.builder_score)).join_from(
        asked, found, true()
    )


def profiles(host: HostUsers, user_ids: Sequence[str]) -> Selected:
    """Select place and profile, as `profile` does, of those of many users who exist.

    Args:
        host: The host's users.
        user_ids: As for `scores`.
    """
    asked = _asked(host, user_ids)
    users = users_table(host, *host.profile)
    found = select(*users.c).where(users.c.id == asked.c.id).limit(1).lateral("found")
    place = cast(asked.c.place, BigInteger)
    return _select(place, *_profile(host, found)).join_from(asked, found, true())


def by_username(host: HostUsers, name: str) -> Selected:
    """Select id, username and score of the user with a name; the first by id where several have it.

    Args:
        host: The host's users, which have usernames.
        name: The name.
    """
    found = _named(host, name)
    named = _select(found.c.id, _text(found.c.username), _text(found.c.builder_score))
    return named.order_by(found.c.id).limit(1)


def profile(host: HostUsers, name: str) -> Selected:
    """Select id, username, score and the columns of a profile that there are, as `by_username`.

    Args:
        host: The host's users, which have usernames.
        name: The name.
    """
    found = _named(host, name, *host.profile)
    return _select(*_profile(host, found)).order_by(found.c.id).limit(1)


def _asked(host: HostUsers, user_ids: Sequence[str]) -> TableValuedAlias:
    texts = cast(literal(list(user_ids), ARRAY(Text)), ARRAY(Text))
    return (
        func.unnest(cast(texts, _Named(f"{host.id_type.name}[]")))
        .table_valued("id", with_ordinality="place")
        .render_derived(name="asked")
    )


def _profile(host: HostUsers, users: FromClause[Any]) -> list[ColumnElement[Any]]:
    username = _text(users.c.username) if host.username_type else null()
    columns: list[ColumnElement[Any]] = [users.c.id, username, _text(users.c.builder_score)]
    for name, type_name in host.profile.items():
        column = users.c[name]
        # numeric: to the microsecond, and any year
        moment = type_name in MOMENTS
        columns.append(_text(extract("epoch", column) if moment else column))
    return columns


def _named(host: HostUsers, name: str, *more: str) -> Subquery:
    users = users_table(host, *more)
    type_name, category = host.username_type or ("text", "S")
    if category == "S":
        # the column's own idea of equality: citext stays blind to case
        same = users.c.username == _typed(name, type_name)
    else:
        same = _text(users.c.username) == _typed(name, "text")
    # offset 0: without statistics the planner would look for the name in all users, by id
    return select(*users.c).where(same).offset(0).subquery("named")


def ranking(
    host: HostUsers,
    users: FromClause[Any],
    *,
    limit: int,
    after: Position | None = None,
    above: str | None = None,
    where: ColumnElement[Any] | None = None,
) -> Selected:
    """Select id, username, score, exact score and the id's text, the highest first.

    The index on (builder_score desc, id desc) gives the rows in order; one comparison of both
    columns lets it begin anywhere, in the midst of a tie too.

    Args:
        host: The host's users.
        users: The same for FROM: the object that `where` is about.
        limit: Rows at most.
        after: Begin behind this place.
        above: Only scores above this one, as text.
        where: A condition on users.
    """
    # bare names: a mapped class or a Table need not have these columns, or calls them otherwise
    user_id, stored = _column("id"), _column("builder_score")
    username = _text(_column("username")) if host.username_type else null()
    is_binary = host.score_type.is_binary
    exact = func.float8send(cast(stored, Double)) if is_binary else _text(stored)
    query = (
        _select(
            user_id,
            username,
            _text(stored).label("score"),
            exact.label("exact_score"),
            _text(user_id).label("id_text"),
        )
        .select_from(users)
        .where(stored.is_not(None))
        .order_by(stored.desc(), user_id.desc())
        .limit(limit)
    )
    if after is not None:
        place = tuple_(_typed(after.score, host.score_type.name), _id(host, after.user_id))
        query = query.where(tuple_(stored, user_id) < place)
    if above is not None:
        query = query.where(stored > _typed(above, host.score_type.name))
    return query if where is None else query.where(_Bracketed(where))


def explanation(host: HostUsers, user_id: str) -> Selected:
    """Select a user's id, username, score, and a signal: name, raw value, points, maximum.

    A row for each signal. Called from the user's row: no row, and no error, without the user.

    Args:
        host: The host's users.
        user_id: The id as text.
    """
    users = users_table(host).alias("host_user")
    signals = (
        func.builder_score.explain(users.c.id)
        .table_valued("signal", "raw", "points", "max_points", with_ordinality="place")
        .render_derived(name="part")
    )
    return (
        _select(
            users.c.id,
            _text(users.c.username) if host.username_type else null(),
            _text(users.c.builder_score),
            signals.c.signal,
            _text(signals.c.raw),
            signals.c.points,
            signals.c.max_points,
        )
        .join_from(users, signals, true())
        .where(users.c.id == _id(host, user_id))
        .order_by(signals.c.place)
    )


def rank_and_percentile(host: HostUsers, user_id: str) -> Selected:
    """Select the rank and the percentile of one user; no row, and no error, without the user.

    Args:
        host: The host's users.
        user_id: The id as text.
    """
    users = users_table(host)
    place = (
        func.builder_score.standing(users.c.id)
        .table_valued("score", "rank", "people", "percentile")
        .render_derived(name="place")
    )
    return (
        _select(place.c.rank, place.c.percentile)
        .join_from(users, place, true())
        .where(users.c.id == _id(host, user_id))
    )


def distribution() -> Selected:
    """Select score and number of people, the highest score first."""
    scores = (
        func.builder_score.distribution()
        .table_valued("score", "people", with_ordinality="place")
        .render_derived(name="scores")
    )
    return _select(_text(scores.c.score), scores.c.people).order_by(scores.c.place)


def recomputation(host: HostUsers, user_id: str) -> Selected:
    """Select the new score of one user, computing and writing it; no row without the user.

    Args:
        host: The host's users.
        user_id: The id as text.
    """
    users = users_table(host)
    return _select(_text(func.builder_score.recalculate(users.c.id))).where(
        users.c.id == _id(host, user_id)
    )


def standing(function: str) -> TextClause:
    """Return the query for what stands between the caller and one of our functions.

    Its one row: the role, whether the schema, the function and the views on the host's tables are
    there, whether the role may call it, the transaction's isolation level and whether it is read
    only. It needs no privilege.

    Args:
        function: Its name in schema builder_score.
    """
    return text("""
        select cast(quote_ident(current_user) as text),
               n.oid is not null and p.oid is not null,
               exists (select from pg_catalog.pg_class as c
                       where c.relnamespace = n.oid and c.relname = 'host_users'),
               coalesce(has_schema_privilege(n.oid, 'usage')
                        and has_function_privilege(p.oid, 'execute'), false),
               current_setting('transaction_isolation'),
               current_setting('transaction_read_only') = 'on'
        from (values (1)) as one (one)
        left join pg_catalog.pg_namespace as n on n.nspname = 'builder_score'
        left join pg_catalog.pg_proc as p
            on p.pronamespace = n.oid and p.proname = cast(cast(:function as text) as name)
    """).bindparams(function=function)


def _select(*columns: ColumnElement[Any]) -> Selected:
    return select(*columns)


def _column(name: str) -> ColumnClause[Any]:
    return column(name)


def _id(host: HostUsers, text_of_id: str) -> ColumnElement[Any]:
    return _typed(text_of_id, host.id_type.name)


def _text(expression: ColumnElement[Any]) -> ColumnElement[str]:
    return cast(expression, Text)


def _typed(value: str, type_name: str) -> ColumnElement[Any]:
    return cast(cast(literal(value, Text), Text), _Named(type_name))
