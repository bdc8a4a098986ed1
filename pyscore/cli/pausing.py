"""``pyscore pause`` and ``pyscore resume``."""

from __future__ import annotations

from typing import Any

import click
from psycopg import Connection
from psycopg.rows import DictRow

from pyscore.cli.kinds import PlainText
from pyscore.cli.options import dsn_option, installed, json_option, print_json
from pyscore.cli.wording import printable

_BEFORE = "select paused, paused_reason from builder_score.settings for update"
_SET = "update builder_score.settings set paused = %s, paused_reason = %s"

_WHO_GOES_ON = {
    "pg_cron": "pg_cron's next run, within a minute, goes on",
    "worker": "the worker goes on, within a minute at the latest",
    "none": "nothing runs the worker: pyscore status",
}


@click.command()
@click.option(
    "--reason", type=PlainText(), metavar="TEXT", help="Why, for the next person who looks."
)
@dsn_option
@json_option
def pause(reason: str | None, dsn: str | None, as_json: bool) -> None:
    """Stop computing scores, until `pyscore resume`.

    Events are still queued, and scores stay readable. Pausing again keeps the reason, unless a new
    one is given.
    """
    with installed(dsn) as connection, connection.transaction():
        before = _before(connection)
        if reason is None:
            reason = before["paused_reason"] if before["paused"] else None
        reason = (reason or "").strip() or None
        connection.execute(_SET, [True, reason])
    if as_json:
        print_json(_as_data(True, reason, before))
        return
    said = f": {printable(reason)}" if reason else ""
    if before["paused"] and before["paused_reason"] == reason:
        click.echo(f"paused already{said}")
    elif before["paused"]:
        click.echo(f"paused{said} (before: paused, {_reason(before)})")
    else:
        click.echo(f"paused{said} (before: running)")
        click.echo("a batch that is running now finishes; events are still queued")
    click.echo("go on with: pyscore resume")


@click.command()
@dsn_option
@json_option
def resume(dsn: str | None, as_json: bool) -> None:
    """Compute scores again after `pyscore pause`."""
    with installed(dsn) as connection, connection.transaction():
        before = _before(connection)
        connection.execute(_SET, [False, None])
        row = connection.execute("select builder_score.scheduler() as scheduler").fetchone()
        assert row is not None
    if as_json:
        print_json(_as_data(False, None, before))
        return
    if before["paused"]:
        click.echo(f"running again (before: paused, {_reason(before)})")
        click.echo(_WHO_GOES_ON[row["scheduler"]])
    else:
        click.echo("running already")


def _before(connection: Connection[DictRow]) -> dict[str, Any]:
    row = connection.execute(_BEFORE).fetchone()
    assert row is not None  # the row cannot be removed
    return row


def _reason(before: dict[str, Any]) -> str:
    return printable(before["paused_reason"] or "no reason given")


def _as_data(paused: bool, reason: str | None, before: dict[str, Any]) -> dict[str, Any]:
    return {
        "paused": paused,
        "paused_reason": reason,
        "paused_before": before["paused"],
        "paused_reason_before": before["paused_reason"],
    }
