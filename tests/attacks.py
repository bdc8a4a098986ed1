"""Attacks: tests that go on with one seed after the other, for as long as `make soak` is told to.

    def test_kills(attack: Attack) -> None:
        for dice in attack.rounds(2):           # two rounds, or as many as --soak MINUTES allow
            ...                                 # all that is random comes from dice
            attack.count("kills", 3)            # what docs/reliability.md gives figures of

Seeds are 1, 2, 3 ... in `make test`, and go on from a random one in `make soak`. A failure names
its seed, and --seed N plays that round alone. The run ends with a table of what was counted, which
--attack-report FILE writes as Markdown.
"""

import os
import subprocess
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, TypeVar, cast

import pytest

from pyscore.cluster import find_bin_dir

PROPERTY = "attack"

Choice = TypeVar("Choice")


class Attack:
    """What one attacking test is given: its rounds, and a tally of what it did in them."""

    def __init__(self, name: str, soak_minutes: float | None, seed: int | None) -> None:
        self.name = name
        self.soaking = soak_minutes is not None
        self.tally: Counter[str] = Counter()
        self.seeds: list[int] = []
        self.seed: int | None = None
        """The seed of the round that is under way."""
        self._minutes = soak_minutes
        self._only = seed

    def rounds(self, short: int) -> Iterator[Random]:
        """Give each round its own source of randomness.

        Args:
            short: How many rounds there are without --soak.
        """
        for seed in self._chosen_seeds(short):
            self.seed = seed
            self.seeds.append(seed)
            yield Random(seed)
        self.seed = None

    def in_turn(self, choices: Sequence[Choice], place: int = 0) -> Choice:
        """One of them, by the round's seed: rounds in a row, and places, have different ones."""
        assert self.seed is not None, "outside of the rounds"
        return choices[(self.seed + place) % len(choices)]

    def count(self, what: str, number: int = 1) -> None:
        """Add to a figure that is reported at the end: what in the plural, as in "kills"."""
        self.tally[what] += number

    def _chosen_seeds(self, short: int) -> Iterator[int]:
        if self._only is not None:
            yield self._only
            return
        if self._minutes is None:
            yield from range(1, short + 1)
            return
        end = time.monotonic() + 60 * self._minutes
        seed = SystemRandom().randrange(1_000_000_000)
        while True:
            yield seed
            seed += 1
            if time.monotonic() >= end:
                return


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("attacks")
    group.addoption("--soak", type=float, metavar="MINUTES", help="each attack goes on this long")
    group.addoption("--seed", type=int, help="play only the round of this seed")
    group.addoption("--attack-report", type=Path, metavar="FILE", help="the table as Markdown")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "attack: goes on with other seeds in `make soak`")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "attack" in getattr(item, "fixturenames", ()):
            item.add_marker("attack")


_KEY = pytest.StashKey[Attack]()


@pytest.fixture
def attack(request: pytest.FixtureRequest) -> Attack:
    """The rounds of a test that attacks, and the tally of what it did."""
    node: pytest.Item = request.node
    option = request.config.getoption
    made = Attack(node.nodeid, option("--soak"), option("--seed"))
    node.stash[_KEY] = made
    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    made = item.stash.get(_KEY, None)
    if made is None or report.when != "call":
        return report
    result = {"name": made.name, "seeds": made.seeds, "tally": dict(made.tally)}
    report.user_properties.append((PROPERTY, result))
    if report.failed and made.seed is not None:
        # a soaking round is a larger one, with other draws
        soaking = " --soak 1" if made.soaking else ""
        replay = f"make soak ARGS=\"'{made.name}' --seed {made.seed}{soaking}\""
        report.sections.append(("the round that failed", f"again: {replay}"))
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return  # a process that xdist started knows of its own tests only
    reports = [
        report
        for category in ("passed", "failed")
        for report in terminalreporter.stats.get(category, [])
    ]
    rows = [
        cast(dict[str, Any], value)
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == PROPERTY
    ]
    if not rows:
        return
    rows.sort(key=lambda row: row["name"])
    terminalreporter.section("attacks")
    for row in rows:
        name = row["name"].removeprefix("tests/")
        terminalreporter.write_line(f"{name}: {_seeds(row['seeds'])}: {_figures(row['tally'])}")
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update(row["tally"])
    terminalreporter.write_line(f"in all: {_figures(totals)}")
    path = config.getoption("--attack-report")
    if path and terminalreporter.stats.get("failed", terminalreporter.stats.get("error")):
        terminalreporter.write_line(f"{path} is left as it is: not everything held")
    elif path:
        minutes = config.getoption("--soak")
        path.write_text(_markdown(rows, totals, minutes), encoding="utf-8")
        terminalreporter.write_line(f"written to {path}")


def _server_version() -> str:
    postgres = find_bin_dir() / "postgres"
    done = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True)
    return "PostgreSQL " + done.stdout.split()[2]


def _seeds(seeds: list[int]) -> str:
    if not seeds:
        return "no seed"
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def _figures(tally: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in sorted(tally.items())) or "-"


def _markdown(rows: list[dict[str, Any]], totals: dict[str, int], minutes: float | None) -> str:
    lines = [
        "# What the attacks did",
        "",
        f"In one `make soak MINUTES={minutes or 0:g}`, on {_server_version()} and {os.cpu_count()} "
        "cores; all of it held.",
        "",
        "| attack | rounds | seeds | figures |",
        "|---|--:|---|---|",
    ]
    for row in rows:
        name = row["name"].removeprefix("tests/")
        seeds = _seeds(row["seeds"])
        lines.append(f"| `{name}` | {len(row['seeds'])} | {seeds} | {_figures(row['tally'])} |")
    lines += ["", "| in all | |", "|---|--:|"]
    lines += [f"| {what} | {number:,} |" for what, number in sorted(totals.items())]
    return "\n".join(lines) + "\n"
