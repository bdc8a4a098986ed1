"""The whole demo: `pyscore demo`, as people start it, with the real pg_cron."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pyscore.cluster import ClusterError
from pyscore.demo import community, debian, servers
from pyscore.demo.stage import Stage
from tests import demo_runs
from tests.commands import call, error_line, output
from tests.demo_runs import assert_nothing_is_left


@pytest.fixture
def temporary() -> Iterator[Path]:
    with demo_runs.temporary_directory() as directory:
        yield directory


def test_help_says_what_it_does_and_starts_nothing(temporary: Path) -> None:
    said = output(demo_runs.play(temporary, "--help"))
    assert all(option in said for option in ("--keep", "--data", "--embedded"))
    assert_nothing_is_left(temporary)


def test_unknown_data_is_refused_before_anything_starts(temporary: Path) -> None:
    line = error_line(demo_runs.play(temporary, "--data", "fedora"), 2)
    assert "'fedora' is not one of 'community', 'debian'" in line
    assert_nothing_is_left(temporary)


def test_a_server_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ClusterError("PostgreSQL 15 did not start; the end of x:\nLOG:  no room\n")

    monkeypatch.setattr(servers, "choose", fail)
    line = error_line(call("demo"))
    assert line == "pyscore: PostgreSQL 15 did not start; the end of x: LOG: no room"


def note(played: list[str], name: str, stage: Stage) -> None:
    assert stage.one("select count(*) from users") == 0
    played.append(name)


@pytest.mark.parametrize(
    ("options", "acts"), [((), ["community", "debian"]), (("--data", "debian"), ["debian"])]
)
def test_a_run_plays_the_acts_asked_for_and_leaves_nothing(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], acts: list[str]
) -> None:
    played: list[str] = []

    for act in (community, debian):
        name = act.__name__.rpartition(".")[2]
        monkeypatch.setattr(act, "play", partial(note, played, name))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    said = output(call("demo", *options))
    assert played == acts
    *_, command, _, make = said.splitlines()
    assert command.endswith("pyscore demo --keep")
    assert make == "  make demo ARGS=--keep"
    demo_runs.assert_fits(said)
    assert_nothing_is_left(temporary)


def test_both_acts_by_pg_cron_and_what_is_kept(temporary: Path) -> None:
    done = demo_runs.play(temporary, "--keep")
    assert (done.returncode, done.stderr) == (0, "")
    demo_runs.assert_fits(done.stdout)
    lines = done.stdout.splitlines()
    assert any("pg_cron 1." in line for line in lines)

    told = [(s.name, s.before, s.after) for s in demo_runs.scores_told(done.stdout)]
    assert told == [
        ("Ines Marlow", "new", 0),
        ("Ines Marlow", "0", 15),
        ("Tomas Lind", "43", 51),
        ("Ines Marlow", "15", 23),
        ("Ines Marlow", "23", 33),
        ("Ines Marlow", "33", 43),
    ]
    assert demo_runs.counts_told(done.stdout) == [(1, 1), (6, 1), (3, 2), (1, 1), (30, 1)]
    leaders = lines[lines.index("The leaderboard") + 2 :][:13]
    assert leaders[0].split()[:5] == ["1", "Maren", "Holt", "90", "76"]
    assert leaders[6].split()[:5] == ["7", "Ines", "Marlow", "43", "31-55"]

    second = lines[lines.index("Act two: a whole distribution, and the people who maintain it") :]
    (emptied,) = (line for line in second if line.startswith("empty the tables "))
    assert emptied.endswith("of act one; the debounce is 5 minutes again")
    (verified,) = (line for line in second if line.startswith("verify "))
    assert verified.endswith("all 3,566 scores are right")
    assert any(line.endswith("112,425 events coalesced into") for line in second)
    top = second[second.index("The top 20") + 2 :][:20]
    assert top[0].split()[:3] == ["1", "b155322d2dc", "71"]
    assert [line.split()[0] for line in top] == [str(place) for place in range(1, 21)]
    scores = [int(line.split()[2]) for line in top]
    assert scores == sorted(scores, reverse=True)
    start = second.index("How many people have which score") + 1
    counts = [int(line.split()[-1].replace(",", "")) for line in second[start : start + 15]]
    assert sum(counts) == 3566

    *look_around, stop = demo_runs.lines_to_go_on_with(done.stdout)
    seen = output(demo_runs.type_lines(look_around, temporary))
    assert "b155322d2dc" in seen  # the leaderboard's first
    assert "bc9b6b0b9ff: 71 -> 71" in seen
    assert demo_runs.processes_of(temporary)
    output(demo_runs.type_lines([stop], temporary))
    (temporary / "pyscore").unlink()
    assert_nothing_is_left(temporary)


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "pyscore migrate"), (signal.SIGTERM, "Ines Marlow signs up")],
)
def test_a_stopped_run_leaves_nothing(temporary: Path, number: signal.Signals, moment: str) -> None:
    done = demo_runs.stop_at(temporary, moment, number)
    assert error_line(done) == "pyscore: stopped"
    assert_nothing_is_left(temporary)
