"""Processor time of backends that come and go, and of a process with all that it has started."""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from benchmarks.measuring import TICKS, backend_seconds


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
        used[pid] = sum(map(int, fields[11:15])) / TICKS
    tree = {root}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return sum(used.get(pid, 0.0) for pid in tree)
