"""The one exception that people see."""

import psycopg


class PyscoreError(Exception):
    """Something the caller can put right; its text is one line that says what and how.

    Attributes:
        exit_code: What the command line exits with: 1 failed or not found, 2 usage, 3 unhealthy.
    """

    def __init__(self, message: str, *, exit_code: int = 1):
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code


def from_database(error: psycopg.Error) -> PyscoreError:
    """Put a server's error, with its DETAIL and HINT, on one line.

    Args:
        error: What psycopg raised.
    """
    parts = [error.diag.message_primary, error.diag.message_detail, error.diag.message_hint]
    said = [part.rstrip(".;") for part in parts if part]
    return PyscoreError("; ".join(said) or str(error))
