"""Advisory locks are anybody's who may connect: who holds those of the workers, and is none."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from pyscore.doctor.case import Case
from pyscore.doctor.findings import Verdict, ok, warn
from pyscore.hindrances import MIGRATION_LOCK

# Of who is not seen at work (for want of rights, or without track_activities) it is only known
# whether a worker of that process said that it began.
_STRANGERS = """
    select a.pid, a.usename as role, a.application_name as application, a.state,
           clock_timestamp() - a.state_change as age,
           array_agg(distinct l.objid::integer order by l.objid::integer) as keys
    from pg_locks as l
    join pg_stat_activity as a on a.pid = l.pid
    where l.locktype = 'advisory' and l.classid = %(class)s and l.objsubid = 2 and l.granted
      and l.database = (select d.oid from pg_database as d where d.datname = current_database())
      and case
          when l.objid = %(migration)s then not exists (
              select from unnest(%(owners)s::text[]) as o(name)
              where pg_has_role(a.usesysid, o.name, 'member'))
          when l.objid = 0 or l.objid between 101 and 124 or l.objid between 202 and 216 then not (
              coalesce(a.state, 'disabled') in ('active', 'disabled')
              and (a.query ~* 'builder_score"?\\."?(run_worker|drain|run_round|run_batch)\\M'
                   or exists (select from builder_score.worker_status as w
                              where w.backend_pid = a.pid))
              and has_function_privilege(
                  a.usesysid, 'builder_score.run_worker(interval, integer)', 'execute'))
          end
    group by a.pid, a.usename, a.application_name, a.state, a.state_change
    order by a.pid
"""


def advisory_locks(case: Case) -> Iterator[Verdict]:
    """Look whether a session that is no worker holds what keeps workers apart."""
    (family, migration), fine = MIGRATION_LOCK, True
    owners = {case.installer, *(table["owner"] for table in case.tables.values())} - {None}
    found = case.named(
        _STRANGERS, **{"class": family}, migration=migration, owners=sorted(map(str, owners))
    )
    for row in found:
        fine = False
        application = f"{row['application']}, " if row["application"] else ""
        yield warn(
            f"process {row['pid']} ({application}role {row['role']}){_activity(row)} is no worker "
            f"and holds advisory locks of ours: {'; '.join(_harm(row['keys'], migration))}",
            f"SELECT pg_terminate_backend({row['pid']});",
        )
    if fine:
        yield ok("ours are held by nobody but workers")


def _activity(row: dict[str, Any]) -> str:
    if row["state"] is None or row["age"] is None:
        return ""
    seconds = max(0, round(row["age"].total_seconds()))
    return f", {row['state']} for {timedelta(seconds=seconds)},"


def _harm(keys: list[int], migration: int) -> Iterator[str]:
    """Say what does not happen while somebody holds these keys."""
    if workers := [1 if key == 0 else key - 200 for key in keys if key == 0 or key > 200]:
        yield f"worker {', '.join(map(str, workers))} is away for up to a minute at a time"
    if any(100 < key < 125 for key in keys):
        yield "workers take it for one of them, and leave it a share"
    if migration in keys:
        yield "no migration begins"
