"""The server, which version of our schema it has, and whether it could be installed."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from pyscore import schema as revisions
from pyscore.cluster import MINIMUM_VERSION
from pyscore.doctor.case import MIGRATE, OWNER, Case
from pyscore.doctor.findings import Verdict, fail, ok, warn

_REVISION = """
    select to_regnamespace('builder_score') is not null as schema_exists,
           to_regclass('builder_score.alembic_version') is not null as ours
"""

_HOST_OWNERS = """
    select c.oid::regclass::text as said, quote_ident(pg_get_userbyid(c.relowner)) as owner
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = 'public' and c.relname in ('users', 'projects', 'project_collaborators')
      and c.relkind in ('r', 'p') and not pg_has_role(c.relowner, 'usage')
    order by 1
"""

# As sql/020_roles.sql goes about it: until PostgreSQL 15 CREATEROLE may grant every role, and a
# member with the attribute INHERIT has its rights; since 16 both are a matter of the grant.
_MAY_INSTALL = """
    select has_database_privilege(current_database(), 'create') as may_create_schemas,
           h.may_create and case
               when o.owner is null or r.rolsuper then true
               when %(grants_inherit)s then h.is_admin or h.is_usable
               else r.rolcreaterole or h.is_admin or h.is_member end as may_have_owner,
           not r.rolsuper and case
               when %(grants_inherit)s then h.is_member and not h.is_admin and not h.is_usable
               else not r.rolinherit and (r.rolcreaterole or h.is_member) end as lacks_rights
    from pg_roles as r
    cross join (select to_regrole('builder_score_owner') as owner) as o
    cross join lateral (
        select r.rolsuper or r.rolcreaterole
                   or o.owner is not null and to_regrole('builder_score_operator') is not null
                   as may_create,
               coalesce(pg_has_role(o.owner, 'member'), false) as is_member,
               coalesce(pg_has_role(o.owner, 'member with admin option'), false) as is_admin,
               coalesce(pg_has_role(o.owner, 'usage') and pg_has_role(o.owner, %(become)s), false)
                   as is_usable) as h
    where r.rolname = current_user
"""


def server(case: Case) -> Iterator[Verdict]:
    """Look whether the server is one that we know."""
    session = case.session
    said = f"PostgreSQL {session['version']}"
    if session["major"] < MINIMUM_VERSION:
        yield fail(
            f"{said} is too old",
            f"# upgrade the server: pyscore needs PostgreSQL {MINIMUM_VERSION} or newer",
        )
    elif session["standby"]:
        yield ok(f"{said}, a hot standby: the worker runs on its primary, and starts on promotion")
    else:
        yield ok(said)


def schema(case: Case) -> Iterator[Verdict]:
    """Look which version of our schema is installed, by its revision."""
    here, head = case.row(_REVISION), revisions.newest()
    database = case.session["database"]
    if not here["ours"]:
        if here["schema_exists"]:
            yield fail(
                f"database {database} has a schema builder_score that pyscore did not make",
                "ALTER SCHEMA builder_score RENAME TO builder_score_old;",
                MIGRATE,
            )
        else:
            yield fail(f"builder_score is not installed in database {database}", MIGRATE)
        return
    found = case.rows("select version_num from builder_score.alembic_version")
    revision = found[0]["version_num"] if found else "none"
    if revision == head:
        yield ok(f"at revision {revision}")
    elif found and revision > head:
        yield fail(
            f"the schema is at revision {revision}, newer than this package, which knows {head}",
            "# where this pyscore is installed: pip install --upgrade pyscore",
        )
    else:
        yield fail(f"the schema is at revision {revision}, this package expects {head}", MIGRATE)


def may_be_installed(case: Case) -> bool:
    """Tell whether our schema is there, or may be: whether it is worth looking inside."""
    try:
        return case.row(_REVISION)["ours"]
    except psycopg.errors.InsufficientPrivilege:
        return True


def may_become_operator(case: Case) -> bool:
    """Tell whether the role lacks what the operator's role would give it."""
    query = (
        "select to_regrole('builder_score_operator') is not null and not pg_has_role("
        "to_regrole('builder_score_operator'), 'usage') as lacks"
    )
    return case.row(query)["lacks"] or False


def rights_to_install(case: Case) -> Iterator[Verdict]:
    """Look, before anything is installed, whether this role may install it."""
    role, quoted = case.session["role"], case.session["quoted_role"]
    grants_inherit = case.session["major"] >= 16
    become = "set" if grants_inherit else "member"
    (may,) = case.named(_MAY_INSTALL, grants_inherit=grants_inherit, become=become)
    fine = True
    if case.is_standby:
        yield warn("this is a hot standby", "# run pyscore migrate on the primary")
        return
    if not may["may_create_schemas"]:
        fine = False
        yield fail(
            f"{role} may not create a schema in this database",
            f"GRANT CREATE ON DATABASE {case.session['quoted_database']} TO {quoted};",
        )
    for table in case.rows(_HOST_OWNERS):
        fine = False
        yield fail(
            f"{role} is not the owner of {table['said']}, and could not add triggers to it",
            f"GRANT {table['owner']} TO {quoted};",
        )
    if may["lacks_rights"]:
        fine = False
        yield fail(
            f"{role} does not inherit the rights of {OWNER}, which is to own what is installed",
            "-- as a superuser:",
            f"GRANT {OWNER} TO {quoted} WITH INHERIT TRUE, SET TRUE;"
            if grants_inherit
            else f"ALTER ROLE {quoted} INHERIT;",
        )
    elif not may["may_have_owner"]:
        fine = False
        yield warn(
            f"{role} may not create or become the role {OWNER}: it would own everything itself, "
            "and triggers and worker would run with all of its rights",
            *case.separate_roles(role),
        )
    if fine:
        yield ok(f"{role} may install")
