"""What runs the worker on the demo's server: pg_cron, or `pyscore worker` where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyscore
from pyscore.demo import signals
from pyscore.errors import PyscoreError

if TYPE_CHECKING:
    from pyscore.demo.stage import Stage

_STOP_TIMEOUT_S = 10


class Worker(Protocol):
    """What runs the worker.

    Attributes:
        name: Who starts it, for people.
    """

    name: str

    def begin(self, stage: Stage) -> None:
        """See to it that the worker runs soon; a paused one has left and is called back."""
        ...

    def check(self) -> None:
        """Raise a PyscoreError if it cannot come any more."""
        ...


class PgCron:
    """pg_cron's jobs: one of each minute, and one of each start of the server."""

    name = "pg_cron"

    def begin(self, stage: Stage) -> None:
        """Restart the server: the job of the minute could be a minute away."""
        from pyscore.demo.stage import step

        with step(stage.console, "restart the server") as remarks:
            stage.restart()
            remarks += [
                "pg_cron's @reboot job then starts the worker at",
                "once; otherwise it comes with the next minute",
            ]

    def check(self) -> None:
        """Do nothing: pg_cron tries again each minute, and says in its table what failed."""


class WorkerProcess:
    """`pyscore worker`, a process of its own that goes on when it is paused or the server restarts.

    Attributes:
        process: The process, once it was begun.
    """

    name = "pyscore worker"

    def __init__(self, address: str, log_file: Path):
        """Choose its database.

        Args:
            address: Where the database is.
            log_file: Where what it says goes.
        """
        self.process: subprocess.Popen[bytes] | None = None
        self._address = address
        self._log_file = log_file

    def begin(self, stage: Stage) -> None:
        """Start the process, unless it is there."""
        if self.process is not None:
            return
        # -c looks in the current directory first: let that be where this very package is
        root = Path(pyscore.__file__).parents[1]
        program = "from pyscore.cli import main; main()"
        command = [sys.executable, "-c", program, "worker", "--dsn", self._address]
        with signals.held(), self._log_file.open("wb") as log:
            # a session of its own: the terminal's Ctrl-C is for the demo, which then stops it
            self.process = subprocess.Popen(
                command,
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise a PyscoreError, with the last it said, when it has ended."""
        if self.process is not None and self.process.poll() is not None:
            said = self._log_file.read_text(encoding="utf-8", errors="replace").strip()
            last = said.splitlines()[-1] if said else "it said nothing"
            raise PyscoreError(f"`pyscore worker` has ended: {last}")

    def close(self) -> None:
        """End the process and wait until it is gone."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
