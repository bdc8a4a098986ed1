r"""Words the script for psql that installs the schema, or takes it out: to be read, signed, run.

What the revisions do is theirs; here is what stands around them: a head that says how to run it,
checks that refuse before anything is done, and, around each revision, what it locks, its
transaction, and the condition that makes the script go on where it was stopped.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from psycopg.sql import Literal

from pyscore import __version__
from pyscore.revision import Script

WIDTH = 108
"""Columns of the comments."""

SCHEMA = "builder_score"

_NONE = "0000"
"""Stands for no revision: less than any."""

_LONGEST = 10**8
"""Seconds that stand for waiting for ever: an interval cannot be infinite."""


@dataclass(frozen=True)
class Section:
    """One revision, in the script's direction.

    Attributes:
        revision: For instance ``0003``.
        below: The revision before it; None for the first.
        script: What it does.
        emit: Prints its statements.
    """

    revision: str
    below: str | None
    script: Script
    emit: Callable[[], None]


@dataclass(frozen=True)
class Order:
    """What the script is for.

    Attributes:
        up: Whether it installs; else it uninstalls.
        known: All revisions of this package, the oldest first.
        start: The revision that the database is at or beyond, going up; None: any, or none.
        settings: What is said once, at install: host_schema, subscribers_ready.
        lock_wait: Seconds for which it keeps trying to lock a table.
        migration_lock: The advisory lock that keeps two migrations apart.
    """

    up: bool
    known: Sequence[str]
    start: str | None
    settings: dict[str, str]
    lock_wait: float
    migration_lock: tuple[int, int]


def write(say: Callable[[str], None], order: Order, sections: Sequence[Section]) -> None:
    """Write the script.

    Args:
        say: Prints one piece of it.
        order: What it is for.
        sections: Its revisions, in the order in which they run.
    """
    say(_head(order, sections))
    say(_preparations(order))
    say(_checks(order))
    say(_position(order, sections))
    for number, section in enumerate(sections, 1):
        _write_section(say, order, section, f"{number} of {len(sections)}")
    if not order.up and sections and sections[-1].below is None:
        say(_LAST)
    lock = "{}, {}".format(*order.migration_lock)
    say(f"do 'begin perform pg_advisory_unlock({lock}); end';\n\\echo '{_result(order, sections)}'")


def _result(order: Order, sections: Sequence[Section]) -> str:
    if not sections:
        return "nothing to do"
    now = sections[-1].revision if order.up else sections[-1].below
    return f"at revision {now}" if now else "uninstalled"


# The head -----------------------------------------------------------------------------------------

_UP = "installs the schema builder_score, or brings it to revision {revision}"
_DOWN = "takes the schema builder_score and everything else that it added out again"
_DOWN_TO = "takes the schema builder_score back to revision {revision}"


def _head(order: Order, sections: Sequence[Section]) -> str:
    last = sections[-1] if sections else None
    if order.up:
        does = _UP.format(revision=last.revision if last else order.start)
        host_schema = order.settings.get("host_schema", "public")
        who = (
            f"as the owner of users, projects and project_collaborators in schema "
            f"{host_schema} (or a superuser). That role needs CREATE on the database. "
            "With CREATEROLE it makes the roles builder_score_owner (NOLOGIN) and "
            "builder_score_operator; without, everything belongs to the role itself."
        )
    else:
        does = _DOWN_TO.format(revision=last.below) if last and last.below else _DOWN
        who = "as the role that installed it (or a superuser)."
    parts = [
        _comment(f"Builder Score for PostgreSQL: {does}."),
        _comment(f"Printed by pyscore {__version__}."),
        "--",
        _comment(f"Run it with psql 10 or newer, {who}"),
        "--",
        "--     psql -X -v ON_ERROR_STOP=1 -f FILE DATABASE",
        "--",
        _comment(
            "Not with -1 (--single-transaction): it makes its own transactions, and one section "
            "cannot run in any. psql ends with 0 when all of it is done, with 3 when it stopped."
        ),
        "--",
        _comment(
            "Where it stops, the section that failed is rolled back and those before it stay; the "
            "application goes on either way. Put right what the error names and run the same file "
            "again: sections that are done are left out. A section outside a transaction is taken "
            "up where it was."
        ),
        "--",
        _comment(
            "Locks: all that a section needs at once is waited for no longer than half a second "
            "(and half of deadlock_timeout), then let go and tried again, for at most "
            f"{_seconds(order.lock_wait)} s (builder_score.lock_wait, below). So the application's "
            "queries wait behind it for half a second at most, and never queue up behind "
            "somebody's long transaction. The error after the last try names who holds the table. "
            "Every ACCESS EXCLUSIVE lock is held for changes of the catalogue alone; no table is "
            "rewritten."
        ),
        "--",
        _comment("The sections, in order, with what each locks of the application's tables:"),
        "--",
    ]
    for section in sections:
        script = section.script
        apart = "" if script.in_transaction else " [outside a transaction]"
        parts.append(
            _comment(f"{section.revision}{apart} {_first_sentence(script.does)}.", "  ", "        ")
        )
        parts.append(_comment(f"Locks: {script.locks}.", "        ", "               "))
    return "\n".join(parts)


def _comment(text: str, first: str = "", then: str | None = None) -> str:
    # a line break in a name becomes a blank: it cannot end the comment
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=f"-- {first}",
        subsequent_indent=f"-- {first if then is None else then}",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _seconds(seconds: float) -> str:
    return f"{min(seconds, _LONGEST):.3f}".rstrip("0").rstrip(".")


# Before the sections ------------------------------------------------------------------------------


def _preparations(order: Order) -> str:
    lines = [
        "\\set ON_ERROR_STOP on",
        "\\set QUIET on",
        "\\pset tuples_only on",
        "\\pset format unaligned",
        "\\pset pager off",
        "set statement_timeout = 0;",
        "set lock_timeout = '0.5s';",
        f"set {SCHEMA}.lock_wait = '{_seconds(order.lock_wait)} s';",
    ]
    lines += [
        f"set {SCHEMA}.{name} = {Literal(value).as_string()};"
        for name, value in order.settings.items()
    ]
    return "\n".join(lines)


_CHECKS = """\
-- Checks: an error here leaves everything as it is.
do $checks$
declare
{declared}    v_known constant text[] := array[{known}];
    v_at text;
