"""pg_cron: whether it is there, our jobs in it, what came of their last runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any, LiteralString

from psycopg.conninfo import make_conninfo

from pyscore.doctor.case import OPERATOR, Case, is_heard
from pyscore.doctor.findings import Verdict, fail, ok, warn

SCHEDULE = "SELECT * FROM builder_score.schedule();"
OLDEST = (1, 4)
"""The first pg_cron with named jobs for other databases, and with @reboot as we use it."""

_NUMBERED = re.compile(r"^builder-score-worker-(\d{1,2})(?:@|$)")

_ON_SERVER = """
    select e.available, s.preloaded, s.cron_database, s.config_file
    from (select max(setting) filter (where name = 'shared_preload_libraries') as preloaded,
                 max(setting) filter (where name = 'cron.database_name') as cron_database,
                 max(setting) filter (where name = 'config_file') as config_file
          from pg_settings) as s
    cross join (select max(default_version) as available
                from pg_available_extensions where name = 'pg_cron') as e
"""

_VERSION = """
    select e.extversion as version, a.default_version as available, current_database() as database,
           r.rolsuper or r.rolbypassrls as sees_every_job,
           pg_postmaster_start_time() as server_started,
           r.rolsuper or pg_has_role('pg_read_all_stats', 'usage') as sees_activity,
           -- it takes a moment to start
           pg_postmaster_start_time() > clock_timestamp() - interval '10 seconds'
               or exists (select from pg_stat_activity where backend_type = 'pg_cron launcher')
               as launched,
           (select max(setting) from pg_settings where name = 'data_directory') as data_directory
    from pg_extension as e
    left join pg_available_extensions as a on a.name = 'pg_cron'
    cross join pg_roles as r
    where e.extname = 'pg_cron' and r.rolname = current_user
"""

_JOB_ROLE = """
    select quote_ident(r.rolname) as quoted, r.rolcanlogin,
           has_database_privilege(r.oid, current_database(), 'connect') as may_connect,
           has_schema_privilege(r.oid, 'builder_score', 'usage')
               and has_function_privilege(
                   r.oid, 'builder_score.run_worker(interval, integer)', 'execute')
               as may_work
    from pg_roles as r where r.rolname = %s
"""

_RUNS = """
    select distinct on (worker)
           replace(j.jobname, '-at-start', '') as worker, j.username, d.status,
           d.return_message as message
    from cron.job_run_details as d join cron.job as j on j.jobid = d.jobid
    where j.jobname ~ '^builder-score-worker(-[0-9]{1,2})?(-at-start)?(@|$)' and j.database = %s
      and d.status not in ('starting', 'connecting', 'sending')
    order by worker, d.runid desc
"""

_WHERE_FROM = """
    select max(setting) filter (where name = 'cron.host') as host,
           max(setting) filter (where name = 'port')::integer as port,
           -- as workers of the server's its runs connect to nothing
           coalesce(max(setting) filter (where name = 'cron.use_background_workers'), 'off') = 'off'
               as connects,
           max(setting) filter (where name = 'hba_file') as hba_file,
           max(setting) filter (where name = 'max_worker_processes') as workers
    from pg_settings
"""

# The nearest wins: of the role in this database, of the role, of the database, of the server.
_TIMEOUT = """
    select split_part(c.setting, '=', 2) as timeout
    from pg_db_role_setting as s cross join lateral unnest(s.setconfig) as c(setting)
    where c.setting like 'statement\\_timeout=%%'
      and s.setdatabase in (
          0, (select d.oid from pg_database as d where d.datname = current_database()))
      and s.setrole in (0, to_regrole(quote_ident(%s)))
    order by s.setrole = 0, s.setdatabase = 0
    limit 1
