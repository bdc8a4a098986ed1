"""Has caches forget whose score changed, in every process that listens.

    profiles = ProfileCache(ScoreReader(engine))
    with ScoreListener(engine.url, profiles):
        ...

The worker notifies the channel ``builder_score_changed`` when scores change. A listener keeps one
connection of its own for that. It has to lead to the primary, for a standby cannot LISTEN, and to
the server itself or a pooler in session mode: in transaction mode nothing would be heard. Both are
told by an error in the log of ``pyscore``, and by `wait`; the listener goes on trying. All servers
of a cluster may be in its address (``host=db1,db2``): it finds the one that is the primary. The
role needs CONNECT and no more.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from sqlalchemy import URL

from pyscore.caching import entries
from pyscore.caching.hearing import Forgetful, Hearing
from pyscore.errors import PyscoreError

__all__ = ["AsyncScoreListener", "ScoreListener"]

SILENCE = 30.0
PATIENCE = 10.0
LONGEST_PAUSE = 10.0
_STOP_TIMEOUT = 30.0


class _Listener:
    def __init__(
        self,
        where: str | URL,
        *caches: Forgetful,
        silence: float = SILENCE,
        patience: float = PATIENCE,
        longest_pause: float = LONGEST_PAUSE,
        strict: bool = False,
    ):
        self._arguments: dict[str, Any] = {
            "where": where,
            "caches": caches,
            "silence": silence,
            "patience": patience,
            "longest_pause": longest_pause,
            "strict": strict,
        }
        self._hearing = self._new()

    @property
    def listening(self) -> bool:
        """Whether changes are heard, as far as is known."""
        return self._hearing.listening

    @property
    def listens(self) -> int:
        """How often it began to hear: 1, and 1 more for each connection that was lost."""
        return self._hearing.listens

    @property
    def problem(self) -> PyscoreError | None:
        """Why nothing is heard; None while it is, and before the first attempt has ended."""
        return self._hearing.problem

    def _new(self) -> Hearing:
        return Hearing(**self._arguments, changed=self._changed)

    def _changed(self) -> None:
        raise NotImplementedError

    def _not_in_time(self, timeout: float) -> PyscoreError:
        return self.problem or PyscoreError(f"nothing is heard yet after {timeout:g} s")


class ScoreListener(_Listener):
    """Listens in a thread, and has caches forget whose score changed.

    The thread is a daemon: it keeps no process from ending. Whatever ends the connection (a
    restart, a failover, an administrator), it connects again, at once and then in growing pauses of
    random length, and has the caches forget everything, for nobody knows what was missed. A server
    that is gone without a word is noticed by a question after ``silence`` seconds.

        with ScoreListener(engine.url, profiles):
            ...

    A process that is forked, as gunicorn's workers are after ``--preload``, gets a thread and a
    connection of its own.

    Args:
        where: A libpq URI or ``key=value`` string, or a SQLAlchemy URL such as ``engine.url``,
            which has no password where the engine was given it elsewhere. Empty:
            ``DATABASE_URL``, then libpq's own defaults.
        caches: Caches of either kind, or anything with ``invalidate_user(*ids)``, where ids are
            text, and ``clear()``. They are called in the listener's thread.
        silence: Seconds without a message after which it asks whether the server is still there.
        patience: Seconds that the server has for an answer.
        longest_pause: Seconds between two attempts to connect, at most.
        strict: Whether caches keep nothing while nothing is heard. Otherwise they go on, and what
            changes meanwhile is seen after their ttl, or when the connection is back.

    Raises:
        PyscoreError: The address is none.
    """

    def __init__(
        self,
        where: str | URL,
        *caches: Forgetful,
        silence: float = SILENCE,
        patience: float = PATIENCE,
        longest_pause: float = LONGEST_PAUSE,
        strict: bool = False,
    ):
        self._state = threading.Condition()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        super().__init__(
            where,
            *caches,
            silence=silence,
            patience=patience,
            longest_pause=longest_pause,
            strict=strict,
        )

    def start(self) -> Self:
        """Begin, and do not wait; nothing happens when it runs already."""
        with self._state:
            if self._thread is None:
                ready = threading.Event()
                self._hearing = self._new()
                self._thread = threading.Thread(
                    target=self._run, args=[ready], name="pyscore listener", daemon=True
                )
                self._thread.start()
                ready.wait()
                _running.add(self)
        return self

    def wait(self, timeout: float = 10.0) -> None:
        """Wait until changes are heard.

        Args:
            timeout: Seconds.

        Raises:
            PyscoreError: They are not in time; it says why.
        """
        with self._state:
            if not self._state.wait_for(lambda: self.listening, timeout):
                raise self._not_in_time(timeout)

    def stop(self) -> None:
        """Stop, and close the connection; nothing happens when it does not run."""
        with self._state:
            thread, loop, task = self._thread, self._loop, self._task
            self._thread = self._loop = self._task = None
        _running.discard(self)
        if thread is not None and loop is not None and task is not None:
            loop.call_soon_threadsafe(task.cancel)
            thread.join(_STOP_TIMEOUT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self, ready: threading.Event) -> None:
        hearing = self._hearing

        async def hear() -> None:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            ready.set()
            await hearing.run()

        # psycopg works with this kind of loop everywhere
        loops = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
        with suppress(asyncio.CancelledError), loops as runner:
            runner.run(hear())

    def _changed(self) -> None:
        with self._state:
            self._state.notify_all()

    def begin_in_child(self) -> None:
        """Go on in a process that was forked, where the thread is no more."""
        # kept for ever: to close what is shared with the parent would change it there
        _left_behind.append((self._thread, self._loop, self._task, self._hearing))
        self._thread = self._loop = self._task = None
        self._state = threading.Condition()
        self.start()


_running: set[ScoreListener] = set()
_left_behind: list[Any] = []


def _after_fork() -> None:
    for listener in list(_running):
        listener.begin_in_child()


# after the caches, whose locks a thread that is no more may hold
assert entries
os.register_at_fork(after_in_child=_after_fork)


class AsyncScoreListener(_Listener):
    """Listens in a task of the running event loop; all else is as `ScoreListener` says.

        async with AsyncScoreListener(engine.url, profiles):
            ...

    A task lives in one process: start it there, such as in the application's lifespan, and not
    before a fork.

    Args:
        where: As for `ScoreListener`.
        caches: As for `ScoreListener`; they are called in the event loop's thread.
        silence: As for `ScoreListener`.
        patience: As for `ScoreListener`.
        longest_pause: As for `ScoreListener`.
        strict: As for `ScoreListener`.

    Raises:
        PyscoreError: The address is none.
    """

    def __init__(
        self,
        where: str | URL,
        *caches: Forgetful,
        silence: float = SILENCE,
        patience: float = PATIENCE,
        longest_pause: float = LONGEST_PAUSE,
        strict: bool = False,
    ):
        self._task: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Event] = set()
        super().__init__(
            where,
            *caches,
            silence=silence,
            patience=patience,
            longest_pause=longest_pause,
            strict=strict,
        )

    async def start(self) -> Self:
        """Begin, and do not wait; nothing happens when it runs already."""
        if self._task is None:
            self._hearing = self._new()
            self._task = asyncio.create_task(self._hearing.run(), name="pyscore listener")
        return self

    async def wait(self, timeout: float = 10.0) -> None:
        """Wait until changes are heard.

        Args:
            timeout: Seconds.

        Raises:
            PyscoreError: They are not in time; it says why.
        """
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            async with asyncio.timeout(timeout):
                while not self.listening:
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            raise self._not_in_time(timeout) from None
        finally:
            self._waiting.discard(changed)

    async def stop(self) -> None:
        """Stop, and close the connection; nothing happens when it does not run."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def _changed(self) -> None:
        for changed in self._waiting:
            changed.set()
