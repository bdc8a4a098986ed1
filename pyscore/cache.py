"""Profiles by username, kept in memory: an LRU whose entries live for five minutes at most.

    profiles = ProfileCache(ScoreReader(engine))
    profiles.get("ada")

`pyscore.listener` drops an entry in every process when the user's score changes, and
`pyscore.cache_events` in this one when SQLAlchemy's ORM has written the user.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, overload

from pyscore.caching.entries import Entries, Load, id_tag, name_tag
from pyscore.errors import BadArgumentError
from pyscore.reading.types import shown
from pyscore.scores import Profile

P = TypeVar("P")

MAXSIZE = 1024
TTL = 300.0

Of: TypeAlias = "str | Callable[[P], Any]"
"""The name of an attribute, or a function of the object."""


class Profiles(Protocol):
    """What a `ProfileCache` reads from: a ScoreReader."""

    def profile(self, username: str) -> Profile | None:
        """Return the profile of the user with a name."""
        ...


class AsyncProfiles(Protocol):
    """What an `AsyncProfileCache` reads from: an AsyncScoreReader."""

    async def profile(self, username: str) -> Profile | None:
        """Return the profile of the user with a name."""
        ...


class CacheInfo(NamedTuple):
    """How a cache has done so far.

    Attributes:
        hits: How often it had what it was asked for.
        misses: How often it had not, those included who waited for somebody else's load.
        maxsize: Entries at most.
        currsize: Entries now.
        invalidations: Entries that were dropped because they were told to be; not those that were
            too old, or one too many.
    """

    hits: int
    misses: int
    maxsize: int
    currsize: int
    invalidations: int


class _Cache(Generic[P]):
    """What both caches share. All of it may be called from any thread."""

    def __init__(
        self,
        *,
        user_id: Of[P],
        username: Of[P],
        maxsize: int,
        ttl: float,
        timer: Callable[[], float],
    ):
        if maxsize < 1 or not ttl > 0:
            raise BadArgumentError(
                f"maxsize is {shown(maxsize)} and ttl is {shown(ttl)}: expected 1 entry at least, "
                "and more than 0 seconds"
            )
        self._id_of = user_id
        self._name_of = username
        self._entries: Entries[P] = Entries(maxsize, ttl, timer)

    def invalidate(self, *usernames: str) -> None:
        """Forget the users with these names, under whatever form of a name they were asked for.

        After a profile was updated and that committed. After a rename give the old name and the new
        one. A load that is under way does not bring back what it may have read before.

        Args:
            usernames: The case of letters does not matter.
        """
        with self._entries.lock:
            self._entries.invalidate(map(name_tag, usernames))

    def invalidate_user(self, *user_ids: Any) -> None:
        """Forget the users with these ids, under all of their names.

        Args:
            user_ids: As ``users.id`` holds them, or as text.
        """
        with self._entries.lock:
            self._entries.invalidate(map(id_tag, user_ids))

    def clear(self) -> None:
        """Forget everybody."""
        with self._entries.lock:
            self._entries.clear()

    def suspend(self) -> None:
        """Forget everybody, and keep nothing until `resume`: each `get` then loads."""
        with self._entries.lock:
            self._entries.suspended = True
            self._entries.clear()

    def resume(self) -> None:
        """Keep again what is loaded from now on."""
        with self._entries.lock:
            self._entries.clear()
            self._entries.suspended = False

    def info(self) -> CacheInfo:
        """Return how it has done so far."""
        with self._entries.lock:
            entries = self._entries
            return CacheInfo(
                entries.hits,
                entries.misses,
                entries.maxsize,
                entries.currsize,
                entries.invalidations,
            )

    def _tags(self, value: P | None) -> tuple[Hashable, ...] | None:
        """Return what stands for a profile; None for None. Called without the lock."""
        if value is None:
            return None
        try:
            user_id = _of(value, self._id_of)
        except AttributeError as error:
            raise BadArgumentError(
                f"what was loaded, {shown(value)}, does not tell whose it is ({error}): "
                "expected the attribute user_id, or user_id=, its name or a function"
            ) from error
        try:
            name = _of(value, self._name_of)
        except AttributeError:
            name = None
        return (id_tag(user_id), name_tag(name)) if isinstance(name, str) else (id_tag(user_id),)


class ProfileCache(_Cache[P]):
    """Keeps profiles by username in memory. For threads; `AsyncProfileCache` is for tasks.

    The least recently used goes when there are too many, and each entry when it is ``ttl`` seconds
    old, counted from when it began to be loaded. Threads that miss one name at a time make one
    query; an exception reaches all of them, and is not kept. Neither is that there is no such user:
    who signs up is seen at once, and who asks for what does not exist asks the database.

    What a load began to read before an invalidation is not kept, and is not given to anybody who
    asks after it. That holds where each load sees what is committed when it begins: give the reader
    an Engine, not a Session or Connection whose transaction lasts. A reader on a standby may, for a
    ``ttl``, bring back what the standby had not yet received.

        profiles = ProfileCache(ScoreReader(engine))
        profiles.get("ada").score

    In a process that was forked a cache begins empty.

    Args:
        reader: Loads profiles.
        load: Or any function of your own, from a name to what is to be kept, None without such a
            user. What it returns is given to many threads: do not change it. An object of the
            ORM's is to be detached and loaded whole.
        user_id: Where what ``load`` returns has the id of its user: the attribute's name, or a
            function.
        username: Likewise the name; without it `invalidate` knows only the name asked for.
        maxsize: Entries at most.
        ttl: Seconds.
        timer: The clock, in seconds.

    Raises:
        BadArgumentError: Not one of ``reader`` and ``load`` was given, or a number is too small.
        PyscoreError: cachetools is not installed: ``pip install 'pyscore[cache]'``.
    """

    @overload
    def __init__(
        self: ProfileCache[Profile],
        reader: Profiles,
        *,
        maxsize: int = ...,
        ttl: float = ...,
        timer: Callable[[], float] = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        load: Callable[[str], P | None],
        user_id: Of[P] = ...,
        username: Of[P] = ...,
        maxsize: int = ...,
        ttl: float = ...,
        timer: Callable[[], float] = ...,
    ) -> None: ...
    def __init__(
        self,
        reader: Profiles | None = None,
        *,
        load: Callable[[str], Any] | None = None,
        user_id: Of[Any] = "user_id",
        username: Of[Any] = "username",
        maxsize: int = MAXSIZE,
        ttl: float = TTL,
        timer: Callable[[], float] = time.monotonic,
    ):
        super().__init__(user_id=user_id, username=username, maxsize=maxsize, ttl=ttl, timer=timer)
        self._load: Callable[[str], P | None] = _loading(reader, load, "a ScoreReader")

    def get(self, username: str) -> P | None:
        """Return the profile of the user with a name, from memory if it is there; None without one.

        Args:
            username: As the reader, or ``load``, takes it.

        Raises:
            BadArgumentError: It is not text.
            Exception: Whatever the load raises.
        """
        key = _key(username)
        entries = self._entries
        with entries.lock:
            if (found := entries.find(key)) is not None:
                return found.value
        while True:
            with entries.lock:
                asked = entries.number
                under_way = entries.loads.get(key)
                if isinstance(under_way, _Loading) and entries.may_join(under_way):
                    leads, load = False, under_way
                    load.waiting += 1
                else:
                    leads, load = True, _Loading(key)
                    entries.begin(key, load)
            try:
                if leads:
                    return self._lead(load)
                load.wait()
                if load.error is not None:
                    raise load.error
                if load.has_result and load.serves(asked):
                    return load.result
            finally:
                del load, under_way  # or an error would hold itself, by way of this frame

    def _lead(self, load: _Loading) -> P | None:
        try:
            value = self._load(load.key)
            tags = self._tags(value)
            with self._entries.lock:
                self._entries.end(load.key, load, value, tags)
            load.result, load.has_result = value, True
            return value
        except Exception as error:
            load.error = error
            raise
        finally:
            with self._entries.lock:
                self._entries.leave(load.key, load)
            # who waited for a thread that was interrupted loads for themselves
            load.done.set()
            del load


class _Loading(Load):
    """A load in some thread, for which others wait."""

    def __init__(self, key: str):
        super().__init__(key)
        self.done = threading.Event()
        self.result: Any = None
        self.has_result = False
        self.error: Exception | None = None
        self._thread = threading.get_ident()

    def wait(self) -> None:
        if self._thread == threading.get_ident():
            raise RuntimeError(f"the load of {shown(self.key)} asks the cache for the same name")
        self.done.wait()


class AsyncProfileCache(_Cache[P]):
    """Keeps profiles by username in memory, for tasks: what `ProfileCache` says holds for it.

    Tasks that miss one name at a time make one query, in a task of its own: it goes on while
    anybody waits for it, whoever of them is cancelled, and is cancelled with the last one.

        profiles = AsyncProfileCache(AsyncScoreReader(engine))
        (await profiles.get("ada")).score

    Args:
        reader: Loads profiles; on an AsyncEngine, since loads run side by side.
        load: Or any coroutine function of your own, as for `ProfileCache`.
        user_id: As for `ProfileCache`.
        username: As for `ProfileCache`.
        maxsize: As for `ProfileCache`.
        ttl: As for `ProfileCache`.
        timer: As for `ProfileCache`.

    Raises:
        BadArgumentError: As for `ProfileCache`.
        PyscoreError: As for `ProfileCache`.
    """

    @overload
    def __init__(
        self: AsyncProfileCache[Profile],
        reader: AsyncProfiles,
        *,
        maxsize: int = ...,
        ttl: float = ...,
        timer: Callable[[], float] = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        load: Callable[[str], Awaitable[P | None]],
        user_id: Of[P] = ...,
        username: Of[P] = ...,
        maxsize: int = ...,
        ttl: float = ...,
        timer: Callable[[], float] = ...,
    ) -> None: ...
    def __init__(
        self,
        reader: AsyncProfiles | None = None,
        *,
        load: Callable[[str], Awaitable[Any]] | None = None,
        user_id: Of[Any] = "user_id",
        username: Of[Any] = "username",
        maxsize: int = MAXSIZE,
        ttl: float = TTL,
        timer: Callable[[], float] = time.monotonic,
    ):
        super().__init__(user_id=user_id, username=username, maxsize=maxsize, ttl=ttl, timer=timer)
        self._load: Callable[[str], Awaitable[P | None]] = _loading(
            reader, load, "an AsyncScoreReader"
        )

    async def get(self, username: str) -> P | None:
        """Return the profile of the user with a name, from memory if it is there; None without one.

        Args:
            username: As the reader, or ``load``, takes it.

        Raises:
            BadArgumentError: It is not text.
            Exception: Whatever the load raises.
        """
        key = _key(username)
        entries = self._entries
        with entries.lock:
            if (found := entries.find(key)) is not None:
                return found.value
        loop = asyncio.get_running_loop()
        place = id(loop), key  # a task of another loop cannot be waited for
        while True:
            with entries.lock:
                asked = entries.number
                under_way = entries.loads.get(place)
                if (
                    isinstance(under_way, _LoadingTask)
                    and entries.may_join(under_way)
                    and under_way.loop is loop
                ):
                    leads, load = False, under_way
                else:
                    leads, load = True, _LoadingTask(key, loop)
                    self._leave_closed_loops()
                    entries.begin(place, load)
            try:
                if leads:
                    load.task = loop.create_task(self._run(place, load))
                await self._wait(place, load)
                if load.error is not None:
                    raise load.error
                if load.has_result and load.serves(asked):
                    return load.result
            finally:
                del load, under_way  # as in ProfileCache.get

    async def _wait(self, place: Hashable, load: _LoadingTask) -> None:
        task = load.task
        if task is None or task is asyncio.current_task():
            raise RuntimeError(f"the load of {shown(load.key)} asks the cache for the same name")
        load.waiting += 1
        try:
            # unlike the task itself: neither is cancelled, nor raises, with the other
            await asyncio.wait((task,))
        finally:
            load.waiting -= 1
            if not load.waiting and not task.done():
                with self._entries.lock:
                    self._entries.leave(place, load)
                task.cancel()

    async def _run(self, place: Hashable, load: _LoadingTask) -> None:
        try:
            loading: Any = self._load(load.key)
            if not inspect.isawaitable(loading):
                raise BadArgumentError(
                    f"an AsyncProfileCache takes an AsyncScoreReader, or a coroutine function as "
                    f"load=; what was loaded is {shown(loading)}, and not awaitable"
                )
            value: Any = await loading
            tags = self._tags(value)
            with self._entries.lock:
                self._entries.end(place, load, value, tags)
            load.result, load.has_result = value, True
        except Exception as error:
            load.error = error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # whoever waits then, loads for themselves
            load.error = RuntimeError(f"the load of {shown(load.key)} was cancelled from within")
            load.error.__cause__ = error
        finally:
            with self._entries.lock:
                self._entries.leave(place, load)
            del load

    def _leave_closed_loops(self) -> None:
        for place, load in list(self._entries.loads.items()):
            if isinstance(load, _LoadingTask) and load.loop.is_closed():
                self._entries.leave(place, load)


class _LoadingTask(Load):
    """A load in a task of its own, for which other tasks wait."""

    def __init__(self, key: str, loop: asyncio.AbstractEventLoop):
        super().__init__(key)
        self.loop = loop
        self.task: asyncio.Task[None] | None = None
        self.result: Any = None
        self.has_result = False
        self.error: Exception | None = None


def _key(username: Any) -> str:
    if not isinstance(username, str):
        raise BadArgumentError(f"{shown(username)} is not a username: expected text")
    return str.__str__(username)


def _of(value: Any, of: Of[Any]) -> Any:
    return getattr(value, of) if isinstance(of, str) else of(value)


def _loading(reader: Any, load: Any, expected: str) -> Any:
    if (reader is None) == (load is None):
        raise BadArgumentError("the cache loads by a reader, or by load=: expected one of them")
    if load is not None:
        return load
    if not callable(getattr(reader, "profile", None)):
        raise BadArgumentError(f"the cache takes {expected}, not {shown(reader)}")
    return reader.profile