"""

_PLAIN = re.compile(r"^\w+$", re.ASCII)
_BEFORE_STATEMENTS = re.compile(r"\n\s*(?:CONTEXT|QUERY|LINE \d+):")
_ZERO = re.compile(r"^0+\s*[a-z]*$")


def extension(case: Case) -> Iterator[Verdict]:
    """Look whether pg_cron is there, or somebody else runs the worker."""
    if case.cron is None:
        yield _without(case)
        return
    found = case.cron.execute(_VERSION).fetchone()
    assert found is not None  # it is what case.cron was chosen by
    version, available, database = found["version"], found["available"], found["database"]
    where = f" in database {database}" if case.cron_is_elsewhere else ""
    update = _there(case, "ALTER EXTENSION pg_cron UPDATE;")
    if found["server_started"] != case.session["server_started"]:
        yield fail(
            "--cron-dsn leads to another server",
            "# with the address of the database that has pg_cron on the same server:",
            f"# pyscore doctor --cron-dsn {beside(case, 'DATABASE')}",
        )
        return
    if found["sees_activity"] and not found["launched"]:
        yield fail(
            f"pg_cron's launcher{where} has ended, and starts no job any more",
            "# restart the server, for instance with:",
            f"# pg_ctl restart -D {found['data_directory'] or 'DIRECTORY'}",
        )
    if _numbers(version)[:2] < OLDEST:
        yield fail(
            f"pg_cron {version}{where} is too old: {'.'.join(map(str, OLDEST))} is needed", *update
        )
    elif available is not None and available != version:
        yield warn(f"pg_cron {version}{where} runs with the library of {available}", *update)
    else:
        yield ok(f"pg_cron {version}{where}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _without(case: Case) -> Verdict:
    """Say why there is no pg_cron where we looked, and whether anything stands in for it."""
    why, remedy, is_to_be_here = _why_not(case)
    if _before_install(case):
        if is_to_be_here and case.session["superuser"]:
            return ok(f"{why}: pyscore migrate does it")
        # whatever is to be scheduled, migrate has to come first
        steps = [step for step in remedy if "schedule" not in step and not step.startswith("-- as")]
        return warn(f"{why}: after pyscore migrate `pyscore worker` has to run", *steps)
    if case.paused is not None:
        return ok(f"{why}; paused: nothing is to run")
    # what pg_cron did here until a moment ago counts for nothing
    has_ended = is_to_be_here and case.by_pg_cron and not case.worker_sessions
    if case.is_worked_on and not has_ended:
        return ok(f"{why}; something else runs the worker")
    return fail(f"{why}, and nothing else runs the worker", *remedy)


def _why_not(case: Case) -> tuple[str, list[str], bool]:
    """Give the reason, what mends it, and whether this is the database in which pg_cron works."""
    here, database = case.row(_ON_SERVER), case.session["database"]
    preloaded, works_in = here["preloaded"], here["cron_database"]
    if case.cron_is_elsewhere:
        remedy = ["-- in that database, as a superuser:", "CREATE EXTENSION pg_cron;"]
        return "the database named by --cron-dsn has no pg_cron", remedy, False
    if here["available"] is None:
        remedy = [
            "# keep this running, or install the package postgresql-NN-cron:",
            "pyscore worker",
        ]
        return "pg_cron is not installed on this server", remedy, False
    if preloaded is not None and "pg_cron" not in preloaded:
        names = ", ".join([*filter(None, [preloaded]), "pg_cron"])
        literal = database.replace("'", "''")
        remedy = [
            f"# at the end of {here['config_file'] or 'postgresql.conf'}, then restart the server:",
            f"shared_preload_libraries = '{names}'",
            f"cron.database_name = '{literal}'",
            "-- then:",
            SCHEDULE,
        ]
        return "pg_cron is installed on this server, and not loaded", remedy, False
    if works_in is None:
        remedy = ["-- says what is in the way:", SCHEDULE]
        role = case.session["role"]
        why = f"there is no pg_cron in this database, and {role} may not see where it works"
        return why, remedy, False
    if works_in != database:
        remedy = [f"pyscore schedule --cron-dsn {beside(case, works_in)}"]
        return f"pg_cron works in another database, {works_in}", remedy, False
    installer = case.installer or case.session["role"]
    remedy = [
        "-- as a superuser:",
        "CREATE EXTENSION pg_cron;",
        f"GRANT USAGE ON SCHEMA cron TO {_quoted(case, installer)};",
        f"-- as {installer}:",
        SCHEDULE,
    ]
    return "the extension pg_cron is not created", remedy, True


def _before_install(case: Case) -> bool:
    return case.row("select to_regclass('builder_score.worker_status') is null as before")["before"]


def _quoted(case: Case, name: str) -> str:
    return case.row("select quote_ident(%s) as quoted", name)["quoted"]


def beside(case: Case, database: str) -> str:
    """Give the address of another database of this server, without a password, for a shell."""
    info = case.connection.info
    address = make_conninfo(host=info.host or None, port=info.port, dbname=database, user=info.user)
    return shlex.quote(address)


def job(case: Case) -> Iterator[Verdict]:
    """Look whether pg_cron has our jobs, and would run them."""
    if case.cron is None:
        return
    found = case.cron.execute(_VERSION).fetchone()
    assert found is not None
    jobs, all_of_them = case.minute_jobs, found["sees_every_job"]
    schedule = _schedule(case)
    if not jobs:
        if case.worker_sessions:
            yield ok("no job: `pyscore worker` runs instead")
        elif all_of_them:
            yield fail("pg_cron has no job for this database", *schedule)
        elif case.is_worked_on:
            yield ok(f"runs, as a role whose jobs {case.session['role']} may not see")
        else:
            yield fail(f"pg_cron has no job that {case.session['role']} may see", *schedule)
        return
    fine = True
    for verdict in (*_numbers_of(case, jobs, schedule), *_jobs(case, jobs, schedule)):
        fine = False
        yield verdict
    if fine:
        more = f" and {len(case.workers) - 1} more" if len(case.workers) > 1 else ""
        yield ok(f"{jobs[0]['jobname']}{more}, every minute, as {jobs[0]['username']}")


def _schedule(case: Case, *, as_before: bool = True) -> list[str]:
    if case.cron_is_elsewhere:
        assert case.cron is not None
        return [f"pyscore schedule --cron-dsn {beside(case, case.cron.info.dbname)}"]
    role = case.session["role"]
    if as_before and case.jobs:
        others = [job["username"] for job in case.jobs if job["username"] != role]
        return [*(f"-- as {other}, as which the job runs:" for other in others[:1]), SCHEDULE]
    if case.installer not in (None, role):
        return [f"-- as {case.installer}, or whom else the worker is to run as:", SCHEDULE]
    return [SCHEDULE]


def _there(case: Case, *statements: str) -> list[str]:
    """Say where statements are to be run that are pg_cron's."""
    if not case.cron_is_elsewhere:
        return [*statements]
    assert case.cron is not None
    return [f"-- in database {case.cron.info.dbname}:", *statements]


