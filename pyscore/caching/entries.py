"""What is kept, what is being loaded, and what was invalidated meanwhile. It waits for nothing.

A load that began before an invalidation may return what was true before it. So each load notes what
was invalidated since it began, whatever its result will turn out to be about: a result that is
concerned is not kept, and is given only to those who asked before the invalidation.
"""

from __future__ import annotations

import os
import threading
import unicodedata
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID
from weakref import WeakSet

from pyscore.errors import PyscoreError

if TYPE_CHECKING:
    from pyscore.caching.kept import Entry

P = TypeVar("P")

_MOST_NOTED = 10_000
"""Users that a load notes one by one; beyond that it counts as concerned, whoever it is about."""


def id_tag(user_id: Any) -> Hashable:
    """Return what stands for a user's id in any form: a UUID, its text in any case, a number."""
    text = str(user_id).strip()
    if len(text) in (32, 36) and isinstance(user_id, str):
        with suppress(ValueError):
            text = str(UUID(text))
    return "id", text


def name_tag(username: str) -> Hashable:
    """Return what stands for a name and for all that some column may take for the same.

    citext is blind to case, other collations to accents too. To drop more than had to be is
    harmless, so this is blind to all of that.
    """
    name = str.__str__(username)
    if not name.isascii():
        parts = unicodedata.normalize("NFKD", name)
        name = "".join(part for part in parts if not unicodedata.combining(part))
        name = name.casefold().replace("\N{LATIN SMALL LETTER DOTLESS I}", "i")
    return "name", name.strip().lower()


class Load:
    """A load that is under way.

    Attributes:
        key: The name that was asked for.
        tag: What stands for it.
        at: When it began, by the cache's clock.
        waiting: How many wait for it, beside a thread that loads by itself.
        concerned: The number of the first invalidation since it began that concerns what it
            returned; None without one. Known at its end.
    """

    def __init__(self, key: str):
        self.key = key
        self.tag = name_tag(key)
        self.at = 0.0
        self.waiting = 0
        self.concerned: int | None = None
        self._noted: dict[Hashable, int] = {}
        self._everything: int | None = None
        self._anything: int | None = None

    def note(self, number: int, tags: Iterable[Hashable] | None) -> None:
        """Note an invalidation: of some, or of everything."""
        if self._anything is None:
            self._anything = number
        if self._everything is not None:
            return
        if tags is None or len(self._noted) > _MOST_NOTED:
            self._everything = number
            return
        for tag in tags:
            self._noted.setdefault(tag, number)

    @property
    def outdated(self) -> bool:
        """Whether it is known already, before its end, to be concerned."""
        return self._everything is not None or self.tag in self._noted

    def end(self, tags: Iterable[Hashable] | None) -> None:
        """Say what was returned stands for; None where there is no such user."""
        if tags is None:
            # who it would have been about is not known
            self.concerned = self._anything
            return
        numbers = [self._noted[tag] for tag in (self.tag, *tags) if tag in self._noted]
        if self._everything is not None:
            numbers.append(self._everything)
        self.concerned = min(numbers, default=None)

    def serves(self, asked: int) -> bool:
        """Return whether its result may be given to who asked after so many invalidations."""
        return self.concerned is None or asked < self.concerned


class Entries(Generic[P]):
    """The state of a cache, for callers who hold its lock.

    Args:
        maxsize: Entries at most.
        ttl: Seconds for which an entry is kept, counted from when its load began.
        timer: The clock.
    """

    def __init__(self, maxsize: int, ttl: float, timer: Callable[[], float]):
        self.maxsize = maxsize
        self._ttl = ttl
        self._timer = timer
        self.hits = self.misses = self.invalidations = 0
        self.suspended = False
        self.begin_anew()
        _all.add(self)

    def begin_anew(self) -> None:
        """Forget everything, and whoever holds the lock: after a fork that is nobody."""
        try:
            from pyscore.caching.kept import Entry, Kept
        except ModuleNotFoundError as error:
            if error.name != "cachetools":
                raise
            raise PyscoreError(
                "the cache is made with cachetools; install it with: pip install 'pyscore[cache]'"
            ) from None
        self._entry = Entry
        self.lock = threading.Lock()
        self.loads: dict[Hashable, Load] = {}
        # an outdated load has left its place, and still has to know
        self._under_way: set[Load] = set()
        self.number = 0
        self._kept = Kept(self.maxsize, self._timer)

    @property
    def currsize(self) -> int:
        """How many entries there are."""
        return int(self._kept.currsize)

    def find(self, key: str) -> Entry[P] | None:
        """Return what is kept for a name, and count that it was asked for."""
        found = None if self.suspended else self._kept.get(key)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def begin(self, place: Hashable, load: Load) -> None:
        """Begin a load, in place of an outdated one."""
        load.at = self._timer()
        self.loads[place] = load
        self._under_way.add(load)

    def may_join(self, load: Load) -> bool:
        """Return whether who asks now may wait for a load: what it read is to be kept, so far."""
        return not load.outdated and self._timer() < load.at + self._ttl

    def leave(self, place: Hashable, load: Load) -> None:
        """End a load that returned nothing."""
        self._under_way.discard(load)
        if self.loads.get(place) is load:
            del self.loads[place]

    def end(
        self, place: Hashable, load: Load, value: P | None, tags: tuple[Hashable, ...] | None
    ) -> None:
        """End a load, and keep what it returned unless that was invalidated meanwhile.

        Args:
            place: Where it began.
            load: The load.
            value: What it returned.
            tags: What stands for that; None where there is no such user, which is not kept.
        """
        known = load in self._under_way  # not begun before a fork
        self.leave(place, load)
        load.end(tags)
        if known and tags is not None and load.concerned is None and not self.suspended:
            entry = self._entry(value, frozenset((load.tag, *tags)), load.at + self._ttl)
            self._kept.keep(load.key, entry)

    def invalidate(self, tags: Iterable[Hashable]) -> None:
        """Drop all that the tags stand for, and all else of the users found so."""
        wanted = set(tags)
        if not wanted:
            return
        found = self._kept.tagged(wanted)
        wanted.update(tag for entry in found.values() for tag in entry.tags)
        found = self._kept.tagged(wanted)
        for key in found:
            self._kept.pop(key)
        self.invalidations += len(found)
        self.number += 1
        for load in self._under_way:
            load.note(self.number, wanted)

    def clear(self) -> None:
        """Drop everything."""
        self.invalidations += self.currsize
        self._kept = type(self._kept)(self.maxsize, self._timer)
        self.number += 1
        for load in self._under_way:
            load.note(self.number, None)


_all: WeakSet[Entries[Any]] = WeakSet()


def _after_fork() -> None:
    # a thread that is no more may hold a lock, or was about to end a load
    for entries in list(_all):
        entries.begin_anew()


os.register_at_fork(after_in_child=_after_fork)
