"""``pyscore --version``: of the package, and of the schema in the database that can be reached."""

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pyscore import __version__, address, schema
from pyscore.errors import PyscoreError, from_database

PATIENCE = 3  # seconds, whatever is at the other end


def print_version(dsn: str | None) -> None:
    """Print both versions; a database that does not answer costs one line, not an error.

    Args:
        dsn: As for `pyscore.address.resolve`.
    """
    click.echo(f"pyscore {__version__}")
    click.echo(_schema(dsn))


def _schema(dsn: str | None) -> str:
    conninfo = ""
    try:
        conninfo = address.resolve(dsn)
        if "connect_timeout" not in conninfo_to_dict(conninfo):
            conninfo = make_conninfo(conninfo, connect_timeout=PATIENCE)
        with address.connect(conninfo, pinned=True) as connection:
            connection.execute(f"set statement_timeout = '{PATIENCE}s'".encode())
            revision = schema.installed_revision(connection)
    except PyscoreError as error:
        if dsn and error.exit_code == 2:  # said on the command line, so a mistake in it
            raise
        return f"schema unknown: {error}"
    except psycopg.Error as error:
        return f"schema unknown: {from_database(error)} ({address.describe(conninfo)})"
    where = address.describe(conninfo)
    return f"schema {revision} ({where})" if revision else f"schema not installed in {where}"
