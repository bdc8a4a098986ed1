"""What ``pyscore metrics`` exposes: names, types and helps, made of what was read at one moment.

Needs the extra ``metrics``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
    SummaryMetricFamily,
)

from pyscore import __version__
from pyscore.cli.looking import Look
from pyscore.cli.picture import PRIORITIES
from pyscore.cli.problems import find_problems
from pyscore.scores import TIERS, tier_of

SCORE_BOUNDS = range(0, 101, 10)
"""Upper ends of the histogram's buckets.

A series a score would be a hundred of them, and a thousand where scores have a decimal. Tiers do
not end at tens, so they are counted by themselves.
"""

SCHEDULERS = ("pg_cron", "worker", "none")


@dataclass(frozen=True)
class Reading:
    """All that is exposed, as it was at one moment.

    Attributes:
        look: What `pyscore status` sees.
        workers: The rows of builder_score.worker_status, each with ``silent``, the time since it
            was heard of.
        distribution: How many people have each score.
        sizes: Bytes by table of ours, indexes included.
        revision: Of the schema.
        server: PostgreSQL's version.
    """

    look: Look
    workers: list[dict[str, Any]]
    distribution: list[tuple[float, int]]
    sizes: dict[str, int]
    revision: str
    server: str


def up(answered: bool) -> Metric:
    """Say whether the database was read.

    Args:
        answered: Whether it was.
    """
    return GaugeMetricFamily(
        "pyscore_up", "1 when the database was read for this scrape, else 0.", value=answered
    )


def build(reading: Reading | None) -> Metric:
    """Say what is running.

    Args:
        reading: None where the database could not be read.
    """
    said = {"version": __version__}
    if reading is not None:
        said |= {"schema_revision": reading.revision, "postgresql": reading.server}
    return InfoMetricFamily("pyscore_build", "Versions of the package and the database.", said)


def scrapes(seconds: float, errors: int) -> Iterable[Metric]:
    """Say how the reading itself went.

    Args:
        seconds: How long it took, or was waited for.
        errors: How many failed since this process began.
    """
    yield GaugeMetricFamily(
        "pyscore_scrape_duration_seconds",
        "How long reading the database took for this scrape.",
        value=seconds,
        unit="seconds",
    )
    yield CounterMetricFamily(
        "pyscore_scrape_errors",
        "Scrapes that could not read the database, since this exporter began.",
        value=errors,
    )


def of_database(reading: Reading) -> Generator[Metric]:
    """Give all that the database knows.

    Args:
        reading: What was read.
    """
    yield from _queue(reading.look)
    yield from _state(reading.look)
    yield from _workers(reading)
    yield from _backfill(reading.look)
    yield from _people(reading.distribution)
    sizes = GaugeMetricFamily(
        "pyscore_table_size_bytes",
        "Bytes of a table in the schema builder_score, with its indexes.",
        labels=["table"],
        unit="bytes",
    )
    for table, size in reading.sizes.items():
        sizes.add_metric([table], size)
    yield sizes


def _queue(look: Look) -> Generator[Metric]:
    rows = GaugeMetricFamily(
        "pyscore_queue_rows", "Rows in the queue, by priority.", labels=["priority"]
    )
    due = GaugeMetricFamily(
        "pyscore_queue_due_rows",
        "Rows in the queue that could be taken now, by priority.",
        labels=["priority"],
    )
    oldest = GaugeMetricFamily(
        "pyscore_queue_oldest_due_age_seconds",
        "How long the oldest row that could be taken has been due, by priority; 0: there is none.",
        labels=["priority"],
        unit="seconds",
    )
    for row in look.queue:
        labels = [PRIORITIES[row["priority"]]]
        age = row["oldest_due_age"]
        rows.add_metric(labels, row["queue_depth"])
        due.add_metric(labels, row["due_now"])
        oldest.add_metric(labels, 0 if age is None else age.total_seconds())
    yield from (rows, due, oldest)


def _state(look: Look) -> Generator[Metric]:
    health = look.health
    for name, said, value in (
        ("retrying_users", "Users whose computation failed and is tried again.", "retrying"),
        ("dead_letters", "Users given up after settings.max_attempts failures.", "dead_letters"),
        ("workers", "Resident workers that there are to be: settings.workers.", "workers"),
        ("workers_heard", "Resident workers heard of in the last two minutes.", "workers_heard"),
        ("paused", "1 while workers are told to leave.", "paused"),
        ("attached", "1 while the triggers and views are in place.", "attached"),
    ):
        yield GaugeMetricFamily(f"pyscore_{name}", said, value=health[value])
    yield GaugeMetricFamily(
        "pyscore_problems",
        "What needs a person, by `pyscore status`, which says what it is.",
        value=len(find_problems(look)),
    )
    yield StateSetMetricFamily(
        "pyscore_scheduler",
        "What runs the worker.",
        {name: name == health["scheduler"] for name in SCHEDULERS},
    )


_TOTALS = {
    "passes": ("pyscore_passes", "Attempts to score a batch or a part of one."),
    "recalculated": ("pyscore_recalculations", "Recalculations."),
    "changed": ("pyscore_score_changes", "Recalculations that changed a score."),
    "failed": ("pyscore_failures", "Failures counted against a user."),
}
"""Kept in the database, so they go on where they were when a worker or a server starts anew."""


def _workers(reading: Reading) -> Generator[Metric]:
    batches = SummaryMetricFamily(
        "pyscore_batch_seconds",
        "Batches, and how long they took, by worker.",
        labels=["worker"],
        unit="seconds",
    )
    totals = {
        column: CounterMetricFamily(name, f"{said[:-1]}, by worker.", labels=["worker"])
        for column, (name, said) in _TOTALS.items()
    }
    heartbeat = GaugeMetricFamily(
        "pyscore_heartbeat_age_seconds",
        "Time since a resident worker said that it is alive; about 5 when idle.",
        labels=["worker"],
        unit="seconds",
    )
    wanted = reading.look.health["workers"]
    for row in reading.workers:
        labels = [row["worker"]]
        batches.add_metric(labels, row["batches"], row["batch_seconds"])
        for column, total in totals.items():
            total.add_metric(labels, row[column])
        # those above settings.workers have had their day, and are not to be heard of
        if row["silent"] is not None and row["number"] is not None and row["number"] <= wanted:
            heartbeat.add_metric(labels, row["silent"].total_seconds())
    yield from (batches, *totals.values(), heartbeat)


def _backfill(look: Look) -> Generator[Metric]:
    yield GaugeMetricFamily(
        "pyscore_backfill_running",
        "1 while everyone is being enqueued.",
        value=look.backfill is not None,
    )
    if look.backfill is not None:
        yield GaugeMetricFamily(
            "pyscore_backfill_seen_users",
            "Users that the walk over everyone has seen.",
            value=look.backfill["seen"],
        )
        yield GaugeMetricFamily(
            "pyscore_backfill_estimated_users",
            "Users that it will see, by the planner's statistics.",
            value=look.backfill["estimated_total"],
        )


def _people(distribution: list[tuple[float, int]]) -> Generator[Metric]:
    buckets = [
        (f"{bound:.1f}", float(sum(people for score, people in distribution if score <= bound)))
        for bound in SCORE_BOUNDS
    ]
    everyone = sum(people for _, people in distribution)
    yield GaugeHistogramMetricFamily(
        "pyscore_score",
        "People by score, as of the last batch; who has no score yet is not in it.",
        buckets=[*buckets, ("+Inf", float(everyone))],
        gsum_value=sum(score * people for score, people in distribution),
    )
    tiers = GaugeMetricFamily("pyscore_tier_people", "People by tier.", labels=["tier"])
    for tier in TIERS:
        those = (people for score, people in distribution if tier_of(score) is tier)
        tiers.add_metric([str(tier.number)], sum(those))
    yield tiers
