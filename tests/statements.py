"""Statements that a test puts together itself, each committed at once."""

from typing import Any, LiteralString, cast

import psycopg
from psycopg import Connection


def connect(address: str) -> Connection[Any]:
    """Connect in autocommit mode."""
    return psycopg.connect(address, autocommit=True)


def run(db: Connection[Any], statement: str) -> list[tuple[Any, ...]]:
    """Run a statement, or several in one string; give the rows of one that has some."""
    cursor = db.execute(cast(LiteralString, statement))
    return cursor.fetchall() if cursor.description else []
