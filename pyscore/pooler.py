"""Tells a connection pooler that shares sessions, such as PgBouncer in transaction mode."""

import selectors
from contextlib import closing
from typing import Any

import psycopg
from psycopg.pq.abc import PGconn

_ROUNDS = 5
_PATIENCE = 2.0  # seconds; with no server session free, a pooler lets its client wait
_QUERY = "select pg_backend_pid()"


def shares_sessions(connection: psycopg.Connection[Any], conninfo: str) -> bool:
    """Tell whether another client may get this connection's session between two transactions.

    What is set for a session would then stay with it, for whoever gets it next: the application
    would have our search_path. A server names its own process when a session begins; a pooler
    names nothing that exists. Only then is a second connection opened, to see whether the two share
    a process, or ours changes.

    Args:
        connection: In autocommit, and idle.
        conninfo: Where it leads.

    Returns:
        True also where that cannot be told, because the pooler has no session for a second client.
    """
    backend = _backend(connection)
    if backend == connection.info.backend_pid:
        return False
    try:
        other = psycopg.connect(conninfo, autocommit=True)
    except psycopg.OperationalError:
        return True
    with closing(other):
        for _ in range(_ROUNDS):
            if _backend(connection) != backend or _backend_in_time(other.pgconn) in (None, backend):
                return True
    return False


def _backend(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(_QUERY).fetchone()
    assert row is not None
    return row[0]


def _backend_in_time(connection: PGconn) -> int | None:
    """Ask for the backend, and do not wait for one that is not to be had."""
    connection.send_query(_QUERY.encode())
    with selectors.DefaultSelector() as selector:
        selector.register(connection.socket, selectors.EVENT_READ)
        while connection.is_busy():
            if not selector.select(_PATIENCE):
                return None
            connection.consume_input()
    result = connection.get_result()
    value = None if result is None else result.get_value(0, 0)
    while connection.get_result() is not None:
        pass
    return None if value is None else int(value)
