"""Our jobs where pg_cron works in another database of the same server.

pg_cron keeps the jobs of all databases in one of them (``cron.database_name``); to schedule a job
for ours one connects there. Ours notes what was scheduled, so that it can be taken out again.
"""

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection, sql
from psycopg.rows import tuple_row

from pyscore import address
from pyscore.errors import PyscoreError

JOB = "builder-score-worker"
AT_START = "builder-score-worker-at-start"
PURGE = "builder-score-worker-purge"
MOST_WORKERS = 16

_NUMBER = re.compile(r"^builder-score-worker-(\d{1,2})(?:@|$)")

# The job's own runs; pg_cron itself never forgets one.
_DELETE_OLD_RUNS = """
delete from cron.job_run_details where end_time < now() - interval '7 days'
and jobid in (select jobid from cron.job where jobname in ({names}))
"""

_SCHEDULE = "cron.schedule_in_database(text, text, text, text, text, boolean)"
_LONGEST_NAME = 63  # bytes: cron.job.jobname has type name up to pg_cron 1.5

_OURS = """
select d.datname, d.oid, pg_postmaster_start_time() as started
from pg_database as d where d.datname = current_database()
"""

# The same database and the same start to the microsecond: no clone or standby of the server.
_THEIRS = """
select current_database() as database, current_user as role,
       (select rolsuper or rolbypassrls from pg_roles where rolname = current_user) as sees_all,
       (select rolsuper from pg_roles where rolname = current_user) as is_superuser,
       exists (select from pg_database where datname = %(datname)s and oid = %(oid)s)
           and pg_postmaster_start_time() = %(started)s as is_same_server,
       (select extversion from pg_extension where extname = 'pg_cron') as version,
       exists (select from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
               where n.nspname = 'cron' and p.proname = 'schedule_in_database') as is_able,
       (select setting from pg_settings where name = 'cron.database_name') as cron_database
"""

_MAY_RUN = """
select r.rolcanlogin,
       has_schema_privilege(r.oid, 'builder_score', 'usage')
           and has_function_privilege(
               r.oid, 'builder_score.run_worker(interval, integer)', 'execute'),
       has_database_privilege(r.oid, current_database(), 'connect'),
       quote_ident(r.rolname), quote_ident(current_database()),
       has_schema_privilege(
           to_regrole('builder_score_operator'), 'builder_score'::regnamespace, 'usage') is true
from pg_roles as r where r.rolname = %s
"""

_THEIR_JOBS = """
select jobid, jobname::text, username::text, database
from cron.job
where jobname ~ '^builder-score-worker(-[0-9]{1,2})?(-at-start|-purge)?(@|$)' order by jobid
"""


@dataclass(frozen=True)
class _Elsewhere:
    """The database in which pg_cron works, and ours as it is known there."""

    connection: Connection[Any]
    database: str
    role: str
    is_superuser: bool
    sees_all: bool
    our_database: str
    our_oid: int

    def job_name(self, job: str) -> str:
        """Name a job so that no other database's has the name: pg_cron tells them apart by it."""
        name = f"{job}@{self.our_database}"
        return name if len(name.encode()) <= _LONGEST_NAME else f"{job}@{self.our_oid}"


def schedule(connection: Connection[Any], cron_dsn: str, *, run_as: str | None = None) -> list[str]:
    """Schedule the worker from the database in which pg_cron works; again, if it was before.

    Args:
        connection: To the database that has our schema, in autocommit mode.
        cron_dsn: The address of the one that has pg_cron, on the same server.
        run_as: The role to run as, which only a superuser may choose; otherwise whoever
            ``cron_dsn`` connects as.

    Returns:
        What was done, in lines.

    Raises:
        PyscoreError: That database has no pg_cron, is on another server or is ours; or a role lacks
            a privilege. The message holds the GRANT.
    """
    with _elsewhere(connection, cron_dsn) as there:
        role = run_as or there.role
        if role != there.role and not there.is_superuser:
            raise PyscoreError(
                f"only a superuser may schedule a job for another role, and {there.role} is none: "
                f"let --cron-dsn connect as {role}"
            )
        _require_worker(connection, role)
        # Ours is committed first: a note without a job does less harm than a job without a note.
        with there.connection.transaction(), connection.transaction():
            try:
                workers = _schedule_all(connection, there, role)
                removed = _remove(connection, there, but_of=role, workers=workers)
            except psycopg.errors.InsufficientPrivilege as error:
                if "builder_score" in (error.diag.message_primary or ""):
                    raise
                raise PyscoreError(_grants(there)) from error
    last = f" to {there.job_name(_name(workers))}" if workers > 1 else ""
    return [
        *removed,
        f"pg_cron jobs {there.job_name(JOB)}{last}, as {role}, in database {there.database}",
    ]


