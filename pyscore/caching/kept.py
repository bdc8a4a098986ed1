"""The entries of a cache, on cachetools, found by whatever they may have to be dropped for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cachetools import TLRUCache

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Entry(Generic[P]):
    """What is kept for a name.

    Attributes:
        value: The profile.
        tags: Whatever stands for it: the user's id, the names.
        expires: When it is too old, by the cache's clock.
    """

    value: P
    tags: frozenset[Hashable]
    expires: float


def _expires(_key: Hashable, entry: Entry[Any], _now: float) -> float:
    return entry.expires


class Kept(TLRUCache[Hashable, Entry[Any]]):
    """The least recently used goes first, and every entry when its own time is up.

    Args:
        maxsize: Entries at most.
        timer: The clock.
    """

    def __init__(self, maxsize: int, timer: Callable[[], float]):
        super().__init__(maxsize, ttu=_expires, timer=timer)
        self._tagged: dict[Hashable, set[Hashable]] = {}
        self._tags: dict[Hashable, frozenset[Hashable]] = {}

    def keep(self, key: Hashable, entry: Entry[Any]) -> None:
        """Put an entry in."""
        self.pop(key, None)
        self[key] = entry
        if key in self:  # not too old already
            self._tags[key] = entry.tags
            for tag in entry.tags:
                self._tagged.setdefault(tag, set()).add(key)

    def tagged(self, tags: Iterable[Hashable]) -> dict[Hashable, Entry[Any]]:
        """Return the entries for which one of the tags stands."""
        self.expire()
        keys = {key for tag in tags for key in self._tagged.get(tag, ())}
        return {key: self[key] for key in keys}

    def expire(self, time: float | None = None) -> list[tuple[Hashable, Entry[Any]]]:
        """Drop what is too old."""
        expired = list(super().expire(time))
        for key, _ in expired:
            self._untag(key)
        return expired

    def __delitem__(self, key: Hashable, *options: Any) -> None:
        # cachetools comes here too, when there are too many
        self._untag(key)
        super().__delitem__(key, *options)

    def _untag(self, key: Hashable) -> None:
        for tag in self._tags.pop(key, ()):
            keys = self._tagged[tag]
            keys.remove(key)
            if not keys:
                del self._tagged[tag]