def _worker(job: dict[str, Any]) -> int:
    """Give the number of the worker that a job runs."""
    found = _NUMBERED.match(job["jobname"])
    return int(found[1]) if found else 1


def _numbers_of(case: Case, jobs: list[dict[str, Any]], schedule: list[str]) -> Iterator[Verdict]:
    """Look whether there is a job for each of settings.workers, and none for any other."""
    assert case.cron is not None
    found = case.cron.execute(_VERSION).fetchone()
    assert found is not None
    there, workers = {_worker(job) for job in jobs}, len(case.workers)
    missing = [
        row["number"]
        for row in case.workers
        if row["number"] not in there
        # what is not seen may be another role's
        and (found["sees_every_job"] or not is_heard(row["silent"]))
    ]
    beyond = sorted(number for number in there if number > workers)
    for numbers, which in ((missing, "no job for"), (beyond, "a job for")):
        if numbers:
            yield warn(
                f"settings.workers is {workers}, and pg_cron has {which} worker "
                f"{', '.join(map(str, numbers))}",
                *schedule,
            )


def _jobs(case: Case, jobs: list[dict[str, Any]], schedule: list[str]) -> Iterator[Verdict]:
    active = [job for job in jobs if job["active"]]
    at_work = {_worker(job) for job in active}
    for job in jobs:
        name, number = f"job {job['jobname']} (as {job['username']})", job["jobid"]
        worker = _worker(job)
        command = f"call builder_score.run_worker({f'null, {worker}' if worker > 1 else ''})"
        if worker not in at_work:
            activate = f"SELECT cron.alter_job({number}, active => true);"
            yield fail(f"{name} is not active", *_there(case, activate))
        elif job["active"] and (job["command"] != command or job["schedule"] != "* * * * *"):
            yield fail(
                f"{name} is not what it should be: {job['schedule']} {job['command']}",
                *_there(
                    case,
                    f"SELECT cron.alter_job({number}, schedule => '* * * * *', "
                    f"command => '{command}');",
                ),
            )
    yield from _addresses(case, active)
    first = {_worker(job): job["jobid"] for job in reversed(active)}
    for job in active:
        if job["jobid"] == first[_worker(job)]:
            continue
        yield warn(
            f"there is a second job, {job['jobname']} (as {job['username']}), which does nothing",
            *_there(case, f"SELECT cron.unschedule({job['jobid']});"),
        )
    if all(job["schedule"] != "@reboot" or not job["active"] for job in case.jobs):
        yield warn(
            "the job that starts with the server is missing: after a restart nothing happens until "
            "the next minute",
            *schedule,
        )
    for name in dict.fromkeys(job["username"] for job in active):
        yield from _job_role(
            case, name, [job["jobid"] for job in case.jobs if job["username"] == name]
        )


def _addresses(case: Case, jobs: list[dict[str, Any]]) -> Iterator[Verdict]:
    """Look whether jobs lead to this server: they keep the address at which they were made."""
    assert case.cron is not None
    here = case.cron.execute(_WHERE_FROM).fetchone()
    assert here is not None
    if not here["connects"]:
        return
    for job in jobs:
        host, port = job["nodename"], job["nodeport"]
        # cron.host may be seen by few
        if port != here["port"] or here["host"] not in (None, host):
            yield fail(
                f"job {job['jobname']} (as {job['username']}) connects to {host}, port {port}, "
                f"as on the server where it was made; this one is at "
                f"{here['host'] or host}, port {here['port']}",
                *_there(
                    case,
                    *(
                        f"SELECT cron.unschedule({other['jobid']});"
                        for other in case.jobs
                        if other["username"] == job["username"]
                    ),
                ),
                *_schedule(case),
            )


