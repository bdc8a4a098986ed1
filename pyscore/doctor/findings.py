"""What an examination finds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NamedTuple

Level = Literal["ok", "warn", "fail"]


class Verdict(NamedTuple):
    """What a check says, once for everything that is wrong, or once that all is well.

    Attributes:
        level: ``fail``: scores are not kept right, or will not be; ``warn``: a person should know.
        message: One line: what is so.
        remedy: What mends it, to be run as it stands: lines of SQL for psql that end with a
            semicolon, lines for the shell that begin with ``pyscore``, and, where neither can do
            it, lines for a file. Lines that begin with ``--`` or ``#`` say where or as whom. None
            where nothing is to be done.
    """

    level: Level
    message: str
    remedy: str | None = None


@dataclass(frozen=True)
class Finding:
    """A line of the examination.

    Attributes:
        check: Which check it is from; the names stay as they are, for scripts.
        level: As of `Verdict`.
        message: As of `Verdict`.
        remedy: As of `Verdict`.
    """

    check: str
    level: Level
    message: str
    remedy: str | None = None


@dataclass(frozen=True)
class Limits:
    """From where on something is worth a line.

    Attributes:
        held_for: Age from which a transaction, and what else keeps vacuum from its work, counts as
            held for long.
        xids: The same for what has no age but in transactions: a standby's oldest snapshot.
        dead_rows: Dead rows of the queue that vacuum should have removed.
    """

    held_for: timedelta = timedelta(minutes=10)
    xids: int = 1_000_000
    dead_rows: int = 100_000


def ok(message: str) -> Verdict:
    """Say that all is well."""
    return Verdict("ok", message)


def warn(message: str, *remedy: str) -> Verdict:
    """Say what a person should know, and the lines that mend it."""
    return Verdict("warn", message, "\n".join(remedy) or None)


def fail(message: str, *remedy: str) -> Verdict:
    """Say what is broken, and the lines that mend it."""
    return Verdict("fail", message, "\n".join(remedy) or None)
