"""What several commands share: options, the connection, how data is printed."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar, cast

import click
import psycopg
from psycopg.rows import DictRow, dict_row

from pyscore import address, migrator
from pyscore.errors import PyscoreError

F = TypeVar("F", bound=Callable[..., Any])


def dsn_option(function: F) -> F:
    """Add --dsn, the database's address."""
    return click.option(
        "--dsn", metavar="ADDRESS", help="The database: postgresql://user@host:port/database."
    )(function)


def json_option(function: F) -> F:
    """Add --json, for programs that read the output."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


@contextmanager
def installed(dsn: str | None) -> Generator[psycopg.Connection[DictRow]]:
    """Connect to a database that has our schema; each statement is its own transaction.

    Args:
        dsn: As for `pyscore.address.resolve`.

    Raises:
        PyscoreError: It cannot be reached, or the schema is missing or of another version.
    """
    conninfo = address.resolve(dsn)
    with address.connect(conninfo) as connection:
        revision, head = migrator.database_revision(connection), migrator.head()
        if revision is None:
            raise PyscoreError(
                f"builder_score is not installed in this database ({address.describe(conninfo)}); "
                "install it with: pyscore migrate"
            )
        if revision > head:
            raise PyscoreError(
                f"the database's schema is newer than this package: it is at revision {revision}, "
                f"this package knows up to {head}; install a newer pyscore"
            )
        if revision < head:
            raise PyscoreError(
                f"the database is at revision {revision}, this package expects {head}; "
                "bring it up with: pyscore migrate"
            )
        # whatever the database's default: recalculate() needs it
        connection.execute("set default_transaction_isolation = 'read committed'")
        # health before any ANALYZE, as after a restore: compiling it takes longer than running it
        connection.execute("set jit = off")
        connection.row_factory = cast(Any, dict_row)
        yield connection


def print_json(data: Any) -> None:
    """Print data as JSON; numbers stay numbers, moments are ISO 8601, durations are seconds."""
    click.echo(json.dumps(data, default=_plain, indent=2))


def json_line(data: Any) -> str:
    """Write data as `print_json` does, on one line."""
    return json.dumps(data, default=_plain)


def _plain(value: Any) -> Any:
    match value:
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case _:
            return str(value)
