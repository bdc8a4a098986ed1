"""``pyscore status``."""

import sys
from datetime import timedelta
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from pyscore.cli.options import dsn_option, installed, json_option, print_json

STALE = timedelta(minutes=2)
"""A resident worker beats every few seconds, and a pg_cron job starts every minute."""


@click.command()
@dsn_option
@json_option
def status(dsn: str | None, as_json: bool) -> None:
    """Show how the queue and its worker are; exit 3 when something needs a person."""
    with installed(dsn) as connection:
        health = connection.execute("select * from builder_score.health").fetchone() or {}
    problems = find_problems(health)
    if as_json:
        print_json({**health, "problems": problems})
    else:
        _print(health, problems)
    sys.exit(3 if problems else 0)


def find_problems(health: dict[str, Any]) -> list[str]:
    """Say what is wrong, each with what to do.

    Args:
        health: The row of builder_score.health.
    """
    problems: list[str] = []
    if not health["attached"]:
        problems.append("detached: SELECT * FROM builder_score.attach();")
    if health["paused"]:
        reason = health["paused_reason"] or "no reason given"
        problems.append(f"paused ({reason}): UPDATE builder_score.settings SET paused = false;")
    elif health["scheduler"] == "none":
        problems.append(
            "nothing runs the worker: SELECT * FROM builder_score.schedule(); "
            "or keep `pyscore worker` running"
        )
    elif health["heartbeat_age"] is not None and health["heartbeat_age"] > STALE:
        problems.append(
            f"the worker was last heard of {_round(health['heartbeat_age'])} ago: "
            "see cron.job_run_details and the server's log"
        )
    if health["oldest_due_age"] is not None and health["oldest_due_age"] > STALE:
        problems.append(f"the oldest due row waits since {_round(health['oldest_due_age'])}")
    if health["dead_letters"]:
        problems.append(
            f"{health['dead_letters']} dead letters: SELECT * FROM builder_score.score_dead_letter;"
        )
    return problems


def _round(age: timedelta) -> timedelta:
    return timedelta(seconds=round(age.total_seconds()))


def _print(health: dict[str, Any], problems: list[str]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in health.items():
        if value is None:
            continue
        shown = str(_round(value)) if isinstance(value, timedelta) else str(value)
        table.add_row(name.replace("_", " "), shown)
    console = Console(highlight=False)
    console.print(table)
    for problem in problems:
        console.print(f"! {problem}", markup=False, soft_wrap=True)
    if not problems:
        console.print("healthy")
