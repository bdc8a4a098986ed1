"""The page about freshness: latencies, what was spent on them, and two plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from uuid import UUID

from benchmarks import plots
from benchmarks.arrivals import Sent
from benchmarks.measuring import Ratio
from benchmarks.plots import Plot
from benchmarks.reports import Figure, Report, Table, number

_AROUND_S = 1.0
"""So long before and after a minute begins its end is felt."""


@dataclass(frozen=True)
class Round:
    """What became of the events of one round.

    Attributes:
        per_second: How many there were.
        start: When it began.
        seconds: How long events were sent.
        took: How long until all were visible.
        sent: The events, in order of their moments.
        visible: When each person's score was committed.
        unfinished: For whom that is when we stopped waiting.
        seen: When the observer saw it, of those that it looked at.
        is_observed: Of each event, whether the observer was at work.
        busy: Seconds of processor time by program.
    """

    per_second: int
    start: float
    seconds: float
    took: float
    sent: Sequence[Sent]
    visible: Mapping[UUID, float]
    unfinished: set[UUID]
    seen: Mapping[UUID, float]
    is_observed: Sequence[bool]
    busy: dict[str, float]

    def latencies(self) -> list[float]:
        """From the application's COMMIT, when it returned; in ms."""
        return [1000 * (self.visible[s.event.person] - s.committed) for s in self.sent]

    def from_schedule(self) -> list[float]:
        """From the moment for which the event was scheduled; in ms."""
        return [1000 * (self.visible[s.event.person] - s.event.at) for s in self.sent]

    def around_minutes(self) -> list[float]:
        """Latencies of events near a minute's beginning."""
        pairs = zip(self.latencies(), self.sent, strict=True)
        return [ms for ms, s in pairs if (s.event.at + _AROUND_S) % 60 < 2 * _AROUND_S]

    def said(self) -> str:
        values = self.latencies()
        return ", ".join(f"{q:.0%} within {quantile(values, q):.0f} ms" for q in (0.5, 0.99))


@dataclass(frozen=True)
class Sides:
    """Rounds that have alternated."""

    ours: list[Round]
    theirs: list[Round]

    def named(self) -> Mapping[str, Sequence[Round]]:
        sides = {"ours": self.ours, "Celery": self.theirs}
        return {name: rounds for name, rounds in sides.items() if rounds}


@dataclass
class Idleness:
    """What being ready costs, in shares of a core and bytes, and gives, in seconds."""

    seconds: float
    worker: float
    launcher: float
    server: float
    wal_per_second: float
    first: list[float] = field(default_factory=list[float])
    back_after_kill: float = 0.0
    gone_when_paused: float = 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1e6) * len(ordered) // 1_000_000) - 1)]


