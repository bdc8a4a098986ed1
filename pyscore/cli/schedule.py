"""``pyscore schedule`` and ``pyscore unschedule``: the pg_cron job that runs the worker."""

from __future__ import annotations

import click
import psycopg
from psycopg import Connection
from psycopg.rows import DictRow

from pyscore.cli.kinds import PlainText
from pyscore.cli.options import cron_dsn_option, dsn_option, installed
from pyscore.errors import PyscoreError


@click.command()
@dsn_option
@cron_dsn_option
@click.option(
    "--as",
    "run_as",
    type=PlainText(),
    metavar="ROLE",
    help="Whom the worker runs as; only a superuser may choose. [default: who schedules it]",
)
def schedule(dsn: str | None, cron_dsn: str | None, run_as: str | None) -> None:
    """Have pg_cron run the worker, each minute and when the server starts.

    Jobs that are there already are replaced. pg_cron works in one database of a server; where that
    is another one, --cron-dsn connects to it.
    """
    with installed(dsn) as connection:
        if cron_dsn is not None:
            from pyscore import cron

            said = cron.schedule(connection, cron_dsn, run_as=run_as)
        else:
            said = _schedule_here(connection, run_as)
    for line in said:
        click.echo(line)


@click.command()
@dsn_option
@cron_dsn_option
def unschedule(dsn: str | None, cron_dsn: str | None) -> None:
    """Remove the pg_cron jobs. A run that is under way goes on to its end, within a minute."""
    from pyscore import cron

    with installed(dsn) as connection:
        if cron_dsn is not None:
            said = cron.unschedule(connection, cron_dsn)
        else:
            said = _lines(connection, "select u from builder_score.unschedule() as u")
        for line in said or ["there was no pg_cron job that this role may remove"]:
            click.echo(line)
        if left := cron.left_jobs(connection):
            raise PyscoreError(
                f"pg_cron jobs of this database stay (--cron-dsn removes them): {left}"
            )


def _schedule_here(connection: Connection[DictRow], run_as: str | None) -> list[str]:
    connection.add_notice_handler(_warn)
    with connection.transaction():
        said = _lines(connection, "select s from builder_score.schedule(%s) as s", run_as)
        done = connection.execute(
            "select exists (select from builder_score.known_jobs() where scheduled_at = now()) as s"
        ).fetchone()
    if not (done or {}).get("s"):
        raise PyscoreError(said[-1])
    return said


def _lines(connection: Connection[DictRow], query: str, *parameters: str | None) -> list[str]:
    rows = connection.execute(query.encode(), parameters or None).fetchall()
    return [str(value) for row in rows for value in row.values()]


def _warn(notice: psycopg.errors.Diagnostic) -> None:
    if notice.severity_nonlocalized == "WARNING":
        hint = f"; {notice.message_hint}" if notice.message_hint else ""
        click.echo(f"pyscore: {notice.message_primary}{hint}", err=True)
