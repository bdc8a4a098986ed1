"""What a terminal shows once a command has ended that had nothing but this terminal."""

import os
import pty
import re
import subprocess
from contextlib import suppress

from tests.commands import PYSCORE, ROOT, environment

_PIECES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+")


def on_screen(*arguments: str, **variables: str) -> str:
    """Run a command of ours on a terminal, and return what is to be read there in the end."""
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [*PYSCORE, *arguments],
        cwd=ROOT,
        env=environment(TERM="xterm", **{"COLUMNS": "80"} | variables),
        stdin=end,
        stdout=end,
        stderr=end,
    )
    os.close(end)
    sent = b""
    with process:
        with suppress(OSError):  # how Linux says that nobody holds the other end any more
            while piece := os.read(terminal, 65536):
                sent += piece
        os.close(terminal)
    return render(sent.decode())


def render(sent: str) -> str:
    """Follow the few instructions that rich sends: up, erase the line, back to its start."""
    lines, row, column = [""], 0, 0
    for piece in _PIECES.findall(sent):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif re.fullmatch(r"\x1b\[\d*A", piece):
            row -= int(piece[2:-1] or 1)
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif not piece.startswith("\x1b"):
            before = lines[row].ljust(column)
            lines[row] = before[:column] + piece + before[column + len(piece) :]
            column += len(piece)
    return "\n".join(lines).rstrip() + "\n"
