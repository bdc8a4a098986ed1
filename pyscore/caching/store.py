"""The entries of a cache, the loads under way, and what was invalidated meanwhile.

A load sees the database at some moment after it began. When it ends after an invalidation that it
began before, what it brings may be older than the invalidation: it is not kept, and nobody gets it
who asked after the invalidation. Whose profile it is, is known only when it is there; so until then
everything is remembered that is invalidated, by number and token.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from cachetools import TLRUCache

from pyscore.caching import tokens

T = TypeVar("T")

_REMEMBERED = 10_000
"""Invalidations; beyond that the loads under way count as overtaken."""


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache has done, and holds.

    Attributes:
        hits: Questions answered from it.
        misses: All others; those that asked while somebody else's load ran are among them.
        currsize: How many profiles it holds.
        maxsize: How many it may hold.
        invalidations: How many profiles it was made to forget; neither those that grew too old nor
            those that others took the place of.
    """

    hits: int
    misses: int
    currsize: int
    maxsize: int
    invalidations: int


@dataclass(frozen=True, slots=True)
class Missing:
    """A question that the entries do not answer.

    Attributes:
        asked: How many invalidations there had been.
    """

    asked: int


@dataclass(slots=True, eq=False)
class Flight(Generic[T]):
    """A load under way, and those who wait for it.

    Attributes:
        key: Whose, among the loads that may be joined.
        name: What was asked for.
        began: How many invalidations there had been.
        at: When, by the cache's clock.
        token: Of the name.
        value: What it brought.
        overtaken: The number of the first invalidation that it may not have seen.
        ended: Set as it is over; `error` and `given_up` are then final.
        error: What it raised instead.
        given_up: Whoever ran it was stopped; those who waited have to run it again.
        task: Of an asynchronous load.
        waiting: How many wait for the task.
    """

    key: Hashable
    name: str
    began: int
    at: float
    token: str
    value: T | None = None
    overtaken: int | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    given_up: bool = False
    runner: int = field(default_factory=threading.get_ident)
    task: Any = None
    waiting: int = 0

    def answers(self, missing: Missing) -> bool:
        """Tell whether what it brought is as new as the question demands."""
        return self.overtaken is None or self.overtaken > missing.asked


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    value: T
    expires: float


