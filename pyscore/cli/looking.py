"""What ``pyscore status`` looks at."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow

from pyscore.cli.options import installed
from pyscore.errors import PyscoreError, from_database

JOB_RUNS = 5


@dataclass(frozen=True)
class Look:
    """How everything was at one moment.

    Attributes:
        at: When, by the server's clock.
        health: The row of builder_score.health.
        queue: The rows of builder_score.queue_by_priority.
        backfill: The walk over everyone that is under way (reason, only_ageing, seen,
            estimated_total, started_at); None when there is none.
        job_runs: The last runs of the pg_cron jobs, the newest first; empty without pg_cron.
    """

    at: datetime
    health: dict[str, Any]
    queue: list[dict[str, Any]]
    backfill: dict[str, Any] | None
    job_runs: list[dict[str, Any]]


@dataclass(frozen=True)
class Lost:
    """A look that failed.

    Attributes:
        reason: One line.
    """

    reason: str


def look(connection: Connection[DictRow]) -> Look:
    """Look at everything in one snapshot, so that the parts add up. Writes and locks nothing.

    Args:
        connection: As `pyscore.cli.options.installed` gives it.
    """
    with snapshot(connection):
        return look_inside(connection)


@contextmanager
def snapshot(connection: Connection[DictRow]) -> Generator[None]:
    """Open a transaction that sees one moment, and writes nothing: a standby's will do.

    Args:
        connection: As `pyscore.cli.options.installed` gives it.
    """
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        yield


def look_inside(connection: Connection[DictRow]) -> Look:
    """Look at everything, in the caller's `snapshot`.

    Args:
        connection: As `pyscore.cli.options.installed` gives it.
    """
    health = connection.execute(
        "select clock_timestamp() as at, h.* from builder_score.health as h"
    ).fetchone()
    assert health is not None  # a view of one row
    queue = connection.execute("select * from builder_score.queue_by_priority").fetchall()
    backfill = connection.execute(
        "select reason, only_ageing, seen, estimated_total, started_at from builder_score.backfill"
    ).fetchone()
    limit = JOB_RUNS * health["workers"]
    runs = connection.execute("select * from builder_score.job_runs(%s)", [limit]).fetchall()
    return Look(health.pop("at"), health, queue, backfill, runs)


def keep_looking(dsn: str | None, *, interval: float, looks: int | None) -> Generator[Look | Lost]:
    """Look again and again; a connection that is lost is opened again at the next look.

    Args:
        dsn: As for `pyscore.address.resolve`.
        interval: Seconds between two looks, unless looking takes more than a fourth of that: a long
            queue takes a while to count, and looking at it is not to be what keeps the server busy.
        looks: After how many to stop; None: never.

    Raises:
        PyscoreError: The first look failed, so the address or the schema is wrong.
        psycopg.Error: The first look failed.
    """
    numbers: Iterable[int] = itertools.count(1) if looks is None else range(1, looks + 1)
    connection: Connection[DictRow] | None = None
    took = 0.0
    with ExitStack() as stack:
        for number in numbers:
            if number > 1:
                time.sleep(max(interval, 4 * took))
            began = time.monotonic()
            try:
                if connection is None:
                    connection = stack.enter_context(installed(dsn))
                seen: Look | Lost = look(connection)
            except (psycopg.Error, PyscoreError) as error:
                if number == 1:
                    raise
                seen = Lost(reason(error))
                connection = None
                with suppress(psycopg.Error):
                    stack.close()
            took = time.monotonic() - began
            yield seen


def reason(error: psycopg.Error | PyscoreError) -> str:
    """Say in one line why a look failed.

    Args:
        error: What it raised.
    """
    if isinstance(error, psycopg.Error) and error.diag.message_primary is None:
        return str(error).splitlines()[0]  # libpq's own; guesses at the cause follow
    return str(from_database(error) if isinstance(error, psycopg.Error) else error)
