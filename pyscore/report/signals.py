"""A card for each signal: what counts, what does not, how much, and its curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pyscore.report.curves import Axis, Curve, axis, draw
from pyscore.report.formula import ORDER, Formula, Raw, Rule
from pyscore.report.words import amount, either, points_of, quoted, those

TITLES = {
    "shipped": "Shipped projects",
    "vouches": "People who vouch for you",
    "impact": "Impact",
    "profile": "A filled-in profile",
    "age": "Time since you joined",
}

FIELDS = {
    "avatar_url": "picture",
    "headline": "headline",
    "bio": "bio",
    "primary_role": "primary role",
    "timezone": "time zone",
    "contact_links": "contact links",
}


@dataclass(frozen=True, slots=True)
class Step:
    """What one raw value is worth.

    Attributes:
        what: The raw value in words.
        points: In words.
    """

    what: str
    points: str


@dataclass(frozen=True, slots=True)
class Card:
    """What is said about a signal.

    Attributes:
        signal: Its name.
        title: For people.
        is_on: Whether it counts at all.
        most: The most points, in words.
        lead: How it works, in a sentence or two.
        counts: What counts.
        not_counts: What does not.
        note: What this application has not; None where it has everything.
        formula: For those who want to know exactly.
        steps: Raw values, each with what it is worth.
        curve: None where the signal is off.
        said: The curve in words.
    """

    signal: str
    title: str
    is_on: bool
    most: str
    lead: str
    counts: str
    not_counts: str
    note: str | None
    formula: str
    steps: tuple[Step, ...]
    curve: Curve | None
    said: str


def raws(formula: Formula) -> list[Raw]:
    """Say which raw values the cards show."""
    return [
        (rule.signal, raw)
        for rule in formula.rules.values()
        if rule.is_on
        for raw in (*_axis(formula, rule).samples, *_candidates(formula, rule))
    ]


def cards(formula: Formula, worth: Mapping[Raw, float]) -> list[Card]:
    """Make the cards.

    Args:
        formula: In force.
        worth: The points of what `raws` named.
    """
    return [_card(formula, formula.rules[signal], worth) for signal in ORDER]


def in_words(formula: Formula, signal: str, raw: float) -> str:
    """Say what a raw value of a signal is.

    Args:
        formula: In force.
        signal: Its name.
        raw: What was counted.
    """
    match signal:
        case "shipped":
            return amount(raw, "shipped project")
        case "vouches":
            return f"{amount(raw, 'person', 'people')} vouching" if raw else "nobody vouching"
        case "profile":
            fields = max(len(formula.profile_fields), 1)
            return f"{round(raw * fields)} of {amount(fields, 'field')}"
        case "age":
            return f"{amount(raw, 'day')} here"
        case _:
            return f"impact of {raw:,.0f}"


def _card(formula: Formula, rule: Rule, worth: Mapping[Raw, float]) -> Card:
    signal = rule.signal
    lead, counts, not_counts, note = _words(formula, rule)
    curve, steps, said = None, tuple[Step, ...](), ""
    if rule.is_on:
        shown = _axis(formula, rule)
        curve = draw(rule, shown, [worth[signal, raw] for raw in shown.samples])
        steps = _steps(formula, rule, worth)
        said = (
            f"A curve from 0 points upwards. {'; '.join(f'{s.what}: {s.points}' for s in steps)}."
        )
    return Card(
        signal,
        TITLES[signal],
        rule.is_on,
        points_of(rule.max_points),
        lead,
        counts,
        not_counts,
        note,
        _formula(rule),
        steps,
        curve,
        said,
    )


def _axis(formula: Formula, rule: Rule) -> Axis:
    return axis(rule, len(formula.profile_fields))


def _candidates(formula: Formula, rule: Rule) -> list[float]:
    """Raw values for the steps, the one among them with which the most is reached."""
    fields = max(len(formula.profile_fields), 1)
    if rule.signal == "profile":
        return [step / fields for step in range(fields + 1)]
    low: Sequence[float] = {
        "shipped": (1, 2, 3, 5, 10),
        "vouches": (1, 2, 3, 5, 10),
        "impact": (1, 10, 100, 1_000, 10_000),
        "age": (1, 30, 90, 180, 365, 730),
    }[rule.signal]
    if rule.reach is None:
        return [*low]
    # the last of them is enough, whatever the last bit of the curve is
    near = [max(0.0, math.ceil(rule.reach) + off) for off in (-1, 0, 1)]
    return [*(raw for raw in low if raw < near[0]), *near]


def _steps(formula: Formula, rule: Rule, worth: Mapping[Raw, float]) -> tuple[Step, ...]:
    steps: list[Step] = []
    for raw in _candidates(formula, rule):
        points = worth[rule.signal, raw]
        full = points >= rule.max_points * (1 - 1e-9)
        near = rule.reach is not None and rule.signal != "profile" and raw >= rule.reach - 2
        if raw == 0 and rule.signal != "profile":
            continue
        what = in_words(formula, rule.signal, raw)
        if full:
            last = rule.signal == "profile" and raw == 1
            steps.append(Step(what if last else f"{what} or more", points_of(points)))
            break
        if not near or len(steps) < 3:
            steps.append(Step(what, points_of(points)))
    return tuple(steps)


def _formula(rule: Rule) -> str:
    scale = f"{rule.scale:g}"
    curve = {
        "shipped": f"{scale} · log₂(projects + 1)",
        "vouches": f"{scale} · log₂(people + 1)",
        "impact": f"{scale} · log₁₀(impact + 1)",
        "profile": f"{scale} · filled ÷ fields",
        "age": f"{scale} · days ÷ 365",
    }[rule.signal]
    # a count has no end, but people and stars have
    beyond = "" if rule.reach is not None else ", which is out of reach"
    return f"{curve}, at most {rule.max_points:g}{beyond}"


def _words(formula: Formula, rule: Rule) -> tuple[str, str, str, str | None]:
    words: dict[str, Callable[[Formula], tuple[str, str, str, str | None]]] = {
        "shipped": _shipped,
        "vouches": _vouches,
        "impact": _impact_words,
        "profile": _profile,
        "age": _age,
    }
    return words[rule.signal](formula)


def _shipped(formula: Formula) -> tuple[str, str, str, str | None]:
    note = None
    if not formula.shipped:
        note = "No status means shipped at present, so nobody gets points for this."
    return (
        "Finish what you start. The first projects count most; each further one adds a little "
        "less.",
        "Projects that you own and whose status is "
        f"{either(quoted(formula.shipped)) or 'shipped'}.",
        "Projects with any other status, and projects of others: those count as people who "
        "vouch for you.",
        note,
    )


def _vouches(formula: Formula) -> tuple[str, str, str, str | None]:
    note = None
    if not formula.confirmed:
        note = "No status means confirmed at present, so nobody gets points for this."
    status = either(quoted(formula.confirmed)) or "confirmed"
    return (
        "Build with others. Everyone you have really worked with counts, and counts once.",
        "Different people with whom you share a collaboration whose status is "
        f"{status}: those who work on your projects, and the owners of projects you work on.",
        "Invitations that are not confirmed, the same person a second time, yourself, and two "
        "people who only work on the same project of a third.",
        note,
    )


def _impact_words(formula: Formula) -> tuple[str, str, str, str | None]:
    sources = _sources(formula)
    note = None
    if not sources:
        note = "This application keeps neither stars nor impact metrics, so nobody gets points."
    elif not formula.has_stars:
        note = "Projects have no stars in this application."
    return (
        "What you build is used. Ten times as much adds the same again, so that one huge success "
        "does not outweigh all else.",
        f"{those(sources) or 'Stars and impact metrics'}, added up over all projects you own, "
        "shipped or not.",
        "Any other figure, a negative number, and projects that somebody else owns.",
        note,
    )


def _profile(formula: Formula) -> tuple[str, str, str, str | None]:
    fields = [FIELDS[field] for field in formula.profile_fields]
    missing = [said for field, said in FIELDS.items() if field not in formula.profile_fields]
    note = None
    if not fields:
        note = "This application has none of these fields, so nobody gets points."
    elif missing:
        note = (
            f"This application has no {either(missing)}; the points are shared out over the others."
        )
    return (
        "Say who you are. Every field counts the same.",
        f"Each field that holds something: {those(fields or list(FIELDS.values()), lower=True)}.",
        "Blanks, and how much or how well you write.",
        note,
    )


def _age(formula: Formula) -> tuple[str, str, str, str | None]:
    note = None
    if not formula.has_created_at:
        note = "This application does not keep when people joined, so nobody gets points."
    return (
        "Stay around. This comes by itself, day by day.",
        "Whole days since you signed up.",
        "How often you sign in, and what you do meanwhile: that is what the rest is for.",
        note,
    )


def _sources(formula: Formula) -> list[str]:
    keys = list(formula.impact_keys) if formula.has_metrics else []
    return (["stars"] if formula.has_stars else []) + keys
