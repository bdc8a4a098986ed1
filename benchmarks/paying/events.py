"""Each kind of event by itself, also beside a database that has never heard of us."""

from typing import Any

from benchmarks.measuring import Ratio
from benchmarks.paying.databases import ALONE, OURS, WITHOUT, Bench
from benchmarks.paying.loads import ASYNCHRONOUS, Load, Runs, measure
from benchmarks.plots import OTHER, Plot
from benchmarks.plots import OURS as COLOUR
from benchmarks.reports import Table, number

_EVENTS = {
    "update of a project's stars": ("update_that_matters", 1),
    "update of a project's views": ("update_of_a_project_that_does_not_matter", 0),
    "update of a profile": ("update_of_a_profile", 1),
    "update of a user's last_seen": ("update_that_does_not_matter", 0),
    "a collaboration confirmed, or no more": ("collaboration_confirmed_or_not", 2),
    "insert of a person": ("insert_of_a_person", 1),
    "insert of a project": ("insert_of_a_project", 1),
}

_SIDES = (OURS, ALONE, WITHOUT)


def each_event(bench: Bench) -> tuple[Table, Plot]:
    """What an event costs the processor, and the throughput."""
    found = {
        what: measure(
            *(bench, what, _SIDES),
            Load(script, ASYNCHRONOUS, queued=queued, seconds=1, rounds=5),
        )
        for what, (script, queued) in _EVENTS.items()
    }
    headings = (
        *("", "share of the throughput without triggers", "without pyscore"),
        *("CPU, µs", "without triggers, µs", "without pyscore, µs"),
    )
    table = Table(
        "Each event, synchronous_commit off",
        headings,
        [
            [
                what,
                *(_said(runs.ratio(OURS, side)) for side in (ALONE, WITHOUT)),
                *(runs.microseconds(side) for side in _SIDES),
            ]
            for what, runs in found.items()
        ],
    )
    return table, _plot(found)


def _plot(found: dict[str, Runs]) -> Plot:
    names = list(found)[::-1]
    without = [found[name].microseconds(ALONE) for name in names]
    more = [
        max(0.0, found[name].microseconds(OURS) - before)
        for name, before in zip(names, without, strict=True)
    ]

    def draw(axes: Any) -> None:
        axes.barh(names, without, color=OTHER, label="the statement")
        axes.barh(names, more, left=without, color=COLOUR, label="our triggers")
        axes.set_xlabel("processor time of the server, µs a transaction")
        axes.legend()

    return Plot("application.png", "What a transaction costs the processor", draw)


def _said(ratio: Ratio) -> str:
    return f"{number(ratio.got)} ({number(ratio.low)} to {number(ratio.high)})"
