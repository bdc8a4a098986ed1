"""The exceptions that people see."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the help and the completion of commands do without a driver
    import psycopg

_READ_ONLY = "25006"


class PyscoreError(Exception):
    """Something the caller can put right; its text is one line that says what and how.

    Attributes:
        exit_code: What the command line exits with: 1 failed or not found, 2 usage, 3 unhealthy.
    """

    def __init__(self, message: str, *, exit_code: int = 1):
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code


class NotInstalledError(PyscoreError):
    """The database has nothing of ours."""


class UnknownUserError(PyscoreError, LookupError):
    """There is no such user in the application's ``users``."""


class BadArgumentError(PyscoreError, ValueError):
    """An argument that can mean nothing: a page of no rows, a cursor or an id that is none."""

    def __init__(self, message: str):
        super().__init__(message, exit_code=2)


def from_database(error: psycopg.Error, *advice: str) -> PyscoreError:
    """Put a server's error, with its DETAIL and HINT, on one line.

    Args:
        error: What psycopg raised.
        advice: What to do, beside the server's own HINT.
    """
    diag = error.diag
    parts = [diag.message_primary or str(error), diag.message_detail, diag.message_hint, *advice]
    if diag.sqlstate == _READ_ONLY:
        parts.append("run it on the primary, in a session that may write")
    first, *rest = [part.strip().rstrip(".;") for part in parts if part]
    return PyscoreError(first + "".join(_joined(part) for part in rest))


def _joined(part: str) -> str:
    return f". {part}" if part[:1].isupper() else f"; {part}"
