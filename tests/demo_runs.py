"""Runs of the demo: whole ones, as people start them, and what they leave on the machine."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.commands import PYSCORE, ROOT, Done, environment

PATIENCE = 240
"""Seconds; where the @reboot job does not come, pg_cron's minute does."""

# the caller's own server must not matter
ELSEWHERE = {"PGHOST": "/nowhere", "PGOPTIONS": "-c no.such=setting -c work_mem=nonsense"}


@contextmanager
def temporary_directory() -> Generator[Path]:
    """A directory of the run's own for temporary files, which the server's user may enter."""
    directory = Path(tempfile.mkdtemp(prefix="d"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        for script in directory.glob("pyscore-*/stop"):  # a test that failed half-way
            subprocess.run(["sh", script], check=False)
        shutil.rmtree(directory)


def play(temporary: Path, *options: str, **variables: str) -> Done:
    """Run `pyscore demo` to its end."""
    return subprocess.run(
        [*PYSCORE, "demo", *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment(TMPDIR=str(temporary), **ELSEWHERE, **variables),
        timeout=PATIENCE,
    )


def stop_at(
    temporary: Path, beginning: str, number: signal.Signals, *options: str, **variables: str
) -> Done:
    """Run `pyscore demo`, and send it a signal when it prints a line that begins like this."""
    demo = subprocess.Popen(
        [*PYSCORE, "demo", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(TMPDIR=str(temporary), PYTHONUNBUFFERED="1", **ELSEWHERE, **variables),
    )
    with demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        seen: list[str] = []
        for line in demo.stdout:
            seen.append(line)
            if line.strip().startswith(beginning):
                break
        assert processes_of(temporary)  # the server, at least
        demo.send_signal(number)
        said = demo.stderr.read()
        seen.append(demo.stdout.read())
    return Done(demo.args, demo.returncode, "".join(seen), said)


def processes_of(directory: Path) -> list[str]:
    """The command lines of running processes that name the directory."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if directory.name in words:
            found.append(words)
    return found


def assert_nothing_is_left(temporary: Path) -> None:
    assert processes_of(temporary) == []
    assert list(temporary.iterdir()) == []


def assert_fits(printed: str) -> None:
    # but for the path of wherever people have put the command
    lines = [line for line in printed.splitlines() if not line.startswith("  /")]
    assert max(map(len, lines)) <= 80


def lines_to_go_on_with(printed: str) -> list[str]:
    """The indented lines at the end of a run with --keep: what to type."""
    after = printed[printed.index("The server goes on running.") :]
    return [line.strip() for line in after.splitlines() if line.startswith("  ")]


def type_lines(lines: list[str], home: Path) -> Done:
    """Type lines into one shell, which ends at the first that fails."""
    # as printed, but for this checkout's command in place of whatever is installed
    command = home / "pyscore"
    command.write_text(f'#!/bin/sh\ncd {ROOT}\nexec "{PYSCORE[0]}" -c "{PYSCORE[2]}" "$@"\n')
    command.chmod(0o755)
    typed = [re.sub(r"^\S*pyscore ", f"{command} ", line) for line in lines]
    return subprocess.run(
        ["sh", "-e"],
        input="\n".join(typed) + "\n",
        capture_output=True,
        text=True,
        check=False,
        env=environment(PAGER="cat"),
        timeout=60,
    )


_SCORE = re.compile(
    r"^ +(?P<clock>[\d.]+) s  score   (?P<name>\w+ \w+) +(?P<before>\w+) -> +(?P<after>\d+)"
    r"  \+(?P<waited>[\d.]+) s: (?P<why>.+)$"
)
_COUNT = re.compile(r"^ +(\d+) commits?, (\d+) recalculations?$")


@dataclass(frozen=True)
class Score:
    """A line of the story that says that a score has arrived."""

    name: str
    before: str
    after: int
    waited: float
    why: str


def scores_told(printed: str) -> list[Score]:
    found = map(_SCORE.match, printed.splitlines())
    return [
        Score(m["name"], m["before"], int(m["after"]), float(m["waited"]), m["why"])
        for m in found
        if m
    ]


def counts_told(printed: str) -> list[tuple[int, int]]:
    """Commits and recalculations of each chapter."""
    found = map(_COUNT.match, printed.splitlines())
    return [(int(m[1]), int(m[2])) for m in found if m]
