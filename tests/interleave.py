"""Sessions whose statements run in a fixed order, ways to stop a batch in the middle, and quiet."""

import time
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Self

import psycopg
from psycopg import Connection

from tests import oracle

PATIENCE = 20.0
"""Seconds after which a statement that should have ended counts as hanging."""

Rows = list[tuple[Any, ...]]


class Session:
    """One connection, in which a statement may be left waiting while others go on."""

    def __init__(self, name: str, conninfo: str, observer: Connection[Any]) -> None:
        self.name = name
        # prepared, a string could not hold several statements
        self._connection = psycopg.connect(
            conninfo, autocommit=True, application_name=name, prepare_threshold=None
        )
        self._observer = observer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._running: Future[Rows] | None = None

    @property
    def pid(self) -> int:
        return self._connection.info.backend_pid

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> Rows:
        """Run a statement to its end. BEGIN, COMMIT and ROLLBACK are statements like any other."""
        self.start(statement, parameters)
        return self.finish()

    def start(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        """Begin a statement and do not wait for its end."""
        assert self._running is None, f"{self.name} is still busy"

        def execute() -> Rows:
            # no parameters: several statements in one string are allowed, and % is a plain sign
            cursor = self._connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

        self._running = self._thread.submit(execute)

    def finish(self) -> Rows:
        """Wait for the statement that was started; raise what it raised."""
        assert self._running is not None, f"{self.name} runs nothing"
        running, self._running = self._running, None
        if not wait([running], PATIENCE).done:
            blockers = self.blockers()
            self._connection.cancel()
            raise AssertionError(f"{self.name} hangs; pg_blocking_pids: {blockers}")
        return running.result()

    def blockers(self) -> list[int]:
        """Give the backends that hold what this session waits for."""
        row = self._observer.execute("select pg_blocking_pids(%s)", [self.pid]).fetchone()
        assert row is not None
        return row[0]

    def waits_for(self, other: "Session") -> None:
        """Return once this session waits for a lock of the other's; fail when it does not."""
        running = self._running
        assert running is not None, f"{self.name} runs nothing"

        def blocked() -> bool:
            if running.done():
                raise AssertionError(f"{self.name} was expected to wait, and ended") from (
                    running.exception()
                )
            return other.pid in self.blockers()

        until(blocked, f"{self.name} waits for {other.name}")

    def finish_without_waiting(self) -> Rows:
        """Like `finish`, and fail when the session is ever seen waiting for somebody's lock."""
        assert self._running is not None, f"{self.name} runs nothing"
        while not self._running.done():
            blockers = self.blockers()
            assert not blockers, f"{self.name} waits for {blockers}"
        return self.finish()

    @property
    def busy(self) -> bool:
        """Whether a statement was started whose end has not been waited for."""
        return self._running is not None

    def rests(self, others: Collection["Session"]) -> set[int]:
        """Wait until the statement has ended, or waits for locks of some of them; give these."""
        running = self._running
        assert running is not None, f"{self.name} runs nothing"
        pids = {other.pid for other in others}
        deadline = time.monotonic() + PATIENCE
        while not wait([running], 0.002).done:
            blockers = pids & set(self.blockers())  # not autovacuum, which is gone in a moment
            if blockers:
                return blockers
            assert time.monotonic() < deadline, f"{self.name} neither ends nor waits for a lock"
        return set()

    def close(self) -> None:
        if self._running is not None and not self._running.done():
            self._connection.cancel()
        self._thread.shutdown()
        self._connection.close()


class Sessions:
    """Opens sessions by name, and closes all of them at the end."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._opened: list[Session] = []

    def __enter__(self) -> Self:
        self._observer = psycopg.connect(self._conninfo, autocommit=True)
        return self

    def __exit__(self, *_: object) -> None:
        # The last opened first: whoever waits is closed before whom it waits for.
        for session in reversed(self._opened):
            session.close()
        self._observer.close()

    def __call__(self, name: str) -> Session:
        session = Session(name, self._conninfo, self._observer)
        self._opened.append(session)
        return session


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Return once the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)


# What a batch touches first at a given point: whoever locks it stops the next batch there. At
# "after choosing" nobody but the keeper can write the host's tables.
GATES = {
    "after choosing": "lock table users in exclusive mode",
    "after locking users": "lock table builder_score.score_state in access exclusive mode",
    "after re-reading": "lock table builder_score.signals in access exclusive mode",
    "after computing": "select pg_advisory_lock(7)",
}


def install_gates(db: Connection[Any]) -> None:
    """Let a batch be stopped at each of GATES, for as long as it takes."""
    db.execute("update builder_score.settings set lock_timeout = '10 seconds'")
    db.execute("""
        create function gate() returns trigger language plpgsql as $$
        begin
            perform pg_advisory_xact_lock_shared(7);
            return new;
        end $$;
        create trigger gate before update of builder_score on users
            for each row execute function gate();
    """)


@contextmanager
def batch_stopped(worker: Session, keeper: Session, gate: str) -> Generator[None]:
    """Start drain() in the worker's session, stopped at the gate until this context ends.

    The keeper is in a transaction, which is committed as the gate opens. The drain is over when the
    context is left without an error.
    """
    keeper.run("begin")
    keeper.run(GATES[gate])
    worker.start("call builder_score.drain()")
    worker.waits_for(keeper)
    yield
    keeper.run("commit")
    if gate == "after computing":
        keeper.run("select pg_advisory_unlock(7)")
    worker.finish()


def make_due(db: Connection[Any]) -> None:
    """Let what was put off be due now, as if its time had passed."""
    db.execute("update builder_score.score_recalc_queue set not_before = clock_timestamp()")


def close_windows(db: Connection[Any]) -> None:
    """Let every user's debounce window have closed, as if its time had passed."""
    db.execute("""
        update builder_score.score_state as s set computed_at = s.computed_at - w.debounce_window
        from builder_score.settings as w
    """)
    make_due(db)


def settle(db: Connection[Any]) -> None:
    """Drain until nothing is queued. For tests without a debounce window."""
    for _ in range(10):
        make_due(db)
        db.execute("call builder_score.drain()")
        if is_quiet(db):
            return
    raise AssertionError(f"drained ten times and still queued: {queued(db)}")


def is_quiet(db: Connection[Any]) -> bool:
    row = db.execute("""
        select not exists (select from builder_score.score_recalc_queue)
           and not exists (select from builder_score.backfill)
    """).fetchone()
    assert row is not None
    return row[0]


def queued(db: Connection[Any]) -> Rows:
    return db.execute("select * from builder_score.score_recalc_queue order by id").fetchall()


def assert_right(db: Connection[Any]) -> None:
    """Nothing is queued, and every score is what compute says, and what the oracle says.

    And as many people have each score as are counted.
    """
    assert is_quiet(db), f"still queued: {queued(db)}"
    assert db.execute("select * from builder_score.verify()").fetchall() == []
    assert db.execute("select * from builder_score.verify_score_counts()").fetchall() == []
    oracle.assert_all_right(db)
