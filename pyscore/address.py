"""Where the database is, and how to reach it."""

import os
import re
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pyscore.errors import PyscoreError
from pyscore.pooler import shares_sessions

_SQLALCHEMY_SCHEME = re.compile(r"^postgres(?:ql)?(?:\+\w+)?://")
_OTHER_SCHEME = re.compile(r"^([\w+.-]+)://")
_ADVICE = "give it with --dsn, DATABASE_URL, or libpq's PGHOST, PGPORT, PGDATABASE and so on"


def resolve(dsn: str | None = None, *, option: str = "--dsn") -> str:
    """Find the database's address: ``dsn``, else ``DATABASE_URL``, else libpq's own defaults.

    Args:
        dsn: A libpq URI or ``key=value`` string, or a SQLAlchemy URL for PostgreSQL.
        option: What ``dsn`` was given as, for error messages.

    Returns:
        A libpq connection string; empty for libpq's PG* variables, service file and defaults.

    Raises:
        PyscoreError: The address is not one of these forms, or holds bytes that are no text.
    """
    source, text = (option, dsn) if dsn else ("DATABASE_URL", os.environ.get("DATABASE_URL", ""))
    text = _SQLALCHEMY_SCHEME.sub("postgresql://", text.strip(), count=1)
    other = _OTHER_SCHEME.match(text)
    if other and other[1] != "postgresql":
        raise PyscoreError(
            f"{source} names a {other[1]}:// database; "
            "expected postgresql://user@host:port/database",
            exit_code=2,
        )
    try:
        conninfo_to_dict(text)
    except UnicodeEncodeError:
        raise PyscoreError(
            f"{source} holds bytes that are not text in this shell's locale; "
            "expected postgresql://user@host:port/database",
            exit_code=2,
        ) from None
    except psycopg.ProgrammingError as error:
        # libpq's message may quote the password it stumbled over
        reason = str(error).split('"')[0].strip().rstrip(":")
        raise PyscoreError(
            f"{source} is not a database address ({reason}); "
            "expected postgresql://user@host:port/database",
            exit_code=2,
        ) from None
    return text


def describe(conninfo: str) -> str:
    """Say where an address leads, without its password.

    Args:
        conninfo: What `resolve` returned.

    Returns:
        For instance ``host db1, port 5432, database app, user deploy``.
    """
    parts: dict[str, Any] = {
        "host": os.environ.get("PGHOST"),
        "port": os.environ.get("PGPORT"),
        "dbname": os.environ.get("PGDATABASE"),
        "user": os.environ.get("PGUSER"),
    }
    parts.update(conninfo_to_dict(conninfo))
    names = {"service": "service", "host": "host", "port": "port"}
    names |= {"dbname": "database", "user": "user"}
    said = [f"{name} {parts[key]}" for key, name in names.items() if parts.get(key)]
    return ", ".join(said) or "libpq's default address"


def connect(
    conninfo: str, *, autocommit: bool = True, pinned: bool = False
) -> psycopg.Connection[Any]:
    """Open a connection.

    Args:
        conninfo: What `resolve` returned.
        autocommit: Whether each statement is its own transaction.
        pinned: Whether bare names mean PostgreSQL's own objects alone. Otherwise whoever may create
            functions in a schema on the search_path runs code as whoever connects.

    Raises:
        PyscoreError: The server cannot be reached or turns the connection down, or a pooler is in
            between that would hand what we set for our session to its next client.
    """
    # utf8: psycopg reads no text from an SQL_ASCII database otherwise
    named = make_conninfo(conninfo, fallback_application_name="pyscore", client_encoding="utf8")
    try:
        connection = psycopg.connect(named, autocommit=True)
    except psycopg.OperationalError as error:
        # the cause comes first, then libpq's guess at what to do; several hosts have a line each
        lines = str(error).removeprefix("connection failed: ").splitlines()
        reason = "; ".join(line.strip() for line in lines if line.strip())
        raise PyscoreError(
            f"cannot connect to {describe(conninfo)}: {reason}; "
            f"check that the server runs and the address is right ({_ADVICE})"
        ) from None
    if shares_sessions(connection, named):
        connection.close()
        raise PyscoreError(
            f"{describe(conninfo)} is a connection pooler in transaction mode: what a command sets "
            "for its session, such as search_path, would stay with the application's; "
            f"expected the server itself, or a pooler in session mode ({_ADVICE})"
        )
    if pinned:
        connection.execute("set search_path = pg_catalog, pg_temp")
    connection.autocommit = autocommit
    return connection