class Store(Generic[T]):
    """Knows nothing of threads that wait, nor of tasks; may be called from any thread.

    Args:
        maxsize: How many entries.
        ttl: Seconds after the beginning of its load at which an entry is too old.
        timer: The clock.
    """

    def __init__(self, maxsize: int, ttl: float, timer: Callable[[], float]) -> None:
        self._ttl: Final = ttl
        self._timer: Final = timer
        self._maxsize: Final = maxsize
        self.wake: Callable[[], None] | None = None
        self._empty()

    def _empty(self) -> None:
        # one that is reentrant: a finalizer may ask the cache in the middle of anything
        self._lock = threading.RLock()
        self._entries = self._no_entries()
        # of the entries, and of some that are no longer: cachetools says nothing when one goes
        self._tokens: dict[str, tuple[str, ...]] = {}
        self._keys: dict[str, set[str]] = {}
        self._flights: dict[Hashable, Flight[T]] = {}
        self._underway: set[Flight[T]] = set()
        self._events: dict[str, list[int]] = {}
        self._remembered = 0
        self._event = 0
        self._keeps = True
        self._hits = self._misses = self._invalidations = 0

    def _no_entries(self) -> TLRUCache[str, _Entry[T], float]:
        return TLRUCache(self._maxsize, _expiry, timer=self._timer)

    def after_fork(self) -> None:
        """Begin anew in a child, where neither the loads nor the holder of the lock go on."""
        self._empty()

    def find(self, name: str) -> T | Missing:
        """Return what is kept under a name, and count the question."""
        if self.wake is not None:
            wake, self.wake = self.wake, None
            wake()
        with self._lock:
            value = self.look(name)
            if value is None:
                self._misses += 1
                return Missing(self._event)
            self._hits += 1
            return value

    def look(self, name: str) -> T | None:
        """Like `find`, for a question that was counted already."""
        with self._lock:
            # not get(), nor pop() below: both look at the clock twice
            try:
                return self._entries[name].value
            except KeyError:
                return None

    def board(self, name: str, owner: Hashable = None) -> tuple[Flight[T], bool]:
        """Return the load of a name to wait for, and whether it is the caller's to run.

        Args:
            name: As it was asked for.
            owner: Loads of different owners are not shared.
        """
        with self._lock:
            key = (owner, name)
            flight = self._flights.get(key)
            # what hangs for longer than an entry lives is nothing to wait for
            if flight is not None and self._timer() < flight.at + self._ttl:
                return flight, False
            flight = Flight[T](key, name, self._event, self._timer(), tokens.of_name(name))
            self._flights[key] = flight
            self._underway.add(flight)
            return flight, True

    def land(self, flight: Flight[T], value: T | None, known_as: tuple[str, ...]) -> None:
        """End a load: keep what it brought, unless that may be out of date.

        Args:
            flight: Which.
            value: What it brought; None, for nobody has this name, is not kept.
            known_as: The tokens of whoever that is, besides the name's.
        """
        with self._lock:
            everything = (tokens.EVERYBODY, flight.token, *known_as)
            if value is None:
                # any id may be that of somebody who has the name by now
                missed = [flight.began + 1] if self._event > flight.began else []
            else:
                missed = list(self._missed(everything, flight.began))
            if flight.overtaken is not None:
                missed.append(flight.overtaken)
            flight.overtaken = min(missed, default=None)
            flight.value = value
            if value is not None and flight.overtaken is None and self._keeps:
                self._keep(flight.name, value, everything[1:], flight.at + self._ttl)
            self._over(flight)

    def fail(self, flight: Flight[T], error: BaseException) -> None:
        """End a load that raised."""
        with self._lock:
            flight.error = error
            flight.given_up = not isinstance(error, Exception)
            self._over(flight)

    def detach(self, flight: Flight[T]) -> None:
        """Let nobody else wait for a load."""
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]

    def forget(self, gone: Iterable[str]) -> None:
        """Drop the entries with any of these tokens.

        Args:
            gone: EVERYBODY, or those of names and ids.
        """
        gone = set(gone)
        if not gone:
            return
        with self._lock:
            self._event += 1
            if tokens.EVERYBODY in gone:
                self._entries.expire()
                self._invalidations += len(self._entries)
                self._entries = self._no_entries()
                self._tokens.clear()
                self._keys.clear()
            else:
                for key in {key for token in gone for key in self._keys.get(token, ())}:
                    self._unindex(key)
                    with suppress(KeyError):
                        del self._entries[key]
                        self._invalidations += 1
            if self._underway:
                self._remember(gone)

    def keep(self, keeps: bool) -> None:
        """Let the store keep what is loaded, or drop all and keep nothing from now on."""
        with self._lock:
            self._keeps = keeps
        # when it keeps again too: a load under way may have read what changed unheard
        self.forget([tokens.EVERYBODY])

    def info(self) -> CacheInfo:
        """Return the counts."""
        with self._lock:
            self._entries.expire()
            return CacheInfo(
                self._hits, self._misses, len(self._entries), self._maxsize, self._invalidations
            )

    def _keep(self, key: str, value: T, known_as: tuple[str, ...], expires: float) -> None:
        with suppress(KeyError):
            # from a load that began later, because this one hung
            if self._entries[key].expires > expires:
                return
        if key in self._tokens:
            self._unindex(key)
        self._entries[key] = _Entry(value, expires)
        self._tokens[key] = known_as
        for token in known_as:
            self._keys.setdefault(token, set()).add(key)
        if len(self._tokens) > 2 * self._maxsize:
            for other in [other for other in self._tokens if other not in self._entries]:
                self._unindex(other)

    def _unindex(self, key: str) -> None:
        for token in self._tokens.pop(key):
            keys = self._keys.get(token)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._keys[token]

    def _remember(self, gone: set[str]) -> None:
        for token in gone:
            self._events.setdefault(token, []).append(self._event)
        self._remembered += len(gone)
        if self._remembered > _REMEMBERED:
            self._events.clear()
            self._remembered = 0
            for flight in self._underway:
                flight.overtaken = flight.began + 1
        # these are known to be of no use to whoever asks from now on
        everything = tokens.EVERYBODY in gone
        for flight in list(self._flights.values()):
            if everything or flight.token in gone or flight.overtaken is not None:
                self.detach(flight)

    def _missed(self, known_as: Iterable[str], began: int) -> Iterable[int]:
        for token in known_as:
            events = self._events.get(token, [])
            place = bisect_right(events, began)
            if place < len(events):
                yield events[place]

    def _over(self, flight: Flight[T]) -> None:
        self.detach(flight)
        self._underway.discard(flight)
        if not self._underway:
            self._events.clear()
            self._remembered = 0
        flight.ended.set()


def _expiry(key: str, entry: _Entry[Any], now: float) -> float:
    return entry.expires