def _job_role(case: Case, name: str, jobs: list[int]) -> Iterator[Verdict]:
    found = case.rows(_JOB_ROLE, name)
    if not found:
        yield fail(
            f"role {name}, as which the job runs, is gone",
            *_there(case, *(f"SELECT cron.unschedule({number});" for number in jobs)),
            *_schedule(case, as_before=False),
        )
        return
    (role,) = found
    if not role["rolcanlogin"]:
        yield fail(
            f"role {name}, as which the job runs, may not log in",
            f"ALTER ROLE {role['quoted']} LOGIN;",
        )
    if not role["may_connect"]:
        yield fail(
            f"role {name}, as which the job runs, may not connect to this database",
            f"GRANT CONNECT ON DATABASE {case.session['quoted_database']} TO {role['quoted']};",
        )
    if not role["may_work"]:
        yield fail(
            f"role {name}, as which the job runs, may not run the worker",
            f"GRANT {OPERATOR} TO {role['quoted']};",
        )


def job_runs(case: Case) -> Iterator[Verdict]:
    """Look what came of the job's last run."""
    if case.cron is None or not case.jobs:
        return
    runs = case.cron.execute(_RUNS, [case.session["database"]]).fetchall()
    run = next((run for run in runs if run["status"] == "failed"), runs[0] if runs else None)
    if run is None:
        yield ok("none is recorded (cron.log_run may be off)")
    elif run["status"] != "failed":
        yield ok(f"the last one: {run['status']}")
    else:
        message = _said(run["message"] or "no message")
        said = f"the last run, as {run['username']}, failed: {message}"
        if message.startswith("connection failed"):
            yield fail(f"{said} (refused by pg_hba.conf?)", *_connection(case, run["username"]))
        elif "background process" in message:
            workers = int(case.row(_WHERE_FROM)["workers"] or 8)
            yield fail(
                said,
                f"ALTER SYSTEM SET max_worker_processes = {workers + 8};",
                "# then restart the server",
            )
        else:
            yield fail(
                said,
                "# put right what it names (see the other lines, and the server's log); whether",
                "# that was it is seen when the next run has begun, within a minute",
            )


def _said(message: str) -> str:
    """Put what a run returned on one line, without the statements that it came from."""
    return " ".join(_BEFORE_STATEMENTS.split(message, maxsplit=1)[0].split())


def _connection(case: Case, role: str) -> list[str]:
    assert case.cron is not None
    row = case.cron.execute(_WHERE_FROM).fetchone()
    assert row is not None
    return [
        f"# the first lines of {row['hba_file'] or 'pg_hba.conf'}; instead of trust, a password in "
        "the .pgpass of the server's user serves too:",
        *hba_lines(row["host"], case.session["database"], role),
        "-- then:",
        "SELECT pg_reload_conf();",
    ]


def hba_lines(host: str | None, database: str, role: str) -> list[str]:
    """Give the lines of pg_hba.conf that let pg_cron in.

    Args:
        host: cron.host; None where it may not be seen: its default is taken for it.
        database: Where the job runs.
        role: As whom.
    """
    whom = f"{_in_hba(database)} {_in_hba(role)}"
    if host == "" or (host or "").startswith(("/", "@")):
        return [f"local {whom} trust"]
    if host in (None, "localhost"):
        return [f"host {whom} {address} trust" for address in ("127.0.0.1/32", "::1/128")]
    mask = "/32" if re.fullmatch(r"[\d.]+", host or "") else "/128" if ":" in (host or "") else ""
    return [f"host {whom} {host}{mask} trust"]


def _in_hba(name: str) -> str:
    keyword = name in ("all", "sameuser", "samerole", "samegroup", "replication")
    return name if _PLAIN.match(name) and not keyword else f'"{name}"'


def statement_timeout(case: Case) -> Iterator[Verdict]:
    """Look whether the job's runs are cut short."""
    roles = list(dict.fromkeys(job["username"] for job in case.minute_jobs))
    if not roles:
        return
    fine = True
    for role in roles:
        timeout = _timeout(case, _TIMEOUT, role)
        if timeout is not None and not _ZERO.match(timeout):
            fine = False
            yield warn(
                f"{timeout} for {role}: the worker leaves before it strikes, and is away until the "
                "next minute",
                f"ALTER ROLE {_quoted(case, role)} IN DATABASE {case.session['quoted_database']} "
                "SET statement_timeout = 0;",
            )
    if fine:
        yield ok(f"none for {', '.join(roles)}")


def _timeout(case: Case, query: LiteralString, role: str) -> str | None:
    found = case.rows(query, role)
    return found[0]["timeout"] if found else case.server_timeout
