"""Brings a database up and down, from an installed wheel as from a checkout."""

from typing import Any, TextIO

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from pyscore import address, hindrances, preconditions, schema
from pyscore.errors import PyscoreError
from pyscore.locations import MIGRATIONS


def install_settings(
    host_schema: str | None = None, subscribers_ready: bool = False
) -> dict[str, str]:
    """Name what is said once, when the schema is installed.

    Args:
        host_schema: Where the application's three tables are; ``public`` if not given.
        subscribers_ready: That subscribers of the database's publications have our tables.
    """
    return {
        "host_schema": host_schema or "",
        "subscribers_ready": "on" if subscribers_ready else "",
    }


def upgrade(
    dsn: str | None = None, *, lock_wait: float = 600.0, settings: dict[str, str] | None = None
) -> None:
    """Bring a database to the newest revision; does nothing where it is there already.

    Args:
        dsn: As for `pyscore.address.resolve`.
        lock_wait: Seconds to keep trying while tables are busy or another migration runs.
        settings: What `install_settings` returned.

    Raises:
        PyscoreError: What the server or the database's state objects to, with what to do.
    """
    conninfo = address.resolve(dsn)
    _refuse_newer_schema(conninfo)
    _run(command.upgrade, conninfo, "head", lock_wait, settings or {})


def downgrade(dsn: str | None = None, *, lock_wait: float = 600.0) -> None:
    """Take everything out of a database again.

    Args:
        dsn: As for `pyscore.address.resolve`.
        lock_wait: Seconds to keep trying while tables are busy or another migration runs.

    Raises:
        PyscoreError: What the server or the database's state objects to, with what to do.
    """
    conninfo = address.resolve(dsn)
    _refuse_newer_schema(conninfo)
    _run(command.downgrade, conninfo, "base", lock_wait, {})


def upgrade_script(
    output: TextIO, settings: dict[str, str] | None = None, *, lock_wait: float = 600.0
) -> None:
    """Write the script for psql that does what `upgrade` does, from wherever the database is.

    Args:
        output: Where to write it.
        settings: What `install_settings` returned.
        lock_wait: Seconds for which the script keeps trying while a table is busy.
    """
    config = _config(output)
    config.attributes["install_settings"] = settings or {}
    config.attributes["lock_wait"] = lock_wait
    command.upgrade(config, "head", sql=True)


def downgrade_script(output: TextIO, *, lock_wait: float = 600.0) -> None:
    """Write the script for psql that does what `downgrade` does, from wherever the database is.

    Args:
        output: Where to write it.
        lock_wait: Seconds for which the script keeps trying while a table is busy.
    """
    config = _config(output)
    config.attributes["lock_wait"] = lock_wait
    command.downgrade(config, "head:base", sql=True)


def head() -> str:
    """Return the newest revision that this package knows."""
    (newest,) = ScriptDirectory.from_config(_config()).get_heads()
    return newest


def database_revision(connection: psycopg.Connection[Any]) -> str | None:
    """Return the revision a database is at.

    Args:
        connection: To the database.

    Returns:
        The revision, or None where our schema is not installed.
    """
    return schema.installed_revision(connection)


def known_revisions() -> dict[str, str]:
    """Give the revisions that this package knows, the oldest first, each with its file."""
    scripts = [*ScriptDirectory.from_config(_config()).walk_revisions()]
    return {script.revision: script.path for script in reversed(scripts)}


def _config(output: TextIO | None = None) -> Config:
    config = Config() if output is None else Config(output_buffer=output)
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _run(
    alembic_command: Any,
    conninfo: str,
    revision: str,
    lock_wait: float,
    settings: dict[str, str],
) -> None:
    config = _config()
    config.attributes["install_settings"] = settings
    config.attributes["dsn"] = conninfo
    config.attributes["lock_wait"] = lock_wait
    try:
        alembic_command(config, revision)
    except CommandError as error:
        raise PyscoreError(str(error)) from error


def _refuse_newer_schema(conninfo: str) -> None:
    with address.connect(conninfo, pinned=True) as connection:
        try:
            revision = database_revision(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            raise hindrances.missing_rights(connection, error) from None
    preconditions.require_known_revision(revision, set(known_revisions()))
