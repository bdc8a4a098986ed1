"""procrastinate, a queue in PostgreSQL: one job a user, which calls a per-user SQL function.

Its schema and its worker are its own (`procrastinate schema --apply`, `procrastinate worker`);
declared is that twenty jobs run at a time, which was fastest: of 1, 5, 10 and 20 jobs, 500 a run on
a busy machine of two cores, 5 did 1.9 times the jobs a second of its default, one; 10 did 2.2 and
20 did 2.5 times (medians of nine rounds), and the processor time of its worker fell from 3.7 to
2.5 ms a job. That is fair, and a little kind: the jobs are there before the clock starts, which is
when the first of them does, and are asynchronous on a pool of connections, as its manual advises.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import procrastinate
from procrastinate.types import JSONDict
from psycopg import Connection

from benchmarks.peers import procrastinate_tasks

JOBS_AT_A_TIME = 20


def install(database: str, db: Connection[Any]) -> None:
    """Its tables, and the function that its jobs call."""
    _run(database, "schema", "--apply")
    db.execute(Path(__file__).with_name("per_user.sql").read_bytes())


def defer(database: str, user_ids: Sequence[UUID]) -> None:
    """Put in one job a user."""
    connector = procrastinate.SyncPsycopgConnector(conninfo=database)
    with procrastinate_tasks.app.replace_connector(connector) as app, app.open():
        recalculate = app.configure_task(procrastinate_tasks.recalculate.name)
        jobs: list[JSONDict] = [{"user_id": str(user_id)} for user_id in user_ids]
        recalculate.batch_defer(*jobs)


def work(database: str, db: Connection[Any], *, at_a_time: int = JOBS_AT_A_TIME) -> float:
    """Do all jobs, and say how many seconds from the start of the first to the end of the last."""
    _run(database, "worker", "--one-shot", "--concurrency", str(at_a_time))
    row = db.execute(
        """
        select extract(epoch from max(at) - min(at) filter (where type = 'started'))::float8,
               count(*) filter (where type = 'succeeded') = count(distinct job_id)
        from procrastinate_events
        """
    ).fetchone()
    assert row is not None
    seconds, all_of_them = row
    if not all_of_them:
        raise RuntimeError("procrastinate left jobs undone")
    return seconds


def _run(database: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "procrastinate", "-a", f"{procrastinate_tasks.__name__}.app"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | {procrastinate_tasks.DATABASE: database},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"procrastinate {arguments[0]} failed:\n{done.stderr}")
