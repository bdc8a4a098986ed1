"""All checks, in the order in which a person would ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import psycopg
from psycopg import Connection, errors
from psycopg.rows import DictRow

from pyscore.doctor import (
    autogenerate,
    cron,
    host,
    indexes,
    locks,
    policies,
    replication,
    roles,
    running,
    server,
    trust,
    writing,
)
from pyscore.doctor.case import MIGRATE, OPERATOR, Case
from pyscore.doctor.findings import Finding, Level, Limits, Verdict, fail
from pyscore.errors import from_database

Check = Callable[[Case], Iterable[Verdict]]

ALWAYS: dict[str, Check] = {
    "server": server.server,
    "schema": server.schema,
}
BEFORE: dict[str, Check] = {
    "rights": server.rights_to_install,
    "tables": host.to_attach_to,
    "pg_cron": cron.extension,
    "publications": replication.publications,
}
INSTALLED: dict[str, Check] = {
    "roles": roles.roles,
    "grants": roles.grants,
    "attached": host.attached,
    "columns": host.columns,
    "triggers": host.triggers,
    "policies": policies.policies,
    "indexes": indexes.indexes,
    "trial write": writing.trial_write,
    "pg_cron": cron.extension,
    "job": cron.job,
    "job runs": cron.job_runs,
    "trust": trust.trust,
    "statement_timeout": cron.statement_timeout,
    "heartbeat": running.heartbeat,
    "dead letters": running.dead_letters,
    "queue": running.queue,
    "lock_timeout": running.lock_timeout,
    "locks": locks.advisory_locks,
    "xmin": running.xmin,
    "publications": replication.publications,
    "subscriptions": replication.subscriptions,
    "autogenerate": autogenerate.autogenerate,
}
"""What is looked at, by the names that findings bear."""

# A lock that somebody holds, or a table that is too large, is to cost a line and no more.
_SESSION = """
    set statement_timeout = '60s';
    set lock_timeout = '2s';
    set default_transaction_read_only = on;
    set default_transaction_isolation = 'read committed';
    set search_path = pg_catalog, pg_temp;
    set jit = off;
"""


def examine(
    connection: Connection[DictRow],
    *,
    cron: Connection[DictRow] | None = None,
    alembic_config: Path | None = None,
    limits: Limits | None = None,
) -> list[Finding]:
    """Look at a database, whether our schema is installed or not; change nothing.

    The one write is a score that is written and taken back at once, to see whether the
    application's own triggers let us. It waits for nobody.

    Args:
        connection: To the database: autocommit, its rows dictionaries. Its session's timeouts,
            search_path and the like are changed.
        cron: The same to the database in which pg_cron works, where that is another one.
        alembic_config: The application's own ``alembic.ini``: whether its autogenerate would drop
            something of ours. Runs the application's ``env.py`` in a process of its own.
        limits: From where on something counts.

    Returns:
        At least a line for everything that was looked at.

    Raises:
        psycopg.OperationalError: The connection was lost.
    """
    case = Case(connection, cron=cron, alembic_config=alembic_config, limits=limits)
    for one in (connection, cron):
        if one is not None:
            one.execute(_SESSION)
    findings = _run(case, ALWAYS)
    installed = server.may_be_installed(case)
    return findings + _run(case, INSTALLED if installed else BEFORE)


def _run(case: Case, checks: dict[str, Check]) -> list[Finding]:
    return [
        Finding(name, *verdict) for name, check in checks.items() for verdict in _look(case, check)
    ]


def _look(case: Case, check: Check) -> list[Verdict]:
    """Run one check; what it stumbles over is a line."""
    try:
        return list(check(case))
    except psycopg.errors.InsufficientPrivilege as error:
        # who may not even see the version sees nothing
        return [_not_looked_at(case, error, "fail" if check is server.schema else "warn")]
    except psycopg.Error as error:
        if case.connection.closed:
            raise
        return [_stumbled(error)]


def _stumbled(error: psycopg.Error) -> Verdict:
    said = f"could not be looked at: {from_database(error)}"
    if isinstance(error, (errors.UndefinedTable, errors.UndefinedFunction, errors.UndefinedColumn)):
        return fail(
            said,
            "# unless a line above says otherwise, something of ours was dropped by hand: install",
            "# anew, which computes all scores again and sets the settings back:",
            "pyscore uninstall --yes",
            MIGRATE,
        )
    return fail(said, "# put right what it names, then run pyscore doctor again")


def _not_looked_at(case: Case, error: psycopg.Error, level: Level) -> Verdict:
    role = case.session["role"]
    message = f"not looked at as {role}: {error.diag.message_primary}"
    if (error.diag.message_primary or "").endswith("schema cron"):
        advice = f"GRANT USAGE ON SCHEMA cron TO {case.session['quoted_role']};"
        return Verdict(level, message, f"-- as a superuser:\n{advice}")
    whom = f"role {case.installer}" if case.installer else "the role that ran `pyscore migrate`"
    advice = [f"# run pyscore doctor as {whom}, or as a superuser"]
    if server.may_become_operator(case):
        advice.append("-- or, as that role, which shows most of it:")
        advice.append(f"GRANT {OPERATOR} TO {case.session['quoted_role']};")
    return Verdict(level, message, "\n".join(advice))
