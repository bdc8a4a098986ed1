"""The roles, whose what is, and what they are granted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from pyscore.doctor.case import ATTACH, MIGRATE, OPERATOR, OWNER, Case
from pyscore.doctor.findings import Verdict, fail, ok, warn
from pyscore.locations import SQL

_FOREIGN_OBJECTS = """
    select 'TABLE' as kind, c.oid::regclass::text as name, c.relowner as owner
    from pg_class as c
    where c.relnamespace = to_regnamespace('builder_score') and c.relkind in ('r', 'v')
      and c.relname <> 'alembic_version'
    union all
    select 'ROUTINE', p.oid::regprocedure::text, p.proowner
    from pg_proc as p where p.pronamespace = to_regnamespace('builder_score')
    union all
    select 'DOMAIN', t.oid::regtype::text, t.typowner
    from pg_type as t where t.typnamespace = to_regnamespace('builder_score') and t.typtype = 'd'
"""

# what a missing list of privileges stands for is in it too: functions are everybody's by default
_PUBLIC = """
    select 'TABLE' as kind, c.oid::regclass::text as name, c.relacl as acl
    from pg_class as c where c.relnamespace = to_regnamespace('builder_score')
    union all
    select 'ROUTINE', p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner))
    from pg_proc as p where p.pronamespace = to_regnamespace('builder_score')
    union all
    select 'DOMAIN', t.oid::regtype::text, coalesce(t.typacl, acldefault('T', t.typowner))
    from pg_type as t where t.typnamespace = to_regnamespace('builder_score') and t.typtype = 'd'
    union all
    select 'SCHEMA', 'builder_score', n.nspacl
    from pg_namespace as n where n.nspname = 'builder_score'
"""

_WRITERS = """
    select c.oid::regclass::text as name, r.rolname as role, quote_ident(r.rolname) as quoted,
           string_agg(a.privilege_type, ', ' order by a.privilege_type) as privileges
    from pg_class as c
    cross join lateral aclexplode(c.relacl) as a
    join pg_roles as r on r.oid = a.grantee
    where c.relnamespace = to_regnamespace('builder_score') and c.relkind in ('r', 'v')
      and a.grantee <> c.relowner and r.rolname <> %s
      and a.privilege_type in ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
    group by c.oid, r.rolname order by 1, 2
"""

_ON_HOST = """
    select has_schema_privilege(%s, n.oid, 'usage') as usage,
           array(select t.said from unnest(%s::oid[], %s::text[]) as t(oid, said)
                 where not has_table_privilege(%s, t.oid, 'select')) as unreadable,
           has_column_privilege(%s, %s::oid, 'builder_score', 'update') as writable
    from pg_namespace as n where n.nspname = %s
"""

_OPERATORS = """
    select g.kind, g.object, g.privilege, g.columns
    from unnest(%s::text[], %s::text[], %s::text[], %s::text[])
        with ordinality as g(kind, object, privilege, columns, place)
    where case
        when to_regrole(%s) is null then true
        when g.kind = 'schema' then not has_schema_privilege(%s, g.object, g.privilege)
        when g.kind = 'domain' then not has_type_privilege(%s, g.object, g.privilege)
        when g.kind in ('function', 'procedure')
            then not has_function_privilege(%s, g.object, g.privilege)
        when g.columns <> '' then exists (
            select from unnest(string_to_array(g.columns, ', ')) as c(name)
            where not has_column_privilege(%s, g.object, c.name, g.privilege))
        else not has_table_privilege(%s, g.object, g.privilege) end
    order by g.place
"""

_GRANT = re.compile(
    r"grant (?P<privilege>\w+)(?: \((?P<columns>[\w, ]+)\))? on\s+"
    r"(?:(?P<kind>schema|domain|function|procedure)\s+)?(?P<objects>[^;]+?)\s+"
    r"to builder_score_operator;"
)
_BETWEEN_OBJECTS = re.compile(r",\s*(?![^(]*\))")


def roles(case: Case) -> Iterator[Verdict]:
    """Look whose the schema is, and what follows from that."""
    owner = case.owner
    name, quoted = owner["rolname"], owner["quoted"]
    if name != OWNER:
        yield warn(
            f"{name} could not have roles apart, and owns everything itself: triggers and worker "
            f"run with all rights of {name}, whoever may become {name} can write scores and "
            f"settings, and there is no role that may only look, recompute, pause and retry",
            *case.separate_roles(name),
            f"# then, as {name}; scores are computed anew:",
            "pyscore uninstall --yes",
            MIGRATE,
        )
        return
    fine = True
    for has, what, remedy in (
        ("rolcanlogin", "may log in", "NOLOGIN"),
        ("rolsuper", "is a superuser", "NOSUPERUSER"),
        ("rolcreaterole", "may create roles", "NOCREATEROLE"),
    ):
        if owner[has]:
            fine = False
            yield fail(
                f"{name} {what}: it is to own the schema and run its functions, and no more",
                f"ALTER ROLE {quoted} {remedy};",
            )
    if fine:
        yield ok(f"{name} owns the schema and cannot log in")


def grants(case: Case) -> Iterator[Verdict]:
    """Look who owns and may do what, in our schema and on the application's tables."""
    found = [
        *_owners(case),
        *_for_everybody(case),
        *_writers(case),
        *_on_host(case),
        *_operators(case),
    ]
    yield from found or [ok("as installed: nothing for PUBLIC, and nobody else may write")]


