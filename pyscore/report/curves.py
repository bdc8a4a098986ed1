"""The picture of a curve: places on a canvas for what the database computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyscore.report.formula import Rule
from pyscore.report.words import short

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 16, 44
_FEW = 40  # counts that are drawn evenly spaced; more need an axis by powers of ten
_DOTTED = 16
_LONGEST = 20_000.0  # days


@dataclass(frozen=True, slots=True)
class Axis:
    """The horizontal axis: which raw values are drawn, and where.

    Attributes:
        samples: Raw values, the lowest first.
        ticks: Raw values with their labels.
        name: What it counts.
        place: From 0 to 1 for a raw value.
        dots: Whether each sample is a value that somebody can have.
        factor: How many times the tick before a tick is; None where they are evenly spaced.
    """

    samples: tuple[float, ...]
    ticks: tuple[tuple[float, str], ...]
    name: str
    place: Callable[[float], float]
    dots: bool
    factor: int | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis.

    Attributes:
        at: Its place on the canvas.
        label: Its text.
    """

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve, drawn.

    Attributes:
        line: The path of the curve.
        area: The path of what lies below it.
        dots: Places of values that somebody can have.
        across: The ticks of the horizontal axis.
        up: The ticks of the vertical axis.
        name: What the horizontal axis counts.
        factor: As the axis has it.
    """

    line: str
    area: str
    dots: tuple[tuple[float, float], ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    name: str
    factor: int | None


def axis(rule: Rule, fields: int) -> Axis:
    """Choose what of a signal's curve is drawn: from nothing to somewhat past its most.

    Args:
        rule: The signal's.
        fields: How many profile fields there are.
    """
    reach = rule.reach
    match rule.signal:
        case "profile":
            count = max(fields, 1)
            steps = [step / count for step in range(count + 1)]
            kink = [reach] if reach is not None and reach < 1 else []
            return Axis(
                tuple(sorted({*steps, *kink})),
                tuple((share, str(step)) for step, share in enumerate(steps)),
                "profile fields filled",
                lambda share: share,
                dots=not kink,
            )
        case "age":
            longest = min(max((reach or 1825) * 1.3, 30), _LONGEST)
            unit, name = (365, "years") if longest > 1500 else (1, "days")
            return _even(longest, reach, unit, f"{name} since sign-up")
        case "impact":
            return _by_powers(reach, "stars and other impact, added up")
        case _:
            what = "shipped projects" if rule.signal == "shipped" else "people"
            if reach is None or reach > _FEW:
                return _by_powers(reach, what)
            longest = max(4, math.ceil(reach * 1.3 - 1e-9))
            return Axis(
                tuple(sorted({*map(float, range(longest + 1)), reach})),
                _labelled(longest, 1),
                what,
                lambda raw: raw / longest,
                dots=longest <= _DOTTED,
            )


def draw(rule: Rule, shown: Axis, worth: Sequence[float]) -> Curve:
    """Draw a curve.

    Args:
        rule: The signal's.
        shown: Its horizontal axis.
        worth: The points of each of the axis's samples.
    """
    top = max(rule.max_points, 1e-9)

    def x(raw: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * shown.place(raw), 1)

    def y(points: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * points / top, 1)

    places = [(x(raw), y(points)) for raw, points in zip(shown.samples, worth, strict=True)]
    line = "M" + "L".join(f"{across:g} {up:g}" for across, up in places)
    area = f"{line}L{places[-1][0]:g} {y(0):g}L{places[0][0]:g} {y(0):g}Z"
    heights = _heights(rule.max_points)
    counts = [
        place
        for raw, place in zip(shown.samples, places, strict=True)
        if rule.signal == "profile" or raw == int(raw)
    ]
    return Curve(
        line,
        area,
        tuple(counts) if shown.dots else (),
        tuple(Tick(x(raw), label) for raw, label in shown.ticks),
        tuple(Tick(y(height), short(height)) for height in heights),
        shown.name,
        shown.factor,
    )


def _heights(most: float) -> list[float]:
    """Choose the labels of the vertical axis: the most, and round parts of it if there are."""
    for step in (10, 5, 20, 25, 2, 1):
        if most % step == 0 and 2 <= most / step <= 5:
            return [float(height) for height in range(0, int(most) + 1, step)]
    return [0.0, most]


def _even(longest: float, reach: float | None, unit: int, name: str) -> Axis:
    kink = {reach} if reach is not None and reach < longest else set[float]()
    return Axis(
        tuple(sorted({0.0, longest / 2, longest, *kink})),
        _labelled(longest, unit),
        name,
        lambda raw: raw / longest,
        dots=False,
    )


def _by_powers(reach: float | None, name: str) -> Axis:
    highest = 6 if reach is None else max(1, math.ceil(math.log10(1 + reach) + 0.4))
    kink = {reach} if reach is not None else set[float]()
    samples = {round(10 ** (highest * step / 60) - 1, 6) for step in range(61)}
    every = math.ceil(highest / 6)
    powers = range(every, highest + 1, every)
    return Axis(
        tuple(sorted(samples | kink)),
        ((0, "0"), *((10.0**power - (power == highest), _short(power)) for power in powers)),
        name,
        lambda raw: math.log10(1 + raw) / highest,
        dots=False,
        factor=10**every,
    )


def _short(power: int) -> str:
    thousands, rest = divmod(power, 3)
    units = ("", "k", "M", "bn", "tn", "qd", "qn")
    return f"{10**rest}{units[thousands]}"


def _labelled(longest: float, unit: int) -> tuple[tuple[float, str], ...]:
    step = max(_step(longest / unit, 5), 1)
    count = math.floor(longest / unit / step + 1e-9)
    return tuple((step * number * unit, f"{step * number:g}") for number in range(count + 1))


def _step(longest: float, about: int) -> float:
    """Return a round distance that fits about so many times."""
    if longest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(longest / about))
    return next(
        power * factor for factor in (1, 2, 5, 10) if longest / (power * factor) <= about + 0.5
    )
