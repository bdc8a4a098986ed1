"""docs/reliability.md and the attacks: what it names is there, its figures are a run's."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from pyscore.cluster import find_bin_dir
from tests import test_random_histories, test_random_ranks
from tests.commands import ROOT, Done, environment

PAGE = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "benchmarks/results/soak.md").read_text(encoding="utf-8")
TESTS = sorted((ROOT / "tests").glob("test_*.py"))

FAILING = """
from tests.attacks import Attack

def test_it(attack: Attack) -> None:
    for dice in attack.rounds(3):
        attack.count("throws")
        throw = dice.random() / (2 if attack.soaking else 1)
        assert throw < {limit}
"""


def attacks() -> set[str]:
    """The names, as a run reports them, of the tests that take rounds."""
    return {
        f"{path.name}::{node.name}"
        for path in TESTS
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and "attack" in {argument.arg for argument in node.args.args}
    }


def table(text: str) -> str:
    return text[text.index("| in all | |\n") :]


def play(directory: Path, *options: str, limit: float = 0.4) -> Done:
    (directory / "test_it.py").write_text(FAILING.format(limit=limit), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "tests.attacks", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "--rootdir", str(directory), str(directory / "test_it.py"), *options],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def server_version() -> list[str]:
    command = [str(find_bin_dir() / "postgres"), "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"\d+", said)[:2]


def test_every_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"`(tests/\w+\.py)", PAGE))
    assert len(named) > 15
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_attack_is_in_a_file_that_it_names_and_in_the_results() -> None:
    assert len(attacks()) > 10
    unnamed = {name for name in attacks() if f"`tests/{name.split('::')[0]}" not in PAGE}
    assert unnamed == set()
    reported = {name.split("[")[0] for name in re.findall(r"^\| `([^`]+)`", RESULTS, re.MULTILINE)}
    assert reported == attacks()


def test_it_says_how_many_histories_there_are() -> None:
    histories, steps = test_random_histories.HISTORIES, test_random_histories.STEPS
    assert f"*How often:* {histories} histories of up to {steps} steps." in PAGE
    assert f", {test_random_ranks.HISTORIES} histories of ranks" in PAGE


def test_its_figures_are_those_of_the_results() -> None:
    assert table(PAGE) == table(RESULTS)


def test_a_round_that_fails_is_played_again_by_its_seed(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    failed = play(tmp_path, "--soak", "1", "--attack-report", str(report))
    assert failed.returncode == 1, failed.stdout
    (said,) = re.findall(r"again: make soak ARGS=\"'test_it.py::test_it' (.*)\"", failed.stdout)
    (throw,) = re.findall(r"^E +assert (0\.\d+) < 0.4", failed.stdout, re.MULTILINE)
    assert not report.exists(), "what did not hold is no result"

    again = play(tmp_path, *said.split())
    assert again.returncode == 1
    assert f"assert {throw} < 0.4" in again.stdout
    assert re.search(r"test_it.py::test_it: seed \d+: 1 throws", again.stdout)


def test_a_failure_in_one_process_is_one_of_all_of_them(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    (tmp_path / "test_another.py").write_text(FAILING.format(limit=1), encoding="utf-8")
    options = ("--numprocesses=2", "--dist=loadfile", "--attack-report", str(report))
    failed = play(tmp_path, str(tmp_path / "test_another.py"), *options, limit=0)
    assert "1 failed, 1 passed" in failed.stdout, failed.stdout
    assert not report.exists()


def test_what_held_is_reported(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    held = play(tmp_path, "--soak", "0.01", "--attack-report", str(report), limit=1)
    assert held.returncode == 0, held.stdout
    text = report.read_text(encoding="utf-8")
    assert f"`make soak MINUTES=0.01`, on PostgreSQL {'.'.join(server_version())}" in text
    assert re.search(r"^\| throws \| [\d,]+ \|$", text, re.MULTILINE)


def test_a_run_that_is_not_told_to_soak_plays_the_same_rounds_each_time(tmp_path: Path) -> None:
    passed = play(tmp_path, limit=1)
    assert "test_it.py::test_it: seeds 1 to 3: 3 throws" in passed.stdout