def unschedule(connection: Connection[Any], cron_dsn: str) -> list[str]:
    """Remove our jobs from the database in which pg_cron works.

    Args:
        connection: To the database that has our schema, in autocommit mode.
        cron_dsn: The address of the one that has pg_cron, on the same server.

    Returns:
        What was done, in lines.

    Raises:
        PyscoreError: As `schedule`; or a job is another role's, which only that role and superusers
            may remove.
    """
    with _elsewhere(connection, cron_dsn) as there:
        # Theirs is committed first, for the same reason.
        with connection.transaction(), there.connection.transaction():
            try:
                removed = _remove(connection, there, but_of=None)
            except psycopg.errors.InsufficientPrivilege as error:
                if "builder_score" in (error.diag.message_primary or ""):
                    raise
                raise PyscoreError(_grants(there)) from error
        if left := left_jobs(connection, there.database):
            raise PyscoreError(f"not all pg_cron jobs could be removed: {left}")
    return removed


def left_jobs(connection: Connection[Any], cron_database: str | None = None) -> str:
    """Say what would remove the jobs that our database still has, in SQL; nothing for none.

    Args:
        connection: To the database that has our schema.
        cron_database: Only those in this database.
    """
    query = "select l from builder_score.left_jobs() as l where %s::text is null or l like %s"
    start = f'in database "{cron_database}"%'
    rows = _tuples(connection).execute(query, [cron_database, start]).fetchall()
    return "; ".join(line for (line,) in rows)


@contextmanager
def _elsewhere(connection: Connection[Any], cron_dsn: str) -> Generator[_Elsewhere]:
    ours = _tuples(connection).execute(_OURS).fetchone()
    assert ours is not None
    our_database, our_oid, started = ours
    conninfo = address.resolve(cron_dsn, option="--cron-dsn")
    with address.connect(conninfo, pinned=True) as other:
        known = {"datname": our_database, "oid": our_oid, "started": started}
        row = _tuples(other).execute(_THEIRS, known).fetchone()
        assert row is not None
        database, role, sees_all, is_superuser, is_same_server, version, is_able, named = row
        if not is_same_server:
            raise PyscoreError(
                f"--cron-dsn leads to another server ({address.describe(conninfo)}); expected the "
                f"database with pg_cron on the server of {our_database}"
            )
        if database == our_database:
            raise PyscoreError("--cron-dsn leads to the database itself: leave it out")
        if version is None:
            if named is None:  # which PostgreSQL tells superusers alone
                place = "give the address of the one that SHOW cron.database_name tells a superuser"
            elif named != database:
                place = f"it works in database {named} (cron.database_name): give its address"
            else:
                place = "a superuser may, there: CREATE EXTENSION pg_cron;"
            raise PyscoreError(f"database {database} has no pg_cron; {place}")
        if not is_able:
            raise PyscoreError(
                f"pg_cron {version} in database {database} cannot schedule for another database; "
                "version 1.4 can: ALTER EXTENSION pg_cron UPDATE; or keep `pyscore worker` running"
            )
        yield _Elsewhere(other, database, role, is_superuser, sees_all, our_database, our_oid)


