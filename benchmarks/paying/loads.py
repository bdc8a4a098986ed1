"""A script of pgbench's on some of the databases, in turn."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from benchmarks.measuring import Ratio
from benchmarks.paying.databases import OURS, Bench
from benchmarks.pgbench import Run, pgbench
from benchmarks.progress import say

SYNCHRONOUS = {"synchronous_commit": "on"}
ASYNCHRONOUS = {"synchronous_commit": "off"}


@dataclass(frozen=True)
class Load:
    """What is run.

    Attributes:
        script: Its name.
        settings: Of its sessions.
        queued: How many rows of our queue a transaction appends; None: the worker takes them.
        clients: How many.
        prepared: Whether its statements are prepared.
        seconds: How long, at the ordinary scale.
        rounds: How often, at the ordinary scale.
    """

    script: str
    settings: Mapping[str, str]
    queued: int | None
    clients: int = 2
    prepared: bool = False
    seconds: int = 2
    rounds: int = 9


@dataclass(frozen=True)
class Runs:
    """What each of the databases did, in the rounds' order."""

    sides: Mapping[str, Sequence[Run]]

    def ratio(self, side: str, other: str) -> Ratio:
        """One side's throughput as a share of the other's."""
        return Ratio.of(self._speeds(side), self._speeds(other))

    def per_second(self, side: str) -> float:
        """The median throughput."""
        return Ratio.among(self._speeds(side)).got

    def microseconds(self, side: str) -> float:
        """The median processor time of a transaction."""
        return 1e6 * Ratio.among([run.cpu for run in self.sides[side]]).got

    def failed(self, side: str) -> int:
        """How many transactions the server refused."""
        return sum(run.failed for run in self.sides[side])

    def _speeds(self, side: str) -> list[float]:
        return [run.per_second for run in self.sides[side]]


def measure(
    bench: Bench,
    what: str,
    sides: Sequence[str],
    load: Load,
    *,
    beside: Mapping[str, AbstractContextManager[object]] | None = None,
) -> Runs:
    """Run a load on some databases, in turn; `beside`: what runs in one of them meanwhile."""
    say(what)
    runs: dict[str, list[Run]] = {name: [] for name in sides}

    def side(name: str) -> float:
        bench.clear(name)
        with (beside or {}).get(name, nullcontext()):
            run = _run(bench, name, load)
        runs[name].append(run)
        return run.per_second

    values = bench.alternate({name: lambda name=name: side(name) for name in sides}, load.rounds)
    return Runs({name: found[-len(values[name]) :] for name, found in runs.items()})


def _run(bench: Bench, database: str, load: Load) -> Run:
    run = pgbench(
        bench.cluster,
        database,
        load.script,
        clients=load.clients,
        seconds=bench.scale.pick(smoke=None, quick=1, ordinary=load.seconds),
        transactions=10,
        variables=bench.variables,
        settings=load.settings,
        prepared=load.prepared,
    )
    if database == OURS and load.queued is not None:
        rows = bench.value(OURS, "select count(*) from builder_score.score_recalc_queue")
        assert rows == load.queued * run.transactions, f"{load.script}: {rows} rows of {run}"
    return run
