"""Waits for the worker: that it is there, that everyone is scored, that nothing is left to do."""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg.rows import dict_row
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from pyscore.demo.stage import Stage, step
from pyscore.errors import PyscoreError

PATIENCE = 150.0
"""Seconds without progress; a job that is in order starts within 60."""

POLL = 0.02
"""Seconds between two looks; a look counts the queue, so more while that is long."""

SCORING_POLL = 0.1

SOON = 3.0
"""Seconds within which pg_cron's @reboot job starts, if it does at all."""

_BEGAN = "select started_at from builder_score.worker_status where worker = 'resident'"

_LOOK = """
    select h.*, clock_timestamp() as now, p.people, p.scored
    from builder_score.health as h
    cross join (
        select count(*) as people, count(s.computed_at) as scored
        from builder_score.host_users as u
        left join builder_score.score_state as s on s.user_id = u.id
    ) as p
"""

_FAILED_RUN = """
    select return_message from cron.job_run_details
    where status = 'failed' and start_time > greatest(%s, pg_postmaster_start_time())
    order by runid desc limit 1
"""


@dataclass(frozen=True)
class Scored:
    """How it went.

    Attributes:
        people: How many there are; all have a score.
        worked: From the worker's start to the end of its last batch.
        recalculated: How many recalculations that took.
        put_off: Queue rows that wait for a debounce window to close.
    """

    people: int
    worked: timedelta
    recalculated: int
    put_off: int


def look(stage: Stage) -> dict[str, Any]:
    """Return builder_score.health's row, with now, people and scored."""
    with stage.connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(_LOOK).fetchone()
    assert found is not None  # health is one row
    return found


def wait_for_worker(stage: Stage, since: datetime, *, patience: float = PATIENCE) -> datetime:
    """Wait until the worker runs; when that takes long, say what it waits for.

    Args:
        stage: The worker's database.
        since: What began before is another run.
        patience: Seconds after which something must be wrong.

    Returns:
        When it began.

    Raises:
        PyscoreError: It fails, or it does not come.
    """
    began: datetime | None = None
    started = time.monotonic()
    said = False
    with step(stage.console, "the worker starts") as remarks:
        while (began := stage.one(_BEGAN)) is None or began <= since:
            refuse_failure(stage, since)
            waited = time.monotonic() - started
            if waited > patience:
                raise PyscoreError(
                    f"the worker did not start within {patience:g} s; {last_known(look(stage))}"
                )
            if waited > SOON and not said and stage.worker.name == "pg_cron":
                left = 60 - look(stage)["now"].second
                stage.console.print(
                    f"no @reboot job came; pg_cron's next minute begins in {left} s ...",
                    markup=False,
                )
                said = True
            time.sleep(POLL)
        remarks.append(f"by {stage.worker.name}")
    return began


def wait_until_scored(
    stage: Stage, before: dict[str, Any], began: datetime, *, patience: float = PATIENCE
) -> Scored:
    """Wait until nobody is without a score and nothing is due; on a terminal, show how it goes.

    Args:
        stage: The worker's database.
        before: What `look` returned before the worker could start.
        began: When it did.
        patience: Seconds without progress after which something must be wrong.

    Raises:
        PyscoreError: The worker fails, or nothing moves any more.
    """
    seen = look(stage)
    moved = time.monotonic()
    with Progress(
        SpinnerColumn(),
        TextColumn("scoring"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("people, {task.fields[queued]:,} events queued"),
        console=stage.console,
        transient=True,
        disable=not stage.console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=seen["people"], queued=seen["queue_depth"])
        while seen["scored"] < seen["people"] or seen["due_now"]:
            time.sleep(SCORING_POLL)
            last, seen = seen, look(stage)
            refuse_failure(stage, before["now"])
            if (last["scored"], last["queue_depth"]) != (seen["scored"], seen["queue_depth"]):
                moved = time.monotonic()
            if time.monotonic() - moved > patience:
                raise PyscoreError(
                    f"{seen['scored']} of {seen['people']} people are scored and nothing has moved"
                    f" for {patience:g} s; {last_known(seen)}"
                )
            progress.update(task, completed=seen["scored"], queued=seen["queue_depth"])
    return Scored(
        people=seen["people"],
        worked=max(seen["last_batch_at"] - began, timedelta(0)),
        recalculated=seen["recalculated"] - before["recalculated"],
        put_off=seen["queue_depth"],
    )


def wait_until_idle(stage: Stage, *, patience: float = PATIENCE) -> None:
    """Wait until nothing is queued and no walk over everyone is under way.

    Args:
        stage: The worker's database.
        patience: Seconds after which something must be wrong.

    Raises:
        PyscoreError: The worker fails, or does not finish.
    """
    since = look(stage)["now"]
    started = time.monotonic()
    while (seen := look(stage))["queue_depth"] or seen["backfill_seen"] is not None:
        refuse_failure(stage, since)
        if time.monotonic() - started > patience:
            raise PyscoreError(
                f"{seen['queue_depth']} events are still queued after {patience:g} s;"
                f" {last_known(seen)}"
            )
        time.sleep(POLL)


def refuse_failure(stage: Stage, since: datetime) -> None:
    """Raise a PyscoreError if the worker has failed.

    Args:
        stage: The worker's database.
        since: What began before is of no interest, nor what a restart of the server ended.
    """
    stage.worker.check()
    if stage.one("select to_regclass('cron.job_run_details') is null"):
        return  # nothing but the patience tells
    row = stage.connection.execute(_FAILED_RUN, [since]).fetchone()
    if row is not None:
        raise PyscoreError(f"pg_cron's job failed: {row[0]}")


def last_known(seen: dict[str, Any]) -> str:
    """Say what is known of the worker, for an error.

    Args:
        seen: What `look` returned.
    """
    return f"scheduler: {seen['scheduler']}, last error: {seen['last_error'] or 'none'}"
