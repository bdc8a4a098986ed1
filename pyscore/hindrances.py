"""What keeps a migration from going on: locks that others hold, rights that the role lacks."""

from typing import Any, LiteralString

import psycopg

from pyscore.errors import PyscoreError, from_database

MIGRATION_LOCK = (1651271539, 1)
"""The advisory lock that keeps migrations of a database apart; the worker's is 1651271539, 0."""

_HOLDERS = """
    select distinct case when l.pid is null then 'a prepared transaction (see pg_prepared_xacts)'
        else format('pid %%s (%%s)', l.pid, concat_ws(', ',
            nullif(a.application_name, ''),
            'role ' || a.usename,
            'in a transaction since ' || to_char(a.xact_start, 'YYYY-MM-DD HH24:MI:SS TZ')))
        end as holder
    from pg_locks as l
    left join pg_stat_activity as a on a.pid = l.pid
    where l.granted and l.pid is distinct from pg_backend_pid()
      and l.database = (select oid from pg_database where datname = current_database())
      and {condition}
    order by 1
"""

_ON_TABLES = """
    l.locktype = 'relation' and l.relation in (
        select c.oid from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
        where n.nspname = 'builder_score'
           or n.nspname = %s and c.relname in ('users', 'projects', 'project_collaborators'))
"""

_ON_KEY = "l.locktype = 'advisory' and l.objsubid = 2 and (l.classid, l.objid) = (%s, %s)"

_INSTALLER = """
    select pg_get_userbyid(c.relowner)
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = 'builder_score' and c.relname = 'alembic_version'
"""


def holders_of_tables(connection: psycopg.Connection[Any], host_schema: str) -> str:
    """Name the backends that hold locks on the application's tables or on ours, at this moment.

    Args:
        connection: To the database, which has waited in vain.
        host_schema: Where the application's tables are.

    Returns:
        For instance ``pid 4711 (psql, role app, in a transaction since …)``; empty for none.
    """
    return _holders(connection, _ON_TABLES, [host_schema])


def holders_of_key(connection: psycopg.Connection[Any], key: tuple[int, int]) -> str:
    """Name the backend that holds an advisory lock, as `holders_of_tables` does.

    Args:
        connection: To the database.
        key: The lock's two numbers.
    """
    return _holders(connection, _ON_KEY, [*key])


def another_migration(connection: psycopg.Connection[Any]) -> PyscoreError:
    """Say that another migration runs, and whose session it is.

    Args:
        connection: To the database.
    """
    holder = holders_of_key(connection, MIGRATION_LOCK)
    return PyscoreError(
        f"another migration of this database is still running{holder and ': '}{holder}; "
        "try again when it has ended"
    )


def _holders(
    connection: psycopg.Connection[Any], condition: LiteralString, parameters: list[Any]
) -> str:
    rows = connection.execute(_HOLDERS.replace("{condition}", condition), parameters).fetchall()
    return ", ".join(holder for (holder,) in rows)


def missing_rights(connection: psycopg.Connection[Any], error: psycopg.Error) -> PyscoreError:
    """Say what a role was not allowed to do, and, where the server gives no hint, which role is.

    Args:
        connection: To the database.
        error: The server's "permission denied" or "must be owner".
    """
    if error.diag.message_hint:
        return from_database(error)
    row = connection.execute(_INSTALLER).fetchone()
    if row is not None:
        expected = f"role {row[0]}, which ran `pyscore migrate`"
    else:
        expected = (
            "a role that may create schemas in this database and owns the application's tables"
        )
    return from_database(error, f"expected {expected}, or a superuser")