begin
    -- in a transaction block that began with an earlier statement the two differ
    if transaction_timestamp() <> statement_timestamp() then
        raise exception 'this script makes its own transactions, and was run inside one'
            using errcode = 'active_sql_transaction',
                  hint = 'Run it with psql -f, not with -1 (--single-transaction) or after BEGIN.';
    end if;
    if not pg_try_advisory_lock({lock}) then
        raise exception 'another migration of this database is still running'
            using errcode = 'lock_not_available',
                  hint = 'Run this script again when it has ended.';
    end if;
    if to_regclass('builder_score.alembic_version') is not null then
        execute 'select a.version_num::text from builder_score.alembic_version as a' into v_at;
    elsif exists (select from pg_depend as d where d.refclassid = 'pg_namespace'::regclass
                  and d.refobjid = to_regnamespace('builder_score')) then
        raise exception 'there is a schema builder_score that pyscore did not make'
            using errcode = 'duplicate_schema',
                  detail = 'It has no table alembic_version.',
                  hint = 'Rename or drop it, then run this script again.';
    end if;
    if v_at <> all (v_known) then
        raise exception 'the schema is newer than this script: it is at revision %', v_at
            using errcode = 'object_not_in_prerequisite_state',
                  detail = 'It is of pyscore {version}, which knows revisions up to {newest}.',
                  hint = 'Print it with the pyscore that is installed for this database.';
    end if;
{more}end
$checks$;"""

_DECLARED = """\
    v_wanted constant text := nullif(current_setting('builder_score.host_schema', true), '');
    v_found text;
"""

_CHECK_START = """\
    if coalesce(v_at, '{none}') < '{start}' then
        raise exception 'this script begins at revision {start}, and the database is at %',
                coalesce('revision ' || v_at, 'none')
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Print the whole script: pyscore migrate --sql.';
    end if;
"""

_CHECK_HOST_SCHEMA = """\
    if to_regclass('builder_score.host') is not null then
        execute 'select h.host_schema::text from builder_score.host as h' into v_found;
        if v_found <> v_wanted then
            raise exception 'builder_score was installed for tables in schema "%", not "%"',
                    v_found, v_wanted
                using errcode = 'object_not_in_prerequisite_state',
                      hint = 'Print the script without --host-schema, or uninstall first.';
        end if;
    end if;
    if v_wanted is not null and to_regnamespace(quote_ident(v_wanted)) is null then
        raise exception 'there is no schema "%" in this database', v_wanted
            using errcode = 'invalid_schema_name',
                  detail = 'Expected the one that holds users, projects and project_collaborators, '
                           'or that they are to be created in.',
                  hint = 'Print the script with another --host-schema, or run it in the '
                         'application''s database.';
    end if;
