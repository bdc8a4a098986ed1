"""One score is written and taken back: the application's own triggers on users may object."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import LiteralString

import psycopg
from psycopg import errors

from pyscore.doctor.case import ATTACH, Case
from pyscore.doctor.findings import Verdict, fail, ok, warn
from pyscore.errors import from_database

# Shorter than anybody would notice: the score's row is locked meanwhile, and what triggers write.
_LIMITS = "set local lock_timeout = '500ms'; set local statement_timeout = '5s'"

_WRITTEN = """
    select coalesce(sum(x.n_tup_upd), 0) > 0 as yes from pg_stat_xact_user_tables as x
    where x.relid = %s or x.relid in (select p.relid from pg_partition_tree(%s::oid::regclass) as p)
"""

_DENIED = re.compile(r"permission denied for (table|sequence|schema|function|view) (.+)$")
_MISSING = re.compile(r'relation "([^".]+)" does not exist$')
_FUNCTION = re.compile(r"PL/pgSQL function ([^\s(]+)\(")
_STATEMENT = re.compile(r'SQL statement "\s*(\w+)', re.IGNORECASE)
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")

_PRIVILEGES = {
    "insert": "SELECT, INSERT",
    "update": "SELECT, UPDATE",
    "delete": "SELECT, DELETE",
    "select": "SELECT",
}

# PostgreSQL's message has the name alone. What it may mean, with the application's search_path,
# with which the statement alone runs.
_RELATIONS: LiteralString = """
    select n.nspname as schema_name, format('%%I.%%I', n.nspname, c.relname) as said,
           pg_table_is_visible(c.oid) as visible
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where c.relname = %s and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and n.nspname !~ '^pg_'
    order by n.nspname
"""
_FUNCTIONS: LiteralString = """
    select n.nspname as schema_name, pg_function_is_visible(p.oid) as visible,
           format('%%I.%%I(%%s)', n.nspname, p.proname,
                  pg_get_function_identity_arguments(p.oid)) as said
    from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
    where p.proname = %s and n.nspname !~ '^pg_'
    order by n.nspname, p.oid
"""

_SCHEMAS_WITH = """
    select quote_ident(n.nspname) as quoted
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where c.relname = %s and n.nspname !~ '^pg_' order by n.nspname
"""

# Those that call a function; where none is named, those that can discard a row.
_TRIGGERS = """
    select pg_get_triggerdef(t.oid) as definition, t.tgconstraint <> 0 as is_constraint,
           quote_ident(t.tgname) as quoted
    from pg_trigger as t join pg_proc as p on p.oid = t.tgfoid
    where t.tgrelid = %(users)s and not t.tgisinternal
      and t.tgname not like 'builder\\_score\\_%%'
      and case when %(function)s::text is null then t.tgtype & 19 = 19
               else p.oid = to_regproc(%(function)s) or p.proname = %(function)s end
    order by t.tgname
"""

_WITH_CONDITION = re.compile(r"^(.*) WHEN \((.*)\) (EXECUTE FUNCTION .*)$", re.DOTALL)


def trial_write(case: Case) -> Iterator[Verdict]:
    """Write one score as the worker would, and take it back."""
    if not case.is_attached:
        return
    if case.is_standby:
        yield ok("not tried: this is a hot standby")
        return
    users = case.tables["users"]["oid"]
    try:
        with case.connection.transaction(force_rollback=True):
            case.connection.execute("set transaction read write")
            case.connection.execute(_LIMITS)
            anybody = bool(case.rows("select from builder_score.host_users limit 1"))
            case.connection.execute("select builder_score.trial_write()")
            case.connection.execute("select builder_score.fire_deferred_triggers()")
            written = case.row(_WRITTEN, users, users)["yes"]
    except (errors.LockNotAvailable, errors.QueryCanceled) as error:
        yield warn(
            f"not tried to the end: {error.diag.message_primary}: somebody holds a lock",
            "# run pyscore doctor again",
        )
    except psycopg.Error as error:
        if case.connection.closed or _is_ours(error):
            raise
        yield _trouble(case, error)
    else:
        if written:
            yield ok("a score can be written, past all triggers on users")
        elif anybody:
            yield ok("not tried: all users were locked by somebody else")
        else:
            yield ok("not tried: there is no user yet")


def _is_ours(error: psycopg.Error) -> bool:
    """Tell whether it was this role that was not let in, and not the worker's."""
    return isinstance(error, errors.InsufficientPrivilege) and (
        "builder_score" in (error.diag.message_primary or "")
        or (error.diag.message_primary or "").endswith(
            ("function trial_write", "function fire_deferred_triggers")
        )
    )


