"""Which revision of our schema a database has, and which this package expects: without Alembic."""

from typing import Any

from psycopg import Connection

from pyscore.locations import MIGRATIONS


def newest() -> str:
    """Return the newest revision that this package knows, as ``migrator.head()`` does.

    Alembic finds the same one by loading every revision, which takes longer than most commands.
    """
    return max(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def installed_revision(connection: Connection[Any]) -> str | None:
    """Return the revision a database is at, or None where our schema is not installed.

    Args:
        connection: To the database; its rows are tuples.
    """
    present = connection.execute(
        "select to_regclass('builder_score.alembic_version') is not null"
    ).fetchone()
    if not present or not present[0]:
        return None
    row = connection.execute("select version_num from builder_score.alembic_version").fetchone()
    return row[0] if row else None