def _owners(case: Case) -> Iterator[Verdict]:
    owner = case.owner
    query = (
        "select f.kind, f.name, pg_get_userbyid(f.owner) as owner from ({}) as f"
        " where f.owner <> %s order by f.kind, f.name"
    )
    for row in case.rows(query.replace("{}", _FOREIGN_OBJECTS), owner["oid"]):
        yield fail(
            f"{row['name']} is owned by {row['owner']}, not by {owner['rolname']}",
            f"ALTER {row['kind']} {row['name']} OWNER TO {owner['quoted']};",
        )


def _for_everybody(case: Case) -> Iterator[Verdict]:
    query = """
        select f.kind, f.name, string_agg(a.privilege_type, ', ' order by 1) as privileges
        from ({}) as f cross join lateral aclexplode(f.acl) as a
        where a.grantee = 0 group by f.kind, f.name order by f.kind, f.name
    """
    for row in case.rows(query.replace("{}", _PUBLIC)):
        yield fail(
            f"everybody has {row['privileges']} on {row['name']}",
            f"REVOKE ALL ON {row['kind']} {row['name']} FROM PUBLIC;",
        )


def _writers(case: Case) -> Iterator[Verdict]:
    """Look who was granted to write what is ours; reading may be a monitoring system's."""
    for row in case.rows(_WRITERS, OPERATOR):
        yield warn(
            f"{row['role']} may {row['privileges']} {row['name']}: whoever it is can change scores",
            f"REVOKE {row['privileges']} ON {row['name']} FROM {row['quoted']};",
        )


def _on_host(case: Case) -> Iterator[Verdict]:
    if not case.is_attached:
        return
    name, quoted, host = case.owner["rolname"], case.owner["quoted"], case.host
    tables, users = list(case.tables.values()), case.tables["users"]
    has = case.row(
        _ON_HOST,
        name,
        [table["oid"] for table in tables],
        [table["said"] for table in tables],
        name,
        name,
        users["oid"],
        host["host_schema"],
    )
    if not has["usage"]:
        yield fail(
            f"{name} may not use schema {host['host_schema']}",
            f"GRANT USAGE ON SCHEMA {host['quoted_schema']} TO {quoted};",
        )
    for table in has["unreadable"]:
        yield fail(f"{name} may not read {table}", f"GRANT SELECT ON {table} TO {quoted};")
    if not has["writable"]:
        yield fail(
            f"{name} may not write {users['said']}.builder_score",
            f"GRANT UPDATE (builder_score) ON {users['said']} TO {quoted};",
        )


def _operators(case: Case) -> Iterator[Verdict]:
    if case.owner["rolname"] != OWNER:
        return
    wanted = _wanted()
    columns = [list(column) for column in zip(*wanted, strict=True)]
    missing = case.rows(_OPERATORS, *columns, *[OPERATOR] * 6)
    if not missing:
        return
    statements = [_statement(**row) for row in missing]
    if len(missing) == len(wanted):
        yield fail(
            f"there is no role {OPERATOR}, or it may do nothing",
            f"SELECT 'CREATE ROLE {OPERATOR} NOLOGIN' WHERE to_regrole('{OPERATOR}') IS NULL "
            "\\gexec",
            *statements,
            ATTACH,
        )
    else:
        some = ", ".join(row["object"] for row in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        yield fail(f"{OPERATOR} lacks rights on {some}{more}", *statements)


def _statement(kind: str, object: str, privilege: str, columns: str) -> str:
    of_columns = f" ({columns})" if columns else ""
    return f"GRANT {privilege.upper()}{of_columns} ON {kind.upper()} {object} TO {OPERATOR};"


@cache
def _wanted() -> list[tuple[str, str, str, str]]:
    """Read what the operator is granted at install: kind, object, privilege, its columns."""
    text = (SQL / "800_grants.sql").read_text(encoding="utf-8")
    return [
        (
            grant["kind"] or "table",
            " ".join(name.split()),
            grant["privilege"],
            grant["columns"] or "",
        )
        for grant in _GRANT.finditer(text)
        for name in _BETWEEN_OBJECTS.split(grant["objects"])
    ]
