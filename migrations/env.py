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
from alembic.util import CommandError
from psycopg.sql import Literal
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from pyscore import address, hindrances
from pyscore.errors import PyscoreError, from_database

SCHEMA = "builder_score"
MIGRATION_LOCK = (1651271539, 1)  # the resident worker's is 1651271539, 0
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
    say = context.get_context().impl.static_output
    starting, target = context.get_starting_revision_argument(), context.get_revision_argument()
    say("-- For psql. Each migration is a transaction of its own, but for the indexes.")
    say("\\set ON_ERROR_STOP on")
    say("set client_min_messages = warning;")
    for name, value in install_settings().items():
        say(f"set {SCHEMA}.{name} = {Literal(value).as_string()};")
    if starting in (None, "base"):
        # Alembic creates its version table first of all, in this schema.
        say(f"create schema if not exists {SCHEMA};")
    with context.begin_transaction():
        context.run_migrations()
    if target in (None, "base"):
        say(f"drop table {SCHEMA}.alembic_version;")
        say(f"drop schema {SCHEMA};")


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
    require_host_schema(connection)
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


def require_host_schema(connection: Connection) -> None:
    """Refuse a schema of the application's that is not there, or is not the one installed for."""
    wanted = install_settings().get("host_schema")
    if wanted is None:
        return
    installed = installed_host_schema(connection)
    if installed not in (None, wanted):
        raise PyscoreError(
            f'builder_score was installed for the application\'s tables in schema "{installed}", '
            f'not "{wanted}": leave the option out, or uninstall first'
        )
    exists = text("select exists (select from pg_namespace where nspname = :name)")
    if not connection.scalar(exists, {"name": wanted}):
        raise PyscoreError(
            f'there is no schema "{wanted}" in this database; expected the one that holds users, '
            "projects and project_collaborators, or that they are to be created in"
        )


def installed_host_schema(connection: Connection) -> str | None:
    """Give the schema said at install; None where nothing is installed."""
    if connection.scalar(text(f"select to_regclass('{SCHEMA}.host') is null")):
        return None
    return connection.scalar(text(f"select host_schema from {SCHEMA}.host"))


def tables_stayed_busy(connection: Connection, lock_wait: float) -> PyscoreError:
    """Say who holds locks on the tables, and what to do."""
    host_schema = installed_host_schema(connection) or install_settings().get("host_schema")
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
    if not schema_exists(connection):
        connection.execute(text(f"create schema {SCHEMA}"))
    elif not version_table_exists(connection) and not schema_is_empty(connection):
        raise PyscoreError(
            f"there is a schema {SCHEMA} that pyscore did not make (it has no alembic_version); "
            "rename or drop it, then migrate again"
        )
    connection.commit()


def drop_schema_without_revision(connection: Connection) -> None:
    """Drop the schema once no revision is left, or when the first one failed."""
    if (
        version_table_exists(connection)
        and not connection.execute(text(f"select 1 from {SCHEMA}.alembic_version")).first()
    ):
        connection.execute(text(f"drop table {SCHEMA}.alembic_version"))
    if schema_exists(connection) and schema_is_empty(connection):
        connection.execute(text(f"drop schema {SCHEMA}"))
    connection.commit()


def schema_exists(connection: Connection) -> bool:
    query = text("select to_regnamespace(:schema) is not null")
    return bool(connection.scalar(query, {"schema": SCHEMA}))


def version_table_exists(connection: Connection) -> bool:
    query = text("select to_regclass(:table) is not null")
    return bool(connection.scalar(query, {"table": f"{SCHEMA}.alembic_version"}))


def schema_is_empty(connection: Connection) -> bool:
    query = text(
        "select not exists (select from pg_depend"
        " where refclassid = 'pg_namespace'::regclass and refobjid = to_regnamespace(:schema))"
    )
    return bool(connection.scalar(query, {"schema": SCHEMA}))


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
            holder = hindrances.holders_of_key(driver(connection), MIGRATION_LOCK)
            raise PyscoreError(
                f"another migration of this database is still running{holder and ': '}{holder}; "
                "try again when it has ended"
            )
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
