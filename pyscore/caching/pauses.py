"""How long to wait before the next attempt."""

from __future__ import annotations

import random

_FIRST = 0.1


class Pauses:
    """Each is twice as long as the one before, up to a longest, and shorter by up to a half.

    By chance: a server that comes back does not see everybody at the same moment.

    Args:
        longest: Seconds.
    """

    def __init__(self, longest: float):
        self._longest = longest
        self._attempts = 0

    def next(self) -> float:
        """Return how long to wait now, in seconds."""
        whole = min(self._longest, _FIRST * 2.0 ** min(self._attempts, 60))
        self._attempts += 1
        return whole * random.uniform(0.5, 1)

    def lasted(self, seconds: float) -> None:
        """Say how long the last attempt was good for; after a short while it is as good as none."""
        if seconds >= self._longest:
            self._attempts = 0
