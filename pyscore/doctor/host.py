"""The application's tables: ours to read, with our views and triggers on them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from pyscore.doctor.case import ATTACH, MIGRATE, TABLES, Case
from pyscore.doctor.findings import Verdict, fail, ok, warn

REQUIRED = {
    "users": ("id", "builder_score"),
    "projects": ("id", "owner_id", "status"),
    "project_collaborators": ("project_id", "user_id", "status"),
}
OPTIONAL = {
    "users": (
        "username",
        "created_at",
        *("avatar_url", "headline", "bio", "primary_role", "timezone", "contact_links"),
    ),
    "projects": ("github_stars", "impact_metrics"),
    "project_collaborators": (),
}
"""The columns that attach() looks for, and builds the views from."""

TRIGGERS = {
    "users": ("insert", "delete", "truncate", "profile", "overwritten"),
    "projects": ("insert", "delete", "truncate", "update"),
    "project_collaborators": ("insert", "delete", "truncate", "update"),
}
"""Our triggers, whose names begin with builder_score_."""

_VIEWS = {
    "users": "host_users",
    "projects": "host_projects",
    "project_collaborators": "host_collaborations",
}

# What each of our views reads, whatever it is called by now.
_READ = """
    select v.relname as view_name, c.oid, n.nspname as schema_name, c.relname as table_name,
           c.oid::regclass::text as said, quote_ident(n.nspname) as quoted_schema,
           array_agg(a.attname::text order by a.attnum) as columns
    from pg_class as v
    join pg_rewrite as w on w.ev_class = v.oid
    join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid
        and d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0 and d.refobjid <> v.oid
    join pg_class as c on c.oid = d.refobjid
    join pg_namespace as n on n.oid = c.relnamespace
    join pg_attribute as a on a.attrelid = c.oid and a.attnum = d.refobjsubid
    where v.relnamespace = to_regnamespace('builder_score') and v.relkind = 'v'
      and v.relname in ('host_users', 'host_projects', 'host_collaborations')
    group by v.relname, c.oid, n.nspname, c.relname
"""

# A created_at of another type than these counts as none.
_COLUMNS = """
    select a.attrelid as oid, a.attname as name, a.atttypmod as typmod,
           format_type(y.oid, -1) as type
    from pg_attribute as a
    cross join lateral (
        with recursive base(type_id) as (
            select a.atttypid
            union all
            select t.typbasetype from base as b join pg_type as t on t.oid = b.type_id
            where t.typtype = 'd'
        )
        select t.oid from base as b join pg_type as t on t.oid = b.type_id where t.typtype <> 'd'
    ) as y
    where a.attrelid = any(%s::oid[]) and a.attnum > 0 and not a.attisdropped
      and (a.attname <> 'created_at' or format_type(y.oid, -1) in
           ('date', 'timestamp with time zone', 'timestamp without time zone'))
"""

_KEY_TYPES = """
    select t.typname as domain, format_type(t.typbasetype, -1) as type
    from pg_type as t
    where t.typnamespace = to_regnamespace('builder_score')
      and t.typname in ('user_id', 'project_id')
"""

_CASCADE = """
    select exists (
        select from pg_constraint as f
        where f.contype = 'f' and f.convalidated
          and f.confrelid = %s and f.conrelid = %s) as present,
        coalesce((
            select encode(t.tgargs, 'escape') like 'true%%' from pg_trigger as t
            where t.tgrelid = %s and t.tgname = 'builder_score_insert'), true) as told
"""

_TRIGGERS = """
    select t.tgrelid as oid, t.tgrelid::regclass::text as said, t.tgname as name,
           quote_ident(t.tgname) as quoted, t.tgenabled as enabled,
           t.tgrelid = any(%s::oid[]) as host,
           exists (select from pg_trigger as p
                   where p.oid = t.tgparentid and p.tgenabled in ('D', 'R')) as with_parent,
           t.tgparentid <> 0 as is_copy
    from pg_trigger as t
    join pg_proc as p on p.oid = t.tgfoid
    where p.pronamespace = to_regnamespace('builder_score') and t.tgname like 'builder\\_score\\_%%'
    order by t.tgparentid <> 0, t.tgrelid::regclass::text, t.tgname
"""


_PARTITIONS = """
    select p.relid::oid as oid, p.relid::regclass::text as said
    from unnest(%s::oid[]) as t(oid) cross join lateral pg_partition_tree(t.oid) as p
    join pg_class as c on c.oid = p.relid
    where p.level > 0 and c.relkind in ('r', 'p')
    order by 2
"""


_CANDIDATES = """
    select n.nspname as schema_name,
           array_agg(c.relname::text order by c.relname) as tables,
           array(
               select w.table_name || '.' || w.column_name
               from unnest(%s::text[], %s::text[]) as w(table_name, column_name)
               where not exists (
                   select from pg_attribute as a join pg_class as t on t.oid = a.attrelid
                   where t.relnamespace = n.oid and t.relname = w.table_name
                     and a.attname = w.column_name and not a.attisdropped)) as lacks
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where c.relname = any(%s::text[]) and c.relkind in ('r', 'p')
      and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
    group by n.oid, n.nspname
    order by n.nspname
