"""One statement a transaction, on a random row."""

from benchmarks.paying.databases import ALONE, NO_TRIGGERS, OURS, Bench
from benchmarks.paying.loads import ASYNCHRONOUS, SYNCHRONOUS, Load, measure
from benchmarks.paying.workers import Worker
from benchmarks.reports import Figure, Table

_MATTERS = "update_that_matters"
_DOES_NOT = "update_that_does_not_matter"
_OFF = "synchronous_commit off"

_LOADS = (
    (
        *("single-row update that matters, synchronous commit", "≥ 0.90"),
        Load(_MATTERS, SYNCHRONOUS, queued=1, seconds=4),
    ),
    (
        *(f"single-row update that matters, {_OFF}", "≥ 0.75"),
        Load(_MATTERS, ASYNCHRONOUS, queued=1),
    ),
    (
        *("single-row update that does not matter (last_seen), synchronous commit", "≥ 0.97"),
        Load(_DOES_NOT, SYNCHRONOUS, queued=0, seconds=4),
    ),
    (
        *(f"single-row update that does not matter (last_seen), {_OFF}", "≥ 0.97"),
        Load(_DOES_NOT, ASYNCHRONOUS, queued=0),
    ),
    (
        *(f"single-row update that matters, {_OFF}, prepared", ""),
        Load(_MATTERS, ASYNCHRONOUS, queued=1, prepared=True, rounds=5),
    ),
    (
        *(f"single-row update that does not matter (last_seen), {_OFF}, prepared", ""),
        Load(_DOES_NOT, ASYNCHRONOUS, queued=0, prepared=True, rounds=5),
    ),
    (
        *(f"single-row update that matters, {_OFF}, the worker beside it", ""),
        Load(_MATTERS, ASYNCHRONOUS, queued=None, rounds=5),
    ),
)


def single_rows(bench: Bench) -> tuple[list[Figure], Table]:
    """Share of the throughput."""
    figures: list[Figure] = []
    rows: list[list[object]] = []
    for what, reach, load in _LOADS:
        worker = {OURS: Worker(bench)} if load.queued is None else {}
        runs = measure(bench, what, (OURS, ALONE), load, beside=worker)
        ratio = runs.ratio(OURS, ALONE)
        figures.append(Figure.of(what, NO_TRIGGERS, reach, ratio, note="share of the throughput"))
        speeds = [runs.per_second(side) for side in (OURS, ALONE)]
        times = [runs.microseconds(side) for side in (OURS, ALONE)]
        rows.append([what, *speeds, *times])
    headings = ["", "with triggers, per s", "without, per s", "CPU with, µs", "CPU without, µs"]
    return figures, Table("Single rows", headings, rows)