def report(
    name: str, title: str, often: Sides, seldom: Sides, idleness: Idleness, server: str
) -> Report:
    """Put it into words, tables and plots."""
    ours, theirs = often.ours, often.theirs
    figures = [
        Figure.of(
            f"commit to visible score, {ours[0].per_second} events/s, {label}",
            "Celery + Redis beside it",
            reach,
            _over_rounds(ours, share),
            "ms",
            f"Celery's: {number(_over_rounds(theirs, share).got)} ms",
        )
        for label, share, reach in (("p50", 0.5, "≤ 40 ms"), ("p99", 0.99, "≤ 120 ms"))
    ]
    first = idleness.first
    slowest = Ratio(max(first), min(first), max(first))
    cost = Ratio.among([100 * idleness.worker])
    figures += [
        Figure.of(
            f"first event after idling, the slowest of {len(first)}",
            "",
            "≤ 0.6 s",
            slowest,
            "s",
            f"median {number(median(first))} s",
        ),
        Figure.of("idle cost of the worker, of a core", "", "≤ 1 %", cost, "%"),
    ]
    minutes = sum(int((r.start + r.seconds) // 60 - r.start // 60) for r in ours)
    events = sum(len(r.sent) for r in ours)
    remarks = [
        f"{events:,} events a side, each of another person, sent at fixed moments whatever becomes "
        f"of those before; {minutes} minutes began meanwhile, each with a new run of pg_cron's. "
        "Rounds of ours and of Celery's alternate in twin databases of one server: while ours is "
        "measured there is no Celery, while Celery's is, our worker idles. After each round every "
        "event of ours had led to exactly one score, and at the end both databases held the same.",
        "An event is a transaction that gives a project stars. Its latency counts from when its "
        "COMMIT returned to the application to what PostgreSQL notes as the moment of the "
        "transaction that wrote the score (`track_commit_timestamp`): nobody has to look for it. "
        "For one event in twenty, half of the time, an observer reads the score every millisecond; "
        "it shows how true that is, and what looking would have changed.",
        "With Celery the application sends a task after each COMMIT, to two processes that are "
        f"warm.{_left(theirs)}",
    ]
    return Report(
        name,
        title,
        figures,
        [
            _latencies(often, seldom),
            _spent(often, seldom),
            _observer(often),
            _idle(idleness),
        ],
        remarks,
        [
            Plot(
                "freshness.png",
                "Share of events whose score is visible within a time, ours and Celery's",
                lambda axes: _draw_shares(axes, ours, theirs),
            ),
            Plot(
                "freshness-over-time.png",
                "Time to a visible score over a round of ours; minutes begin at the dashed lines",
                lambda axes: _draw_course(axes, ours[-1]),
            ),
        ],
        server,
    )


def _left(rounds: Sequence[Round]) -> str:
    left = sum(len(each.unfinished) for each in rounds)
    if not left:
        return ""
    return f" {left:,} tasks were not done two minutes after the last: they count as done then."


def _all(rounds: Sequence[Round]) -> list[float]:
    return [ms for each in rounds for ms in each.latencies()]


def _over_rounds(rounds: Sequence[Round], share: float) -> Ratio:
    single = [quantile(each.latencies(), share) for each in rounds]
    return Ratio(quantile(_all(rounds), share), min(single), max(single))


def _latencies(often: Sides, seldom: Sides) -> Table:
    shares = (0.5, 0.9, 0.99, 0.999, 1)

    def row(label: str, values: Sequence[float]) -> list[object]:
        counts = [quantile(values, share) if values else "-" for share in shares]
        return [label, len(values), *counts]

    rows: list[list[object]] = []
    for sides in (often, seldom):
        for side, rounds in sides.named().items():
            label = f"{side}, {rounds[0].per_second} events/s"
            scheduled = [ms for each in rounds for ms in each.from_schedule()]
            rows += [row(label, _all(rounds)), row(f"{label}, from the moment planned", scheduled)]
    around = [ms for each in often.ours for ms in each.around_minutes()]
    rows.insert(2, row("ours, a second before and after minutes begin", around))
    headings = ["", "events", "p50", "p90", "p99", "p99.9", "slowest"]
    return Table("From commit to visible score, in ms", headings, rows)


def _spent(*several: Sides) -> Table:
    rows: list[list[object]] = []
    for sides in several:
        for side, rounds in sides.named().items():
            events = sum(len(each.sent) for each in rounds)
            took = sum(each.took for each in rounds)
            for program in rounds[0].busy:
                used = sum(each.busy[program] for each in rounds)
                label = f"{side}, {rounds[0].per_second} events/s"
                rows.append([label, program, 1000 * used / events, 100 * used / took])
    headings = ["", "processor time", "ms an event", "% of a core"]
    return Table("What it took, the application's own statements included", headings, rows)


def _observer(sides: Sides) -> Table:
    def row(side: str, rounds: Sequence[Round]) -> list[object]:
        later = [
            1000 * (seen - each.visible[person])
            for each in rounds
            for person, seen in each.seen.items()
            if person not in each.unfinished
        ]
        by_block: dict[bool, list[float]] = {True: [], False: []}
        for each in rounds:
            for is_observed, ms in zip(each.is_observed, each.latencies(), strict=True):
                by_block[is_observed].append(ms)
        medians = [median(by_block[key]) if by_block[key] else "-" for key in (True, False)]
        shares = [quantile(later, share) if later else "-" for share in (0.5, 0.99)]
        return [side, len(later), *shares, *medians]

    headings = ["", "looked for", "seen later by, p50", "p99", "p50 while it looks", "while not"]
    rows = [row(side, rounds) for side, rounds in sides.named().items()]
    return Table("The observer, in ms", headings, rows)


def _idle(idleness: Idleness) -> Table:
    return Table(
        f"Idle for {idleness.seconds:.0f} s, and coming and going",
        ["", "", ""],
        [
            ["the worker", 100 * idleness.worker, "% of a core"],
            ["pg_cron's launcher", 100 * idleness.launcher, "% of a core"],
            ["all of the server's processes", 100 * idleness.server, "% of a core"],
            ["WAL", idleness.wal_per_second, "bytes a second"],
            ["first event afterwards, median", median(idleness.first), "s"],
            ["worker back after kill -9", idleness.back_after_kill, "s, the recovery included"],
            ["worker gone when paused", idleness.gone_when_paused, "s"],
        ],
    )


def _draw_shares(axes: Any, ours: Sequence[Round], theirs: Sequence[Round]) -> None:
    for rounds, label, colour in ((ours, "ours", plots.OURS), (theirs, "Celery", plots.OTHER)):
        values = sorted(max(ms, 0.1) for ms in _all(rounds))
        shares = [100 * (n + 1) / len(values) for n in range(len(values))]
        axes.plot(values, shares, color=colour, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("ms from commit to visible score")
    axes.set_ylabel("% of the events")
    axes.legend()


def _draw_course(axes: Any, played: Round) -> None:
    seconds = [each.event.at - played.start for each in played.sent]
    axes.plot(seconds, played.latencies(), ".", markersize=2, color=plots.OURS)
    minute = 60 - played.start % 60
    while minute < played.seconds:
        axes.axvline(minute, linestyle="--", color=plots.OTHER)
        minute += 60
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("ms from commit to visible score")
