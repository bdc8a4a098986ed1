"""Worked examples: three people who do not exist, scored by the formula in force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyscore.report.formula import Formula, Raw
from pyscore.report.signals import Step, in_words
from pyscore.report.words import points_of, short


@dataclass(frozen=True, slots=True)
class Made:
    """Somebody made up.

    Attributes:
        title: Who it could be.
        raw: What they have, by signal; the profile as a share of the fields.
    """

    title: str
    raw: dict[str, float]


MADE = (
    Made("Somebody new", {"shipped": 1, "vouches": 0, "impact": 3, "profile": 1 / 3, "age": 20}),
    Made(
        "After a good year",
        {"shipped": 3, "vouches": 4, "impact": 150, "profile": 2 / 3, "age": 400},
    ),
    Made(
        "A pillar of the place",
        {"shipped": 9, "vouches": 12, "impact": 25_000, "profile": 1, "age": 1500},
    ),
)


@dataclass(frozen=True, slots=True)
class Example:
    """A worked example.

    Attributes:
        title: Who it could be.
        parts: What they have, each with what it is worth, by signal.
        widths: The points by signal, for a bar.
        score: What it adds up to, in words.
    """

    title: str
    parts: dict[str, Step]
    widths: dict[str, float]
    score: str


def raws(formula: Formula) -> list[Raw]:
    """Say which raw values the examples need."""
    return [(signal, raw) for made in MADE for signal, raw in _raw(formula, made).items()]


def points(formula: Formula, worth: Mapping[Raw, float]) -> list[list[float]]:
    """Give the points of each example's parts.

    Args:
        formula: In force.
        worth: The points of what `raws` named.
    """
    return [[worth[part] for part in _raw(formula, made).items()] for made in MADE]


def examples(
    formula: Formula, worth: Mapping[Raw, float], scores: Sequence[float]
) -> list[Example]:
    """Make the examples.

    Args:
        formula: In force.
        worth: The points of what `raws` named.
        scores: What each one's points add up to.
    """
    return [
        Example(
            made.title,
            {
                signal: Step(in_words(formula, signal, raw), points_of(worth[signal, raw]))
                for signal, raw in _raw(formula, made).items()
            },
            {signal: worth[signal, raw] for signal, raw in _raw(formula, made).items()},
            short(score) if formula.decimals else f"{score:.0f}",
        )
        for made, score in zip(MADE, scores, strict=True)
    ]


def _raw(formula: Formula, made: Made) -> dict[str, float]:
    """Give what counts of somebody, here: signals that are on, fields that there are."""
    fields = len(formula.profile_fields)
    there = {signal: raw for signal, raw in made.raw.items() if formula.rules[signal].is_on}
    if "profile" in there:
        there["profile"] = round(there["profile"] * fields) / max(fields, 1)
    if not formula.has_created_at:
        there.pop("age", None)
    if not formula.has_stars and not (formula.has_metrics and formula.impact_keys):
        there.pop("impact", None)
    return there
