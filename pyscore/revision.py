r"""Reads the frozen SQL beside a revision, and runs it: through psycopg, or into a script for psql.

Alembic's ``op.execute`` is not used for it: it reads colons as parameters.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psycopg
from alembic import op

logger = logging.getLogger("pyscore.migrations")

GEXEC = "\\gexec"

_FIELD = re.compile(r"(transaction|reads|locks on host tables): +")


@dataclass(frozen=True)
class Script:
    """A revision's script for one direction.

    Attributes:
        does: What it does, in a sentence or more.
        locks: The lock level on which of the application's tables, and for how long.
        in_transaction: Whether all of it is one transaction; else every statement is its own.
        statements: The SQL, without the head that says all that.
    """

    does: str
    locks: str
    in_transaction: bool
    statements: str


def read(revision_file: str, direction: str) -> Script:
    """Read a revision's script.

    Args:
        revision_file: The revision's ``__file__``.
        direction: ``up`` or ``down``: ``NNNN_name.up.sql`` or ``.down.sql`` beside it.

    Raises:
        ValueError: Its head does not say what it does, its transaction or its locks.
    """
    path = Path(revision_file).with_suffix(f".{direction}.sql")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def parse(text: str) -> Script:
    """Take a script apart.

    Its head is the first block of comment lines. It begins with what the script does; lines that
    begin with ``transaction:`` (``one`` or ``none``) and ``locks on host tables:`` follow.

    Raises:
        ValueError: Something is missing in the head.
    """
    lines = text.splitlines(keepends=True)
    begin = next((at for at, line in enumerate(lines) if line.startswith("--")), len(lines))
    end = next(
        (at for at, line in enumerate(lines) if at > begin and not line.startswith("--")),
        len(lines),
    )
    head: dict[str, list[str]] = {"does": []}
    field = "does"
    for line in lines[begin:end]:
        said = line.removeprefix("--").strip()
        named = _FIELD.match(said)
        if named:
            field, said = named[1], said[named.end() :]
        head.setdefault(field, []).append(said)
    found = {name: " ".join(said) for name, said in head.items()}
    missing = [name for name in ("transaction", "locks on host tables") if not found.get(name)]
    if missing or not found["does"]:
        raise ValueError(f"its head lacks: {', '.join(missing) or 'what it does'}")
    transaction = found["transaction"].split(";")[0]
    if transaction not in ("one", "none"):
        raise ValueError(f"its head says transaction: {transaction}; expected one or none")
    return Script(
        does=found["does"],
        locks=found["locks on host tables"],
        in_transaction=transaction == "one",
        statements="".join(lines[:begin] + lines[end + 1 :]).strip() + "\n",
    )


def run(revision_file: str, direction: str) -> None:
    r"""Run a revision's script: in Alembic's transaction, or every statement on its own.

    A query whose line after it is ``\gexec`` has each row of its result run as a statement.

    Args:
        revision_file: The revision's ``__file__``.
        direction: ``up`` or ``down``.
    """
    script, context = read(revision_file, direction), op.get_context()
    if context.as_sql:
        # whoever prints the script for psql prints transactions around it
        context.impl.static_output(script.statements.rstrip())
    elif script.in_transaction:
        _run(script.statements)
    else:
        with context.autocommit_block():
            _run(script.statements)


def _run(script: str) -> None:
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
