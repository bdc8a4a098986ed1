"""What goes on: the worker's heartbeat, who was given up, what keeps vacuum from its work."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from pyscore.doctor.case import STALE, Case, is_heard
from pyscore.doctor.findings import Verdict, fail, ok, warn

# run_worker()'s lock: one run of each worker at a time
_HOLDER = """
    select l.pid from pg_locks as l
    where l.locktype = 'advisory' and l.classid = 1651271539 and l.objid = %s and l.objsubid = 2
      and l.granted
      and l.database = (select d.oid from pg_database as d where d.datname = current_database())
"""

_DEAD_LETTERS = """
    select count(*) as count, d.sqlstate, d.message, (sum(count(*)) over ())::bigint as all
    from builder_score.score_dead_letter as d
    group by d.sqlstate, d.message order by count(*) desc, d.message limit 1
"""

_QUEUE = """
    select s.n_live_tup as live, s.n_dead_tup as dead,
           current_setting('autovacuum')::boolean
               and current_setting('track_counts')::boolean as autovacuum,
           coalesce((select o.option_value::boolean from pg_options_to_table(c.reloptions) as o
                     where o.option_name = 'autovacuum_enabled'), true) as autovacuum_here
    from pg_stat_user_tables as s join pg_class as c on c.oid = s.relid
    where s.schemaname = 'builder_score' and s.relname = 'score_recalc_queue'
"""

_TRANSACTIONS = """
    select a.pid, a.usename as role, a.application_name as application, a.state,
           clock_timestamp() - a.xact_start as age
    from pg_stat_activity as a
    where a.datname = current_database() and a.pid <> pg_backend_pid()
      and a.backend_type = 'client backend'
      and (a.backend_xmin is not null or a.backend_xid is not null)
      and a.xact_start < clock_timestamp() - %s
    order by a.xact_start
"""

_PREPARED = """
    select quote_literal(p.gid) as gid, p.owner, clock_timestamp() - p.prepared as age
    from pg_prepared_xacts as p
    where p.database = current_database() and p.prepared < clock_timestamp() - %s
    order by p.prepared
"""

_PATIENCE = """
    select s.lock_timeout, current_setting('deadlock_timeout') as deadlock_timeout,
           current_setting('deadlock_timeout')::interval as looks
    from builder_score.settings as s
"""

# A slot that nobody uses keeps what it needs for ever: that is worth a line at any age.
_SLOTS = """
    select s.slot_name, quote_literal(s.slot_name) as quoted
    from pg_replication_slots as s
    where not s.active
      and (s.xmin is not null or s.catalog_xmin is not null or s.restart_lsn is not null)
      and (s.database is null or s.database = current_database())
    order by s.slot_name
"""

_STANDBYS = """
    select r.application_name as application, r.client_addr::text as address,
           age(r.backend_xmin) as age
    from pg_stat_replication as r where age(r.backend_xmin) >= %s order by r.pid
