"""Asks an application's Alembic what it would do to us: a program, run in a process of its own.

    python -m pyscore.doctor.comparing alembic.ini answer.json

The answer is a list of operations, in words. Nothing is written to the database or to the
application's migrations.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from pyscore.alembic import SCHEMAS, include_object


def compare(config_file: str) -> list[str]:
    """Compare the application's models with its database, as its env.py has it done.

    Args:
        config_file: The application's ``alembic.ini``.

    Returns:
        What autogenerate would do to objects of ours or of pg_cron's.
    """
    config = Config(config_file)
    script = ScriptDirectory.from_config(config)
    operations: list[str] = []

    def look(revision: Any, context: MigrationContext) -> list[Any]:
        differences: Any = compare_metadata(context, context.opts["target_metadata"])
        operations.extend(_ours(differences))
        return []  # no revision is run

    with EnvironmentContext(config, script, fn=look, as_sql=False):
        script.run_env()
    return sorted(set(operations))  # columns and indexes of the application's tables come first


def _ours(differences: Iterable[Any]) -> Iterator[str]:
    """Name those of Alembic's differences that take something of ours away."""
    for difference in differences:
        if isinstance(difference, list):  # changes of one column
            continue
        kind, *details = cast(tuple[Any, ...], difference)
        item = details[-1]
        if kind == "remove_column":
            _, table, column = details
            if not include_object(column, column.name, "column", True, None):
                yield f"drop column {table}.{column.name}"
        elif kind in ("remove_table", "remove_index"):
            what = kind.removeprefix("remove_")
            table = item if what == "table" else item.table
            name = item.name if table.schema is None else f"{table.schema}.{item.name}"
            of_ours = table.schema in SCHEMAS
            if of_ours and what == "index":
                continue  # which goes with its table
            if of_ours or not include_object(item, item.name, what, True, None):
                yield f"drop {what} {name}"


def main() -> None:
    """Write the answer to the file that is named last."""
    _, config_file, answer = sys.argv
    sys.path.insert(0, os.getcwd())  # as the alembic command does
    Path(answer).write_text(json.dumps(compare(config_file)), encoding="utf-8")


if __name__ == "__main__":
    main()