"""


def to_attach_to(case: Case) -> Iterator[Verdict]:
    """Look, before anything is installed, whether the application's tables can be found."""
    # the score's own column is added where it is missing
    wanted = [
        (table, column)
        for table, names in REQUIRED.items()
        for column in names
        if column != "builder_score"
    ]
    columns = [list(names) for names in zip(*wanted, strict=True)]
    found = {row["schema_name"]: row for row in case.rows(_CANDIDATES, *columns, list(TABLES))}
    here = found.get("public")
    if here is not None and len(here["tables"]) < len(TABLES):
        missing = ", ".join(sorted({*TABLES} - {*here["tables"]}))
        yield fail(
            f"schema public has only some of the tables: it lacks {missing}",
            "# create what is missing, or name the schema that has all three:",
            *_elsewhere(found),
        )
    elif here is not None and here["lacks"]:
        yield fail(
            f"the tables in schema public lack {', '.join(here['lacks'])}",
            "# add them, or generated columns of these names",
        )
    elif here is not None:
        yield ok("users, projects and project_collaborators are in schema public")
    elif others := _elsewhere(found):
        yield warn("the tables are in another schema than public, which has to be named", *others)
    else:
        yield ok("there are none: pyscore migrate makes users, projects and project_collaborators")


def _elsewhere(found: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"pyscore migrate --host-schema {shlex.quote(name)}"
        for name, row in found.items()
        if name != "public" and len(row["tables"]) == len(TABLES) and not row["lacks"]
    ]


def attached(case: Case) -> Iterator[Verdict]:
    """Look whether the views are there, and the tables that they are to read."""
    host, read = case.host, {row["view_name"]: row for row in case.rows(_READ)}
    schema = host["host_schema"]
    moved = {
        name: read[view]
        for name, view in _VIEWS.items()
        if view in read and read[view]["oid"] != case.tables[name]["oid"]
    }
    missing = [name for name in TABLES if case.tables[name]["oid"] is None]
    if moved and set(moved) >= set(missing):
        yield from _moved(moved, schema, missing, host["quoted_schema"])
    elif missing:
        yield fail(
            f"schema {schema} has no {', '.join(missing)}",
            f"# create it again, or restore it, in schema {host['quoted_schema']}; then:",
            ATTACH,
        )
    elif host["attached_at"] is None:
        yield fail("detached from the application's tables: no event is noticed", ATTACH)
    elif not case.is_attached and (lost := _lost(case)):
        for said, remedy in lost:
            yield fail(f"{said} is gone: scores cannot be computed", remedy, ATTACH)
    elif not case.is_attached:
        gone = ", ".join(view for view in _VIEWS.values() if view not in read)
        yield fail(f"the views {gone} are gone: scores cannot be computed", ATTACH)
    else:
        yield ok(f"to {', '.join(case.tables[name]['said'] for name in TABLES)}")


def _lost(case: Case) -> list[tuple[str, str]]:
    """Give the columns that attach() would miss, and what brings each of them back."""
    present = {(row["oid"], row["name"]) for row in case.rows(_COLUMNS, case.table_oids)}
    return [
        (
            f"{case.tables[name]['said']}.{column}",
            "SELECT builder_score.missing_column_statements() \\gexec"
            if column == "builder_score"
            else f"# add {case.tables[name]['said']}.{column} again; then:",
        )
        for name in TABLES
        for column in REQUIRED[name]
        if (case.tables[name]["oid"], column) not in present
    ]


def _moved(
    moved: dict[str, dict[str, Any]], schema: str, missing: list[str], quoted_schema: str
) -> Iterator[Verdict]:
    schemas = {row["schema_name"] for row in moved.values()}
    kept_names = all(row["table_name"] == name for name, row in moved.items())
    if len(missing) == len(TABLES) and len(schemas) == 1 and kept_names:
        (now,) = schemas
        literal = now.replace("'", "''")
        yield fail(
            f"the tables have been moved from schema {schema} to {now}",
            f"UPDATE builder_score.host SET host_schema = '{literal}';",
            ATTACH,
        )
        return
    for name, row in moved.items():
        if name not in missing:
            yield fail(
                f"scores are computed from {row['said']}, which is not the table {name} of schema "
                f"{schema}",
                ATTACH,
            )
        elif row["schema_name"] == schema:
            yield fail(
                f"{name} has been renamed to {row['table_name']}: its name is fixed",
                f"ALTER TABLE {row['said']} RENAME TO {name};",
            )
        else:
            yield fail(
                f"{name} has been moved from schema {schema} to {row['schema_name']}, alone",
                f"ALTER TABLE {row['said']} SET SCHEMA {quoted_schema};",
            )


