"""Many clients that change what belongs to few people."""

from benchmarks.paying.databases import ALONE, NO_TRIGGERS, OURS, UPSERT, Bench
from benchmarks.paying.loads import ASYNCHRONOUS, SYNCHRONOUS, Load, measure
from benchmarks.reports import Figure, Table

CLIENTS = 16
"""For as many hot_users_setup.sql has projects."""

_NAMES = {OURS: "our queue", ALONE: NO_TRIGGERS, UPSERT: "upsert queue"}


def hot_users(bench: Bench) -> tuple[list[Figure], Table]:
    """Share of the throughput without triggers, and times that of an upsert queue; deadlocks."""
    figures: list[Figure] = []
    rows: list[list[object]] = []
    for settings, commit in ((SYNCHRONOUS, "synchronous commit"), (ASYNCHRONOUS, "asynchronous")):
        what = f"{CLIENTS} clients on 50 hot users, two projects a transaction, {commit}"
        before = {name: _deadlocks(bench, name) for name in _NAMES}
        load = Load("hot_users", settings, queued=2, clients=CLIENTS, seconds=4, rounds=5)
        runs = measure(bench, what, tuple(_NAMES), load)
        deadlocks = {name: _deadlocks(bench, name) - before[name] for name in _NAMES}
        for side, reach, note in (
            (ALONE, "≥ 0.75", "share of the throughput"),
            (UPSERT, "≥ 3", "times the throughput"),
        ):
            ratio = runs.ratio(OURS, side)
            figures.append(Figure.of(what, _NAMES[side], reach, ratio, note=note))
        ours = float(deadlocks[OURS])
        note = f"upsert queue: {deadlocks[UPSERT]}"
        figures.append(Figure(f"{what}: deadlocks", "", "= 0", ours, ours, ours, note=note))
        for name, label in _NAMES.items():
            rows.append([what, label, runs.per_second(name), deadlocks[name], runs.failed(name)])
    headings = ["", "queue", "transactions/s", "deadlocks in all", "failed transactions"]
    return figures, Table("Hot users", headings, rows)


def _deadlocks(bench: Bench, database: str) -> int:
    # What a session has counted is there as soon as it has ended.
    return bench.value(
        database, "select deadlocks from pg_stat_database where datname = current_database()"
    )
