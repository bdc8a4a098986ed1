"""``pyscore doctor``: what is broken, and what mends it."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import click
from psycopg import Connection
from psycopg.rows import DictRow, dict_row
from rich.text import Text

from pyscore import address
from pyscore.cli.console import console
from pyscore.cli.kinds import Seconds
from pyscore.cli.options import cron_dsn_option, dsn_option, json_option, print_json
from pyscore.cli.wording import counted, printable
from pyscore.doctor import Finding, Level, Limits, examine

_STYLES: dict[Level, str] = {"ok": "green", "warn": "bold yellow", "fail": "bold red"}


@click.command()
@dsn_option
@cron_dsn_option
@click.option(
    "--alembic-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The application's own alembic.ini: would its autogenerate drop what is ours?",
)
@click.option(
    "--held-for",
    type=Seconds(min=0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Age from which an open transaction counts as holding back vacuum for long.",
)
@json_option
def doctor(
    dsn: str | None,
    cron_dsn: str | None,
    alembic_config: Path | None,
    held_for: float,
    as_json: bool,
) -> None:
    """Look for all that is known to break, and say what mends it; exit 3 on a failure.

    Each line is ok, warn or fail; below it are the SQL (for psql) or the commands that mend it.
    Warnings alone exit with 0. Nothing is changed: the one score that is written, to see whether
    the application's triggers on users let it pass, is taken back at once. Works as any role,
    before pyscore is installed, and on a hot standby; it says what it could not look at, and as
    whom to run it.
    """
    with ExitStack() as opened:
        connection = _connect(opened, address.resolve(dsn))
        cron = None
        if cron_dsn is not None:
            cron = _connect(opened, address.resolve(cron_dsn, option="--cron-dsn"))
        limits = Limits(held_for=timedelta(seconds=held_for))
        findings = examine(connection, cron=cron, alembic_config=alembic_config, limits=limits)
    if as_json:
        print_json(_as_data(findings))
    else:
        _print(findings)
    sys.exit(3 if any(finding.level == "fail" for finding in findings) else 0)


def _connect(opened: ExitStack, conninfo: str) -> Connection[DictRow]:
    connection = opened.enter_context(address.connect(conninfo, pinned=True))
    connection.row_factory = cast(Any, dict_row)
    return cast(Connection[DictRow], connection)


def _count(findings: list[Finding], level: Level) -> int:
    return sum(finding.level == level for finding in findings)


def _as_data(findings: list[Finding]) -> dict[str, Any]:
    return {
        "ok": _count(findings, "ok"),
        "warnings": _count(findings, "warn"),
        "failures": _count(findings, "fail"),
        "findings": [
            {
                "check": finding.check,
                "level": finding.level,
                "message": finding.message,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }


def _print(findings: list[Finding]) -> None:
    out = console()
    width = max(len(finding.check) for finding in findings)
    said = None
    for finding in findings:
        line = Text(f"{finding.level:<4}", style=_STYLES[finding.level])
        line.append(
            f"  {finding.check:<{width}}  {printable(finding.message)}", style="default not bold"
        )
        out.print(line, soft_wrap=True)
        # to be copied: never folded; what mends several things is said once
        steps = (finding.remedy or "").splitlines() if finding.remedy != said else []
        said = finding.remedy
        for step in steps:
            out.print(Text(f"      {printable(step)}"), soft_wrap=True)
    out.print(
        f"{_count(findings, 'ok'):,} ok, {counted(_count(findings, 'warn'), 'warning')}, "
        f"{counted(_count(findings, 'fail'), 'failure')}",
        soft_wrap=True,
    )