def columns(case: Case) -> Iterator[Verdict]:
    """Look whether attach() would find the columns that it has found."""
    if not case.host["attached_at"] or len(case.table_oids) < len(TABLES):
        return
    found = [*_renamed_or_new(case), *_types(case), *_cascades(case)]
    yield from found or [ok("as attach() found them")]


def _renamed_or_new(case: Case) -> Iterator[Verdict]:
    if not case.is_attached:
        return
    read = {row["oid"]: row["columns"] for row in case.rows(_READ)}
    present = case.rows(_COLUMNS, case.table_oids)
    for name, table in case.tables.items():
        known = {*REQUIRED[name], *OPTIONAL[name]}
        has = {row["name"] for row in present if row["oid"] == table["oid"]} & known
        used = set(read.get(table["oid"], ()))
        lost = [column for column in REQUIRED[name] if column not in has]
        strange = sorted(used - known)
        if lost:
            old, new = lost[0], strange[0] if strange else None
            yield fail(
                f"{table['said']} has no {', '.join(lost)}"
                + (f": renamed to {new}?" if new else ""),
                f"ALTER TABLE {table['said']} RENAME COLUMN {_quoted(case, new)} TO {old};"
                if new
                else f"# add {table['said']}.{old} again; then:",
                ATTACH,
            )
            continue
        for column in strange:
            yield fail(
                f"{table['said']}.{column} counts, under the name that it had at attach()",
                "-- it counts no more after this; if it is to, give it its old name back instead:",
                ATTACH,
            )
        for column in sorted(has - used):
            yield fail(
                f"{table['said']}.{column} does not count: it was added after attach()", ATTACH
            )


def _quoted(case: Case, name: str | None) -> str:
    return case.row("select quote_ident(%s) as quoted", name)["quoted"]


def _types(case: Case) -> Iterator[Verdict]:
    domains = {row["domain"]: row["type"] for row in case.rows(_KEY_TYPES)}
    types = {(row["oid"], row["name"]): row for row in case.rows(_COLUMNS, case.table_oids)}
    for table, domain in (("users", "user_id"), ("projects", "project_id")):
        column = types.get((case.tables[table]["oid"], "id"))
        if column is not None and column["type"] != domains[domain]:
            yield fail(
                f"{case.tables[table]['said']}.id has become {column['type']}; the queue and all "
                f"that is remembered hold {domains[domain]}",
                "# scores are computed anew:",
                "pyscore uninstall --yes",
                MIGRATE,
            )
    score = types.get((case.tables["users"]["oid"], "builder_score"))
    if score is not None:
        decimals = case.row("select builder_score.column_decimals() as held")["held"]
        if decimals != case.host["score_decimals"]:
            yield fail(
                f"{case.tables['users']['said']}.builder_score is {score['type']} now: scores are "
                f"rounded for another type",
                ATTACH,
            )


def _cascades(case: Case) -> Iterator[Verdict]:
    projects, collaborators = case.tables["projects"], case.tables["project_collaborators"]
    if projects["partitioned"]:
        return
    key = case.row(_CASCADE, projects["oid"], collaborators["oid"], projects["oid"])
    if not key["present"] and not key["told"]:
        yield fail(
            f"the foreign key from {collaborators['said']} to {projects['said']} is gone: projects "
            "that come after their collaborators, or go before them, are not noticed",
            ATTACH,
        )


def triggers(case: Case) -> Iterator[Verdict]:
    """Look whether our triggers are there, and fire."""
    if case.host["attached_at"] is None or len(case.table_oids) < len(TABLES):
        return
    partitions = case.rows(_PARTITIONS, case.table_oids)
    found = case.rows(_TRIGGERS, [*case.table_oids, *(row["oid"] for row in partitions)])
    fine = True
    there = {(row["oid"], row["name"]) for row in found}
    # row triggers reach partitions by themselves; one for TRUNCATE does not
    expected = [(table, TRIGGERS[name]) for name, table in case.tables.items()]
    expected += [(partition, ("truncate",)) for partition in partitions]
    for table, events in expected:
        missing = [
            f"builder_score_{event}"
            for event in events
            if (table["oid"], f"builder_score_{event}") not in there
        ]
        if missing:
            fine = False
            yield fail(f"{table['said']} lacks {', '.join(missing)}", ATTACH)
    for row in found:
        if not row["host"] and not row["is_copy"]:
            fine = False
            yield warn(
                f"{row['name']} is left over on {row['said']}",
                f"DROP TRIGGER {row['quoted']} ON {row['said']};",
            )
        elif row["enabled"] in ("D", "R") and not row["with_parent"]:
            fine = False
            yield fail(
                f"{row['name']} on {row['said']} is disabled: what it should have noticed is lost",
                f"ALTER TABLE {row['said']} ENABLE TRIGGER {row['quoted']};",
                "SELECT builder_score.enqueue_everyone('a trigger was disabled');",
            )
    if fine:
        yield ok(f"all {sum(len(events) for _, events in expected)} there and enabled")
