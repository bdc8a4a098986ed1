"""For tests of caches: people, a clock, loads that end when they are told to, invalidations."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pyscore.caching.entries import Entries, Load
from tests.interleave import PATIENCE, until


@dataclass(frozen=True)
class Person:
    user_id: Any
    username: str
    version: int = 0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def entries_of(cache: Any) -> Entries[Any]:
    return cache._entries


def loads_of(cache: Any) -> list[Load]:
    """The loads that others may join."""
    return list(entries_of(cache).loads.values())


class People:
    """Who there is, and how often somebody was asked for."""

    def __init__(self, *people: Person) -> None:
        self.people = {person.username: person for person in people}
        self.asked: list[str] = []

    def load(self, username: str) -> Person | None:
        self.asked.append(username)
        return self.people.get(username.lower())


ADA = Person(UUID(int=1), "ada")
BOB = Person(UUID(int=2), "bob")


INVALIDATIONS: dict[str, Callable[[Any], None]] = {
    "by id": lambda cache: cache.invalidate_user(ADA.user_id),
    "by the id's text": lambda cache: cache.invalidate_user(str(ADA.user_id)),
    "by name": lambda cache: cache.invalidate("ada"),
    "by another form of the name": lambda cache: cache.invalidate("aDA"),
    "all": lambda cache: cache.clear(),
}
NEW = Person(ADA.user_id, "ada", version=1)


class Gates:
    """Loads that read at once and return when they are told to."""

    def __init__(self, database: dict[str, Person]) -> None:
        self.database = database
        self.begun: list[Future[None]] = []
        self._lock = threading.Lock()

    def load(self, username: str) -> Person | None:
        read = self.database.get(username.lower())
        gate: Future[None] = Future()
        with self._lock:
            self.begun.append(gate)
        gate.result(PATIENCE)
        return read

    def until(self, count: int) -> Future[None]:
        until(lambda: len(self.begun) == count, f"load {count} has begun")
        return self.begun[-1]


class AsyncGates:
    """Loads that read at once and return when they are told to."""

    def __init__(self, database: dict[str, Person]) -> None:
        self.database = database
        self.begun: list[asyncio.Future[None]] = []
        self.cancelled = 0

    async def load(self, username: str) -> Person | None:
        read = self.database.get(username.lower())
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.begun.append(gate)
        try:
            await gate
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return read


async def settle() -> None:
    """Let every task go as far as it can: nothing here waits for anything but a gate."""
    for _ in range(12):
        await asyncio.sleep(0)
