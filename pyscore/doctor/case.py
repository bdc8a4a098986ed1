"""The database that is examined: how checks ask it, and what several of them need to know."""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, LiteralString

from psycopg import Connection
from psycopg.rows import DictRow

from pyscore.doctor.findings import Limits

ATTACH = "SELECT * FROM builder_score.attach();"
MIGRATE = "pyscore migrate"
OWNER = "builder_score_owner"
OPERATOR = "builder_score_operator"
TABLES = ("users", "projects", "project_collaborators")

STALE = timedelta(minutes=2)
"""A resident worker beats every few seconds, and a pg_cron job starts every minute."""

_SESSION = """
    select current_user as role, quote_ident(current_user) as quoted_role,
           current_database() as database, quote_ident(current_database()) as quoted_database,
           current_setting('server_version') as version,
           current_setting('server_version_num')::integer / 10000 as major,
           pg_is_in_recovery() as standby, pg_postmaster_start_time() as server_started,
           r.rolsuper as superuser, r.rolsuper or r.rolbypassrls as sees_every_row
    from pg_roles as r where r.rolname = current_user
"""

# before ours is set: what others get who have none of their own
_SERVER_TIMEOUT = """
    select case when s.source in ('default', 'configuration file', 'command line') then s.setting
           end as timeout
    from pg_settings as s where s.name = 'statement_timeout'
"""

_TABLES = """
    select t.name, c.oid, c.oid::regclass::text as said, c.relkind = 'p' as partitioned,
           pg_get_userbyid(c.relowner) as owner, c.relrowsecurity, c.relforcerowsecurity
    from unnest(%s::text[]) with ordinality as t(name, place)
    left join (pg_class as c join pg_namespace as n on n.oid = c.relnamespace and n.nspname = %s)
        on c.relname = t.name and c.relkind in ('r', 'p')
    order by t.place
"""

_WORKERS = """
    select count(*) as sessions from pg_stat_activity as a
    where a.datname = current_database() and a.application_name = 'builder-score-worker'
      -- a job's run goes on for up to a minute when the job is gone
      and not exists (select from builder_score.worker_status as w
                      where w.backend_pid = a.pid and w.run_by = 'pg_cron')
"""

_HEARTBEATS = """
    select k.number,
           -- one from the future is from before the clock was set back
           greatest(clock_timestamp() - w.heartbeat_at, w.heartbeat_at - clock_timestamp())
               as silent,
           w.run_by is not distinct from 'pg_cron' as by_pg_cron,
           builder_score.worker_lock(k.number) as lock,
           exists (select from builder_score.known_jobs() as j
                   where j.job_name ~ format('^builder-score-worker-%s(@|$)', k.number)
                     and j.scheduled_at > clock_timestamp() - interval '2 minutes') as is_new
    from builder_score.settings as s
    cross join lateral generate_series(1, s.workers) as k(number)
    left join builder_score.worker_status as w on w.number = k.number
    order by k.number
"""

_INSTALLER = """
    select pg_get_userbyid(c.relowner) as installer
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = 'builder_score' and c.relname = 'alembic_version'
"""


def is_heard(silent: timedelta | None) -> bool:
    """Say whether a worker of which nothing was heard for so long runs."""
    return silent is not None and silent < STALE