"""


def _checks(order: Order) -> str:
    more = ""
    if order.up:
        if order.start is not None:
            more += _CHECK_START.format(none=_NONE, start=order.start)
        more += _CHECK_HOST_SCHEMA
    return _CHECKS.format(
        declared=_DECLARED if order.up else "",
        known=", ".join(f"'{revision}'" for revision in order.known),
        newest=order.known[-1],
        lock="{}, {}".format(*order.migration_lock),
        version=__version__,
        more=more,
    )


def _position(order: Order, sections: Sequence[Section]) -> str:
    compared = [
        f":'pyscore_at' {'<' if order.up else '>='} '{section.revision}' as do_{section.revision}"
        for section in sections
    ]
    lines = [
        "-- Which revision the database is at, and so which sections are still to be run.",
        f"\\set pyscore_at {_NONE}",
        f"select to_regclass('{SCHEMA}.alembic_version') is not null as installed \\gset pyscore_",
        "\\if :pyscore_installed",
        f"select coalesce(min(a.version_num::text), '{_NONE}') as at"
        f" from {SCHEMA}.alembic_version as a \\gset pyscore_",
        "\\echo 'the database is at revision' :pyscore_at",
        "\\else",
        "\\echo 'builder_score is not installed in this database'",
        "\\endif",
    ]
    if compared:
        lines.append("select " + ",\n       ".join(compared) + " \\gset pyscore_")
    return "\n".join(lines)


# The sections -------------------------------------------------------------------------------------

_RULER = "-- " + "=" * (WIDTH - 3)


def _write_section(say: Callable[[str], None], order: Order, section: Section, number: str) -> None:
    script, revision = section.script, section.revision
    if script.in_transaction:
        transaction = "one; where it fails, nothing of this section has happened."
    else:
        transaction = "NONE. Each statement runs by itself; stopped, it is to be run again."
    say(
        "\n".join(
            [
                _RULER,
                f"-- {revision} (section {number}, {'up' if order.up else 'down'})",
                "--",
                _comment(script.does),
                "--",
                _comment(f"Transaction: {transaction}", "", "  "),
                _comment(f"Locks on the application's tables: {script.locks}.", "", "  "),
                _RULER,
                f"\\if :pyscore_do_{revision}",
                f"\\echo {Literal(f'{revision}: {_first_sentence(script.does)}').as_string()}",
            ]
        )
    )
    say("begin;" if script.in_transaction else "\\set ECHO queries")
    if order.up and section.below is None:
        say(_FIRST)
    section.emit()
    note = _note(order, section)
    say(
        f"{note}\ncommit;\n\\endif"
        if script.in_transaction
        else f"\\set ECHO none\n{note}\n\\endif"
    )


_FIRST = f"""\
-- Alembic's table, which notes the revision: never the application's own alembic_version.
create schema if not exists {SCHEMA};
create table if not exists {SCHEMA}.alembic_version (
    version_num varchar(32) not null,
    constraint alembic_version_pkc primary key (version_num)
);"""


def _note(order: Order, section: Section) -> str:
    """Note which revision the database is at now."""
    table = f"{SCHEMA}.alembic_version"
    now = section.revision if order.up else section.below
    if now is None:
        return f"delete from {table};"
    if order.up and section.below is None:
        return f"insert into {table} (version_num) values ('{now}');"
    return f"update {table} set version_num = '{now}';"


def _first_sentence(text: str) -> str:
    return text.split(". ")[0].rstrip(".")


_LAST = f"""\
-- Nothing is left but the table that noted the revision, and the empty schema.
do $last$
declare
    v_installed boolean;
begin
    if to_regclass('{SCHEMA}.alembic_version') is not null then
        execute 'select exists (select from {SCHEMA}.alembic_version)' into v_installed;
        if not v_installed then
            drop table {SCHEMA}.alembic_version;
        end if;
    end if;
    if to_regnamespace('{SCHEMA}') is not null
       and not exists (select from pg_depend as d where d.refclassid = 'pg_namespace'::regclass
                       and d.refobjid = to_regnamespace('{SCHEMA}')) then
        drop schema {SCHEMA};
    end if;
end
$last$;"""
