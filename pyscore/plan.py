"""What ``pyscore migrate`` would do to a database, found out there without changing anything.

The decisions are those of the schema's own functions. Where the schema is not installed yet, its
first revision, which touches no table of the application's, is run in a transaction, asked, and
rolled back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pyscore import address, hindrances, migrator, preconditions, revision, schema
from pyscore.errors import from_database

Connection = psycopg.Connection[Any]

MAKE = "make"
FOUND = "found"
NONE = "none"

_LOCK_TIMEOUT = "0.5s"  # for our own tables and the catalogue; host tables are not locked


@dataclass(frozen=True)
class Change:
    """One thing that migrate makes, or finds and leaves as it is.

    Attributes:
        kind: schema, role, table, column, index, view, trigger, policy, grant, queue or job.
        action: ``make``, ``found``, or ``none`` for what there will not be.
        what: The thing, and what is to be known about it.
    """

    kind: str
    action: str
    what: str


@dataclass(frozen=True)
class Statement:
    """A statement on the application's tables.

    Attributes:
        sql: Its text.
        lock: The lock level that is held on the table meanwhile; None for none.
    """

    sql: str
    lock: str | None


@dataclass
class Step:
    """A revision that migrate would run.

    Attributes:
        revision: For instance ``0003``.
        does: What it does.
        in_transaction: Whether all of it is one transaction.
        locks: What it locks of the application's tables, and for how long.
        changes: What it makes and what it finds.
        statements: What it runs on the application's tables, in that order.
    """

    revision: str
    does: str
    in_transaction: bool
    locks: str
    changes: list[Change] = field(default_factory=list[Change])
    statements: list[Statement] = field(default_factory=list[Statement])


@dataclass(frozen=True)
class Backfill:
    """The scores that are to be computed once it is installed.

    Attributes:
        users: How many users there are by the server's statistics; None where it has none.
        per_second: How many of them a second, at most.
    """

    users: int | None
    per_second: int

    @property
    def seconds(self) -> float | None:
        """Seconds that this takes at least."""
        return None if self.users is None else self.users / self.per_second


@dataclass(frozen=True)
class Plan:
    """What migrate would do.

    Attributes:
        database: Where, without a password.
        revision: What the database is at; None where the schema is not installed.
        target: The revision that migrate brings it to.
        host_schema: Where the application's tables are.
        steps: The revisions that migrate would run; none where there is nothing to do.
        publications: What subscribers will see.
        backfill: None where it is under way or done.
        notes: What else to know.
    """

    database: str
    revision: str | None
    target: str
    host_schema: str
    steps: list[Step]
    publications: list[str]
    backfill: Backfill | None
    notes: list[str]


def look(dsn: str | None = None, settings: dict[str, str] | None = None) -> Plan:
    """Find out what `pyscore.migrator.upgrade` would do.

    It locks no table of the application's, not even for reading, and takes everything back.

    Args:
        dsn: As for `pyscore.address.resolve`.
        settings: What `pyscore.migrator.install_settings` returned.

    Raises:
        PyscoreError: Why migrate would refuse, or what keeps us from finding out.
    """
    conninfo = address.resolve(dsn)
    said = {name: value for name, value in (settings or {}).items() if value}
    with address.connect(conninfo, autocommit=False, pinned=True) as connection:
        notes: list[str] = []
        connection.add_notice_handler(lambda notice: _note(notes, notice))
        try:
            return _look(connection, said, notes)
        except psycopg.errors.InsufficientPrivilege as error:
            connection.rollback()
            raise hindrances.missing_rights(connection, error) from error
        except psycopg.Error as error:
            raise from_database(error) from error
        finally:
            if not connection.closed:
                connection.rollback()


def _note(notes: list[str], notice: psycopg.errors.Diagnostic) -> None:
    message = notice.message_primary or ""
    if notice.severity_nonlocalized == "WARNING" or message.startswith(preconditions.SCHEMA):
        notes.append(message.removeprefix(f"{preconditions.SCHEMA}: "))


def _look(connection: Connection, said: dict[str, str], notes: list[str]) -> Plan:
    connection.execute("set transaction isolation level read committed")
    connection.execute("set local statement_timeout = 0")
    connection.execute("select set_config('lock_timeout', %s, true)", [_LOCK_TIMEOUT])
    # in the transaction, as all of this: nobody's migration begins meanwhile
    if not _value(
        connection, "select pg_try_advisory_xact_lock(%s, %s)", *hindrances.MIGRATION_LOCK
    ):
        raise hindrances.another_migration(connection)
    at = schema.installed_revision(connection)
    files = migrator.known_revisions()
    preconditions.require_known_revision(at, set(files))
    preconditions.require_host_schema(connection, said.get("host_schema"))
    preconditions.require_own_schema(connection)
    for name, value in said.items():
        connection.execute(
            "select set_config(%s, %s, true)", [f"{preconditions.SCHEMA}.{name}", value]
        )
    steps = {name: _step(name, file) for name, file in files.items() if at is None or name > at}
    if at is None:
        _rehearse_first(connection, next(iter(steps.values())), files)
    for name, find in _FINDERS.items():
        if name in steps:
            find(connection, steps[name])
    return Plan(
        database=address.describe(_reached(connection)),
        revision=at,
        target=schema.newest(),
        host_schema=preconditions.installed_host_schema(connection) or "public",
        steps=list(steps.values()),
        publications=_publications(connection) if at is None or at < "0002" else [],
        backfill=_backfill(connection) if "0004" in steps else None,
        notes=notes,
    )


def _step(name: str, file: str) -> Step:
    script = revision.read(file, "up")
    return Step(name, script.does, script.in_transaction, script.locks)


def _reached(connection: Connection) -> str:
    """Give the address that libpq found in its variables and service file."""
    found = conninfo_to_dict(connection.info.dsn)
    names = ("host", "port", "dbname", "user")
    return " ".join(f"{name}={_quoted(found[name])}" for name in names if found.get(name))


def _quoted(value: Any) -> str:
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _value(connection: Connection, query: Any, *parameters: Any) -> Any:
    row = connection.execute(query, parameters or None).fetchone()
    assert row is not None
    return row[0]


# Revision 0001: the schema ------------------------------------------------------------------------

_ROLES = ("builder_score_owner", "builder_score_operator")


def _rehearse_first(connection: Connection, step: Step, files: dict[str, str]) -> None:
    """Run the first revision, for its functions to be asked: the transaction is rolled back."""
    before = _roles(connection)
    connection.execute(f"create schema if not exists {preconditions.SCHEMA}")
    script = revision.read(files[step.revision], "up")
    connection.execute(script.statements.encode())
    after = _roles(connection)
    owner = _value(connection, "select builder_score.owner_role()")
    step.changes.append(Change("schema", MAKE, f"builder_score, owned by {owner}"))
    step.changes += [
        Change("role", FOUND if role in before else MAKE, role) for role in _ROLES if role in after
    ]
    step.changes += [
        Change("table", MAKE, f"{name} (reference table: the database has none of the three)")
        for (name,) in connection.execute(
            "select format('%I.%I', schema_name, object_name) from builder_score.host_additions"
            " where kind = 'table' order by 1"
        )
    ]


def _roles(connection: Connection) -> set[str]:
    rows = connection.execute(
        "select rolname::text from pg_roles where rolname = any(%s)", [list(_ROLES)]
    )
    return {role for (role,) in rows}


# Revision 0002: the column ------------------------------------------------------------------------


def _find_column(connection: Connection, step: Step) -> None:
    users = _value(connection, "select builder_score.host_table('users')::text")
    name = f"{users}.builder_score"
    statements = connection.execute(
        "select m from builder_score.missing_column_statements() as m"
    ).fetchall()
    if statements:
        step.changes.append(Change("column", MAKE, f"{name}, integer default 0"))
        step.statements += [Statement(sql, "ACCESS EXCLUSIVE") for (sql,) in statements]
    else:
        kind = _value(connection, "select builder_score.host_column_type('users', 'builder_score')")
        step.changes.append(
            Change("column", FOUND, f"{name}, {kind}; uninstalling will leave it there")
        )


# Revision 0003: the indexes -----------------------------------------------------------------------

_INDEXES = """
select builder_score.host_table(n.table_name)::text, n.index_name::text, n.key_definition,
       builder_score.usable_index(builder_score.host_table(n.table_name), n.key_columns)::text
