"""The ranking as a statement of SQLAlchemy's, for an application to go on from.

    from pyscore.orm import cursor_of, leaderboard

    first = session.scalars(leaderboard(User).where(User.banned.is_(False)).limit(20)).all()
    after = cursor_of(first[-1])
    second = session.scalars(leaderboard(User, after=after).limit(20)).all()

The model says where ``id`` and ``builder_score`` are and of what types: nothing is asked of the
database. Cursors are those of the pages of `pyscore.ScoreReader`, and the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from sqlalchemy import (
    CHAR,
    REAL,
    BigInteger,
    ColumnElement,
    Double,
    Enum,
    Float,
    FromClause,
    Integer,
    Numeric,
    Row,
    Select,
    String,
    Text,
    TypeDecorator,
    Uuid,
    cast,
    inspect,
    literal,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import CITEXT, DOMAIN
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.orm import InstanceState, Mapper
from sqlalchemy.orm.util import AliasedInsp
from sqlalchemy.types import TypeEngine

from pyscore.errors import BadArgumentError
from pyscore.models import COLUMN
from pyscore.reading import cursors
from pyscore.reading.types import IdType, ScoreType, shown
from pyscore.scores import Number

if TYPE_CHECKING:
    Selected: TypeAlias = Select[*tuple[Any, ...]]

__all__ = ["cursor_of", "leaderboard"]

T = TypeVar("T")

_ID = "id"


@overload
def leaderboard(
    users: type[T], *, after: str | None = None, above: Number | Decimal | None = None
) -> Select[T]: ...


@overload
def leaderboard(
    users: FromClause[Any], *, after: str | None = None, above: Number | Decimal | None = None
) -> Selected: ...


def leaderboard(
    users: Any, *, after: str | None = None, above: Number | Decimal | None = None
) -> Any:
    """Select the users who have a score: the highest first, among equals the highest id.

    It is a Select like any other: ``where``, ``join``, ``options``, ``limit``, ``subquery`` and
    ``with_only_columns`` go on from it. A page comes from the index on ``(builder_score desc,
    id desc)``, as quickly wherever it is, if there is a ``limit``.

        select = leaderboard(User, after=cursor).where(User.banned.is_(False)).limit(20)
        session.scalars(select).all()

    Args:
        users: The application's users: a mapped class, ``aliased()`` of one, or a Table. The
            columns ``id`` and ``builder_score`` are found by their names in the database, whatever
            the attributes are called.
        after: Begin behind this place: what `cursor_of` returned, or ``next`` of a page of a
            `pyscore.ScoreReader`.
        above: Only those with more than this.

    Raises:
        BadArgumentError: `users` has no such columns, or of types that no score and no id has;
            `after` is not a cursor of this ranking, or `above` not a number.
    """
    place = _columns(users)
    score, user_id = place.score.sql, place.user_id.sql
    ranking = select(users).where(score.is_not(None)).order_by(score.desc(), user_id.desc())
    if above is not None:
        score_type, declared = _score_type(place.score)
        ranking = ranking.where(score > _sent(score_type.threshold_text(above), declared))
    if after is not None:
        score_type, declared = _score_type(place.score)
        id_type, declared_id = _id_type(place.user_id)
        behind = cursors.decode(after, id_type, score_type)
        sent = tuple_(_sent(behind.score, declared), _sent(behind.user_id, declared_id))
        ranking = ranking.where(tuple_(score, user_id) < sent)
    return ranking


def cursor_of(user: Any, users: type[Any] | FromClause[Any] | None = None) -> str:
    """Return the cursor of a user's place, for ``after=`` of the page that begins behind it.

    Args:
        user: A mapped object, as `leaderboard` selects them; or a row that holds one, or its score
            and its id.
        users: For a row: what `leaderboard` was given.

    Raises:
        BadArgumentError: It is nothing of the kind, or has no score and therefore no place.
    """
    is_row = _is(user, Row)
    if is_row and users is not None:
        if not _is(users, FromClause) and users in user._mapping:
            return cursor_of(user._mapping[users])
        place = _columns(users)
        score, user_id = _held(user, place.score), _held(user, place.user_id)
    elif not is_row and _is(inspect(user, raiseerr=False), InstanceState):
        place = _columns(type(user))
        score, user_id = getattr(user, place.score.key), getattr(user, place.user_id.key)
    else:
        raise BadArgumentError(
            f"{shown(user)} has no place in a ranking: expected an object of the mapped class, "
            "or a row and what was selected from: cursor_of(row, User)"
        )
    if score is None:
        raise BadArgumentError(f"{shown(user)} has no score, and so no place in a ranking")
    score_type, id_type = _score_type(place.score)[0], _id_type(place.user_id)[0]
    exact = score_type.checked(_number_text(_stored(place.score, score)))
    if exact is None:
        raise BadArgumentError(f"{shown(score)} is not a score that {score_type.name} holds")
    id_text = id_type.text(_stored(place.user_id, user_id))
    return cursors.encode(cursors.Position(exact, id_text), id_type)


# Columns


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the users.

    Attributes:
        sql: What statements name.
        attribute: What it is mapped to; the same as `sql` for a Table.
        key: The name of that.
    """

    sql: ColumnElement[Any]
    attribute: Any
    key: str


