"""What the catalogue knows about the host's users; every query is made for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import TextClause, text

from pyscore.errors import PyscoreError
from pyscore.reading.types import IdType, ScoreType, codec

# One row per column of interest, at least one in all; domains are followed to what they are made
# of. Nothing here needs a privilege, and nothing raises when there is no such schema or table.
_RELATION = """
with recursive relation as (
    select c.oid, n.nspname
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where c.relname = cast(cast(:name as text) as name)
      and c.relkind in ('r', 'p', 'v', 'm', 'f')
      and case when cast(:schema as text) is null then pg_catalog.pg_table_is_visible(c.oid)
               else n.nspname = cast(cast(:schema as text) as name) end
), base as (
    select a.attname, a.atttypid as type_id
    from relation as r
    join pg_catalog.pg_attribute as a on a.attrelid = r.oid
    where a.attname = any (cast(:columns as text[])) and not a.attisdropped
    union all
    select b.attname, t.typbasetype
    from base as b
    join pg_catalog.pg_type as t on t.oid = b.type_id
    where t.typtype = 'd'
)
select cast(pg_catalog.array_to_string(pg_catalog.current_schemas(false), ', ') as text),
       cast(pg_catalog.getdatabaseencoding() as text),
       cast(r.oid as bigint), cast(r.nspname as text), cast(b.attname as text),
       pg_catalog.format_type(b.type_id, -1), cast(b.typcategory as text)
from (values (1)) as one (one)
left join relation as r on true
left join (select b.*, t.typcategory from base as b
           join pg_catalog.pg_type as t on t.oid = b.type_id and t.typtype <> 'd') as b on true
"""


PROFILE = (
    *("avatar_url", "headline", "bio", "primary_role", "timezone"),
    *("contact_links", "created_at"),
)
"""The columns of a profile; a host may lack any of them."""

MOMENTS = ("timestamp with time zone", "timestamp without time zone", "date")
"""Types of which ``extract(epoch …)`` is a point in time."""

# As the text of an array, which every driver sends alike.
_COLUMNS = "{" + ",".join(("id", "username", "builder_score", *PROFILE)) + "}"


@dataclass(frozen=True, slots=True)
class Relation:
    """A table or view, as far as it matters here.

    Attributes:
        searched: The schemas in which a name without one is looked for.
        encoding: The database's, as Python names it.
        oid: None where there is no such table.
        schema: Where it is.
        columns: Type and type category of id, username, builder_score and those of `PROFILE`, of
            those that it has.
    """

    searched: str
    encoding: str
    oid: int | None
    schema: str | None
    columns: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class HostUsers:
    """The host's users.

    Attributes:
        oid: The table's.
        schema: Where it is, however it was found.
        name: users, or what ``users=`` names.
        encoding: The database's, as Python names it.
        written_schema: The schema that queries name; None to leave it to the search_path.
        id_type: The type of ``id``.
        score_type: The type of ``builder_score``.
        username_type: Type and type category of ``username``; None where there is no such column.
        profile: Those of `PROFILE` that there are, with their types.
    """

    oid: int
    schema: str
    name: str
    encoding: str
    written_schema: str | None
    id_type: IdType
    score_type: ScoreType
    username_type: tuple[str, str] | None
    profile: Mapping[str, str] = field(default_factory=dict[str, str])


def relation(schema: str | None, name: str) -> TextClause:
    """Return the query for a table's `Relation`.

    Args:
        schema: None to look where the search_path leads.
        name: The table.
    """
    return text(_RELATION).bindparams(schema=schema, name=name, columns=_COLUMNS)


def relation_from(rows: Sequence[Sequence[Any]]) -> Relation:
    """Return what the rows of `relation` say.

    Raises:
        PyscoreError: The driver cannot read text from this connection.
    """
    searched, encoding, oid, schema, *_ = rows[0]
    if isinstance(searched, bytes):  # so does psycopg where client_encoding is SQL_ASCII
        raise PyscoreError(
            "this connection reads text as bytes, for its client_encoding is SQL_ASCII; "
            "expected utf8: connect with client_encoding=utf8"
        )
    columns = {str(name): (str(kind), str(category)) for *_, name, kind, category in rows if name}
    return Relation(searched, codec(encoding), oid, schema, columns)


def users_from(found: Relation, schema: str | None, name: str) -> HostUsers:
    """Return the host's users.

    Args:
        found: What the catalogue says about them.
        schema: Where they were looked for; None for the search_path.
        name: Their table.

    Raises:
        PyscoreError: There is no such table, or it lacks a column, or has one of another type.
    """
    if found.oid is None or found.schema is None:
        if schema is None:
            where = f"the search_path ({found.searched or 'no schema'})"
        else:
            where = f"schema {schema}"
        raise PyscoreError(
            f"there is no table {name} in {where}: connect to the application's database, "
            "or name the schema of its users: schema=..."
        )
    table = f"{found.schema}.{name}"
    if "id" not in found.columns:
        raise PyscoreError(
            f"{table} has no column id: expected the application's users; "
            "is another table of that name found first? Then name the schema: "
            "schema=..."
        )
    if "builder_score" not in found.columns:
        raise PyscoreError(f"{table} has no column builder_score: {_column_advice(name)}")
    return HostUsers(
        oid=found.oid,
        schema=found.schema,
        name=name,
        encoding=found.encoding,
        written_schema=schema,
        id_type=IdType(*found.columns["id"], found.encoding),
        score_type=ScoreType(found.columns["builder_score"][0]),
        username_type=found.columns.get("username"),
        profile={name: found.columns[name][0] for name in PROFILE if name in found.columns},
    )


def _column_advice(table: str) -> str:
    if table == "users":
        return "install it with: pyscore migrate"
    # We install into users alone; a subclass may be mapped to a table beside it.
    return (
        "expected the application's users; name their own table, "
        "or the class that is mapped to it: users=User"
    )
