"""The loops of ``pyscore worker``: one for each of settings.workers, on a connection of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click
import psycopg
from psycopg import Connection
from psycopg.rows import DictRow

from pyscore.cli.options import installed
from pyscore.cli.problems import obstacles
from pyscore.errors import NotInstalledError, PyscoreError

LONGEST_WAIT = 5.0  # seconds between two tries to reach the server again
_LAST_WORDS = 5.0  # seconds that another worker gets to stop in

# What keeps a worker from working that does run; health counts the queue, this is cheap.
_OBSTACLES = """
select s.paused, s.paused_reason, s.workers, h.attached_at is not null as attached,
       'worker' as scheduler
from builder_score.settings as s cross join builder_score.host as h
"""


class Loop:
    """One worker: runs it again and again, reaches the server again when it was lost.

    Attributes:
        number: Which of settings.workers.
        connection: The one that it works on now.
    """

    def __init__(
        self,
        dsn: str | None,
        number: int,
        *,
        hired: bool = False,
        found_workers: Callable[[int], None] = lambda workers: None,
    ) -> None:
        """Begin nothing yet.

        Args:
            dsn: As for `pyscore.address.resolve`.
            number: Which of settings.workers.
            hired: End where settings.workers has no room for it; otherwise wait until it has.
            found_workers: Is told settings.workers at every look.
        """
        self.number = number
        self.connection: Connection[DictRow] | None = None
        self._dsn = dsn
        self._hired = hired
        self._found_workers = found_workers
        self._stopped = threading.Event()

    def run(self) -> None:
        """Work until stopped.

        Raises:
            NotInstalledError: The schema is gone.
        """
        wait, said = 0.1, ""
        while not self._stopped.is_set():
            try:
                with installed(self._dsn) as connection:
                    self.connection = connection
                    connection.execute("set application_name = 'builder-score-worker'")
                    connection.execute("set statement_timeout = 0")
                    while not self._stopped.is_set():
                        obstacle, workers = look(connection)
                        self._found_workers(workers)
                        if self.number > workers:
                            if self._hired:
                                return
                            obstacle = obstacle or f"settings.workers is {workers}"
                        if obstacle != said:
                            self._say(
                                f"nothing is processed: {obstacle}" if obstacle else "going on"
                            )
                            said = obstacle
                        if obstacle:
                            # leave until the next look: CREATE DATABASE ... TEMPLATE wants nobody
                            # there
                            break
                        began = time.monotonic()
                        connection.execute(
                            "call builder_score.run_worker('1 minute', %s)", [self.number]
                        )
                        wait = 0.1
                        if time.monotonic() - began < 30:
                            self._stopped.wait(1)  # paused by now, or another worker runs
                wait = 0.1
                self._stopped.wait(1)
            except NotInstalledError:
                raise
            except (psycopg.Error, PyscoreError) as error:
                if self._stopped.is_set():
                    return
                self._say(f"pyscore: {str(error).splitlines()[0]}; trying again")
                self._stopped.wait(wait)
                wait = min(wait * 2, LONGEST_WAIT)
            finally:
                self.connection = None

    def stop(self, thread: threading.Thread) -> None:
        """End it from another thread; what it is in the middle of is rolled back.

        Args:
            thread: In which it runs.
        """
        self._stopped.set()
        deadline = time.monotonic() + _LAST_WORDS
        while thread.is_alive() and time.monotonic() < deadline:
            # again and again: it may be between two statements
            if (connection := self.connection) is not None and not connection.closed:
                try:
                    connection.cancel_safe(timeout=1)
                except psycopg.Error:
                    break  # the server is gone: nothing to roll back
            thread.join(0.1)

    def _say(self, what: str) -> None:
        click.echo(f"worker {self.number}: {what}" if self.number > 1 else what, err=True)


class Others:
    """The workers beside the first one, a thread each."""

    def __init__(self, dsn: str | None) -> None:
        """Begin with none."""
        self._dsn = dsn
        self._loops: dict[int, tuple[Loop, threading.Thread]] = {}

    def hire(self, workers: int) -> None:
        """Have as many as settings.workers says; those beyond it leave by themselves."""
        for number in range(2, workers + 1):
            if number in self._loops and self._loops[number][1].is_alive():
                continue
            loop = Loop(self._dsn, number, hired=True)
            thread = threading.Thread(target=_until_uninstalled, args=[loop], daemon=True)
            self._loops[number] = loop, thread
            thread.start()

    def stop(self) -> None:
        """End all of them."""
        for loop, thread in self._loops.values():
            loop.stop(thread)


def _until_uninstalled(loop: Loop) -> None:
    try:
        loop.run()
    except NotInstalledError:
        return  # the first worker says so


def look(connection: Connection[DictRow]) -> tuple[str, int]:
    """Say what keeps workers from working, nothing where all is well; and settings.workers.

    Args:
        connection: As `pyscore.cli.options.installed` gives it.
    """
    row: dict[str, Any] | None = connection.execute(_OBSTACLES).fetchone()
    assert row is not None, "settings and host are a row each"
    found = obstacles({**row, "heartbeat_age": timedelta(), "workers_heard": row["workers"]})
    return "; ".join(str(obstacle).rstrip(";") for obstacle in found), row["workers"]
