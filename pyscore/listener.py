"""Has caches forget whose score changed, in every process that listens.

    with ScoreListener(url, cache):  # a thread
    async with AsyncScoreListener(url, cache):  # a task

It keeps one connection of its own, on which it listens to ``builder_score_changed``. That must lead
to the primary: a standby has no LISTEN. And to the server itself, or a pooler in session mode: in
transaction mode messages go to whoever has the session at the time. It tries for as long as it runs
and says so in the log ("pyscore") where neither is true. With several hosts in the address it finds
the primary, after a failover too.

Whatever was changed while nobody listened went unheard: after each connect, the first one too, the
caches are cleared. A connection that is lost is made again, sooner at first, at random times lest
all processes come at once. One that is dead and does not say so is found by asking the server for a
sign of life. Until then, and while there is no connection, caches go on by their TTL, or with
``strict=True`` keep nothing.

Anybody who may connect to the database may send messages on any channel: one that is not as ours
are clears the caches and does no other harm.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import random
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import aclosing, suppress
from typing import Any, Final, Protocol, Self, cast
from weakref import WeakSet

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import URL, make_url

from pyscore import address
from pyscore.errors import BadArgumentError, PyscoreError
from pyscore.pooler import shares_sessions

__all__ = ["CHANNEL", "AsyncScoreListener", "ScoreListener"]

CHANNEL: Final = "builder_score_changed"
"""Where a worker says whose scores its batch has changed."""

_log = logging.getLogger("pyscore")

_SHORTEST, _LONGEST = 0.25, 30.0  # seconds between two attempts to connect
_SETTLED = 5.0  # seconds after which a connection counts as a good one

# What the address does not say itself. A peer that is gone is then found in about a minute, and
# one that hangs by the sign of life.
_DEFAULTS: Final = {
    # before libpq 14 there is only what also rules out a primary that is read only by default
    "target_session_attrs": "primary" if psycopg.pq.version() >= 140000 else "read-write",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "fallback_application_name": "pyscore listener",
    "client_encoding": "utf8",
}
_VARIABLES: Final = {
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "connect_timeout": "PGCONNECT_TIMEOUT",
}


class Forgets(Protocol):
    """A `pyscore.cache.ProfileCache` or `pyscore.cache.AsyncProfileCache`."""

    def invalidate_many(self, *, user_ids: Iterable[Any] = ()) -> None:
        """Forget these."""
        ...

    def clear(self) -> None:
        """Forget everybody."""
        ...

    def suspend(self) -> None:
        """Forget everybody, and keep nobody."""
        ...

    def resume(self) -> None:
        """Keep again."""
        ...

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Call something before the next question is answered."""
        ...


