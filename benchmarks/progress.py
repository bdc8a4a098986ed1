"""Says on standard error how far a run is."""

import time

from rich.console import Console

_console = Console(stderr=True, highlight=False)
_began = time.monotonic()


def say(what: str) -> None:
    """Print a line of progress, with the minutes and seconds since the start."""
    minutes, seconds = divmod(int(time.monotonic() - _began), 60)
    _console.print(f"{minutes:3d}:{seconds:02d}  {what}", markup=False, soft_wrap=True)
