"""Alembic's entry: brings one database up or down, online or as a script for psql."""

import logging
import random
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from logging.config import fileConfig
from typing import Any, cast

import psycopg
from alembic import context
from alembic.operations import Operations
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from pyscore import address, hindrances, preconditions, psql_script, revision
from pyscore.errors import PyscoreError, from_database

SCHEMA = preconditions.SCHEMA
MIGRATION_LOCK = hindrances.MIGRATION_LOCK
LOCK_WAIT = 600.0  # seconds

logger = logging.getLogger("pyscore.migrations")


def configure(**options: Any) -> None:
    """Configure Alembic the same way, online and offline."""
    context.configure(
        version_table_schema=SCHEMA,
        transaction_per_migration=True,
        **options,
    )


def install_settings() -> dict[str, str]:
    """Give what is said once, at install: from pyscore, else from alembic -x name=value."""
    said = context.config.attributes.get("install_settings")
    arguments = said if said is not None else context.get_x_argument(as_dictionary=True)
    names = ("host_schema", "subscribers_ready")
    return {name: str(arguments[name]) for name in names if arguments.get(name)}


def run_offline() -> None:
    """Print a script for psql with the result of an online run."""
    configure(
        dialect_name="postgresql",
        literal_binds=True,
        # any other paramstyle doubles the per cent signs of the functions' bodies
        dialect_opts={"paramstyle": "named"},
    )
    scripts = ScriptDirectory.from_config(context.config)
    starting, target = context.get_starting_revision_argument(), context.get_revision_argument()
    start = None if starting in (None, "base") else str(starting)
    end = "base" if target in (None, "base") else str(target)
    known = [one.revision for one in scripts.walk_revisions()][::-1]
    up = start is None or (end != "base" and known.index(end) >= known.index(start))
    newest, oldest = (end, start or "base") if up else (start, end)
    steps = list(scripts.iterate_revisions(newest, oldest))
    order = psql_script.Order(
        up=up,
        known=known,
        start=start,
        settings=install_settings(),
        lock_wait=float(context.config.attributes.get("lock_wait", LOCK_WAIT)),
        migration_lock=MIGRATION_LOCK,
    )
    # not context.run_migrations(): its BEGIN and COMMIT leave no room for a condition around them
    with Operations.context(context.get_context()):
        psql_script.write(
            context.get_context().impl.static_output,
            order,
            [section(one, up=up) for one in (reversed(steps) if up else steps)],
        )


def section(one: Script, *, up: bool) -> psql_script.Section:
    """Make a revision a section of the script."""
    below = one.down_revision
    assert below is None or isinstance(below, str)  # no branches, no merges
    return psql_script.Section(
        revision=one.revision,
        below=below,
        script=revision.read(one.path, "up" if up else "down"),
        emit=one.module.upgrade if up else one.module.downgrade,
    )


def run_online() -> None:
    """Migrate the database, waiting for other migrations and for locks without ever queueing."""
    arguments = context.get_x_argument(as_dictionary=True)
    conninfo = address.resolve(context.config.attributes.get("dsn") or arguments.get("dsn"))
    lock_wait = float(context.config.attributes.get("lock_wait", LOCK_WAIT))
    deadline = time.monotonic() + lock_wait

    def connect() -> psycopg.Connection[Any]:
        connection = address.connect(conninfo, autocommit=False)
        connection.add_notice_handler(report_notice)
        return connection

    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    with engine.connect() as connection, migration_lock(connection, deadline):
        for nap in naps(deadline):
            try:
                migrate(connection)
                return
            except (psycopg.Error, DBAPIError) as error:
                # SQLAlchemy wraps what Alembic runs; our scripts go to psycopg directly
                first = first_cause(error)
                cause = first.orig if isinstance(first, DBAPIError) else first
                if not isinstance(cause, psycopg.Error):
                    raise
                if is_usable(connection):
                    connection.rollback()
                if isinstance(cause, psycopg.errors.InsufficientPrivilege):
                    raise hindrances.missing_rights(driver(connection), cause) from error
                if not isinstance(cause, psycopg.errors.LockNotAvailable):
                    raise from_database(cause) from error
                if nap is None:
                    raise tables_stayed_busy(connection, lock_wait) from error
                logger.info("%s; trying again", cause.diag.message_primary)
                time.sleep(nap)