class Case:
    """One examination.

    What is asked of the database is kept, so that checks agree with each other.
    """

    def __init__(
        self,
        connection: Connection[DictRow],
        *,
        cron: Connection[DictRow] | None = None,
        alembic_config: Path | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.connection = connection
        self.alembic_config = alembic_config
        self.limits = limits or Limits()
        self._cron = cron
        self.server_timeout: str | None = self.row(_SERVER_TIMEOUT)["timeout"]

    def rows(self, query: LiteralString, *parameters: Any) -> list[dict[str, Any]]:
        """Ask, and get all rows."""
        return self.connection.execute(query, parameters or None).fetchall()

    def named(self, query: LiteralString, **parameters: Any) -> list[dict[str, Any]]:
        """Ask with parameters that have names."""
        return self.connection.execute(query, parameters).fetchall()

    def row(self, query: LiteralString, *parameters: Any) -> dict[str, Any]:
        """Ask what has exactly one row."""
        (row,) = self.rows(query, *parameters)
        return row

    # The session ----------------------------------------------------------------------------------

    @cached_property
    def session(self) -> dict[str, Any]:
        """Who looks, and at what server."""
        return self.row(_SESSION)

    @property
    def is_standby(self) -> bool:
        """Whether nothing can be written here."""
        return self.session["standby"]

    @cached_property
    def sees_activity(self) -> bool:
        """Whether the role sees what other roles' sessions do."""
        query = "select pg_has_role('pg_read_all_stats', 'usage') as sees"
        return self.session["superuser"] or self.row(query)["sees"]

    # What attach() found --------------------------------------------------------------------------

    @cached_property
    def host(self) -> dict[str, Any]:
        """The row of builder_score.host, with the schema's name quoted."""
        return self.row(
            "select h.*, quote_ident(h.host_schema) as quoted_schema,"
            " clock_timestamp() - h.attached_at as attached_for from builder_score.host as h"
        )

    @cached_property
    def tables(self) -> dict[str, dict[str, Any]]:
        """The application's three tables by name; those that are missing have no oid."""
        found = self.rows(_TABLES, list(TABLES), self.host["host_schema"])
        return {row["name"]: row for row in found}

    @property
    def table_oids(self) -> list[int]:
        """The oids of those that are there."""
        return [row["oid"] for row in self.tables.values() if row["oid"] is not None]

    @cached_property
    def is_attached(self) -> bool:
        """Whether the views on the application's tables are there, and the tables."""
        views = self.row(
            "select count(*) = 3 as complete from pg_class where relkind = 'v'"
            " and relnamespace = to_regnamespace('builder_score')"
            " and relname in ('host_users', 'host_projects', 'host_collaborations')"
        )["complete"]
        attached = self.host["attached_at"] is not None
        return views and attached and len(self.table_oids) == len(TABLES)

    # Roles ----------------------------------------------------------------------------------------

    @cached_property
    def owner(self) -> dict[str, Any]:
        """The role that owns our schema."""
        return self.row(
            "select r.*, quote_ident(r.rolname) as quoted, r.rolsuper or r.rolbypassrls as bypasses"
            " from pg_namespace as n join pg_roles as r on r.oid = n.nspowner"
            " where n.nspname = 'builder_score'"
        )

    @cached_property
    def installer(self) -> str | None:
        """The role that ran `pyscore migrate`; None where it was never run."""
        found = self.rows(_INSTALLER)
        return found[0]["installer"] if found else None

    def separate_roles(self, installer: str) -> list[str]:
        """Give the statements, a superuser's, that let a role install with an owner apart."""
        missing = self.rows(
            "select r.name from unnest(%s::text[]) as r(name) where to_regrole(r.name) is null",
            [OWNER, OPERATOR],
        )
        quoted = self.row("select quote_ident(%s) as said", installer)["said"]
        return [
            "-- as a superuser:",
            *(f"CREATE ROLE {row['name']} NOLOGIN;" for row in missing),
            f"GRANT {OWNER} TO {quoted};",
        ]

    # The worker -----------------------------------------------------------------------------------

    @cached_property
    def paused(self) -> str | None:
        """Why no worker is to run; None where they are."""
        row = self.row("select paused, paused_reason from builder_score.settings")
        return (row["paused_reason"] or "no reason given") if row["paused"] else None

    @cached_property
    def workers(self) -> list[dict[str, Any]]:
        """Each of settings.workers by number, and how long nothing was heard of it; None: never."""
        return self.rows(_HEARTBEATS)

    @property
    def silent(self) -> timedelta | None:
        """How long nothing was heard of any worker; None: never."""
        return min(
            (row["silent"] for row in self.workers if row["silent"] is not None), default=None
        )

    @property
    def by_pg_cron(self) -> bool:
        """Whether it was pg_cron that ran a worker last."""
        return any(row["by_pg_cron"] for row in self.workers)

    @cached_property
    def worker_sessions(self) -> int:
        """How many `pyscore worker` are connected."""
        return self.row(_WORKERS)["sessions"]

    @property
    def is_worked_on(self) -> bool:
        """Whether somebody runs the worker, whoever it is."""
        return self.worker_sessions > 0 or is_heard(self.silent)

    # pg_cron --------------------------------------------------------------------------------------

    @cached_property
    def cron(self) -> Connection[DictRow] | None:
        """A connection to the database in which pg_cron's tables are, if there is one."""
        connection = self._cron or self.connection
        row = connection.execute("select from pg_extension where extname = 'pg_cron'").fetchone()
        return None if row is None else connection

    @property
    def cron_is_elsewhere(self) -> bool:
        """Whether another database was named for pg_cron."""
        return self._cron is not None

    @cached_property
    def jobs(self) -> list[dict[str, Any]]:
        """Our jobs as far as the role sees them; none without pg_cron."""
        if self.cron is None:
            return []
        return self.cron.execute(
            "select j.jobid, j.jobname, j.schedule, j.command, j.username, j.active,"
            " j.nodename, j.nodeport"
            " from cron.job as j where j.database = %s"
            # scheduled from elsewhere they bear the database's name too
            " and j.jobname ~ '^builder-score-worker(-[0-9]{1,2})?(-at-start)?(@|$)'"
            " order by j.jobid",
            [self.session["database"]],
        ).fetchall()

    @property
    def minute_jobs(self) -> list[dict[str, Any]]:
        """Those of our jobs that are to run all the time."""
        return [job for job in self.jobs if job["schedule"] != "@reboot"]
