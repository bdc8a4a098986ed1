"""Profiles by username, kept in memory for some minutes; needs ``pyscore[cache]``.

    cache = ProfileCache(ScoreReader(engine))
    with ScoreListener(url, cache):
        cache.get("ada")

A profile goes when it is five minutes old; in every process when the user's score changes, which
takes a listener (`pyscore.listener`); and at once, in this process, when the application says so:
by `ProfileCache.invalidate`, or by `pyscore.cache_events.watch` for what SQLAlchemy writes. Until
the TTL other processes do not learn of changes that leave the score as it is.

What is kept was true at some moment after the last invalidation. That holds for loads from the
primary: a standby may replay a change after the listener, which is on the primary, has heard of it;
the TTL is then the only promise.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from operator import attrgetter
from typing import Any, Final, Generic, Protocol, TypeVar, overload
from weakref import WeakSet

from pyscore.caching import tokens
from pyscore.errors import BadArgumentError, PyscoreError
from pyscore.reading.types import shown

try:
    from pyscore.caching.store import CacheInfo, Flight, Missing, Store
except ModuleNotFoundError as error:
    if error.name != "cachetools":
        raise
    raise PyscoreError(
        "a cache of profiles needs cachetools; install it with: pip install 'pyscore[cache]'"
    ) from None

__all__ = ["AsyncProfileCache", "Cache", "CacheInfo", "ProfileCache"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_MAXSIZE = 10_000
_TTL = 300.0


class Reader(Protocol[T_co]):
    """What a `ProfileCache` asks: a `pyscore.ScoreReader`."""

    def profile(self, username: str, /) -> T_co | None:
        """Return the profile of the user with a name."""
        ...


class AsyncReader(Protocol[T_co]):
    """What an `AsyncProfileCache` asks: a `pyscore.AsyncScoreReader`."""

    def profile(self, username: str, /) -> Awaitable[T_co | None]:
        """Return the profile of the user with a name."""
        ...


class Cache(Generic[T]):
    """What both caches have in common; all of it may be called from any thread."""

    def __init__(
        self,
        maxsize: int,
        ttl: float,
        timer: Callable[[], float],
        user_id: str | Callable[[T], Any],
        username: str | Callable[[T], str | None] | None,
    ) -> None:
        if maxsize < 1 or not ttl > 0:
            raise BadArgumentError(
                f"maxsize is {shown(maxsize)} and ttl is {shown(ttl)}: expected at least 1 profile "
                "and more than 0 seconds"
            )
        self._store: Final = Store[T](maxsize, ttl, timer)
        self._user_id: Final = attrgetter(user_id) if isinstance(user_id, str) else user_id
        self._username: Final = attrgetter(username) if isinstance(username, str) else username
        _caches.add(self)

    def invalidate(self, username: str) -> None:
        """Forget whoever has, or had when they were loaded, this name.

        Upper and lower case count for nothing, nor do accents. After a rename give both names, or
        say `invalidate_user`.
        """
        self._store.forget([tokens.of_name(username)])

    def invalidate_user(self, user_id: Any) -> None:
        """Forget the user with this id, under every name by which they were asked for."""
        self._store.forget([tokens.of_id(user_id)])

    def invalidate_many(
        self, *, user_ids: Iterable[Any] = (), usernames: Iterable[str] = ()
    ) -> None:
        """Forget many at once."""
        gone = {tokens.of_id(user_id) for user_id in user_ids}
        self._store.forget(gone | {tokens.of_name(username) for username in usernames})

    def clear(self) -> None:
        """Forget everybody."""
        self._store.forget([tokens.EVERYBODY])

    def suspend(self) -> None:
        """Forget everybody, and keep nobody until `resume`: every miss is a query."""
        self._store.keep(False)

    def resume(self) -> None:
        """Keep what is loaded, again."""
        self._store.keep(True)

    def info(self) -> CacheInfo:
        """Return hits, misses, currsize, maxsize and invalidations."""
        return self._store.info()

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Have something called by the next question; for listeners after a fork."""
        self._store.wake = wake

    def _land(self, flight: Flight[T], value: T | None) -> None:
        self._store.land(flight, value, () if value is None else self._known_as(value))

    def _known_as(self, value: T) -> tuple[str, ...]:
        try:
            user_id = self._user_id(value)
        except AttributeError as error:
            raise BadArgumentError(
                f"{shown(value)} has no id that an invalidation could find it by ({error}): "
                "say where it is, as in user_id='id' or user_id=lambda user: user['id']"
            ) from None
        known = (tokens.of_id(user_id),)
        try:
            username = None if self._username is None else self._username(value)
        except AttributeError:
            return known  # then it is the name that was asked for
        return known if username is None else (*known, tokens.of_name(username))

    def _after_fork(self) -> None:
        self._store.after_fork()


