"""Ends the demo cleanly: a closed terminal or a kill works as Ctrl-C does."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Never

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stoppable() -> Generator[None]:
    """Raise KeyboardInterrupt inside the block for each of the signals that stop a program.

    One that is ignored stays so: nohup means it.
    """
    before = {number: signal.signal(number, _interrupt) for number in _heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Generator[None]:
    """Let the block finish first: a process that is being started must not be lost sight of.

    Raises:
        KeyboardInterrupt: A signal came meanwhile; this goes before an error of the block, which
            the terminal's signal to the started process may have caused.
    """
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in _heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            raise KeyboardInterrupt


@contextmanager
def ignored() -> Generator[None]:
    """Clean up whatever comes: a second Ctrl-C must not leave half of it behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heeded() -> list[signal.Signals]:
    return [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]


def _interrupt(number: int, frame: FrameType | None) -> Never:
    raise KeyboardInterrupt