"""


def heartbeat(case: Case) -> Iterator[Verdict]:
    """Look whether the workers are heard of."""
    if case.paused is not None:
        yield warn(f"paused ({case.paused})", "pyscore resume")
        return
    silent = case.silent
    if silent is not None and is_heard(silent):
        unheard = [row for row in case.workers if not is_heard(row["silent"])]
        for row in unheard:
            yield _missing(case, row)
        if not unheard:
            longest = max(row["silent"] for row in case.workers)
            each = f"{len(case.workers)} workers, each " if len(case.workers) > 1 else ""
            yield ok(f"{each}heard {_seconds(longest)} ago{' or less' if each else ''}")
        return
    since: timedelta | None = case.host["attached_for"]
    due = any(job["active"] for job in case.jobs) or case.worker_sessions
    if silent is None and due and since is not None and since < STALE:
        yield ok(f"not yet: attached {_seconds(since)} ago")
        return
    said = "no worker was ever heard of" if silent is None else f"none for {_seconds(silent)}"
    remedy: list[str] = []
    for row in case.rows(_HOLDER, case.workers[0]["lock"]):
        said += f"; process {row['pid']} holds the worker's lock and does nothing"
        remedy.append(f"SELECT pg_terminate_backend({row['pid']});")
    if any(job["active"] for job in case.jobs):
        said += "; pg_cron has the job, and does not start it"
        remedy.append(
            "# see the lines about the job; where they are fine, restart the server: pg_cron's"
        )
        remedy.append("# launcher has ended. Until then keep this running:")
    else:
        remedy.append("# keep this running, unless pg_cron can (see the lines about it):")
    yield fail(said, *remedy, "pyscore worker")


def _missing(case: Case, worker: dict[str, Any]) -> Verdict:
    """Say what is known of a worker that is silent while others work."""
    number, silent = worker["number"], worker["silent"]
    if silent is None and worker["is_new"]:
        return ok(f"worker {number}: not yet, its job is new")
    said = f"worker {number} of {len(case.workers)} "
    said += "was never heard of" if silent is None else f"is silent for {_seconds(silent)}"
    remedy: list[str] = []
    for row in case.rows(_HOLDER, worker["lock"]):
        said += f"; process {row['pid']} holds its lock and does nothing"
        remedy.append(f"SELECT pg_terminate_backend({row['pid']});")
    if case.minute_jobs:
        remedy.append("# see the lines about its job; where they are fine, its next run is within")
        remedy.append("# a minute")
    else:
        remedy.append("# keep this running, unless its job is one that you may not see:")
        remedy.append(f"pyscore worker --number {number}")
    return warn(said, *remedy)


def _seconds(length: timedelta) -> str:
    return str(timedelta(seconds=max(0, round(length.total_seconds()))))


def dead_letters(case: Case) -> Iterator[Verdict]:
    """Look whether anybody was given up."""
    found = case.rows(_DEAD_LETTERS)
    if not found:
        yield ok("none")
        return
    (most,) = found
    message = " ".join(most["message"].split())
    who = "1 user" if most["all"] == 1 else f"{most['all']:,} users"
    yield fail(
        f"{who} given up, {most['count']:,} with {most['sqlstate']} {message}",
        "# when that is put right (pyscore dead-letter list shows all):",
        "pyscore dead-letter retry --all",
    )


def queue(case: Case) -> Iterator[Verdict]:
    """Look whether vacuum keeps up with the queue, whose every row is soon dead."""
    found, fine = case.row(_QUEUE), True
    if not found["autovacuum"]:
        fine = False
        yield warn(
            "autovacuum is off on this server: the queue grows without end",
            "ALTER SYSTEM RESET autovacuum;",
            "ALTER SYSTEM RESET track_counts;",
            "SELECT pg_reload_conf();",
        )
    if not found["autovacuum_here"]:
        fine = False
        yield warn(
            "autovacuum is off for the queue, which grows without end",
            "ALTER TABLE builder_score.score_recalc_queue RESET (autovacuum_enabled);",
        )
    if found["dead"] >= case.limits.dead_rows and found["dead"] > 5 * found["live"]:
        fine = False
        yield warn(
            f"{found['dead']:,} dead rows beside {found['live']:,} live ones: finding work is slow",
            "VACUUM (ANALYZE) builder_score.score_recalc_queue;",
        )
    if fine:
        yield ok(f"{found['live']:,} rows, {found['dead']:,} dead")


def lock_timeout(case: Case) -> Iterator[Verdict]:
    """Look whether the worker lets go before an application that waits for it sees a deadlock."""
    found = case.row(_PATIENCE)
    patience: timedelta = found["lock_timeout"]
    said = f"a batch waits {_milliseconds(patience)} ms for a lock"
    if patience > found["looks"] / 2:
        enough = found["looks"] / 4
        yield warn(
            f"{said}, and deadlock_timeout is {found['deadlock_timeout']}: where a trigger on "
            "users waits for the application, it may be the application that a deadlock ends",
            f"UPDATE builder_score.settings SET lock_timeout = '{_milliseconds(enough)} ms';",
        )
    else:
        yield ok(said)


def _milliseconds(time: timedelta) -> str:
    return f"{time / timedelta(milliseconds=1):g}"


def xmin(case: Case) -> Iterator[Verdict]:
    """Look who keeps vacuum from removing what the queue has done with."""
    found = [*_transactions(case), *_prepared(case), *_slots(case), *_standbys(case)]
    if not case.sees_activity:
        found.append(
            warn(
                f"{case.session['role']} does not see what other roles' sessions do",
                "-- as a superuser:",
                f"GRANT pg_read_all_stats TO {case.session['quoted_role']};",
            )
        )
    yield from found or [
        ok(f"nothing holds back vacuum for {_seconds(case.limits.held_for)} or longer")
    ]


def _transactions(case: Case) -> Iterator[Verdict]:
    for row in case.rows(_TRANSACTIONS, case.limits.held_for):
        application = f"{row['application']}, " if row["application"] else ""
        who = f"{row['pid']} ({application}role {row['role']})"
        end = "terminate" if row["state"] != "active" else "cancel"
        unless = ["-- unless it is a dump or a report, which ends:"] if end == "cancel" else []
        yield warn(
            f"process {who}, {row['state']}, is in a transaction since {_seconds(row['age'])}",
            *unless,
            f"SELECT pg_{end}_backend({row['pid']});",
        )


def _prepared(case: Case) -> Iterator[Verdict]:
    for row in case.rows(_PREPARED, case.limits.held_for):
        yield warn(
            f"transaction {row['gid']} of {row['owner']} is prepared since {_seconds(row['age'])}",
            "-- or COMMIT PREPARED: its transaction manager knows which",
            f"ROLLBACK PREPARED {row['gid']};",
        )


def _slots(case: Case) -> Iterator[Verdict]:
    if case.is_standby:
        return
    for row in case.rows(_SLOTS):
        yield warn(
            f"nobody reads replication slot {row['slot_name']}: it keeps WAL, and dead rows, "
            "for ever",
            "-- unless its reader comes back soon:",
            f"SELECT pg_drop_replication_slot({row['quoted']});",
        )


def _standbys(case: Case) -> Iterator[Verdict]:
    rows: list[dict[str, Any]] = case.rows(_STANDBYS, case.limits.xids)
    for row in rows:
        who = " at ".join(filter(None, [row["application"], row["address"]]))
        yield warn(
            f"standby {who} holds back vacuum by {row['age']:,} transactions "
            "(hot_standby_feedback)",
            "-- on the standby: end its long queries, or",
            "ALTER SYSTEM SET hot_standby_feedback = off;",
            "SELECT pg_reload_conf();",
        )
