"""A private server whose wall clock is moved while it runs, by libfaketime.

    with server_with_a_clock() as clock:
        clock.move(-3600)       # an hour back, at once and in every process of the server

What the server measures with the monotonic clock stays real, and so does this process's own clock.
"""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pyscore.cluster import PrivateCluster, Setting


def library() -> Path:
    """Find libfaketime: where Debian's package puts it, then where its own Makefile does."""
    places = [
        *Path("/usr/lib").glob("*/faketime/libfaketime.so.1"),
        Path("/usr/local/lib/faketime/libfaketime.so.1"),
    ]
    for path in places:
        if path.exists():
            return path
    raise FileNotFoundError("no libfaketime.so.1: install Debian's package faketime (.ci/install)")


class Clock:
    """The wall clock of one server: real time, and so many seconds more or less."""

    def __init__(self, server: PrivateCluster, file: Path) -> None:
        self.server = server
        self._file = file
        self._offset = 0.0
        self.set_right()

    def set_right(self) -> None:
        """Set the clock to real time."""
        self._set(0)

    def set_to(self, moment: datetime) -> None:
        """Set the clock to a moment, from which it goes on."""
        self._set(moment.timestamp() - datetime.now().timestamp())

    def move(self, seconds: float) -> None:
        """Move the clock, forward or back."""
        self._set(self._offset + seconds)

    def _set(self, offset: float) -> None:
        # In one step: who reads it meanwhile finds the old file or the new one.
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset:+.6f}\n", encoding="ascii")
        new.chmod(0o644)
        new.replace(self._file)
        self._offset = offset


@contextmanager
def server_with_a_clock(**settings: Setting) -> Generator[Clock]:
    """Start a server with a clock of its own, and throw it away at the end."""
    with tempfile.TemporaryDirectory(prefix="pyscore-clock-") as place:
        Path(place).chmod(0o755)  # the server may run as another user
        file = Path(place, "clock")
        environment = {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        server = PrivateCluster(
            tcp=False, settings={"fsync": False, **settings}, environment=environment
        )
        clock = Clock(server, file)
        with server:
            yield clock
