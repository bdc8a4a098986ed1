"""``pyscore worker``: for a PostgreSQL without pg_cron. The loop itself is the same procedure."""

import signal
from types import FrameType
from typing import Never

import click

from pyscore import address
from pyscore.cli.options import dsn_option, installed
from pyscore.cli.working import Loop, Others, look
from pyscore.errors import PyscoreError

UNHEALTHY = 3  # exit code


@click.command()
@dsn_option
@click.option("--once", is_flag=True, help="Process what is due now, and return.")
@click.option(
    "--number",
    type=click.IntRange(1, 16),
    metavar="N",
    help="Run this one of settings.workers alone, for a service of its own each.  [default: all]",
)
def worker(dsn: str | None, once: bool, number: int | None) -> None:
    """Compute scores where pg_cron does not: runs until SIGTERM or SIGINT.

    Stopping it at any moment is safe: a batch is one transaction. It survives restarts of the
    server, and ends with 1 once pyscore is uninstalled; a second one of the same number waits until
    the first one is gone. Each of settings.workers has a connection of its own. While paused or
    detached it does nothing, and says so; with --once it then exits with 3 if something was due.
    """
    if once and number is not None:
        raise click.UsageError("--once and --number do not go together")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if once:
            _drain(dsn)
            return
        _run(dsn, number)
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("stopped", err=True)


def _interrupt(number: int, frame: FrameType | None) -> Never:
    # psycopg cancels the running statement, which rolls the batch back, and passes this on
    raise KeyboardInterrupt


def _drain(dsn: str | None) -> None:
    with installed(dsn) as connection:
        connection.execute("call builder_score.drain()")
        obstacle, _ = look(connection)
        if not obstacle:
            return
        row = connection.execute("select due_now from builder_score.health").fetchone()
        due: int = (row or {})["due_now"]
    if due:
        raise PyscoreError(f"nothing was processed: {obstacle}", exit_code=UNHEALTHY)
    click.echo(f"nothing was processed: {obstacle}", err=True)


def _run(dsn: str | None, number: int | None) -> None:
    with installed(dsn):
        pass  # a wrong address or a missing schema ends it; later failures are waited out
    click.echo(f"working on {address.describe(address.resolve(dsn))}", err=True)
    if number is not None:
        Loop(dsn, number).run()
        return
    others = Others(dsn)
    try:
        Loop(dsn, 1, found_workers=others.hire).run()
    finally:
        others.stop()
