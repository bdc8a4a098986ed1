"""Rounds that alternate, and ratios of the same round."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.progress import say


@dataclass(frozen=True)
class Ratio:
    """The median of the rounds' ratios, and their range.

    The ratio is taken within a round: what slows the machine down for a while slows both sides.
    """

    got: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], against: Sequence[float]) -> "Ratio":
        ratios = [value / other for value, other in zip(values, against, strict=True)]
        return cls.among(ratios)

    @classmethod
    def among(cls, values: Sequence[float]) -> "Ratio":
        """The median and the range of values that are compared with nothing."""
        return cls(median(values), min(values), max(values))


def alternate(
    sides: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    warm_up: bool = True,
    tell: bool = True,
) -> dict[str, list[float]]:
    """Let each side run once a round, and return what each has measured, in the rounds' order.

    Another side comes first in every round. The first round warms up and is thrown away. Not to
    `tell` is for rounds that take milliseconds.
    """
    names = list(sides)
    values: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1 if warm_up else 0, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            value = sides[name]()
            if tell:
                say(f"{'warm-up' if number < 0 else f'round {number + 1}'}: {name}: {value:,.4g}")
            if number >= 0:
                values[name].append(value)
    return values


def wall(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
