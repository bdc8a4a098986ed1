"""``pyscore status``, once or again and again."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator
from contextlib import closing
from datetime import timedelta
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from pyscore import drawing
from pyscore.cli.console import console
from pyscore.cli.kinds import Seconds
from pyscore.cli.looking import Look, Lost, keep_looking, look
from pyscore.cli.options import dsn_option, installed, json_line, json_option, print_json
from pyscore.cli.picture import draw_facts, problem_line, verdict
from pyscore.cli.problems import Problem, find_problems
from pyscore.cli.wording import duration
from pyscore.errors import PyscoreError

REMEMBERED = 60
"""Looks that a sparkline shows."""


@click.command()
@dsn_option
@click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
@click.option(
    "--interval",
    type=Seconds(min=0.1, max=3600),
    metavar="SECONDS",
    help="Time between two looks, for --watch; four times as long as a look takes, where that is "
    "more.  [default: 1]",
)
@click.option(
    "--looks", type=click.IntRange(min=1), metavar="N", help="Stop --watch after N looks."
)
@json_option
def status(
    dsn: str | None, watch: bool, interval: float | None, looks: int | None, as_json: bool
) -> None:
    """Show how the queue and its worker are; exit 3 when something needs a person.

    --watch draws the lag (how long the oldest due row has waited) and the throughput of the last 60
    looks. Where the output is no terminal, it prints a line a look; with --json, an object a line.
    """
    if not watch:
        if interval is not None or looks is not None:
            raise click.UsageError("--interval and --looks go with --watch")
        with installed(dsn) as connection:
            seen = look(connection)
        problems = find_problems(seen)
        if as_json:
            print_json(_as_data(seen, problems))
        else:
            out = console()
            out.print(draw_facts(seen, ascii_only=out.options.ascii_only))
            for line in verdict(problems):
                out.print(line, soft_wrap=True)
        sys.exit(3 if problems else 0)
    try:
        with closing(keep_looking(dsn, interval=interval or 1.0, looks=looks)) as seen_in_turn:
            last = _watch(seen_in_turn, as_json=as_json)
    except KeyboardInterrupt:
        sys.exit(0)
    if isinstance(last, Lost):
        raise PyscoreError(last.reason)
    sys.exit(3 if find_problems(last) else 0)


class History:
    """What the last looks have shown.

    Attributes:
        lags: Seconds for which the oldest due row had waited; None for a look that failed.
        rates: Recalculations a second since the look before; None where there is none.
        last: The last look that succeeded.
    """

    def __init__(self) -> None:
        self.lags: deque[float | None] = deque(maxlen=REMEMBERED)
        self.rates: deque[float | None] = deque(maxlen=REMEMBERED)
        self.last: Look | None = None

    def add(self, seen: Look | Lost) -> None:
        """Remember one more look."""
        if isinstance(seen, Lost):
            self.lags.append(None)
            self.rates.append(None)
            return
        lag: timedelta | None = seen.health["oldest_due_age"]
        self.lags.append(lag.total_seconds() if lag else 0.0)
        self.rates.append(_rate(self.last, seen))
        self.last = seen


def _rate(before: Look | None, now: Look) -> float | None:
    if before is None or now.at <= before.at:
        return None
    count = now.health["recalculated"] - before.health["recalculated"]
    # below zero: reinstalled in between
    return max(0.0, count / (now.at - before.at).total_seconds())


def _watch(seen_in_turn: Generator[Look | Lost], *, as_json: bool) -> Look | Lost:
    """Show each look as it comes; give the last one."""
    out = console()
    history = History()
    seen: Look | Lost = Lost("no look was taken")
    if as_json or not out.is_terminal:
        for seen in seen_in_turn:
            history.add(seen)
            if isinstance(seen, Lost):
                click.echo(f"pyscore: {seen.reason}; trying again", err=True)
            else:
                problems = find_problems(seen)
                rate = history.rates[-1]
                click.echo(
                    json_line(_as_data(seen, problems) | {"throughput": rate})
                    if as_json
                    else _line(seen, problems, rate)
                )
        return seen
    with Live(console=out, auto_refresh=False) as live:
        for seen in seen_in_turn:
            history.add(seen)
            live.update(_draw_watched(seen, history, out), refresh=True)
    return seen


# As data ------------------------------------------------------------------------------------------


def _as_data(seen: Look, problems: list[Problem]) -> dict[str, Any]:
    return {
        "at": seen.at,
        **seen.health,
        "queue": seen.queue,
        "backfill": seen.backfill,
        "job_runs": seen.job_runs,
        "problems": [str(problem) for problem in problems],
    }


def _line(seen: Look, problems: list[Problem], rate: float | None) -> str:
    health = seen.health
    said = [f"{seen.at:%H:%M:%S}", f"queue {health['queue_depth']:,}", f"due {health['due_now']:,}"]
    if health["oldest_due_age"] is not None:
        said.append(f"lag {duration(health['oldest_due_age'])}")
    said.append(f"{health['recalculated_per_second'] if rate is None else rate:,.1f}/s")
    if health["retrying"]:
        said.append(f"retrying {health['retrying']:,}")
    said.append("; ".join(problem.what for problem in problems) or "healthy")
    return "  ".join(said)


# As a picture -------------------------------------------------------------------------------------


def _draw_watched(seen: Look | Lost, history: History, out: Console) -> RenderableType:
    ascii_only = out.options.ascii_only
    parts: list[RenderableType] = []
    if history.last is not None:
        facts = draw_facts(history.last, ascii_only=ascii_only)
        for name, values, unit in (("lag", history.lags, "s"), ("rate", history.rates, "/s")):
            spark = drawing.sparkline(list(values), ascii_only=ascii_only)
            known = [value for value in values if value is not None]
            most, latest = max(known, default=0.0), known[-1] if known else 0.0
            facts.add_row(name, Text(f"{spark}\n{latest:,.1f} {unit}, at most {most:,.1f} {unit}"))
        parts.append(facts)
    if isinstance(seen, Lost):
        parts.append(problem_line(f"{seen.reason}; trying again"))
    else:
        parts.extend(verdict(find_problems(seen)))
    return Group(*parts)
