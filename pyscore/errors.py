"""The exceptions that people see."""

import psycopg


class PyscoreError(Exception):
    """Something the caller can put right; its text is one line that says what and how.

    Attributes:
        exit_code: What the command line exits with: 1 failed or not found, 2 usage, 3 unhealthy.
    """

    def __init__(self, message: str, *, exit_code: int = 1):
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code


class UnknownUserError(PyscoreError, LookupError):
    """There is no such user in the application's ``users``."""


class BadArgumentError(PyscoreError, ValueError):
    """An argument that can mean nothing: a page of no rows, a cursor or an id that is none."""

    def __init__(self, message: str):
        super().__init__(message, exit_code=2)


def from_database(error: psycopg.Error) -> PyscoreError:
    """Put a server's error, with its DETAIL and HINT, on one line.

    Args:
        error: What psycopg raised.
    """
    parts = [error.diag.message_primary, error.diag.message_detail, error.diag.message_hint]
    said = [part.rstrip(".;") for part in parts if part]
    return PyscoreError("; ".join(said) or str(error))
