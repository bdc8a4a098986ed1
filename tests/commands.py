"""Runs our commands the way people do."""

import io
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from pyscore.cli import main
from pyscore.cluster import PrivateCluster

ROOT = Path(__file__).resolve().parents[1]

Done = subprocess.CompletedProcess[str]

_PYSCORE = "import sys; sys.argv[0] = 'pyscore'; from pyscore.cli import main; main()"
PYSCORE = [sys.executable, "-c", _PYSCORE]
"""The command, run from this checkout whatever is installed."""

_ALEMBIC = "import sys; sys.argv[0] = 'alembic'; from alembic.config import main; main()"


def environment(**variables: str) -> dict[str, str]:
    """Build an environment in which no variable of the caller's names a database."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "DATABASE_URL" and not name.startswith("PG")
    }
    return kept | variables


def pyscore(*arguments: str, stdin: str = "", **variables: str) -> Done:
    """Run the command line as a process of its own."""
    return _run([*PYSCORE, *arguments], stdin, variables)


@contextmanager
def running(*arguments: str, **variables: str) -> Generator["subprocess.Popen[str]"]:
    """Run the command line as a process that goes on meanwhile, and kill what is left of it."""
    process = subprocess.Popen(
        [*PYSCORE, *arguments],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def call(*arguments: str, **variables: str) -> Done:
    """Run the command line in this process: for the many cases that differ in their arguments."""
    stdout, stderr = io.StringIO(), io.StringIO()
    argv, variables_before = sys.argv, dict(os.environ)
    sys.argv = ["pyscore", *arguments]
    os.environ.clear()
    os.environ.update(environment(**variables))
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(variables_before)
    code = ended.value.code
    assert isinstance(code, int)
    return Done(sys.argv, code, stdout.getvalue(), stderr.getvalue())


def alembic(*arguments: str, **variables: str) -> Done:
    """Run Alembic in the checkout."""
    return _run([sys.executable, "-c", _ALEMBIC, *arguments], "", variables)


def psql(server: PrivateCluster, address: str, script: str, *options: str) -> None:
    """Run a script that has to succeed."""
    command = [str(server.program("psql")), "--no-psqlrc", "--quiet", *options]
    done = _run([*command, "--set", "ON_ERROR_STOP=1", address], script, {})
    assert done.returncode == 0, done.stderr


def output(done: Done) -> str:
    """What a command that has to succeed printed."""
    assert done.returncode == 0, done.stderr
    return done.stdout


def error_line(done: Done, exit_code: int = 1) -> str:
    """The one line that a command which has to fail wrote to stderr."""
    assert done.returncode == exit_code, (done.returncode, done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("pyscore: "), line
    return line


def _run(command: list[str], stdin: str, variables: dict[str, str]) -> Done:
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment(**variables),
        timeout=60,
    )
