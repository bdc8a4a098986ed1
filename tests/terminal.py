"""Runs a command whose stderr is a terminal, as people do, and whose stdout is piped away."""

import os
import pty
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress

from tests.commands import PYSCORE, ROOT, environment


class Running:
    """A command that runs.

    Attributes:
        shown: What its terminal has been sent so far.
    """

    def __init__(self, process: "subprocess.Popen[str]", terminal: int) -> None:
        self._process = process
        self._terminal = terminal
        self.shown = ""

    @property
    def returncode(self) -> int:
        return self._process.wait()

    def shows(self, text: str) -> None:
        """Return once the terminal has been sent this; fail when the command ends without it."""
        while text not in self.shown:
            assert self._read(), f"ended without {text!r}: {self.shown!r}"

    def read_stdout(self) -> str:
        """Wait for the command's end, and give all it printed."""
        assert self._process.stdout is not None
        while self._read():
            pass
        return self._process.stdout.read()

    def _read(self) -> str:
        said = ""
        with suppress(OSError):  # how Linux says that nobody holds the other end any more
            said = os.read(self._terminal, 65536).decode(errors="replace")
        self.shown += said
        return said


@contextmanager
def on_terminal(*arguments: str) -> Generator[Running]:
    """Run a command of ours; it is killed when this context ends before it does."""
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [*PYSCORE, *arguments],
        cwd=ROOT,
        env=environment(TERM="xterm", COLUMNS="80"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=end,
        text=True,
    )
    os.close(end)
    with process:
        try:
            yield Running(process, terminal)
        finally:
            process.kill()
            os.close(terminal)
