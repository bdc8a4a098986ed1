"""Conditions on the host's users: finding out which table they are about, so that FROM names it.

A condition brings its own object for the table. A FROM with another object of the same name would
pair every user with every user, and leave a subquery that is meant to be correlated on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from sqlalchemy import (
    Alias,
    ColumnElement,
    FromClause,
    SelectBase,
    TableClause,
    inspect,
    literal,
    select,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapper
from sqlalchemy.sql import visitors

from pyscore.errors import BadArgumentError
from pyscore.reading.host import HostUsers, Relation

if TYPE_CHECKING:
    from sqlalchemy import ColumnExpressionArgument, TextClause

Condition: TypeAlias = "ColumnExpressionArgument[bool] | TextClause"
"""What ``where=`` takes: ``User.deleted_at.is_(None)``, ``and_(...)``, ``text("not banned")``."""

Users: TypeAlias = "TableClause[Any] | type[Any]"
"""What ``users=`` takes: a Table, or a mapped class."""


def table_of(users: Users | None) -> TableClause[Any] | None:
    """Return the table that ``users=`` stands for.

    Args:
        users: A Table, a mapped class or None.

    Raises:
        BadArgumentError: It is something else, or mapped to something else than one table.
    """
    if users is None or isinstance(users, TableClause):
        return users
    mapper = cast(Any, inspect)(users, raiseerr=False)
    table = cast(Any, mapper).local_table if isinstance(mapper, Mapper) else None
    if isinstance(table, TableClause):
        return cast("TableClause[Any]", table)
    raise BadArgumentError(
        f"users= is {users!r}: expected a SQLAlchemy Table, or a class that is mapped to one"
    )


@dataclass(frozen=True, slots=True)
class Mentions:
    """What a condition mentions.

    Attributes:
        clause: The condition.
        froms: What it needs in FROM; none where all its columns are in subqueries, or it is text.
        tables: Every table in it, in subqueries too.
    """

    clause: ColumnElement[Any]
    froms: tuple[FromClause[Any], ...]
    tables: tuple[TableClause[Any], ...]


def mentions(condition: Condition) -> Mentions:
    """Return what a condition mentions.

    Args:
        condition: What was given as ``where=``.

    Raises:
        BadArgumentError: It is not a condition.
    """
    if isinstance(condition, bool | str | SelectBase):
        # `User.deleted_at is None` is False
        raise _refusal(f"{condition!r} is not one")
    try:
        probe = select(literal(1)).where(condition)
        clause, froms = probe.whereclause, tuple(probe.get_final_froms())
    except SQLAlchemyError as error:
        raise _refusal(str(error)) from None
    if clause is None:
        raise _refusal(f"{condition!r} is not one")
    found: dict[TableClause[Any], None] = {}
    for element in visitors.iterate(clause):
        # a column's, or itself
        table = _table_behind(getattr(element, "table", element))
        if isinstance(table, TableClause):
            found[table] = None
    return Mentions(clause, froms, tuple(found))


def source(
    mentioned: Mentions,
    host: HostUsers,
    known: Mapping[TableClause[Any], Relation],
    preferred: TableClause[Any] | None,
) -> FromClause[Any] | None:
    """Return what FROM has to name so that a condition means what it says.

    Args:
        mentioned: What the condition mentions.
        host: The host's users, as the catalogue knows them.
        known: What the catalogue says about the mentioned tables.
        preferred: The one to take where subqueries mention the users as several objects.

    Returns:
        None for a condition that does not mention the users: any FROM will do.

    Raises:
        BadArgumentError: It is about another table, or about more than one.
    """
    own = [table for table in mentioned.tables if known[table].oid == host.oid]
    if len(mentioned.froms) > 1:
        others = [clause for clause in mentioned.froms if _table_behind(clause) not in own]
        names = ", ".join(map(_name, others or mentioned.froms))
        raise _refusal(f"this one needs {names} in FROM beside the users; {_ADVICE}")
    if mentioned.froms:
        (outer,) = mentioned.froms
        if _table_behind(outer) not in own:
            raise _refusal(
                f"this one is about {_name(outer)}, not about {host.schema}.{host.name}; {_ADVICE}"
            )
        return outer
    return preferred if preferred in own else own[0] if own else None


_ADVICE = "put other tables into a subquery: exists(select(...).where(...)), or in_(select(...))"


def _table_behind(clause: Any) -> Any:
    return cast(Any, clause).element if isinstance(clause, Alias) else clause


def _name(clause: FromClause[Any]) -> str:
    table = _table_behind(clause)
    return table.fullname if isinstance(table, TableClause) else "a subquery"


def _refusal(reason: str) -> BadArgumentError:
    return BadArgumentError(
        f"where= takes a SQLAlchemy condition on the users, "
        f"such as User.deleted_at.is_(None) or text('not banned'): {reason}"
    )
