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

from pyscore import address, schema
from pyscore.errors import NotInstalledError, PyscoreError, from_database

F = TypeVar("F", bound=Callable[..., Any])


def dsn_option(function: F) -> F:
    """Add --dsn, the database's address."""
    return click.option(
        "--dsn", metavar="ADDRESS", help="The database: postgresql://user@host:port/database."
    )(function)


def cron_dsn_option(function: F) -> F:
    """Add --cron-dsn, the address of the database in which pg_cron works."""
    return click.option(
        "--cron-dsn",
        metavar="ADDRESS",
        help="The database in which pg_cron works, when it is another one of the same server.",
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
        NotInstalledError: The schema is missing.
        PyscoreError: It cannot be reached, or the schema is of another version or closed to this
            role.
    """
    conninfo = address.resolve(dsn)
    with address.connect(conninfo, pinned=True) as connection:
        revision, head = _revision(connection), schema.newest()
        if revision is None:
            raise NotInstalledError(
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


def _revision(connection: psycopg.Connection[Any]) -> str | None:
    try:
        return schema.installed_revision(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        raise from_database(error, operator_grant(connection)) from None


def operator_grant(connection: psycopg.Connection[Any]) -> str:
    """Say what lets the role of this connection look, recompute, pause and retry.

    Args:
        connection: On which the role was denied something of ours.
    """
    row = connection.execute(
        "select quote_ident(current_user)"
        " where has_schema_privilege("
        "to_regrole('builder_score_operator'), to_regnamespace('builder_score'), 'usage')"
    ).fetchone()
    if row is None:  # whoever installed us could not create roles; there may be another database's
        return "connect as the role that installed builder_score"
    return f"a DBA may allow it: GRANT builder_score_operator TO {row[0]}"


def print_json(data: Any) -> None:
    """Print data as JSON, in the way of PostgreSQL's to_json.

    Numbers stay numbers, but what JSON has no number for is the text NaN, Infinity or -Infinity;
    moments are ISO 8601. Durations are seconds.
    """
    click.echo(json.dumps(_plain(data), indent=2, allow_nan=False))


def json_line(data: Any) -> str:
    """Write data as `print_json` does, on one line."""
    return json.dumps(_plain(data), allow_nan=False)


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case dict():
            return {key: _plain(one) for key, one in cast(dict[Any, Any], value).items()}
        case list() | tuple():
            return [_plain(one) for one in cast(list[Any], value)]
        case Decimal() | float() if not Decimal(value).is_finite():
            return str(Decimal(value))
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case float():
            return value
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case _:
            return str(value)
