"""What readers return: frozen dataclasses that hold a score and what it is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

Number: TypeAlias = int | float
"""A score: an int where ``users.builder_score`` holds whole numbers, else a float."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A range of scores.

    Attributes:
        number: 1 for the lowest.
        low: The lowest score in it.
        high: The highest whole score in it; None for the last tier, which is open.
    """

    number: int
    low: int
    high: int | None

    def __str__(self) -> str:
        return f"{self.low} and over" if self.high is None else f"{self.low}-{self.high}"


TIERS = (Tier(1, 0, 30), Tier(2, 31, 55), Tier(3, 56, 75), Tier(4, 76, None))
"""All tiers, the lowest first."""


def tier_of(score: Number) -> Tier:
    """Return the tier of a score; 30.9 is still in the tier that ends with 30.

    Args:
        score: From 0 to 100. A column may hold what never was computed, such as an application's
            own -1: below 0, and for NaN, it is the first tier.
    """
    return next((tier for tier in reversed(TIERS) if score >= tier.low), TIERS[0])


@dataclass(frozen=True, slots=True)
class UserScore:
    """A user and their score.

    Attributes:
        user_id: As ``users.id`` holds it.
        username: None where the application's users have no such column.
        score: None while nothing was computed and the column holds NULL.
    """

    user_id: Any
    username: str | None
    score: Number | None

    @property
    def tier(self) -> Tier | None:
        """The range the score lies in, as `tier_of` has it; None without a score."""
        return None if self.score is None else tier_of(self.score)


@dataclass(frozen=True, slots=True)
class Profile:
    """A user, their score, and what else counts towards it in their own row.

    A column that the application's users lack is None here.

    Attributes:
        user_id: As ``users.id`` holds it.
        username: The name.
        score: None while nothing was computed and the column holds NULL.
        avatar_url: Text, as all to timezone are, whatever the column's type.
        headline: Likewise.
        bio: Likewise.
        primary_role: Likewise.
        timezone: Likewise.
        contact_links: What the JSON in it stands for, a JSON object in a column of text too; other
            text as it is. Whole numbers of more digits than Python reads are of type Decimal.
        created_at: In UTC, which a timestamp without time zone counts as; None for what a datetime
            cannot be, such as infinity.
    """

    user_id: Any
    username: str | None
    score: Number | None
    avatar_url: str | None = None
    headline: str | None = None
    bio: str | None = None
    primary_role: str | None = None
    timezone: str | None = None
    contact_links: Any = field(default=None, hash=False)
    created_at: datetime | None = None

    @property
    def tier(self) -> Tier | None:
        """The range the score lies in, as `tier_of` has it; None without a score."""
        return None if self.score is None else tier_of(self.score)


@dataclass(frozen=True, slots=True)
class Page:
    """Some consecutive places of a ranking, the highest score first.

    Iterating over a page, and its length, mean its entries.

    Attributes:
        entries: The people on it.
        next: Where the next page begins, for ``after=``; None when nobody is behind this page.
    """

    entries: tuple[UserScore, ...]
    next: str | None

    def __iter__(self) -> Iterator[UserScore]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(frozen=True, slots=True)
class Signal:
    """One of the parts that a score is the sum of.

    Attributes:
        name: shipped, vouches, impact, profile or age.
        raw: What was counted.
        points: What that is worth.
        max_points: The most that it can be worth; 0 when the signal is switched off.
    """

    name: str
    raw: Number
    points: float
    max_points: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a score is what it is.

    Attributes:
        user_id: As ``users.id`` holds it.
        username: None where the application's users have no such column.
        score: What is stored; it may be older than the signals.
        signals: What each part would be worth if it were computed now.
    """

    user_id: Any
    username: str | None
    score: Number | None
    signals: tuple[Signal, ...]

    @property
    def points(self) -> float:
        """What the signals add up to, 0 to 100: the score, computed now, before it is rounded."""
        return min(100.0, math.fsum(signal.points for signal in self.signals))

    @property
    def tier(self) -> Tier | None:
        """The range the stored score lies in, as `tier_of` has it; None without a score."""
        return None if self.score is None else tier_of(self.score)
