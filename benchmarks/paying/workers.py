"""The resident worker, as pg_cron would run it."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from psycopg import Connection

from benchmarks import servers
from benchmarks.paying.databases import OURS, Bench


class Worker:
    """Runs in a session of its own for as long as a `with` lasts, as often as wanted.

    With no debounce: each event is to be computed, which is the most that it can have to do.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._running: tuple[Connection[Any], ThreadPoolExecutor, Future[None]] | None = None

    def __enter__(self) -> None:
        self._set("debounce_window = '0'")
        db = servers.connect(self._bench.cluster, OURS)
        thread = ThreadPoolExecutor(1)
        self._running = db, thread, thread.submit(_call, db)

    def __exit__(self, *_: object) -> None:
        assert self._running is not None
        db, thread, call = self._running
        self._set("paused = true")
        call.result()
        self._set("paused = false")
        thread.shutdown()
        db.close()

    def _set(self, what: str) -> None:
        db = self._bench.connections[OURS]
        db.execute(f"update builder_score.settings set {what}".encode())


def _call(db: Connection[Any]) -> None:
    db.execute("call builder_score.run_worker('1 hour')")
