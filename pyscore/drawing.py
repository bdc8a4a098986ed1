"""Bars, histograms and tables, for 80 columns."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

FULL, EMPTY = "█", "░"
ASCII_FULL, ASCII_EMPTY = "#", "."
WIDEST = 40  # characters of a signal's bar
SPARKS, ASCII_SPARKS = "▁▂▃▄▅▆▇█", "_.-:=+*#"


def bar(value: float, most: float, width: int, *, full: str = FULL, empty: str = " ") -> str:
    """Draw a value as a share of the largest; what is not zero is seen.

    Args:
        value: From 0 to ``most``. A column may hold what never was computed: what lies outside is
            drawn as the nearer end, and NaN as nothing.
        most: What fills the bar.
        width: Characters.
        full: The character for what is there.
        empty: The character for the rest.
    """
    if value != value or value <= 0 or most <= 0:  # NaN is unequal to itself
        cells = 0
    else:
        cells = min(width, max(1, round(width * (min(value, most) / most))))
    return full * cells + empty * (width - cells)


def sparkline(values: Sequence[float | None], *, ascii_only: bool = False) -> str:
    """Draw values over time, a character each: the lowest for zero, the highest for the largest.

    Args:
        values: Not negative; None, for what was not measured, is a blank.
        ascii_only: Whether the output can hold nothing else.
    """
    marks = ASCII_SPARKS if ascii_only else SPARKS
    most = max((value for value in values if value is not None), default=0)
    steps = len(marks) - 1
    return "".join(
        # the largest may come out a hair above the last mark
        " " if value is None else marks[min(steps, math.ceil(steps * value / most)) if most else 0]
        for value in values
    )


def histogram(counts: Mapping[int, int], *, step: int, width: int, full: str = FULL) -> list[str]:
    """Draw how many values are in each range, from zero to the highest that has any.

    Args:
        counts: How many, by the ranges' lowest values, which are multiples of ``step``.
        step: How wide a range of whole numbers is.
        width: Characters of the longest bar.
        full: The character of the bars.
    """
    most = max(counts.values(), default=0)
    lines: list[str] = []
    for low in range(0, max(counts, default=-1) + 1, step):
        count = counts.get(low, 0)
        label = f"{low:>3} - {low + step - 1:<3}"
        lines.append(f"{label} {bar(count, most, width, full=full)} {count:>6,}")
    return lines


def explanation(
    signals: Sequence[tuple[str, Any, float, float]],
    *,
    ascii_only: bool,
    total: float | None = None,
) -> Table:
    """Make the table of one person's signals.

    Args:
        signals: What builder_score.explain() says: signal, raw value, points, most points.
        ascii_only: Whether the output can hold nothing else.
        total: What the points add up to, for a last line; None for none.
    """
    table = Table(box=None, pad_edge=False)
    for name in ("signal", "raw", "points", "of"):
        table.add_column(name, justify="left" if name == "signal" else "right")
    table.add_column("")
    full, empty = (ASCII_FULL, ASCII_EMPTY) if ascii_only else (FULL, EMPTY)
    scale = WIDEST / max([WIDEST, *(most for *_, most in signals)])
    for signal, raw, points, most in signals:
        if most == 0:
            table.add_row(signal, f"{raw:,.6g}", "off", "")
            continue
        drawn = bar(points, most, max(1, round(most * scale)), full=full, empty=empty)
        table.add_row(signal, f"{raw:,.6g}", f"{points:.2f}", f"{most:g}", drawn)
    if total is not None:
        table.add_row("total", "", f"{total:.2f}", "100")
    return table


def heading(console: Console, text: str) -> None:
    """Print a heading."""
    console.print()
    console.print(text, style="bold", markup=False)