def _require_worker(connection: Connection[Any], role: str) -> None:
    """Refuse a role whose job would fail each minute."""
    row = _tuples(connection).execute(_MAY_RUN, [role]).fetchone()
    if row is None:
        raise PyscoreError(f"there is no role {role}: name one that can log in")
    can_log_in, may_run, may_connect, quoted, database, has_operator = row
    if not can_log_in:
        raise PyscoreError(
            f"role {role} cannot log in, and pg_cron connects as the role of a job: name another"
        )
    if not may_connect:
        raise PyscoreError(
            f"role {role} may not connect to this database: "
            f"GRANT CONNECT ON DATABASE {database} TO {quoted};"
        )
    if not may_run:
        advice = (
            f"GRANT builder_score_operator TO {quoted};"
            if has_operator
            else "schedule as the role that installed it"
        )
        raise PyscoreError(f"role {role} may not run the worker: {advice}")


def _name(number: int) -> str:
    """Name the job of a worker, as builder_score.wanted_jobs() does."""
    return JOB if number == 1 else f"{JOB}-{number}"


def _schedule_all(connection: Connection[Any], there: _Elsewhere, role: str) -> int:
    """Make the jobs; give the number of workers."""
    wanted = _tuples(connection).execute(
        "select job_name, schedule, command from builder_score.wanted_jobs()"
    )
    jobs = [(job, when, command, there.our_database) for job, when, command in wanted.fetchall()]
    names = sql.SQL(", ").join(there.job_name(job) for job in (*(job[0] for job in jobs), PURGE))
    purge = " ".join(sql.SQL(_DELETE_OLD_RUNS).format(names=names).as_string().split())
    for job, when, command, database in (*jobs, (PURGE, "17 4 * * *", purge, there.database)):
        name = there.job_name(job)
        # null: naming any role, even oneself, takes a superuser
        other = role if role != there.role else None
        (job_id,) = _one(
            there.connection,
            "select cron.schedule_in_database(%s, %s, %s, %s, %s)",
            [name, when, command, database, other],
        )
        connection.execute(
            "select builder_score.note_job(%s, %s, %s, %s)",
            [there.database, name, role, job_id],
        )
    return len(jobs) - 1  # beside those of the workers there is the one that comes with the server


def _remove(
    connection: Connection[Any], there: _Elsewhere, *, but_of: str | None, workers: int = 0
) -> list[str]:
    """Remove our jobs that can be seen there, but for one role's, and forget what is gone.

    Of that role's go those of workers beyond the given number.
    """
    rows = _tuples(connection).execute(
        "select job_id, job_name, run_as from builder_score.known_jobs() where cron_database = %s",
        [there.database],
    )
    known = {tuple(row) for row in rows.fetchall()}
    numbered = (_name(number + 1) for number in range(MOST_WORKERS))
    names = {there.job_name(job) for job in (*numbered, AT_START, PURGE)}
    said: list[str] = []
    removed: set[int] = set()
    for job_id, name, user, database in _tuples(there.connection).execute(_THEIR_JOBS).fetchall():
        # a database that was renamed since is still known by the job's number
        ours = database == there.our_database or name in names or (job_id, name, user) in known
        number = _NUMBER.match(name)
        beyond = number is not None and int(number[1]) > workers
        if ours and (user != but_of or beyond):
            removed.add(job_id)
            there.connection.execute("select cron.unschedule(%s::bigint)", [job_id])
            there.connection.execute("delete from cron.job_run_details where jobid = %s", [job_id])
            said.append(f"pg_cron job {name}, as {user}, removed")
    gone = [
        job_id
        for job_id, _, user in known
        if job_id in removed or (user != but_of and (there.sees_all or user == there.role))
    ]
    connection.execute(
        "delete from builder_score.scheduled_jobs where cron_database = %s and job_id = any(%s)",
        [there.database, gone],
    )
    return said


def _grants(there: _Elsewhere) -> str:
    role = sql.Identifier(there.role).as_string()
    return (
        f"role {there.role} may not schedule jobs for other databases; as a superuser, in database "
        f"{there.database}: GRANT USAGE ON SCHEMA cron TO {role}; "
        f"GRANT EXECUTE ON FUNCTION {_SCHEDULE} TO {role};"
    )


def _tuples(connection: Connection[Any]) -> psycopg.Cursor[tuple[Any, ...]]:
    return connection.cursor(row_factory=tuple_row)


def _one(connection: Connection[Any], query: str, parameters: list[Any]) -> tuple[Any, ...]:
    row = _tuples(connection).execute(query.encode(), parameters).fetchone()
    assert row is not None
    return row
