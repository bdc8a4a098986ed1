"""Draws what ``pyscore status`` has seen."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pyscore import drawing
from pyscore.cli.looking import Look
from pyscore.cli.problems import Problem
from pyscore.cli.wording import duration, printable

BAR_WIDTH = 24
RUNS_SHOWN = 3
PRIORITIES = {0: "high", 10: "medium", 20: "low"}


def verdict(problems: list[Problem]) -> list[Text]:
    """Make a line for each problem, or the one that says that there is none."""
    return [problem_line(str(problem)) for problem in problems] or [Text("healthy")]


def problem_line(text: str) -> Text:
    """Make the line that shows a problem."""
    return Text(f"! {printable(text)}", style="bold red")


def draw_facts(seen: Look, *, ascii_only: bool) -> Table:
    """Make the table of what was seen: what it is, and how it is.

    Args:
        seen: The look.
        ascii_only: Whether the output can hold nothing else.
    """
    health = seen.health
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column()
    rows: dict[str, RenderableType | None] = {
        "scheduler": _scheduler(seen),
        "last runs": _runs(seen),
        "heartbeat": _ago(health["heartbeat_age"]),
        "workers": _workers(health),
        "attached": "yes" if health["attached"] else "no",
        "paused": _paused(health),
        "queue": _queue(seen),
        "backfill": _backfill(seen, ascii_only=ascii_only),
        "retrying": f"{health['retrying']:,}",
        "dead letters": f"{health['dead_letters']:,}",
        "throughput": f"{health['recalculated_per_second']:,.1f} a second, over this minute and "
        "the one before",
        "so far": f"{health['recalculated'] or 0:,} recalculated, {health['changed'] or 0:,} "
        f"changed, {health['failed'] or 0:,} failed",
        "last batch": _ago_at(health["last_batch_at"], seen.at),
        "last error": _last_error(seen),
    }
    for name, value in rows.items():
        if value is not None:
            facts.add_row(name, Text(value) if isinstance(value, str) else value)
    return facts


def _scheduler(seen: Look) -> str:
    scheduler = seen.health["scheduler"]
    if scheduler == "pg_cron":
        if seen.health["cron_database"]:
            return f"pg_cron, in database {printable(seen.health['cron_database'])}"
        return f"pg_cron, as {seen.job_runs[0]['run_as']}" if seen.job_runs else "pg_cron"
    if scheduler == "worker":
        return "`pyscore worker`"
    return "none"


def _runs(seen: Look) -> RenderableType | None:
    if seen.health["scheduler"] != "pg_cron":
        return None
    if not seen.job_runs:
        if seen.health["cron_database"]:
            return f"in cron.job_run_details of database {printable(seen.health['cron_database'])}"
        return "none yet, or cron.log_run is off, or this role may not see them"
    return Text("\n".join(_run(run, seen.at) for run in seen.job_runs[:RUNS_SHOWN]))


def _run(run: dict[str, Any], now: datetime) -> str:
    began, ended = run["started_at"], run["ended_at"]
    said = str(run["status"])
    if ended is not None:
        said += f" {duration(now - ended)} ago"
        if began is not None and ended > began:
            said += f", after {duration(ended - began)}"
    elif began is not None:
        said += f" for {duration(now - began)}"
    if run["status"] == "failed":
        said += f": {printable(' '.join((run['message'] or 'no message').split()))}"
    return said


def _ago(age: timedelta | None) -> str | None:
    return None if age is None else f"{duration(age)} ago"


def _ago_at(moment: datetime | None, now: datetime) -> str | None:
    return None if moment is None else _ago(now - moment)


def _workers(health: dict[str, Any]) -> str | None:
    if health["workers"] == 1:
        return None
    return f"{health['workers_heard']} of {health['workers']} heard of in the last 2 minutes"


def _paused(health: dict[str, Any]) -> str | None:
    if not health["paused"]:
        return None
    return f"yes: {printable(health['paused_reason'] or 'no reason given')}"


def _queue(seen: Look) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("priority")
    for name in ("rows", "due now", "oldest due"):
        table.add_column(name, justify="right")
    for row in seen.queue:
        age: timedelta | None = row["oldest_due_age"]
        table.add_row(
            f"{row['priority']} {PRIORITIES[row['priority']]}",
            f"{row['queue_depth']:,}",
            f"{row['due_now']:,}",
            "" if age is None else duration(age),
        )
    return table


def _backfill(seen: Look, *, ascii_only: bool) -> str | None:
    walk = seen.backfill
    if walk is None:
        return None
    count, total = walk["seen"], walk["estimated_total"]
    whom = "ageing accounts" if walk["only_ageing"] else "everyone"
    said = f"{whom} ({printable(walk['reason'])}), since {duration(seen.at - walk['started_at'])}"
    if total == 0:
        return f"{count:,} users seen; {said}"  # the planner has no statistics yet
    full, empty = (
        (drawing.ASCII_FULL, drawing.ASCII_EMPTY) if ascii_only else (drawing.FULL, drawing.EMPTY)
    )
    drawn = drawing.bar(min(count, total), total, BAR_WIDTH, full=full, empty=empty)
    return f"{drawn} {count:,} of about {total:,} users seen\n{said}"


def _last_error(seen: Look) -> str | None:
    if seen.health["last_error"] is None:
        return None
    age = _ago_at(seen.health["last_error_at"], seen.at)
    return f"{age}: {printable(' '.join(seen.health['last_error'].split()))}"
