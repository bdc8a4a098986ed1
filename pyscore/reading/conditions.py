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
    ColumnClause,
    ColumnElement,
    FromClause,
    Select,
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
        joinable: Those that stand beside others in a subquery's FROM. If the query around it names
            one of them, then that is the one that is meant.
    """

    clause: ColumnElement[Any]
    froms: tuple[FromClause[Any], ...]
    tables: tuple[TableClause[Any], ...]
    joinable: tuple[TableClause[Any], ...]


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
    if isinstance(clause, ColumnClause) and not (clause.is_literal or _may_be_boolean(clause)):
        raise _refusal(f"{clause} is a column of type {clause.type}")
    found: dict[TableClause[Any], None] = {}
    joinable: list[Any] = []
    for element in visitors.iterate(clause):
        joinable += _side_by_side(element)
        # a column's, or itself
        table = _table_behind(getattr(element, "table", element))
        if isinstance(table, TableClause):
            found[table] = None
    return Mentions(
        clause, froms, tuple(found), tuple(table for table in found if table in joinable)
    )


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
            raise _stranger(outer, host)
        return outer
    if not own:
        # Another schema's users: with them in FROM a subquery would be about each of them in turn,
        # without them it says one and the same of everybody.
        for table in mentioned.joinable:
            if table.name == host.name:
                raise _stranger(table, host)
    return preferred if preferred in own else own[0] if own else None


_ADVICE = "put other tables into a subquery: exists(select(...).where(...)), or in_(select(...))"


def _side_by_side(element: Any) -> list[Any]:
    if not isinstance(element, Select):
        return []
    froms: list[Any] = list(cast(Any, element).get_final_froms())
    return [_table_behind(clause) for clause in froms] if len(froms) > 1 else []


def _may_be_boolean(clause: ColumnClause[Any]) -> bool:
    try:
        # object: a type of somebody's own
        return clause.type.python_type in (bool, object)
    except NotImplementedError:
        return True


def _table_behind(clause: Any) -> Any:
    return cast(Any, clause).element if isinstance(clause, Alias) else clause


def _name(clause: FromClause[Any]) -> str:
    table = _table_behind(clause)
    return table.fullname if isinstance(table, TableClause) else "a subquery"


def _stranger(clause: FromClause[Any], host: HostUsers) -> BadArgumentError:
    table = _table_behind(clause)
    namesake = isinstance(table, TableClause) and table.name == host.name
    advice = "name the users that are meant: users=User" if namesake else _ADVICE
    return _refusal(
        f"this one is about {_name(clause)}, not about {host.schema}.{host.name}; {advice}"
    )


def _refusal(reason: str) -> BadArgumentError:
    return BadArgumentError(
        f"where= takes a SQLAlchemy condition on the users, "
        f"such as User.deleted_at.is_(None) or text('not banned'): {reason}"
    )