def migrate(connection: Connection) -> None:
    """Run what Alembic was called for, once, in a schema that is there while a revision is."""
    configure(connection=connection)
    if context.get_context().opts.get("dont_mutate", False):  # alembic current, history, check
        context.run_migrations()
        return
    connection.execute(text("set statement_timeout = 0"))
    preconditions.require_host_schema(driver(connection), install_settings().get("host_schema"))
    for name, value in install_settings().items():
        connection.execute(
            text("select set_config(:name, :value, false)"),
            {"name": f"{SCHEMA}.{name}", "value": value},
        )
    create_schema(connection)
    try:
        with context.begin_transaction():
            context.run_migrations()
    finally:
        if is_usable(connection):
            connection.rollback()
            drop_schema_without_revision(connection)


def tables_stayed_busy(connection: Connection, lock_wait: float) -> PyscoreError:
    """Say who holds locks on the tables, and what to do."""
    installed = preconditions.installed_host_schema(driver(connection))
    host_schema = installed or install_settings().get("host_schema")
    holders = hindrances.holders_of_tables(driver(connection), host_schema or "public")
    advice = (
        f"held now by {holders}; wait until they let go, or end them with "
        "SELECT pg_terminate_backend(pid); then run the same command again"
        if holders
        else "nobody holds them any more: run the same command again"
    )
    return PyscoreError(f"the tables could not be locked within {lock_wait:g} s; {advice}")


def driver(connection: Connection) -> psycopg.Connection[Any]:
    """Give psycopg's connection."""
    return cast(psycopg.Connection[Any], connection.connection.driver_connection)


def is_usable(connection: Connection) -> bool:
    """Tell whether the server still listens; SQLAlchemy does not see what psycopg is told."""
    if connection.invalidated or connection.closed:
        return False
    held = connection.connection.driver_connection
    return held is not None and not held.closed


def first_cause(error: BaseException) -> BaseException:
    """Find what the server said first; what follows a lost connection only says that it is lost."""
    first = error
    while error.__context__ is not None:
        error = error.__context__
        if isinstance(error, psycopg.Error):
            first = error
    return first


def create_schema(connection: Connection) -> None:
    """Create the schema, which Alembic's version table needs before the first revision."""
    held = driver(connection)
    preconditions.require_own_schema(held)
    if not preconditions.exists(held):
        held.execute(f"create schema {SCHEMA}")
    connection.commit()


def drop_schema_without_revision(connection: Connection) -> None:
    """Drop the schema once no revision is left, or when the first one failed."""
    held = driver(connection)
    if (
        preconditions.has_version_table(held)
        and not held.execute(f"select from {SCHEMA}.alembic_version").fetchall()
    ):
        held.execute(f"drop table {SCHEMA}.alembic_version")
    if preconditions.exists(held) and preconditions.is_empty(held):
        held.execute(f"drop schema {SCHEMA}")
    held.commit()  # SQLAlchemy knows of no transaction here


@contextmanager
def migration_lock(connection: Connection, deadline: float) -> Generator[None]:
    """Hold the lock that keeps two migrations of one database apart.

    Polled: a session that waits for it inside the server holds a snapshot, and CREATE INDEX
    CONCURRENTLY in the session that has the lock would wait for that snapshot for ever.
    """
    key = "{}, {}".format(*MIGRATION_LOCK)
    query = text(f"select pg_try_advisory_lock({key})")
    for nap in naps(deadline):
        taken = connection.scalar(query)
        connection.rollback()
        if taken:
            break
        if nap is None:
            raise hindrances.another_migration(driver(connection))
        time.sleep(nap)
    try:
        yield
    finally:
        if is_usable(connection):
            connection.rollback()
            connection.execute(text(f"select pg_advisory_unlock({key})"))
            connection.commit()


def naps(deadline: float) -> Iterator[float | None]:
    """Give the seconds to wait after each failed try, longer and longer; None once time is up."""
    longest = 0.1
    while time.monotonic() < deadline:
        yield random.uniform(0.5, 1) * longest
        longest = min(longest * 1.5, 5)
    yield None


def report_notice(notice: psycopg.errors.Diagnostic) -> None:
    """Pass the server's warnings and notices on."""
    if notice.severity_nonlocalized == "WARNING":
        logger.warning("%s", notice.message_primary)
    elif notice.message_primary and notice.message_primary.startswith(SCHEMA):
        logger.info("%s", notice.message_primary)


if context.config.config_file_name:  # the alembic command; pyscore has set up logging itself
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)

try:
    if context.is_offline_mode():
        run_offline()
    else:
        run_online()
except PyscoreError as trouble:
    raise CommandError(str(trouble)) from trouble  # which Alembic prints without a traceback