def _trouble(case: Case, error: psycopg.Error) -> Verdict:
    message, context = error.diag.message_primary or str(error), error.diag.context or ""
    said = f"a score cannot be written: {from_database(error)}"
    denied, missing = _DENIED.match(message), _MISSING.match(message)
    if isinstance(error, errors.InsufficientPrivilege) and denied:
        return fail(said, _grant(case, denied[1], denied[2], context))
    if isinstance(error, errors.UndefinedTable) and missing:
        schemas = [row["quoted"] for row in case.rows(_SCHEMAS_WITH, missing[1])]
        if schemas:
            path = ", ".join([schemas[0], "public"])
            return fail(
                f"{said} (a trigger on users, with the search_path {case.host['search_path']})",
                f"SELECT * FROM builder_score.attach('{path}');",
            )
    discarded = isinstance(error, errors.TriggeredActionException)  # by ours, for somebody else
    function = None if discarded else _FUNCTION.search(context)
    remedies = _exceptions(case, function[1] if function else None) if function or discarded else []
    if remedies:
        return fail(
            f"{said}{f' (in {function[1]}(), of a trigger on users)' if function else ''}",
            "-- let its function pass it; or, if it need not see what our role writes:",
            *remedies,
        )
    return fail(said, "# put right what it names, then", ATTACH)


def _grant(case: Case, kind: str, name: str, context: str) -> str:
    role = case.owner["quoted"]
    said = _resolved(case, kind, name, context)
    match kind:
        case "function":
            return f"GRANT EXECUTE ON FUNCTION {said} TO {role};"
        case "schema":
            return f"GRANT USAGE ON SCHEMA {said} TO {role};"
        case "sequence":
            return f"GRANT USAGE ON SEQUENCE {said} TO {role};"
        case _:
            statement = _STATEMENT.search(context)
            verb = statement[1].lower() if statement else ""
            privileges = _PRIVILEGES.get(verb, "SELECT, INSERT, UPDATE, DELETE")
            return f"GRANT {privileges} ON {said} TO {role};"


def _resolved(case: Case, kind: str, name: str, context: str) -> str:
    """Give what a message names, with its schema: the failed statement's, or the search_path's."""
    quoted = case.row("select quote_ident(%s) as said", name)["said"]
    if kind == "schema":
        return quoted
    with case.connection.transaction():
        case.connection.execute(
            "select set_config('search_path', h.search_path, true) from builder_score.host as h"
        )
        found = case.rows(_FUNCTIONS if kind == "function" else _RELATIONS, name)
    named = [row for row in found if _is_named(row["schema_name"], name, context)]
    visible = [row for row in found if row["visible"]]
    (best, *_) = [*named, *visible, *found, {"said": quoted}]
    return best["said"]


def _is_named(schema: str, name: str, context: str) -> bool:
    pattern = rf"(?<![\w.\"]){_written(schema)}\s*\.\s*{_written(name)}(?![\w\"])"
    return re.search(pattern, context, re.IGNORECASE) is not None


def _written(name: str) -> str:
    """Give the pattern of an identifier in a statement, with quotes or without."""
    quoted = '"' + re.escape(name.replace('"', '""')) + '"'
    return f"(?:{quoted}|{name})" if _PLAIN.fullmatch(name) else quoted


def _exceptions(case: Case, function: str | None) -> list[str]:
    """Give statements that have the triggers which call a function leave our writes alone."""
    users = case.tables["users"]
    rows = case.named(_TRIGGERS, users=users["oid"], function=function)
    return [_sparing(case.owner["rolname"], users["said"], **row) for row in rows]


def _sparing(role: str, table: str, *, definition: str, is_constraint: bool, quoted: str) -> str:
    literal = role.replace("'", "''")
    condition = f"current_user <> '{literal}'"
    if has := _WITH_CONDITION.match(definition):
        made = f"{has[1]} WHEN ({condition} AND {has[2]}) {has[3]};"
    else:
        before, _, after = definition.partition(" EXECUTE FUNCTION ")
        made = f"{before} WHEN ({condition}) EXECUTE FUNCTION {after};"
    if is_constraint:  # of which there is no OR REPLACE
        return f"BEGIN; DROP TRIGGER {quoted} ON {table}; {made} COMMIT;"
    return made.replace("CREATE TRIGGER", "CREATE OR REPLACE TRIGGER", 1)
