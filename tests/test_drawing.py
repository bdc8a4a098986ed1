"""Bars, histograms and tables."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console

from pyscore import drawing


@pytest.mark.parametrize(
    ("value", "drawn"),
    [(0, "    "), (1, "#   "), (37, "#   "), (38, "##  "), (99, "####"), (100, "####")],
)
def test_a_bar_shows_a_share_and_all_that_is_not_nothing(value: int, drawn: str) -> None:
    assert drawing.bar(value, 100, 4, full="#") == drawn


@pytest.mark.parametrize(
    ("value", "drawn"),
    [
        (float("nan"), "    "),
        (Decimal("NaN"), "    "),
        (float("inf"), "####"),
        (Decimal("Infinity"), "####"),
        pytest.param(10**400, "####", id="huge"),
        (1e300, "####"),
        (-1, "    "),
        (float("-inf"), "    "),
    ],
)
def test_a_bar_is_never_longer_than_it_may_be(value: Any, drawn: str) -> None:
    assert drawing.bar(value, 100, 4, full="#") == drawn
    assert drawing.bar(value, 100, 0, full="#") == ""


def test_a_bar_of_a_signal_that_is_off_is_empty() -> None:
    assert drawing.bar(0, 0, 0) == ""


def test_a_histogram_has_a_line_for_every_range_up_to_the_highest() -> None:
    assert drawing.histogram({0: 2, 5: 1000, 15: 500}, step=5, width=4, full="#") == [
        "  0 - 4   #         2",
        "  5 - 9   ####  1,000",
        " 10 - 14            0",
        " 15 - 19  ##      500",
    ]
    assert drawing.histogram({}, step=5, width=4) == []


def test_an_explanation_draws_points_against_the_most(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=80)
    console.print(drawing.explanation([("impact", 11533, 16.25, 20)], ascii_only=True))
    assert capsys.readouterr().out.splitlines()[1] == "impact  11,533   16.25  20  " + (
        "#" * 16 + "." * 4
    )