@dataclass(frozen=True, slots=True)
class _Place:
    score: _Column
    user_id: _Column


def _columns(users: Any) -> _Place:
    found: Any = inspect(users, raiseerr=False)
    if _is(found, Mapper, AliasedInsp):
        return _of_class(users, found)
    if _is(users, FromClause):
        return _Place(_of_table(users, COLUMN), _of_table(users, _ID))
    raise BadArgumentError(
        f"{shown(users)} is not the users: expected a class that is mapped to them, "
        "aliased() of one, or a Table"
    )


def _is(value: object, *classes: type[Any]) -> bool:
    # pyright takes a value that isinstance() has narrowed to a generic class for partially unknown
    return isinstance(value, classes)


def _of_class(users: Any, inspected: Any) -> _Place:
    mapped = [
        (attribute, column)
        for attribute in inspected.mapper.column_attrs
        for column in attribute.columns
        if getattr(column, "table", None) is not None
    ]

    def place(name: str, table: Any = None) -> tuple[_Column, Any]:
        for attribute, column in mapped:
            if column.name == name and (table is None or column.table is table):
                own = getattr(users, attribute.key)
                # one attribute for a parent's and a child's column stands for the child's
                alone = len(attribute.columns) == 1
                sql = own if alone else inspected.selectable.corresponding_column(column)
                return _Column(own if sql is None else sql, own, attribute.key), column.table
        raise _lack(users, name)

    score, table = place(COLUMN)
    # of the same table, as the index has them
    return _Place(score, place(_ID, table)[0])


def _of_table(table: FromClause, name: str) -> _Column:
    for key, column in table.c.items():
        if column.name == name:
            return _Column(column, column, key)
    raise _lack(table, name)


def _lack(users: Any, name: str) -> BadArgumentError:
    advice = "; pyscore.models.BuilderScoreMixin puts it on a model" if name == COLUMN else ""
    return BadArgumentError(
        f"{shown(users)} has no column {name}: expected the application's users{advice}"
    )


def _held(row: Any, column: _Column) -> Any:
    for name in (column.sql, column.attribute):
        if name in row._mapping:
            return row._mapping[name]
    raise BadArgumentError(f"{shown(row)} does not hold {column.attribute}: expected id and score")


# Types

# For no server: only types ask it what they are in PostgreSQL.
_DIALECT = PGDialect()
_DIALECT.supports_native_decimal = True

# Digits, in base 2, of what float(n) makes a real.
_REAL_DIGITS = 24


def _declared(column: _Column) -> TypeEngine[Any]:
    """The type in PostgreSQL, below decorators, variants and domains."""
    declared: Any = column.sql.type.dialect_impl(_DIALECT)
    while isinstance(declared, TypeDecorator | DOMAIN):
        below: Any = declared.data_type if isinstance(declared, DOMAIN) else declared.impl_instance
        declared = below.dialect_impl(_DIALECT)
    return declared


# The widest of each family: a model may say Integer of what is bigint in the database, and the
# index serves both.


def _score_type(column: _Column) -> tuple[ScoreType, TypeEngine[Any]]:
    match _declared(column):
        case Integer():
            return ScoreType("bigint"), BigInteger()
        case REAL():
            return ScoreType("real"), REAL()
        case Float(precision=digits) if digits is not None and digits <= _REAL_DIGITS:
            return ScoreType("real"), REAL()
        case Float():
            return ScoreType("double precision"), Double()
        case Numeric():
            return ScoreType("numeric"), Numeric()
        case other:
            raise _odd(column, other, "Integer, Float, REAL, Double or Numeric")


def _id_type(column: _Column) -> tuple[IdType, TypeEngine[Any]]:
    match _declared(column):
        case Integer():
            return IdType("bigint", "N"), BigInteger()
        case Uuid(native_uuid=True):
            return IdType("uuid", "U"), Uuid()
        case Uuid():
            return IdType("text", "S"), CHAR(32)
        case CHAR() | CITEXT() as declared:
            # compared as what they are, by which they are sorted
            return IdType("text", "S"), declared
        case String() as declared if not isinstance(declared, Enum):
            return IdType("text", "S"), Text()
        case other:
            raise _odd(column, other, "Integer, Uuid or String")


def _odd(column: _Column, declared: TypeEngine[Any], expected: str) -> BadArgumentError:
    return BadArgumentError(
        f"{column.attribute} is declared as {declared!r}: expected what PostgreSQL compares as it "
        f"stands in the database, one of {expected}"
    )


def _sent(text: str, declared: TypeEngine[Any]) -> ColumnElement[Any]:
    # text that is cast in SQL means the same to every driver
    return cast(cast(literal(text, Text()), Text()), declared)


def _stored(column: _Column, value: Any) -> Any:
    """What a type of the application's own makes of a value on its way to the database."""
    processor = column.sql.type.dialect_impl(_DIALECT).bind_processor(_DIALECT)
    return processor(value) if processor else value


def _number_text(value: Any) -> str:
    # as numeric takes it, never with an exponent; 17 digits hold a float
    exact = Decimal(repr(value)) if isinstance(value, float) else value
    return format(exact, "f") if isinstance(exact, Decimal) else repr(exact)