class _Listening:
    """Connects, listens and tells the caches, until it is cancelled."""

    def __init__(
        self,
        where: str | URL | None,
        caches: tuple[Forgets, ...],
        *,
        strict: bool,
        silence: float,
        patience: float,
    ) -> None:
        self._where = where
        self._conninfo = _conninfo(where)
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self.caches = caches
        self._strict = strict
        self._silence = silence
        self._patience = patience
        self.connections = 0
        self.is_connected = False
        self.changed: Callable[[], None] = _nothing

    def again(self) -> _Listening:
        """Return another one like it, which has no connection."""
        return _Listening(
            self._where,
            self.caches,
            strict=self._strict,
            silence=self._silence,
            patience=self._patience,
        )

    async def run(self) -> None:
        """Listen for ever."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        failures = 0
        if self._strict:
            self._each(_suspend)
        try:
            while True:
                began = loop.time()
                try:
                    await self._listen()
                except Exception as error:
                    # psycopg may raise what the server said of the cancelling
                    if task is not None and task.cancelling():
                        raise asyncio.CancelledError from None
                    if loop.time() - began > _SETTLED:
                        failures = 0
                    delay = _delay(failures)
                    failures += 1
                    self._log_failure(error, delay)
                    await asyncio.sleep(delay)
        finally:
            if self._strict:
                self._each(_resume)

    def cut(self) -> None:
        """Have whatever waits for the server see the end of the connection."""
        if self._connection is not None and not self._connection.closed:
            # not cancelled: psycopg would ask a server that hangs to cancel, and wait for that
            with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)

    async def _listen(self) -> None:
        try:
            await self._connect()
            backend, is_standby = await self._ask("select pg_backend_pid(), pg_is_in_recovery()")
            if is_standby:
                raise PyscoreError("it is a standby, where LISTEN does not work")
            if backend != self._connected.info.backend_pid:
                # not beside a connection of ours: a pool may be as small as the two of the look
                await self._connected.close()
                if await asyncio.to_thread(_shares_sessions, self._conninfo):
                    raise PyscoreError(
                        "it is a connection pooler in transaction mode, which gives messages to "
                        "whoever has the session; expected the server itself, or session mode"
                    )
                await self._connect()
            # a server may end sessions that are idle, and this one is, most of the time
            await self._ask("set idle_session_timeout = 0")
            await self._ask(f"listen {CHANNEL}")
            self._begin()
            await self._hear()
        finally:
            if self._connection is not None:
                await self._connection.close()
            if self.is_connected:
                self.is_connected = False
                if self._strict:
                    self._each(_suspend)
                self.changed()

    def _begin(self) -> None:
        # whatever was loaded before this moment may be of before an unheard message
        self._each(_clear)
        if self._strict:
            self._each(_resume)
        self.is_connected = True
        self.connections += 1
        _log.info("listening to %s at %s", CHANNEL, address.describe(self._conninfo))
        self.changed()

    async def _hear(self) -> None:
        while True:
            async with aclosing(self._connected.notifies(timeout=self._silence)) as notices:
                async for notice in notices:
                    self._forget(notice.payload)
            await self._ask("select true")

    def _forget(self, payload: str) -> None:
        user_ids = _user_ids(payload)
        if user_ids is None:
            self._each(_clear)
        else:
            self._each(lambda cache: cache.invalidate_many(user_ids=user_ids))

    async def _connect(self) -> None:
        self._connection = await psycopg.AsyncConnection[Any].connect(
            self._conninfo, autocommit=True, prepare_threshold=None
        )

    @property
    def _connected(self) -> psycopg.AsyncConnection[Any]:
        assert self._connection is not None
        return self._connection

    async def _ask(self, query: str) -> Any:
        """Run a query; a server that does not answer in time counts as gone."""
        watch = asyncio.get_running_loop().call_later(self._patience, self.cut)
        try:
            cursor = await self._connected.execute(query.encode())
            return await cursor.fetchone() if cursor.description else None
        finally:
            watch.cancel()

    def _each(self, tell: Callable[[Forgets], None]) -> None:
        for cache in self.caches:
            try:
                tell(cache)
            except Exception:
                _log.exception("%r could not be told of %s", cache, CHANNEL)

    def _log_failure(self, error: Exception, delay: float) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        expected = isinstance(error, psycopg.Error | PyscoreError | OSError)
        _log.log(
            logging.ERROR if isinstance(error, PyscoreError) or not expected else logging.WARNING,
            "not listening to %s at %s: %s; trying again in %.1f s",
            *(CHANNEL, address.describe(self._conninfo), reason, delay),
            exc_info=None if expected else error,
        )


class ScoreListener:
    """Listens in a thread of its own, as a context manager or from `start` to `stop`.

    `start` returns at once and raises nothing when the server is away: an application begins
    without it. After a fork (gunicorn's ``preload_app``, multiprocessing) the child has caches that
    are empty, and a listener of its own as soon as one of them is asked for anything.

    Args:
        where: A libpq URI or ``key=value`` string, or a SQLAlchemy URL; of an engine it is
            ``engine.url``. None for DATABASE_URL or libpq's PG* variables.
        caches: Which.
        strict: Whether the caches keep nothing while changes go unheard.
        silence: Seconds after which the server is asked for a sign of life.
        patience: Seconds that it has to answer.

    Raises:
        PyscoreError: `where` is no address of a PostgreSQL.
    """

    def __init__(
        self,
        where: str | URL | None,
        *caches: Forgets,
        strict: bool = False,
        silence: float = 30.0,
        patience: float = 10.0,
    ) -> None:
        self._listening = _Listening(
            where, caches, strict=strict, silence=silence, patience=patience
        )
        self._listening.changed = self._changed
        self._forget_thread()

    def start(self) -> None:
        """Begin to listen; nothing if it does already."""
        with self._lock:
            if self._thread is not None:
                return
            self._is_stopped = False
            # psycopg needs it on Windows
            runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
            self._loop = runner.get_loop()
            self._thread = threading.Thread(
                target=self._main, args=(runner,), name="pyscore-listener", daemon=True
            )
            _running.add(self)
            self._thread.start()

    def stop(self, timeout: float | None = 10.0) -> None:
        """End listening, and wait until the thread has ended; nothing if it does not listen.

        Args:
            timeout: Seconds after which it ends by itself, unwatched.
        """
        with self._lock:
            thread, self._thread = self._thread, None
            _running.discard(self)
            if thread is None:
                return
            with suppress(RuntimeError):  # its loop has ended by itself
                self._loop.call_soon_threadsafe(self._cancel)
        thread.join(timeout)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it listens; tell whether it does."""
        return self._is_connected.wait(timeout)

    @property
    def connected(self) -> bool:
        """Whether it hears of changes."""
        return self._listening.is_connected

    @property
    def connections(self) -> int:
        """How often it has begun to listen."""
        return self._listening.connections

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _main(self, runner: asyncio.Runner) -> None:
        with runner, suppress(asyncio.CancelledError):
            runner.run(self._run())

    async def _run(self) -> None:
        if not self._is_stopped:
            self._task = asyncio.current_task()
            await self._listening.run()

    def _cancel(self) -> None:
        self._is_stopped = True
        if self._task is not None:
            self._listening.cut()
            self._task.cancel()

    def _changed(self) -> None:
        if self._listening.is_connected:
            self._is_connected.set()
        else:
            self._is_connected.clear()

    def _forget_thread(self) -> None:
        self._lock = threading.Lock()
        self._is_connected = threading.Event()
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[Any] | None = None
        self._is_stopped = False

    def _after_fork(self) -> None:
        # the thread, and its connection, are the parent's
        self._forget_thread()
        self._listening = self._listening.again()
        self._listening.changed = self._changed
        for cache in self._listening.caches:
            cache.wake_with(self.start)


class AsyncScoreListener:
    """Listens in a task, as an asynchronous context manager or from `start` to `stop`.

    Args:
        where: As for `ScoreListener`, as are the others.
        caches: Which; those for threads, too.
        strict: Whether the caches keep nothing while changes go unheard.
        silence: Seconds.
        patience: Seconds.

    Raises:
        PyscoreError: `where` is no address of a PostgreSQL.
    """

    def __init__(
        self,
        where: str | URL | None,
        *caches: Forgets,
        strict: bool = False,
        silence: float = 30.0,
        patience: float = 10.0,
    ) -> None:
        self._listening = _Listening(
            where, caches, strict=strict, silence=silence, patience=patience
        )
        self._listening.changed = self._changed
        self._task: asyncio.Task[None] | None = None
        self._is_connected = asyncio.Event()

    async def start(self) -> None:
        """Begin to listen, in the running loop; nothing if it does already."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._listening.run(), name="pyscore-listener")

    async def stop(self) -> None:
        """End listening; nothing if it does not listen."""
        task, self._task = self._task, None
        if task is not None:
            self._listening.cut()
            task.cancel()
            await asyncio.wait([task])

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until it listens; tell whether it does."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_connected.wait(), timeout)
        return self._listening.is_connected

    @property
    def connected(self) -> bool:
        """Whether it hears of changes."""
        return self._listening.is_connected

    @property
    def connections(self) -> int:
        """How often it has begun to listen."""
        return self._listening.connections

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _changed(self) -> None:
        if self._listening.is_connected:
            self._is_connected.set()
        else:
            self._is_connected.clear()


def _conninfo(where: str | URL | None) -> str:
    if isinstance(where, str) and "+" in where.partition("://")[0] and "://" in where:
        where = make_url(where)
    if isinstance(where, URL):
        # it may name several hosts in a way of its own
        dialect = where.set(drivername="postgresql+psycopg").get_dialect()()
        _, given = dialect.create_connect_args(where)
        if where.get_backend_name() != "postgresql":
            raise BadArgumentError(f"{where} is no PostgreSQL: expected postgresql://…")
        try:
            text = make_conninfo(**given)
        except psycopg.ProgrammingError as error:
            raise BadArgumentError(
                f"{where} says more than libpq understands ({error}): expected a libpq address"
            ) from None
    else:
        text = address.resolve(where, option="the listener's address")
    said = conninfo_to_dict(text)
    missing = {
        name: value
        for name, value in _DEFAULTS.items()
        if name not in said and not os.environ.get(_VARIABLES.get(name, ""))
    }
    return make_conninfo(text, **missing)


def _user_ids(payload: str) -> list[str | int] | None:
    """Return whose scores a message says changed; None for everybody."""
    try:
        message: Any = json.loads(payload)
    except (ValueError, RecursionError):
        message = None
    if isinstance(message, dict):
        said = cast(dict[str, Any], message)
        if said == {"all": True}:
            return None
        user_ids = said.get("user_ids")
        if isinstance(user_ids, list):
            found = cast(list[Any], user_ids)
            if all(isinstance(user_id, str | int) for user_id in found):
                return found
    _log.warning(
        "a message on %s that is not ours, %.80r: everybody is forgotten", CHANNEL, payload
    )
    return None


def _delay(failures: int) -> float:
    longest = min(_LONGEST, _SHORTEST * 2 ** min(failures, 10))
    return random.uniform(longest / 2, longest)


def _shares_sessions(conninfo: str) -> bool:
    with psycopg.connect(conninfo, autocommit=True, prepare_threshold=None) as connection:
        return shares_sessions(connection, conninfo)


def _clear(cache: Forgets) -> None:
    cache.clear()


def _suspend(cache: Forgets) -> None:
    cache.suspend()


def _resume(cache: Forgets) -> None:
    cache.resume()


def _nothing() -> None: ...


_running: WeakSet[ScoreListener] = WeakSet()


def _after_fork() -> None:
    for listener in list(_running):
        listener._after_fork()  # pyright: ignore[reportPrivateUsage]
    _running.clear()


def _at_exit() -> None:
    for listener in list(_running):
        listener.stop(timeout=1.0)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
