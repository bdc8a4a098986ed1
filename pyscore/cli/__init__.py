"""The command ``pyscore``."""

import sys

import click
import psycopg

from pyscore import __version__
from pyscore.cli.migrate import migrate, uninstall
from pyscore.cli.recompute import recompute
from pyscore.cli.status import status
from pyscore.cli.worker import worker
from pyscore.errors import PyscoreError, from_database


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Reputation scores that live inside PostgreSQL.

    The database's address is --dsn, else the environment variable DATABASE_URL, else libpq's own
    (PGHOST, PGDATABASE, the service file). Exit codes: 0 done, 1 failed or not found, 2 usage,
    3 unhealthy.
    """


for command in (migrate, uninstall, recompute, status, worker):
    cli.add_command(command)


def main() -> None:
    """Run the command line; every error is one line on stderr and an exit code."""
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.exceptions.Abort:
        _fail("stopped", 1)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "pyscore"
        _fail(f"{error.format_message()} (see {where} --help)", error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except PyscoreError as error:
        _fail(str(error), error.exit_code)
    except psycopg.Error as error:
        _fail(str(from_database(error)), 1)


def _fail(message: str, exit_code: int) -> None:
    click.echo(f"pyscore: {' '.join(message.split())}", err=True)
    sys.exit(exit_code)
