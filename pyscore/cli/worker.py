"""``pyscore worker``: for a PostgreSQL without pg_cron. The loop itself is the same procedure."""

import signal
import time
from datetime import timedelta
from types import FrameType
from typing import Never

import click
import psycopg
from psycopg import Connection
from psycopg.rows import DictRow

from pyscore import address
from pyscore.cli.options import dsn_option, installed
from pyscore.cli.problems import obstacles
from pyscore.errors import NotInstalledError, PyscoreError

UNHEALTHY = 3  # exit code

# What keeps a worker from working that does run; health counts the queue, this is cheap.
_OBSTACLES = """
select s.paused, s.paused_reason, h.attached_at is not null as attached, 'worker' as scheduler
from builder_score.settings as s cross join builder_score.host as h
"""

LONGEST_WAIT = 5.0  # seconds between two tries to reach the server again


@click.command()
@dsn_option
@click.option("--once", is_flag=True, help="Process what is due now, and return.")
def worker(dsn: str | None, once: bool) -> None:
    """Compute scores where pg_cron does not: runs until SIGTERM or SIGINT.

    Stopping it at any moment is safe: a batch is one transaction. It survives restarts of the
    server, and ends with 1 once pyscore is uninstalled; a second worker waits until the first one
    is gone. While paused or detached it does nothing, and says so; with --once it then exits with 3
    if something was due.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if once:
            _drain(dsn)
            return
        _run(dsn)
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("stopped", err=True)


def _interrupt(number: int, frame: FrameType | None) -> Never:
    # psycopg cancels the running statement, which rolls the batch back, and passes this on
    raise KeyboardInterrupt


def _obstacles(connection: Connection[DictRow]) -> str:
    """Say what keeps a worker from working; nothing where all is well."""
    row = connection.execute(_OBSTACLES).fetchone()
    assert row is not None, "settings and host are a row each"
    found = obstacles({**row, "heartbeat_age": timedelta()})
    return "; ".join(str(obstacle).rstrip(";") for obstacle in found)


def _drain(dsn: str | None) -> None:
    with installed(dsn) as connection:
        connection.execute("call builder_score.drain()")
        if not (obstacle := _obstacles(connection)):
            return
        row = connection.execute("select due_now from builder_score.health").fetchone()
        due: int = (row or {})["due_now"]
    if due:
        raise PyscoreError(f"nothing was processed: {obstacle}", exit_code=UNHEALTHY)
    click.echo(f"nothing was processed: {obstacle}", err=True)


def _run(dsn: str | None) -> None:
    with installed(dsn):
        pass  # a wrong address or a missing schema ends it; later failures are waited out
    click.echo(f"working on {address.describe(address.resolve(dsn))}", err=True)
    wait, said = 0.1, ""
    while True:
        try:
            with installed(dsn) as connection:
                connection.execute("set application_name = 'builder-score-worker'")
                connection.execute("set statement_timeout = 0")
                while True:
                    obstacle = _obstacles(connection)
                    if obstacle != said:
                        state = f"nothing is processed: {obstacle}" if obstacle else "going on"
                        click.echo(state, err=True)
                        said = obstacle
                    if obstacle:
                        # leave until the next look: CREATE DATABASE ... TEMPLATE wants nobody there
                        break
                    began = time.monotonic()
                    connection.execute("call builder_score.run_worker('1 minute')")
                    wait = 0.1
                    if time.monotonic() - began < 30:
                        time.sleep(1)  # paused by now, or another worker runs
            wait = 0.1
            time.sleep(1)
        except NotInstalledError:
            raise
        except (psycopg.Error, PyscoreError) as error:
            first_line = str(error).splitlines()[0]
            click.echo(f"pyscore: {first_line}; trying again", err=True)
            time.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT)
