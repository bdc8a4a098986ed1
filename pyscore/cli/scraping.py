"""Reads the database for ``pyscore metrics``: one reading at a time, each within a bound."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Generator
from concurrent.futures import Future
from threading import Lock, Thread

import click
import psycopg
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pyscore import address, metrics, schema
from pyscore.cli.looking import look_inside, reason, snapshot
from pyscore.cli.options import installed
from pyscore.cli.wording import printable
from pyscore.errors import PyscoreError
from pyscore.metrics import Reading

_WORKERS = """
select w.*,
       greatest(clock_timestamp() - w.heartbeat_at, w.heartbeat_at - clock_timestamp()) as silent
from builder_score.worker_status as w
order by w.number nulls last
"""

_SIZES = """
select c.relname as name, pg_total_relation_size(c.oid) as bytes
from pg_class as c
where c.relnamespace = 'builder_score'::regnamespace and c.relkind = 'r'
order by c.relname
"""


def take(dsn: str | None, timeout: float) -> Reading:
    """Read all that is exposed, in one snapshot, over a connection of its own.

    Nothing is held between two readings: no session that `DROP DATABASE` would wait for.

    Args:
        dsn: As for `pyscore.address.resolve`.
        timeout: Seconds that a statement may take.

    Raises:
        PyscoreError: The database cannot be reached, or has no schema of this version.
        psycopg.Error: It does not answer as it should, or in time.
    """
    with installed(_bounded(dsn, timeout)) as connection:
        connection.execute(
            "select set_config('statement_timeout', %s, false)", [f"{math.ceil(timeout * 1000)}ms"]
        )
        with snapshot(connection):
            seen = look_inside(connection)
            workers = connection.execute(_WORKERS).fetchall()
            people = connection.execute(
                "select score, people from builder_score.distribution()"
            ).fetchall()
            sizes = connection.execute(_SIZES).fetchall()
        return Reading(
            look=seen,
            workers=workers,
            distribution=[(float(row["score"]), row["people"]) for row in people],
            sizes={row["name"]: row["bytes"] for row in sizes},
            revision=schema.newest(),  # any other is refused
            server=connection.info.parameter_status("server_version") or "",
        )


def _bounded(dsn: str | None, timeout: float) -> str:
    """Have a server that is gone without a word be noticed; what the address says goes first."""
    conninfo = address.resolve(dsn)
    seconds = max(2, math.ceil(timeout))
    bounds = {
        "connect_timeout": seconds,
        "keepalives_idle": seconds,
        "keepalives_interval": 1,
        "keepalives_count": 3,
        "tcp_user_timeout": 1000 * seconds,
    }
    given = conninfo_to_dict(conninfo)
    return make_conninfo(conninfo, **{k: v for k, v in bounds.items() if k not in given})


class Once(Collector):
    """Reads the database once; what fails is raised."""

    def __init__(self, dsn: str | None, *, timeout: float) -> None:
        self._dsn = dsn
        self._timeout = timeout

    def collect(self) -> Generator[Metric]:
        """Give all metrics.

        Raises:
            PyscoreError: As `take`.
            psycopg.Error: As `take`.
        """
        began = time.monotonic()
        reading = take(self._dsn, self._timeout)
        yield from _all(reading, time.monotonic() - began, 0)


class Scraper(Collector):
    """Reads the database for every scrape; scrapes that come meanwhile share a reading."""

    def __init__(self, dsn: str | None, *, timeout: float) -> None:
        self._dsn = dsn
        self._timeout = timeout
        self._lock = Lock()
        self._under_way: Future[Reading] | None = None
        self._errors = 0
        self._said = ""

    def collect(self) -> Generator[Metric]:
        """Give all metrics; where the database cannot be read, those that say so."""
        began = time.monotonic()
        reading = self._reading()
        yield from _all(reading, time.monotonic() - began, self._errors)

    def _reading(self) -> Reading | None:
        try:
            # a statement that takes too long is to say so itself
            reading = self._join().result(self._timeout + 1)
        except (psycopg.Error, PyscoreError) as error:
            self._failed(reason(error))
        except TimeoutError:
            self._failed(f"no answer within {self._timeout + 1:g} s")
        else:
            self._say("")
            return reading
        return None

    def _join(self) -> Future[Reading]:
        """Begin a reading, unless one is under way: a slow server gets no second one."""
        with self._lock:
            if self._under_way is None:
                self._under_way = Future()
                # a daemon: whatever hangs does not keep the process from ending
                Thread(target=self._read, args=[self._under_way], daemon=True).start()
            return self._under_way

    def _read(self, future: Future[Reading]) -> None:
        try:
            reading = take(self._dsn, self._timeout)
        except BaseException as error:
            self._end()
            future.set_exception(error)
        else:
            self._end()
            future.set_result(reading)

    def _end(self) -> None:
        with self._lock:
            self._under_way = None

    def _failed(self, why: str) -> None:
        with self._lock:
            self._errors += 1
        self._say(why)

    def _say(self, why: str) -> None:
        """Write why it fails when that has changed, and not with each scrape."""
        with self._lock:
            changed, self._said = why != self._said, why
        if changed and sys.stderr is not None:
            click.echo(f"pyscore: {printable(why)}" if why else "reading again", err=True)


def _all(reading: Reading | None, seconds: float, errors: int) -> Generator[Metric]:
    yield metrics.up(reading is not None)
    yield metrics.build(reading)
    yield from metrics.scrapes(seconds, errors)
    if reading is not None:
        yield from metrics.of_database(reading)
