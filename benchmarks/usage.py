"""Processor time, in seconds: of a process, of backends that come and go, of all of a server."""

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the seconds of processor time that a process has used; a hundredth is the finest."""
    return _processor_times(pid)[0]


def backend_seconds(pid: int) -> float:
    """Return what `cpu_seconds` does, for a process of one thread: in nanoseconds where it can."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except FileNotFoundError:  # the kernel keeps none
        return cpu_seconds(pid)


def cpu_seconds_of_children(pid: int) -> float:
    """Return the seconds that the children of a process have used that have ended."""
    return _processor_times(pid)[1]


def children(pid: int) -> set[int]:
    """Return the ids of a process's children."""
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


class Backends:
    """Sums what some backends use within a `with`, whichever they are at the time.

    Attributes:
        seconds: The sum; complete when the context is left.
    """

    def __init__(self, pids: Callable[[], Iterable[int]], every_s: float = 0.5) -> None:
        self.seconds = 0.0
        self._pids = pids
        self._every_s = every_s
        self._last: dict[int, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._last = self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._add()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self._add()

    def _look(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for pid in self._pids():
            try:
                found[pid] = backend_seconds(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def _add(self) -> None:
        now = self._look()
        # One that has begun since has used all of it since.
        self.seconds += sum(used - self._last.get(pid, 0.0) for pid, used in now.items())
        self._last = now


def tree_seconds(root: int) -> float:
    """The processor time of a process and of all that it has started, those that have ended too."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The second field is the program's name in brackets, and may hold anything.
        fields = text.rpartition(")")[2].split()
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        # its own, and that of children it has waited for
        used[pid] = sum(map(int, fields[11:15])) / _TICKS
    tree = {root}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return sum(used.get(pid, 0.0) for pid in tree)


def _processor_times(pid: int) -> tuple[float, float]:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The second field is the program's name in brackets, and may hold anything.
    fields = [int(field) for field in stat.rpartition(")")[2].split()[11:15]]
    return (fields[0] + fields[1]) / _TICKS, (fields[2] + fields[3]) / _TICKS
