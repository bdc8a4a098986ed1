"""What has to hold before a migration touches anything; each failure is one line that says so."""

from typing import Any

import psycopg

from pyscore import __version__, schema
from pyscore.errors import PyscoreError

Connection = psycopg.Connection[Any]

SCHEMA = "builder_score"


def require_known_revision(revision: str | None, known: set[str]) -> None:
    """Refuse a database whose schema is newer than this package.

    Args:
        revision: The one the database is at.
        known: Those that this package has.
    """
    if revision is not None and revision not in known:
        raise PyscoreError(
            f"the database's schema is newer than this package: it is at revision {revision}, and "
            f"pyscore {__version__} knows revisions up to {schema.newest()}; "
            "install a newer pyscore (pip install --upgrade pyscore)"
        )


def require_host_schema(connection: Connection, wanted: str | None) -> None:
    """Refuse a schema of the application's that is not there, or is not the one installed for.

    Args:
        connection: To the database.
        wanted: Its name; None for the one installed for, or ``public``.
    """
    if wanted is None:
        return
    installed = installed_host_schema(connection)
    if installed not in (None, wanted):
        raise PyscoreError(
            f'builder_score was installed for the application\'s tables in schema "{installed}", '
            f'not "{wanted}": leave the option out, or uninstall first'
        )
    if not _is_true(
        connection, "select exists (select from pg_namespace where nspname = %s)", wanted
    ):
        raise PyscoreError(
            f'there is no schema "{wanted}" in this database; expected the one that holds users, '
            "projects and project_collaborators, or that they are to be created in"
        )


def installed_host_schema(connection: Connection) -> str | None:
    """Give the schema said at install; None where nothing is installed."""
    if _is_true(connection, "select to_regclass('builder_score.host') is null"):
        return None
    row = connection.execute("select host_schema::text from builder_score.host").fetchone()
    return row[0] if row else None


def require_own_schema(connection: Connection) -> None:
    """Refuse a schema of our name that somebody else made."""
    if not has_version_table(connection) and not is_empty(connection):
        raise PyscoreError(
            f"there is a schema {SCHEMA} that pyscore did not make (it has no alembic_version); "
            "rename or drop it, then migrate again"
        )


def exists(connection: Connection) -> bool:
    """Tell whether our schema is there."""
    return _is_true(connection, "select to_regnamespace(%s) is not null", SCHEMA)


def has_version_table(connection: Connection) -> bool:
    """Tell whether the table that notes the revision is there."""
    return _is_true(connection, "select to_regclass(%s) is not null", f"{SCHEMA}.alembic_version")


def is_empty(connection: Connection) -> bool:
    """Tell whether nothing is in our schema, or the schema is not there."""
    return _is_true(
        connection,
        "select not exists (select from pg_depend where refclassid = 'pg_namespace'::regclass"
        " and refobjid = to_regnamespace(%s))",
        SCHEMA,
    )


def _is_true(connection: Connection, query: Any, *parameters: Any) -> bool:
    return connection.execute(query, parameters).fetchall() == [(True,)]
