"""Where commands print: with colours and folded to fit on a terminal, plain anywhere else."""

import re
import shutil
import sys
from typing import IO, cast

from rich.console import Console

ENDLESS = 1_000_000
"""The columns of what is no terminal: nothing is folded, wrapped or cut there."""

# only from where blanks begin: else it takes quadratic time in a wide table
_TRAILING = re.compile(r"(?<![ \t])[ \t]+(?=\n)")


class _Stripped:
    """A stream that loses the blanks with which rich fills up the last column of tables."""

    def __init__(self, stderr: bool) -> None:
        self._stderr = stderr

    def __getattr__(self, name: str) -> object:
        # looked up anew, as rich does: the stream may be redirected meanwhile
        return getattr(sys.stderr if self._stderr else sys.stdout, name)

    def write(self, text: str) -> int:
        stream = sys.stderr if self._stderr else sys.stdout
        return stream.write(_TRAILING.sub("", text))


def console(*, stderr: bool = False) -> Console:
    """Make a console for one of the standard streams.

    On a terminal it is rich's own. Anywhere else (a pipe, a file) a line of output is a line, as
    long as it comes, without trailing blanks or colours: tables are as wide as what they hold.

    Args:
        stderr: Whether to print on stderr, not on stdout.
    """
    made = Console(stderr=stderr, highlight=False)
    if (sys.stderr if stderr else sys.stdout) is None:  # closed: rich prints nowhere
        return made
    if made.is_terminal:
        if made.width < 1:  # COLUMNS=0
            made.width = shutil.get_terminal_size().columns
        return made
    plain = cast(IO[str], _Stripped(stderr))
    return Console(file=plain, width=ENDLESS, color_system=None, highlight=False)
