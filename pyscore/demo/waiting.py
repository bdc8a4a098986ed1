"""Waits until the worker that pg_cron starts has scored everyone."""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg.rows import dict_row
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from pyscore.demo.stage import Stage
from pyscore.errors import PyscoreError

PATIENCE = 150.0
"""Seconds without progress; a job that is in order starts within 60."""

POLL = 0.1  # seconds

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
    where status = 'failed' and start_time > %s order by runid desc limit 1
"""


@dataclass(frozen=True)
class Scored:
    """How it went.

    Attributes:
        people: How many there are; all have a score.
        waited: From that first look to the start of the job.
        worked: From there to the end of the last batch.
        recalculated: How many recalculations that took.
        put_off: Queue rows that wait for a debounce window to close.
    """

    people: int
    waited: timedelta
    worked: timedelta
    recalculated: int
    put_off: int


def wait_until_scored(
    stage: Stage, before: dict[str, Any], *, patience: float = PATIENCE
) -> Scored:
    """Wait until nobody is without a score and nothing is due; on a terminal, show how it goes.

    Args:
        stage: The worker's database.
        before: What `look` returned before the worker could start.
        patience: Seconds without progress after which something must be wrong.

    Raises:
        PyscoreError: The job fails, or nothing moves any more.
    """
    seen = before
    since: datetime = before["now"]
    began: datetime | None = None
    moved = time.monotonic()
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("scored, {task.fields[queued]:,} queued"),
        console=stage.console,
        transient=True,
        disable=not stage.console.is_terminal,
    ) as progress:
        task = progress.add_task("waiting", total=seen["people"], queued=seen["queue_depth"])
        while seen["scored"] < seen["people"] or seen["due_now"] or began is None:
            time.sleep(POLL)
            last, seen = seen, look(stage)
            if began is None and seen["last_run_at"] and seen["last_run_at"] > since:
                began = seen["last_run_at"]
            _refuse_failure(stage, since)
            if (last["scored"], last["queue_depth"]) != (seen["scored"], seen["queue_depth"]):
                moved = time.monotonic()
            if time.monotonic() - moved > patience:
                raise PyscoreError(
                    f"{seen['scored']} of {seen['people']} people are scored and nothing has moved"
                    f" for {patience:g} s; scheduler: {seen['scheduler']},"
                    f" last error: {seen['last_error'] or 'none'}"
                )
            progress.update(
                task,
                description="scoring"
                if began
                else f"pg_cron starts in {60 - seen['now'].second:>2} s",
                completed=seen["scored"],
                queued=seen["queue_depth"],
            )
    return Scored(
        people=seen["people"],
        waited=began - since,
        worked=seen["last_batch_at"] - began,
        recalculated=seen["recalculated"] - before["recalculated"],
        put_off=seen["queue_depth"],
    )


def look(stage: Stage) -> dict[str, Any]:
    """Return builder_score.health's row, with now, people and scored."""
    with stage.connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(_LOOK).fetchone()
    assert found is not None  # health is one row
    return found


def _refuse_failure(stage: Stage, since: datetime) -> None:
    if stage.one("select to_regclass('cron.job_run_details') is null"):
        return  # nothing but the patience tells
    row = stage.connection.execute(_FAILED_RUN, [since]).fetchone()
    if row is not None:
        raise PyscoreError(f"pg_cron's job failed: {row[0]}")
