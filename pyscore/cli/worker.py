"""``pyscore worker``: for a PostgreSQL without pg_cron. The loop itself is the same procedure."""

import signal
import time
from types import FrameType
from typing import Never

import click
import psycopg

from pyscore import address
from pyscore.cli.options import dsn_option, installed
from pyscore.errors import PyscoreError

LONGEST_WAIT = 5.0  # seconds between two tries to reach the server again


@click.command()
@dsn_option
@click.option("--once", is_flag=True, help="Process what is due now, and return.")
def worker(dsn: str | None, once: bool) -> None:
    """Compute scores where pg_cron does not: runs until SIGTERM or SIGINT.

    Stopping it at any moment is safe: a batch is one transaction. It survives restarts of the
    server; a second worker waits until the first one is gone.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if once:
            with installed(dsn) as connection:
                connection.execute("call builder_score.drain()")
            return
        _run(dsn)
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("stopped", err=True)


def _interrupt(number: int, frame: FrameType | None) -> Never:
    # psycopg cancels the running statement, which rolls the batch back, and passes this on
    raise KeyboardInterrupt


def _run(dsn: str | None) -> None:
    with installed(dsn):
        pass  # a wrong address or a missing schema ends it; later failures are waited out
    click.echo(f"working on {address.describe(address.resolve(dsn))}", err=True)
    wait = 0.1
    while True:
        try:
            with installed(dsn) as connection:
                connection.execute("set application_name = 'builder-score-worker'")
                connection.execute("set statement_timeout = 0")
                while True:
                    began = time.monotonic()
                    connection.execute("call builder_score.run_worker('1 minute')")
                    wait = 0.1
                    if time.monotonic() - began < 30:
                        time.sleep(1)  # paused, or another worker runs
        except (psycopg.Error, PyscoreError) as error:
            first_line = str(error).splitlines()[0]
            click.echo(f"pyscore: {first_line}; trying again", err=True)
            time.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT)
