"""How scores are spread: ranges that end where tiers do, and, in public, none with only a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from pyscore.scores import TIERS

FEW = 5
"""Fewer people than this are not counted apart in public: they could be known by their count."""

LOWS = (0, *range(6, 100, 5))
"""Where ranges begin: 0-5, 6-10, ..., 96-100. Each tier is made of whole ones."""


@dataclass(frozen=True, slots=True)
class Range:
    """Some neighbouring ranges of scores.

    Attributes:
        first: The number of the first of `LOWS` in it.
        width: How many of them.
        people: How many have such a score.
    """

    first: int
    width: int
    people: int

    @property
    def label(self) -> str:
        """Its lowest and its highest whole score."""
        last = self.first + self.width
        return f"{LOWS[self.first]}-{LOWS[last] - 1 if last < len(LOWS) else 100}"


@dataclass(frozen=True, slots=True)
class Spread:
    """How many people have which scores.

    Attributes:
        people: All who have one.
        ranges: The lowest first, gapless.
        tiers: Likewise; each is made of whole ranges.
        median: As many people are above as below; None where it is not told.
        highest: The highest score; None where it is not told.
    """

    people: int
    ranges: tuple[Range, ...]
    tiers: tuple[Range, ...]
    median: Decimal | None
    highest: Decimal | None

    @property
    def tallest(self) -> float:
        """The people per 5 points where they are densest."""
        return max((one.people / one.width for one in self.ranges), default=0)

    def share(self, one: Range) -> str:
        """Say how many of a hundred are in a range; nobody and hardly anybody are not the same."""
        percent = 100 * one.people / self.people
        return "< 1 %" if 0 < percent < 1 else f"{percent:.0f} %"


def spread(counts: Mapping[Decimal, int], *, public: bool) -> Spread:
    """Sort people into ranges.

    In public a range with fewer than `FEW` people is joined with its neighbours, tiers first and
    then the ranges inside a tier, so that neither a count nor the difference of two tells of fewer.
    Empty ranges stay. The highest score is somebody's, as the median of few is: not told.

    Args:
        counts: How many people have each score.
        public: For everyone to read.
    """
    people = sum(counts.values())
    if public and people < FEW:
        return Spread(0, (), (), None, None)
    found = [0] * len(LOWS)
    for score, count in counts.items():
        found[max((n for n, low in enumerate(LOWS) if score >= low), default=0)] += count
    starts = [LOWS.index(tier.low) for tier in TIERS]
    tiers = [
        Range(first, after - first, sum(found[first:after]))
        for first, after in zip(starts, [*starts[1:], len(LOWS)], strict=True)
    ]
    ranges = [Range(number, 1, count) for number, count in enumerate(found)]
    if public:
        tiers = _joined(tiers)
        ranges = [
            one for tier in tiers for one in _joined(ranges[tier.first : tier.first + tier.width])
        ]
    return Spread(
        people,
        tuple(ranges),
        tuple(tiers),
        _median(counts, people) if people >= (4 * FEW if public else 1) else None,
        None if public else max(counts, default=None),
    )


def _joined(ranges: Sequence[Range]) -> list[Range]:
    """Join neighbours until none has a few people; the highest are joined with those below."""
    done: list[Range] = []
    for one in ranges:
        if done and 0 < done[-1].people < FEW:
            done[-1] = _both(done[-1], one)
        else:
            done.append(one)
    while len(done) > 1 and 0 < done[-1].people < FEW:
        last = done.pop()
        done[-1] = _both(done[-1], last)
    return done


def _both(low: Range, high: Range) -> Range:
    return Range(low.first, low.width + high.width, low.people + high.people)


def _median(counts: Mapping[Decimal, int], people: int) -> Decimal:
    """The lower one of two, where there are two: a score that somebody has."""
    seen = 0
    for score in sorted(counts):
        seen += counts[score]
        if 2 * seen >= people:
            return score
    raise AssertionError("as many people as were counted")
