"""``pyscore verify``: are the stored scores right?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click
from psycopg import Connection
from psycopg.rows import DictRow
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pyscore.cli.console import console
from pyscore.cli.options import dsn_option, installed, json_option, print_json
from pyscore.cli.verifying import (
    Finding,
    Findings,
    Miscount,
    Repair,
    Standing,
    batches,
    miscounts,
    recount,
    repair,
    require_attached,
    require_writable,
    verify_batch,
)
from pyscore.cli.wording import counted, duration, number, printable

SHOWN = 20
ORDER: tuple[Standing, ...] = ("wrong", "failing", "dead letter", "pending")
"""Standings, the worst first."""

MOST = 2**63 - 1
"""What PostgreSQL's LIMIT can count to."""


@click.command()
@dsn_option
@click.option(
    "--sample",
    type=click.IntRange(min=1, max=MOST),
    metavar="N",
    help="Look at N users at random instead of all.",
)
@click.option(
    "--repair", "to_repair", is_flag=True, help="Recompute the users whose scores are wrong."
)
@json_option
def verify(dsn: str | None, sample: int | None, to_repair: bool, as_json: bool) -> None:
    """Compare stored scores with what they should be; exit 3 when one is wrong.

    Reads a thousand users a statement, locks nothing and writes nothing, so it also runs on a
    replica. Users for whom something is queued are pending, not wrong. --repair recomputes those
    who are wrong, one by one; where a row is held by somebody else it is queued instead. How many
    people are counted to have each score, which ranks rest on, is compared and repaired as well.
    """
    repairs: list[Repair] = []
    recounted: list[Miscount] = []
    findings = Findings(most_pending=None if as_json else SHOWN)
    with installed(dsn) as connection:
        if to_repair:
            require_writable(connection)
        require_attached(connection)
        with _progress("verifying", _count(connection, sample)) as advance:
            for ids in batches(connection, sample):
                findings.add(len(ids), verify_batch(connection, ids))
                advance(len(ids))
        if to_repair and (wrong := findings.of("wrong")):
            found_later: list[Finding] = []
            with _progress("repairing", len(wrong)) as advance:
                for done, found in repair(connection, wrong):
                    if done is not None:
                        repairs.append(done)
                    found_later.extend(found)
                    advance(1)
            findings.replace("wrong", found_later)
        miscounted = miscounts(connection)
        if to_repair and miscounted:
            recount(connection)
            recounted, miscounted = miscounted, miscounts(connection)
    if as_json:
        print_json(_as_data(findings, miscounted, repairs if to_repair else None, recounted))
    else:
        _print(findings, repairs, after_repair=to_repair)
        _print_miscounts(miscounted, recounted, after_repair=to_repair)
    sys.exit(0 if findings.healthy and not miscounted else 3)


def _count(connection: Connection[DictRow], sample: int | None) -> int | None:
    """Count whom there is to look at, for the progress bar's sake alone."""
    if not console(stderr=True).is_terminal:
        return None
    row = connection.execute("select count(*) as users from builder_score.host_users").fetchone()
    assert row is not None
    return row["users"] if sample is None else min(sample, row["users"])


@contextmanager
def _progress(what: str, total: int | None) -> Generator[Callable[[int], None]]:
    """Draw a progress bar on a terminal's stderr; give the function that moves it on."""
    err = console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def _as_data(
    findings: Findings,
    miscounted: list[Miscount],
    repairs: list[Repair] | None,
    recounted: list[Miscount],
) -> dict[str, Any]:
    counts = findings.counts
    data: dict[str, Any] = {
        "checked": findings.checked,
        "right": findings.right,
        "pending": counts["pending"],
        "wrong": counts["wrong"],
        "dead_letters": counts["dead letter"],
        "failing": counts["failing"],
        "findings": [asdict(finding) for finding in findings.details],
        "miscounted": [asdict(miscount) for miscount in miscounted],
    }
    if repairs is not None:
        data["repairs"] = [asdict(done) for done in repairs]
        data["recounted"] = [asdict(miscount) for miscount in recounted]
    return data


def _print(findings: Findings, repairs: list[Repair], *, after_repair: bool) -> None:
    out = console()
    for done in repairs[:SHOWN]:
        out.print(printable(str(done)), markup=False, soft_wrap=True)
    if len(repairs) > SHOWN:
        out.print(f"and {len(repairs) - SHOWN:,} more repaired; --json has all")
    counts = findings.counts
    out.print(
        f"checked {findings.checked:,}: {findings.right:,} right, {counts['pending']:,} pending, "
        f"{counts['wrong']:,} wrong, {counted(counts['dead letter'], 'dead letter')}, "
        f"{counts['failing']:,} failing",
        soft_wrap=True,
    )
    if findings.details:
        worst_first = sorted(findings.details, key=lambda finding: ORDER.index(finding.standing))
        out.print(_table(worst_first[:SHOWN]))
        if counts.total() > SHOWN:
            out.print(f"and {counts.total() - SHOWN:,} more; --json has all")
        for finding in findings.of("failing")[:SHOWN]:
            line = f"! {finding.username or finding.user_id} fails with {finding.message}"
            out.print(printable(line), markup=False, soft_wrap=True)
    advice: dict[Standing, str] = {
        "wrong": "written again by something else: a trigger or a rule on the users table?"
        if after_repair
        else "put right with: pyscore verify --repair",
        "dead letter": "pyscore dead-letter list",
        "failing": "what is said above keeps their scores from being computed",
    }
    for standing, what_to_do in advice.items():
        if counts[standing]:
            plural = "s" if standing == "dead letter" and counts[standing] > 1 else ""
            out.print(f"! {counts[standing]:,} {standing}{plural}: {what_to_do}", soft_wrap=True)


def _print_miscounts(
    miscounted: list[Miscount], recounted: list[Miscount], *, after_repair: bool
) -> None:
    out = console()
    if recounted:
        out.print(f"{counted(len(recounted), 'score')} counted anew", soft_wrap=True)
    if not miscounted:
        return
    what_to_do = (
        "somebody writes score_state or score_counts with triggers disabled"
        if after_repair
        else "put right with: pyscore verify --repair"
    )
    out.print(
        f"! {counted(len(miscounted), 'score')} miscounted, so ranks are wrong: {what_to_do}",
        soft_wrap=True,
    )
    for miscount in miscounted[:SHOWN]:
        out.print(f"  {miscount}", markup=False, soft_wrap=True)
    if len(miscounted) > SHOWN:
        out.print(f"and {len(miscounted) - SHOWN:,} more; --json has all")


def _table(findings: list[Finding]) -> Table:
    # with ids of 36 characters it just fits into 80
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("user id", no_wrap=True)
    table.add_column("username", no_wrap=True, overflow="crop", min_width=6)
    table.add_column("stored", justify="right")
    table.add_column("computed", justify="right")
    table.add_column("ago", justify="right", no_wrap=True)
    table.add_column("standing", no_wrap=True)
    now = datetime.now(UTC)
    for finding in findings:
        table.add_row(
            Text(printable(finding.user_id)),
            Text(printable(finding.username or "")),
            number(finding.stored),
            "" if finding.standing == "failing" else number(finding.computed),
            _ago(finding.computed_at, now),
            finding.standing,
        )
    return table


def _ago(moment: datetime | None, now: datetime) -> str:
    if moment is None:
        return "never"
    return " ".join(duration(now - moment).split()[:2])  # the larger unit alone
