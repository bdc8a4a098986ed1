"""An ORM's service function in Celery with Redis: one task a user, two worker processes.

Celery's settings are its own defaults: the prefork pool, four tasks prefetched a process,
acknowledged when they begin; no result is kept, as nobody asks for one. That is fair, and a little
kind: tasks are sent before the clock starts, to processes that are warm.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, cast
from uuid import UUID

import celery  # pyright: ignore[reportMissingTypeStubs]
import redis

from benchmarks.peers import celery_tasks

QUEUE = "celery"
PROCESSES = 2
PATIENCE_S = 60


class CeleryWorkers:
    """A running `celery worker` for one database; `delay` sends it users.

    Attributes:
        pid: The worker's first process, whose children do the work.
    """

    def __init__(self, database: str, broker: str, *, processes: int = PROCESSES) -> None:
        self._redis = cast(Any, redis.Redis).from_url(broker)
        # A sender of its own: an application's pools would keep to the broker that they knew first.
        self._sender = cast(Any, celery).Celery(broker=broker)
        variables = {celery_tasks.BROKER: broker, celery_tasks.DATABASE: database}
        self._log = tempfile.NamedTemporaryFile(prefix="pyscore-celery-", suffix=".log")  # noqa: SIM115
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", celery_tasks.__name__, "worker"),
                *("--concurrency", str(processes), "--loglevel", "WARNING"),
            ],
            cwd=Path(__file__).parents[2],
            env=os.environ | variables,
            stdout=self._log,
            stderr=self._log,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        try:
            self._wait_for_answer()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop at once: what is still queued goes with the private Redis."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._sender.close()
        self._redis.close()
        self._log.close()

    def delay(self, user_ids: Iterable[UUID]) -> None:
        """Send one task a user, as `recalculate.delay(user_id)` does."""
        for user_id in user_ids:
            self._sender.send_task(celery_tasks.recalculate.name, [str(user_id)])

    def hold(self) -> None:
        """Let tasks queue up."""
        self._sender.control.cancel_consumer(QUEUE, reply=True, timeout=PATIENCE_S, limit=1)

    def go_on(self) -> None:
        """Take what has queued up, and what comes."""
        self._sender.control.add_consumer(QUEUE, reply=True, timeout=PATIENCE_S, limit=1)

    def queued(self) -> int:
        """How many tasks no process has taken yet."""
        if self._process.poll() is not None:
            raise RuntimeError(f"celery has ended:\n{Path(self._log.name).read_text()}")
        return self._redis.llen(QUEUE)

    def _wait_for_answer(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self._sender.control.ping(timeout=0.5, limit=1):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"celery did not start:\n{Path(self._log.name).read_text()}")