from builder_score.needed_indexes() as n
"""


def _find_indexes(connection: Connection, step: Step) -> None:
    for table, name, keys, found in connection.execute(_INDEXES):
        what = f"{found or name} on {table}"
        step.changes.append(
            Change("index", FOUND, f"{what}, serves {keys}")
            if found
            else Change("index", MAKE, f"{what} {keys}")
        )
    step.statements += [
        Statement(sql, _index_lock(sql))
        for (sql,) in connection.execute(
            "select m from builder_score.missing_index_statements() as m"
        )
    ]


def _index_lock(sql: str) -> str | None:
    """Give the lock that a statement of missing_index_statements() takes on the host's table."""
    if sql.startswith(("create index concurrently", "drop index concurrently")):
        return "SHARE UPDATE EXCLUSIVE"
    if sql.startswith("do "):
        return "SHARE" if "'share'" in sql.splitlines()[2] else "ACCESS EXCLUSIVE"
    return None


# Revision 0004: views, triggers, policies and grants ----------------------------------------------

_TRIGGERS = """
select n.trigger_name::text, n.host_table::text, n.definition,
       exists (select from pg_trigger as t
               where t.tgrelid = n.host_table and t.tgname = n.trigger_name)
from builder_score.needed_triggers() as n
"""

_ACCESS = """
select n.policy_name::text, n.host_table::text, n.statement,
       exists (select from pg_policy as p
               where p.polrelid = n.host_table and p.polname = n.policy_name)
from builder_score.needed_access() as n
"""


