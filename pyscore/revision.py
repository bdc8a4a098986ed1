"""Runs the frozen SQL beside a revision: online through psycopg, offline into the script for psql.

Alembic's ``op.execute`` is not used for it: it reads colons as parameters.
"""

import logging
from pathlib import Path
from typing import Any, cast

import psycopg
from alembic import op

logger = logging.getLogger("pyscore.migrations")

GEXEC = "\\gexec"


def run(revision_file: str, direction: str) -> None:
    """Run a revision's script in Alembic's transaction.

    Args:
        revision_file: The revision's ``__file__``.
        direction: ``up`` or ``down``: ``NNNN_name.up.sql`` or ``.down.sql`` beside it.
    """
    _run(_read(revision_file, direction))


def run_outside_transaction(revision_file: str, direction: str) -> None:
    r"""Run a revision's script with every statement on its own, for CREATE INDEX CONCURRENTLY.

    A query whose line after it is ``\gexec`` has each row of its result run as a statement.

    Args:
        revision_file: The revision's ``__file__``.
        direction: ``up`` or ``down``.
    """
    with op.get_context().autocommit_block():
        _run(_read(revision_file, direction))


def _read(revision_file: str, direction: str) -> str:
    return Path(revision_file).with_suffix(f".{direction}.sql").read_text(encoding="utf-8")


def _run(script: str) -> None:
    context = op.get_context()
    if context.as_sql:
        context.impl.static_output(script)
        return
    connection = cast(psycopg.Connection[Any], op.get_bind().connection.driver_connection)
    *pieces, rest = script.split(f"\n{GEXEC}\n")
    for piece in pieces:
        # the query is the last statement before its \gexec, set apart by an empty line
        before, _, query = piece.rpartition("\n\n")
        _execute(connection, before)
        for (statement,) in connection.execute(cast(Any, query)).fetchall():
            logger.info("%s", statement)
            connection.execute(statement)
    _execute(connection, rest)


def _execute(connection: psycopg.Connection[Any], statements: str) -> None:
    """Run statements, and log the lines that a script's functions say."""
    cursor = connection.execute(cast(Any, statements))
    while True:
        if cursor.description is not None:
            for row in cursor.fetchall():
                logger.info("%s", row[0])
        if not cursor.nextset():
            return