class ProfileCache(Cache[T]):
    """Profiles by username: the least recently used go first, all of them after five minutes.

    For any number of threads. Of those that ask for a name at the same time one asks the database;
    what it raises, all of them get, and the next one asks again. That nobody has a name is not
    kept: whoever signs up is there at once.

    Args:
        reader: Over an Engine: a Session is for one thread, and sees its own transaction's past.
        load: Instead of a reader: returns what the application shows of the user with a name, or
            None. What it returns is given to many: nobody should change it, and an object that
            belongs to a Session does not do.
        maxsize: How many profiles.
        ttl: Seconds, from the beginning of its query, after which a profile is asked for anew.
        user_id: Where what `load` returns has the user's id: an attribute, or a function.
        username: Likewise the name; not needed if nobody has it.
        timer: The clock, for tests.

    Raises:
        BadArgumentError: Reader and load, or neither; no room, or no time to live.
        PyscoreError: cachetools is not installed.
    """

    @overload
    def __init__(
        self,
        reader: Reader[T],
        *,
        maxsize: int = ...,
        ttl: float = ...,
        timer: Callable[[], float] = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        *,
        load: Callable[[str], T | None],
        maxsize: int = ...,
        ttl: float = ...,
        user_id: str | Callable[[T], Any] = ...,
        username: str | Callable[[T], str | None] | None = ...,
        timer: Callable[[], float] = ...,
    ) -> None: ...

    def __init__(
        self,
        reader: Reader[T] | None = None,
        *,
        load: Callable[[str], T | None] | None = None,
        maxsize: int = _MAXSIZE,
        ttl: float = _TTL,
        user_id: str | Callable[[T], Any] = "user_id",
        username: str | Callable[[T], str | None] | None = "username",
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(maxsize, ttl, timer, user_id, username)
        self._load = _loader(reader, load)

    def get(self, username: str) -> T | None:
        """Return the profile of the user with a name; None without one.

        Raises:
            Exception: Whatever the reader, or `load`, raises.
        """
        found = self._store.find(username)
        if not isinstance(found, Missing):
            return found
        while True:
            flight, is_mine = self._store.board(username)
            try:
                if is_mine:
                    self._run(flight)
                elif flight.runner == threading.get_ident():
                    raise PyscoreError(f"loading {shown(username)} asks the cache for itself")
                else:
                    flight.ended.wait()
                if flight.error is not None and not flight.given_up:
                    raise flight.error
                if not flight.given_up and flight.answers(found):
                    return flight.value
            finally:
                del flight  # by way of this frame an error would hold itself
            kept = self._store.look(username)
            if kept is not None:
                return kept

    def _run(self, flight: Flight[T]) -> None:
        try:
            self._land(flight, self._load(flight.name))
        except BaseException as error:
            self._store.fail(flight, error)
            raise
        finally:
            del flight


class AsyncProfileCache(Cache[T]):
    """Like `ProfileCache`, for coroutines.

    Of the tasks that ask for a name at the same time one query is made, in a task of its own: who
    is cancelled leaves it to the others, and the last one takes it along. `invalidate` and the
    like are no coroutines.

    Args:
        reader: A `pyscore.AsyncScoreReader` over an AsyncEngine.
        load: As for `ProfileCache`, a coroutine function.
        maxsize: As for `ProfileCache`, as are the others.
        ttl: Seconds.
        user_id: Of what `load` returns.
        username: Likewise.
        timer: The clock.

    Raises:
        BadArgumentError: As for `ProfileCache`.
        PyscoreError: cachetools is not installed.
    """

    @overload
    def __init__(
        self,
        reader: AsyncReader[T],
        *,
        maxsize: int = ...,
        ttl: float = ...,
        timer: Callable[[], float] = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        *,
        load: Callable[[str], Awaitable[T | None]],
        maxsize: int = ...,
        ttl: float = ...,
        user_id: str | Callable[[T], Any] = ...,
        username: str | Callable[[T], str | None] | None = ...,
        timer: Callable[[], float] = ...,
    ) -> None: ...

    def __init__(
        self,
        reader: AsyncReader[T] | None = None,
        *,
        load: Callable[[str], Awaitable[T | None]] | None = None,
        maxsize: int = _MAXSIZE,
        ttl: float = _TTL,
        user_id: str | Callable[[T], Any] = "user_id",
        username: str | Callable[[T], str | None] | None = "username",
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(maxsize, ttl, timer, user_id, username)
        self._load = _loader(reader, load)

    async def get(self, username: str) -> T | None:
        """Return the profile of the user with a name; None without one.

        Raises:
            Exception: Whatever the reader, or `load`, raises.
        """
        found = self._store.find(username)
        if not isinstance(found, Missing):
            return found
        loop = asyncio.get_running_loop()
        while True:
            # a task belongs to its loop
            flight, is_mine = self._store.board(username, loop)
            try:
                if is_mine:
                    flight.task = loop.create_task(self._run(flight))
                    flight.task.add_done_callback(partial(self._over, flight))
                elif flight.task is asyncio.current_task():
                    raise PyscoreError(f"loading {shown(username)} asks the cache for itself")
                await self._wait(flight)
                # one that somebody else has cancelled is made anew
                if flight.error is not None and not flight.given_up:
                    raise flight.error
                if not flight.given_up and flight.answers(found):
                    return flight.value
            finally:
                del flight
            kept = self._store.look(username)
            if kept is not None:
                return kept

    async def _wait(self, flight: Flight[T]) -> None:
        flight.waiting += 1
        try:
            # unlike awaiting it, this does not cancel it
            await asyncio.wait([flight.task])
        finally:
            flight.waiting -= 1
            if flight.waiting == 0 and not flight.task.done():
                self._store.detach(flight)
                flight.task.cancel()

    def _over(self, flight: Flight[T], task: asyncio.Task[None]) -> None:
        # cancelled before it began
        if not flight.ended.is_set():
            self._store.fail(flight, asyncio.CancelledError())

    async def _run(self, flight: Flight[T]) -> None:
        try:
            self._land(flight, await self._load(flight.name))
        except Exception as error:
            # raised by those who wait
            self._store.fail(flight, error)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self._store.fail(flight, error)
                raise
            # nobody has: those who wait were not cancelled
            own = PyscoreError(f"loading {shown(flight.name)} was cancelled from within")
            own.__cause__ = error
            self._store.fail(flight, own)
        except BaseException as error:
            self._store.fail(flight, error)
            raise
        finally:
            del flight


Loader = TypeVar("Loader", bound=Callable[[str], Any])


def _loader(reader: Any, load: Loader | None) -> Loader:
    if (reader is None) == (load is None):
        raise BadArgumentError("give a cache of profiles a reader or load=, one of them")
    return reader.profile if load is None else load


_caches: WeakSet[Cache[Any]] = WeakSet()


def _after_fork() -> None:
    for cache in list(_caches):
        cache._after_fork()  # pyright: ignore[reportPrivateUsage]


os.register_at_fork(after_in_child=_after_fork)