def _find_attachments(connection: Connection, step: Step) -> None:
    lock = "ACCESS EXCLUSIVE"
    step.changes += [
        Change("view", MAKE, f"builder_score.{view}")
        for view in ("host_users", "host_projects", "host_collaborations")
    ]
    for policy, table, statement, there in connection.execute(_ACCESS):
        if policy is None:
            step.changes.append(Change("grant", MAKE, statement.removeprefix("grant ")))
        else:
            step.changes.append(Change("policy", FOUND if there else MAKE, f"{policy} on {table}"))
        step.statements.append(Statement(statement, lock))
    for name, table, definition, there in connection.execute(_TRIGGERS):
        step.changes.append(Change("trigger", FOUND if there else MAKE, f"{name} on {table}"))
        step.statements.append(Statement(definition, lock))


# Revision 0005: the job ---------------------------------------------------------------------------

_MAY_SCHEDULE = """
select exists (select from pg_extension where extname = 'pg_cron')
   and coalesce(has_schema_privilege(to_regnamespace('cron')::oid, 'usage'), false)
"""


def _find_job(connection: Connection, step: Step) -> None:
    if _value(connection, _MAY_SCHEDULE):
        # not asked: scheduling takes numbers from pg_cron's sequence, which no rollback gives back
        role = _value(connection, "select current_user::text")
        step.changes.append(Change("job", MAKE, f"pg_cron job builder-score-worker, as {role}"))
        return
    for (said,) in connection.execute("select s from builder_score.schedule() as s").fetchall():
        kind, _, name = said.partition(" ")
        if kind == "extension":
            step.changes.append(Change(kind, MAKE, name))
        else:
            action = NONE if kind == "no" else MAKE
            step.changes.append(Change("job", action, said.removeprefix("no pg_cron job: ")))


_FINDERS = {
    "0002": _find_column,
    "0003": _find_indexes,
    "0004": _find_attachments,
    "0005": _find_job,
}


# What follows -------------------------------------------------------------------------------------


def _publications(connection: Connection) -> list[str]:
    """Say what subscribers of the database's publications will get."""
    column = connection.execute("select builder_score.missing_column_statements()").fetchall()
    rows = connection.execute(
        """
        select quote_ident(p.pubname), p.puballtables
        from pg_publication as p
        cross join builder_score.host as h
        where p.puballtables
           or %s and exists (
               select from pg_publication_tables as t
               where t.pubname = p.pubname and t.schemaname = h.host_schema
                 and t.tablename = 'users')
        order by 1
        """,
        [bool(column)],
    ).fetchall()
    return [
        f"publication {name} is FOR ALL TABLES: its subscribers get the rows of our tables"
        + (" and the column" if column else "")
        if everything
        else f"publication {name} has the table users: its subscribers get the column"
        for name, everything in rows
    ]


def _backfill(connection: Connection) -> Backfill:
    # the row that a walk over everyone begins with has the estimate
    connection.execute("select builder_score.start_backfill('dry run', false)")
    users = _value(connection, "select estimated_total from builder_score.backfill")
    per_second = _value(connection, "select backfill_per_second from builder_score.settings")
    return Backfill(int(users) or None, per_second)
