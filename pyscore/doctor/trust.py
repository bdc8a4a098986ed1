"""Whoever has code of theirs run by a write to users can have the worker run it, too."""

from __future__ import annotations

from collections.abc import Iterator

from pyscore.doctor.case import OPERATOR, OWNER, Case
from pyscore.doctor.cron import beside
from pyscore.doctor.findings import Verdict, ok, warn

WORKER = "builder_score_worker"
"""A role for the worker, where the installer is one that should not run it."""

_SUPERUSERS = """
    select r.rolname as name,
           r.rolname = any(%(jobs)s::text[]) as by_job
    from pg_roles as r
    where r.rolsuper
      and (r.rolname = any(%(jobs)s::text[])
           or exists (select from pg_stat_activity as a
                      where a.usesysid = r.oid and a.datname = current_database()
                        and a.application_name = 'builder-score-worker'
                        -- a job's run goes on for up to a minute when the job is another's
                        and not exists (select from builder_score.worker_status as w
                                        where w.backend_pid = a.pid and w.run_by = 'pg_cron')))
    order by by_job desc, name
"""

# A table's owner may give it triggers and policies, and both run as who writes or reads.
_AUTHORS = """
    with written as (
        select %(users)s::oid as oid
        union
        select p.relid from pg_partition_tree(%(users)s::oid::regclass) as p
    ),
    author as (
        select c.relowner as oid, format('owner of %%s', c.oid::regclass) as how
        from pg_class as c
        where c.oid = any(%(tables)s::oid[]) or c.oid in (select w.oid from written as w)
        union all
        select a.grantee, format('may create triggers on %%s', c.oid::regclass)
        from pg_class as c cross join lateral aclexplode(c.relacl) as a
        where c.oid in (select w.oid from written as w)
          and a.privilege_type = 'TRIGGER' and a.grantee <> c.relowner
        union all
        select p.proowner, format('owner of %%s, which a trigger calls', p.oid::regprocedure)
        from pg_trigger as t join pg_proc as p on p.oid = t.tgfoid
        where t.tgrelid in (select w.oid from written as w) and not t.tgisinternal
    )
    select coalesce(r.rolname, 'PUBLIC') as name, (array_agg(a.how order by a.how))[1] as how
    from author as a left join pg_roles as r on r.oid = a.oid
    where a.oid = 0 or not r.rolsuper and r.rolname <> %(owner)s
    group by 1
    order by 1
"""


def trust(case: Case) -> Iterator[Verdict]:
    """Look whether a superuser runs what somebody who is none may have changed."""
    if not case.is_attached or case.owner["rolname"] != OWNER:
        return
    jobs = list(dict.fromkeys(job["username"] for job in case.jobs))
    superusers = case.named(_SUPERUSERS, jobs=jobs)
    if not superusers:
        yield ok("no superuser is seen to run the worker")
        return
    authors = case.named(
        _AUTHORS, users=case.tables["users"]["oid"], tables=case.table_oids, owner=OWNER
    )
    names = ", ".join(row["name"] for row in superusers)
    if not authors:
        yield ok(f"{names} runs the worker, and nobody but superusers could make it run more")
        return
    who = ", ".join(f"{row['name']} ({row['how']})" for row in authors[:3])
    more = f" and {len(authors) - 3} more" if len(authors) > 3 else ""
    by_job = any(row["by_job"] for row in superusers)
    yield warn(
        f"superuser {names} runs the worker, and {who}{more} can become one: triggers on users "
        f"run as {OWNER}, who owns what the worker calls",
        *_another_role(case, by_job=by_job),
    )


def _another_role(case: Case, *, by_job: bool) -> list[str]:
    """Give the statements that have an operator and nothing else run the worker."""
    remedy = [
        "-- as a superuser; pg_hba.conf has to let this role in, too:",
        f"SELECT 'CREATE ROLE {WORKER} LOGIN' WHERE to_regrole('{WORKER}') IS NULL \\gexec",
        f"GRANT {OPERATOR} TO {WORKER};",
    ]
    if not by_job:
        return [*remedy, f"# then run `pyscore worker` as {WORKER}"]
    if case.cron_is_elsewhere and case.cron is not None:
        address = beside(case, case.cron.info.dbname)
        return [*remedy, f"pyscore schedule --cron-dsn {address} --as {WORKER}"]
    return [*remedy, f"SELECT * FROM builder_score.schedule('{WORKER}');"]
