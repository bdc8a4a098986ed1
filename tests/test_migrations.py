"""Every way to install leads to the same database, and none leaves anything half done."""

import hashlib
import importlib.util
import re
import subprocess
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from pyscore.errors import PyscoreError
from tests.catalogue import Catalogue, catalogue, dump, schema_dump, without_version_table
from tests.commands import (
    PYSCORE,
    ROOT,
    alembic,
    call,
    environment,
    error_line,
    output,
    psql,
    pyscore,
)
from tests.conftest import dsn, janitor
from tests.hosts import KEYS, create_application

VERSIONS = ROOT / "migrations" / "versions"

Prepare = Callable[[Connection[Any]], None]


def nothing(db: Connection[Any]) -> None:
    """An empty database."""


def application(db: Connection[Any]) -> None:
    """Host tables with rows in them, without the column and without any index that we need."""
    create_application(db, key="bigint")
    db.execute("insert into users (username, email) values ('ada', 'ada@example.org')")


HOSTS: dict[str, Prepare] = {"empty": nothing, "application": application}


@contextmanager
def database_of(server: PrivateCluster, prepare: Prepare = nothing) -> Generator[str]:
    with janitor(server, f"migrations_{uuid.uuid4().hex[:12]}") as address:
        with psycopg.connect(address, autocommit=True) as db:
            prepare(db)
        yield address


def catalogue_of(address: str) -> Catalogue:
    with psycopg.connect(address) as db:
        return catalogue(db)


def row(db: Connection[Any], query: str, *parameters: Any) -> tuple[Any, ...]:
    found = db.execute(query, parameters).fetchone()  # type: ignore[call-overload]
    assert found is not None
    return found


@pytest.fixture(scope="module", params=HOSTS)
def host(request: pytest.FixtureRequest) -> Prepare:
    return HOSTS[request.param]


@pytest.fixture(scope="module")
def undisturbed(server: PrivateCluster, host: Prepare) -> Catalogue:
    """What `upgrade head` through the package makes of the host."""
    with database_of(server, host) as address:
        migrator.upgrade(address)
        return catalogue_of(address)


# One result ---------------------------------------------------------------------------------------


def by_alembic(server: PrivateCluster, address: str) -> None:
    output(alembic("upgrade", "head", DATABASE_URL=address))


def by_alembics_script(server: PrivateCluster, address: str) -> None:
    psql(server, address, output(alembic("upgrade", "head", "--sql")))


def by_command(server: PrivateCluster, address: str) -> None:
    output(pyscore("migrate", "--dsn", address))


def by_commands_script(server: PrivateCluster, address: str) -> None:
    psql(server, address, output(pyscore("migrate", "--sql")))


@pytest.mark.parametrize(
    "install", [by_alembic, by_alembics_script, by_command, by_commands_script]
)
def test_every_way_to_migrate_makes_the_same_database(
    server: PrivateCluster,
    host: Prepare,
    undisturbed: Catalogue,
    install: Callable[[PrivateCluster, str], None],
) -> None:
    with database_of(server, host) as address:
        install(server, address)
        assert catalogue_of(address) == undisturbed


def test_sql_applied_in_order_makes_the_same_database(
    server: PrivateCluster, host: Prepare, undisturbed: Catalogue
) -> None:
    files = sorted((ROOT / "sql").glob("*.sql"))
    with database_of(server, host) as address:
        psql(server, address, "create schema builder_score")
        schema = [path.read_text() for path in files if path.name < "9"]
        psql(server, address, "\n".join(schema), "--single-transaction")
        for path in files:
            if path.name > "9":
                psql(server, address, path.read_text())
        assert catalogue_of(address) == without_version_table(undisturbed)


def test_migrating_again_changes_nothing(server: PrivateCluster, empty_database: str) -> None:
    migrator.upgrade(empty_database)
    before = dump(server, empty_database)
    assert "at revision" in output(pyscore("migrate", "--dsn", empty_database))
    assert dump(server, empty_database) == before


# Frozen files -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cut", ROOT / "migrations" / "cut.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_revision_file_has_the_checksum_that_is_noted() -> None:
    lines = (ROOT / "migrations" / "checksums.sha256").read_text().splitlines()
    noted = {name: checksum for checksum, name in (line.split("  ") for line in lines)}
    files = [path for path in VERSIONS.iterdir() if path.is_file()]
    assert noted == {
        f"versions/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


# Until the first release; then a revision's text is what it was, and sql/ what it is.
def test_revisions_are_cut_from_sql(cut: ModuleType) -> None:
    for revision in cut.REVISIONS:
        assert (VERSIONS / f"{revision}.up.sql").read_text() == cut.cut(revision), revision


def test_every_file_of_sql_is_in_exactly_one_revision(cut: ModuleType) -> None:
    for path in (ROOT / "sql").glob("*.sql"):
        holders = [name for name in cut.REVISIONS if path.read_text() in cut.cut(name)]
        assert len(holders) == 1, path.name


# Reference tables ---------------------------------------------------------------------------------

NOW = "now()"
UUID = "gen_random_uuid()"

# name: type, not null, default
REFERENCE = {
    "users": {
        "id": ("uuid", True, UUID),
        "email": ("text", True, None),
        "username": ("text", True, None),
        "display_name": ("text", False, None),
        "avatar_url": ("text", False, None),
        "headline": ("text", False, None),
        "bio": ("text", False, None),
        "primary_role": ("text", False, None),
        "timezone": ("text", False, None),
        "contact_links": ("jsonb", True, "'{}'::jsonb"),
        "availability": ("text", False, None),
        "builder_score": ("integer", False, "0"),
        "created_at": ("timestamp with time zone", True, NOW),
        "updated_at": ("timestamp with time zone", True, NOW),
    },
    "projects": {
        "id": ("uuid", True, UUID),
        "owner_id": ("uuid", True, None),
        "title": ("text", True, None),
        "description": ("text", False, None),
        "status": ("text", True, "'in_progress'::text"),
        "links": ("jsonb", True, "'{}'::jsonb"),
        "tech_stack": ("text[]", True, "'{}'::text[]"),
        "impact_metrics": ("jsonb", True, "'{}'::jsonb"),
        "github_stars": ("integer", True, "0"),
        "created_at": ("timestamp with time zone", True, NOW),
        "updated_at": ("timestamp with time zone", True, NOW),
    },
    "project_collaborators": {
        "id": ("uuid", True, UUID),
        "project_id": ("uuid", True, None),
        "user_id": ("uuid", True, None),
        "role_description": ("text", False, None),
        "status": ("text", True, "'pending'::text"),
        "invited_at": ("timestamp with time zone", True, NOW),
        "confirmed_at": ("timestamp with time zone", False, None),
    },
}

CONSTRAINTS = {
    ("users", "PRIMARY KEY (id)"),
    ("users", "UNIQUE (email)"),
    ("users", "UNIQUE (username)"),
    ("projects", "PRIMARY KEY (id)"),
    ("projects", "FOREIGN KEY (owner_id) REFERENCES users(id) ON DELETE CASCADE"),
    ("project_collaborators", "PRIMARY KEY (id)"),
    ("project_collaborators", "UNIQUE (project_id, user_id)"),
    (
        "project_collaborators",
        "FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE",
    ),
    ("project_collaborators", "FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE"),
}

LOOKUPS = {
    ("users", "builder_score DESC, id DESC"),
    ("projects", "owner_id"),
    ("project_collaborators", "user_id"),
}


def test_an_empty_database_gets_the_reference_tables(db: Connection[Any]) -> None:
    columns: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for table, column, *definition in db.execute(
        """
        select c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               pg_get_expr(d.adbin, d.adrelid)
        from pg_class as c
        join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0
        left join pg_attrdef as d on d.adrelid = c.oid and d.adnum = a.attnum
        where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
        """
    ):
        columns[table][column] = tuple(definition)
    assert columns == REFERENCE

    constraints = db.execute(
        "select conrelid::regclass::text, pg_get_constraintdef(oid) from pg_constraint"
        # from PostgreSQL 18 on NOT NULL is one too; the columns have been looked at
        " where connamespace = 'public'::regnamespace and contype <> 'n'"
    ).fetchall()
    assert set(constraints) == CONSTRAINTS

    lookups = db.execute(
        r"""
        select indrelid::regclass::text, (regexp_match(pg_get_indexdef(indexrelid), '\((.*)\)'))[1]
        from pg_index as i join pg_class as c on c.oid = i.indrelid
        where c.relnamespace = 'public'::regnamespace and not i.indisunique and i.indisvalid
        """
    ).fetchall()
    assert sorted(lookups) == sorted(LOOKUPS)


# The host's tables --------------------------------------------------------------------------------


def statements(server: PrivateCluster, address: str) -> list[str]:
    """The statements that make the host's schema, without our own schema's."""
    text = dump(server, address, "--schema-only", "--exclude-schema=builder_score")
    code = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    return [statement.strip() for statement in code.split(";\n") if statement.strip()]


OURS = re.compile(
    r"CREATE TRIGGER builder_score_\w+ "
    r"|COMMENT ON TRIGGER builder_score_\w+ "
    r"|(CREATE|COMMENT ON) POLICY builder_score_(read|write) ON public\.\w+ "
    r"|GRANT USAGE ON SCHEMA public TO builder_score_owner$"
    r"|GRANT SELECT ON TABLE public\.\w+ TO builder_score_owner$"
    r"|GRANT UPDATE\(builder_score\) ON TABLE public\.users TO builder_score_owner$"
    r"|(CREATE|COMMENT ON) INDEX (public\.)?idx_"
)


def test_host_tables_get_the_column_the_indexes_the_triggers_and_nothing_else(
    server: PrivateCluster, empty_database: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        application(db)
        # lookups of the application's own, under names of its own
        db.execute("create index mine on projects (owner_id, title)")
        db.execute("create unique index pair on project_collaborators (project_id, user_id)")
    before = statements(server, empty_database)
    migrator.upgrade(empty_database)
    after = statements(server, empty_database)

    (users,) = (text for text in before if text.startswith("CREATE TABLE public.users "))
    with_column = users.removesuffix("\n)") + ",\n    builder_score integer DEFAULT 0\n)"
    assert set(before) - set(after) == {users}
    added = set(after) - set(before)
    assert with_column in added
    ours = [text for text in added - {with_column} if not text.startswith("COMMENT ON COLUMN")]
    assert [text for text in ours if not OURS.match(text)] == []

    made = sorted(re.findall(r"CREATE INDEX (\w+)", "\n".join(added)))
    assert made == ["idx_project_collaborators_user_id", "idx_users_builder_score"]
    with psycopg.connect(empty_database) as db:
        assert row(db, "select builder_score from users") == (0,)


def test_a_column_that_was_there_first_keeps_type_default_and_scores(
    server: PrivateCluster, empty_database: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        create_application(db, score="double precision not null default 12.5")
        db.execute("insert into users (username, email) values ('ada', 'ada@example.org')")
    before = statements(server, empty_database)
    migrator.upgrade(empty_database)
    assert set(before) <= set(statements(server, empty_database))
    with psycopg.connect(empty_database) as db:
        assert row(db, "select builder_score from users") == (12.5,)


@pytest.mark.parametrize(
    ("tables", "missing"), [(1, "projects, project_collaborators"), (2, "project_collaborators")]
)
def test_some_of_the_tables_are_an_error_that_names_the_others(
    server: PrivateCluster, empty_database: str, tables: int, missing: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        create_application(db, tables=tables)
    before = dump(server, empty_database)
    line = error_line(call("migrate", "--dsn", empty_database))
    assert f"missing {missing}. Expected all of" in line
    assert dump(server, empty_database) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("alter table projects drop column status", "projects.status"),
        ("alter table project_collaborators drop column user_id", "project_collaborators.user_id"),
        ("alter table users drop column id cascade", r"users\.id"),
        ("alter table users add builder_score text", "users.builder_score has type text"),
    ],
)
def test_a_table_that_cannot_serve_is_an_error_that_names_the_column(
    server: PrivateCluster, empty_database: str, change: str, named: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        create_application(db)
        db.execute(change)  # type: ignore[arg-type]
    before = dump(server, empty_database)
    assert re.search(named, error_line(call("migrate", "--dsn", empty_database)))
    assert dump(server, empty_database) == before


@pytest.mark.parametrize("key", KEYS)
def test_the_applications_ids_may_be_of_any_type(empty_database: str, key: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        create_application(db, key=key)
        migrator.upgrade(empty_database)
        ids = {"ada": "1", "grace": "2", "project": "3", "row": "4"}
        if key == "uuid":
            ids = {name: str(uuid.uuid4()) for name in ids}
        insert = sql.SQL("insert into {} {} overriding system value values ({})").format
        for name in ("ada", "grace"):
            columns = sql.SQL("(id, username, email)")
            values = sql.SQL(", ").join([ids[name], name, f"{name}@example.org"])
            db.execute(insert(sql.Identifier("users"), columns, values))
        columns = sql.SQL("(id, owner_id, title, status)")
        values = sql.SQL(", ").join([ids["project"], ids["ada"], "a project", "shipped"])
        db.execute(insert(sql.Identifier("projects"), columns, values))
        columns = sql.SQL("(id, project_id, user_id, status)")
        values = sql.SQL(", ").join([ids["row"], ids["project"], ids["grace"], "confirmed"])
        db.execute(insert(sql.Identifier("project_collaborators"), columns, values))
        db.execute("call builder_score.drain()")
        # a shipped project is 10, a vouch 8
        scores = dict(db.execute("select username, builder_score from users").fetchall())
        assert scores == {"ada": 18, "grace": 8}
        # without its length: what is compared with an id may be longer
        domain = "select typbasetype::regtype::text from pg_type where typname = 'user_id'"
        assert row(db, domain) == ({"varchar(26)": "character varying"}.get(key, key),)


def test_the_hosts_own_alembic_version_is_never_touched(
    server: PrivateCluster, empty_database: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        application(db)
        db.execute("create table alembic_version (version_num varchar(32) primary key)")
        db.execute("insert into alembic_version values ('hosts own')")
        before = row(db, "select xmin::text, ctid::text, version_num from alembic_version")
        migrator.upgrade(empty_database)
        migrator.downgrade(empty_database)
        assert before == row(db, "select xmin::text, ctid::text, version_num from alembic_version")


# Not ours to touch --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("migrate",), ("uninstall", "--yes"), ("status",)])
def test_a_schema_newer_than_the_package_is_an_error(
    server: PrivateCluster, db: Connection[Any], database: str, command: tuple[str, ...]
) -> None:
    db.execute("update builder_score.alembic_version set version_num = '9999'")
    before = dump(server, database)
    line = error_line(call(*command, "--dsn", database))
    assert "newer than this package" in line
    assert "9999" in line
    assert "install a newer pyscore" in line
    assert dump(server, database) == before


def test_a_foreign_schema_of_our_name_is_an_error(
    server: PrivateCluster, empty_database: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        db.execute("create schema builder_score")
        db.execute("create function builder_score.theirs() returns integer return 1")
    before = dump(server, empty_database)
    line = error_line(call("migrate", "--dsn", empty_database))
    assert "a schema builder_score that pyscore did not make" in line
    assert dump(server, empty_database) == before


# Where the application's tables are ---------------------------------------------------------------


def test_a_host_schema_that_is_not_there_is_named(
    server: PrivateCluster, empty_database: str
) -> None:
    before = dump(server, empty_database)
    line = error_line(call("migrate", "--host-schema", "nope", "--dsn", empty_database))
    assert 'there is no schema "nope" in this database; expected the one that holds users' in line
    assert dump(server, empty_database) == before


def test_another_host_schema_than_the_one_installed_for_is_refused(
    server: PrivateCluster, empty_database: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        db.execute('create schema "My App"; create schema other')
    in_my_app = ("migrate", "--dsn", empty_database, "--host-schema", "My App")
    output(call(*in_my_app))
    before = dump(server, empty_database)
    line = error_line(call("migrate", "--dsn", empty_database, "--host-schema", "other"))
    assert 'installed for the application\'s tables in schema "My App", not "other"' in line
    assert dump(server, empty_database) == before
    output(call(*in_my_app))
    output(call("migrate", "--dsn", empty_database))
    assert dump(server, empty_database) == before


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--lock-wait", "nan", "'nan' is not a number of seconds"),
        ("--lock-wait", "-1", "-1.0 is not in the range"),
        ("--host-schema", "a\udcff", "'a?' holds bytes that are no text in this shell's locale"),
    ],
)
def test_an_option_that_can_mean_nothing_is_a_usage_error(
    server: PrivateCluster, empty_database: str, option: str, value: str, complaint: str
) -> None:
    before = dump(server, empty_database)
    line = error_line(call("migrate", option, value, "--dsn", empty_database), 2)
    assert f"Invalid value for '{option}': {complaint}" in line
    assert dump(server, empty_database) == before


def test_waiting_for_ever_is_possible(empty_database: str) -> None:
    output(call("migrate", "--lock-wait", "inf", "--dsn", empty_database))


# Encodings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_the_databases_encoding_may_be_another(server: PrivateCluster, encoding: str) -> None:
    name = f"encoded_{uuid.uuid4().hex[:12]}"
    server.psql("-c", f"create database {name} encoding '{encoding}' locale 'C' template template0")
    try:
        address = dsn(server, name)
        output(call("migrate", "--dsn", address))
        with psycopg.connect(address, autocommit=True, client_encoding="utf8") as db:
            db.execute(
                "insert into users (username, email, bio) values ('andré', 'a@example.org', 'x')"
            )
            db.execute("call builder_score.drain()")
            assert row(db, "select builder_score from users") == (3,)
            assert "andré" in output(call("explain", "andré", "--dsn", address))
            assert output(call("verify", "--dsn", address)).startswith("checked 1: 1 right, ")
            output(call("uninstall", "--yes", "--dsn", address))
            assert row(db, "select to_regnamespace('builder_score') is null") == (True,)
    finally:
        server.psql("-c", f"drop database {name}")


def test_bytes_that_are_no_text_are_one_line(server: PrivateCluster) -> None:
    name = f"encoded_{uuid.uuid4().hex[:12]}"
    server.psql("-c", f"create database {name} encoding 'SQL_ASCII' locale 'C' template template0")
    try:
        address = dsn(server, name)
        migrator.upgrade(address)
        server.psql(
            "-c",
            "insert into users (username, email, builder_score)"
            " values (convert_from('\\xff', 'SQL_ASCII'), 'a@example.org', 3)",
            dbname=name,
        )
        line = error_line(call("leaderboard", "--dsn", address))
        assert 'invalid byte sequence for encoding "UTF8": 0xff' in line
    finally:
        server.psql("-c", f"drop database {name}")


# Locks that others hold ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("migrate",), ("uninstall", "--yes")])
def test_who_holds_the_tables_is_named_when_time_is_up(
    empty_database: str, command: tuple[str, ...]
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        application(db)
        db.execute("create table articles ()")
    if "uninstall" in command:
        migrator.upgrade(empty_database)
    arguments = (*command, "--lock-wait", "0", "--dsn", empty_database)
    with (
        psycopg.connect(empty_database, application_name="a report") as holder,
        psycopg.connect(empty_database) as bystander,
    ):
        holder.execute("select from users")
        bystander.execute("select from articles")
        line = error_line(call(*arguments))
        since = row(
            holder,
            "select to_char(xact_start, 'YYYY-MM-DD HH24:MI:SS TZ') from pg_stat_activity"
            " where pid = pg_backend_pid()",
        )[0]
        assert line == (
            "pyscore: the tables could not be locked within 0 s; held now by "
            f"pid {holder.info.backend_pid} (a report, role postgres, "
            f"in a transaction since {since}); wait until they let go, or end them with "
            "SELECT pg_terminate_backend(pid); then run the same command again"
        )
        holder.rollback()
        output(call(*arguments))


def test_a_prepared_transaction_that_holds_the_tables_is_named(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        application(db)
        db.execute("begin; lock table users in share mode; prepare transaction 'left behind'")
        try:
            line = error_line(call("migrate", "--lock-wait", "0", "--dsn", empty_database))
        finally:
            db.execute("rollback prepared 'left behind'")
    assert "held now by a prepared transaction (see pg_prepared_xacts); " in line


def test_another_migration_that_still_runs_is_named(empty_database: str) -> None:
    with psycopg.connect(empty_database, application_name="pyscore") as other:
        other.execute("select pg_advisory_lock(1651271539, 1)")
        line = error_line(call("migrate", "--lock-wait", "0", "--dsn", empty_database))
        assert (
            "another migration of this database is still running: "
            f"pid {other.info.backend_pid} (pyscore, role postgres, in a transaction since "
        ) in line


# Few privileges -----------------------------------------------------------------------------------


@pytest.fixture
def role(server: PrivateCluster) -> Generator[str]:
    """A role that may log in and no more. Asked for before a database, it outlives it."""
    name = f"plain_{uuid.uuid4().hex[:12]}"
    server.psql("-c", f"create role {name} login")
    yield name
    server.psql("-c", f"drop role {name}")


@pytest.mark.parametrize("prepare", HOSTS.values(), ids=HOSTS)
def test_owning_the_database_is_enough(server: PrivateCluster, role: str, prepare: Prepare) -> None:
    with database_of(server) as superusers_address:
        database = conninfo_to_dict(superusers_address)["dbname"]
        server.psql("-c", f"alter database {database} owner to {role}")
        address = dsn(server, str(database), user=role)
        with psycopg.connect(address, autocommit=True) as db:
            prepare(db)
            before = schema_dump(server, superusers_address)
            output(call("migrate", "--dsn", address))

            owners = db.execute(
                """
                select distinct relowner::regrole::text from pg_class
                where relnamespace in ('builder_score'::regnamespace, 'public'::regnamespace)
                union select proowner::regrole::text from pg_proc
                where pronamespace = 'builder_score'::regnamespace
                union select nspowner::regrole::text from pg_namespace
                where nspname = 'builder_score'
                """
            ).fetchall()
            assert owners == [(role,)]

            db.execute(
                "insert into users (username, email, bio) values ('grace', 'g@example.org', 'x')"
            )
            db.execute("call builder_score.drain()")
            assert row(db, "select count(*) from builder_score.verify()") == (0,)
            assert row(db, "select builder_score > 0 from users where username = 'grace'") == (
                True,
            )

            db.execute("truncate users cascade")
            output(call("uninstall", "--yes", "--dsn", address))
        assert schema_dump(server, superusers_address) == before


def test_a_role_that_may_create_nothing_is_told_so(
    server: PrivateCluster, role: str, empty_database: str
) -> None:
    database = str(conninfo_to_dict(empty_database)["dbname"])
    before = dump(server, empty_database)
    line = error_line(call("migrate", "--dsn", dsn(server, database, user=role)))
    assert line.startswith(
        f"pyscore: permission denied for database {database}; expected a role that may create "
        "schemas in this database and owns the application's tables, or a superuser"
    )
    assert dump(server, empty_database) == before


def test_a_role_that_does_not_own_the_hosts_tables_is_told_so(
    server: PrivateCluster, role: str
) -> None:
    with database_of(server, application) as superusers_address:
        database = str(conninfo_to_dict(superusers_address)["dbname"])
        server.psql("-c", f"grant create on database {database} to {role}")
        before = dump(server, superusers_address)
        line = error_line(call("migrate", "--dsn", dsn(server, database, user=role)))
        assert "owner of" in line
        assert "users" in line
        assert line.endswith("Migrate as the role that owns the tables, or as a superuser")
        assert dump(server, superusers_address) == before


@pytest.mark.parametrize("command", [("migrate",), ("uninstall", "--yes")])
@pytest.mark.parametrize("operates", [True, False])
def test_only_the_role_that_installed_may_migrate_and_uninstall(
    server: PrivateCluster, role: str, database: str, operates: bool, command: tuple[str, ...]
) -> None:
    if operates:
        server.psql("-c", f"grant builder_score_operator to {role}")
    before = dump(server, database)
    name = str(conninfo_to_dict(database)["dbname"])
    done = call(*command, "--dsn", dsn(server, name, user=role))
    if operates and command == ("migrate",):
        assert "at revision" in output(done), "there is nothing to do"
    else:
        line = error_line(done)
        assert line.startswith("pyscore: permission denied for ")
        assert line.endswith(
            "; expected role postgres, which ran `pyscore migrate`, or a superuser"
        )
    assert dump(server, database) == before


# Interrupted --------------------------------------------------------------------------------------

# Strikes before or after the DDL command of a given number, once: sequences outlive a rollback. An
# unlogged one takes no transaction id, beside which nothing could be dropped concurrently.
INTERRUPTER = """
create schema interrupter;
grant usage on schema interrupter to public;
create unlogged sequence interrupter.commands;
create table interrupter.plan (strike_at bigint, kill boolean);
create table interrupter.log (number bigint, revision text);

create function interrupter.strike() returns event_trigger
language plpgsql security definer set search_path = pg_catalog
as $$
declare
    v_number constant bigint := nextval('interrupter.commands');
    v_plan interrupter.plan;
    v_revision text := '0000';
begin
    select * into v_plan from interrupter.plan;
    if not found then
        if to_regclass('builder_score.alembic_version') is not null then
            execute 'select coalesce(max(version_num), $1) from builder_score.alembic_version'
            into v_revision using v_revision;
        end if;
        insert into interrupter.log values (v_number, v_revision);
    elsif v_number = v_plan.strike_at then
        if v_plan.kill then
            perform pg_terminate_backend(pg_backend_pid());
            perform pg_sleep(60);
        end if;
        raise exception 'interrupted at command %', v_number;
    end if;
end
$$;
create event trigger before_command on ddl_command_start execute function interrupter.strike();
create event trigger after_command on ddl_command_end execute function interrupter.strike();
"""

REMOVE_INTERRUPTER = """
drop event trigger before_command;
drop event trigger after_command;
drop schema interrupter cascade;
"""

# A terminated backend says so, but libpq may see first that the connection is closed.
INTERRUPTED = "^interrupted|terminating connection|server closed the connection"

SAMPLES = 3
"""Commands of each revision at which it is interrupted."""


def interruptible(db: Connection[Any]) -> None:
    application(db)
    db.execute(INTERRUPTER)


def spread(numbers: list[int]) -> list[int]:
    """First, last, and what lies evenly between."""
    step = (len(numbers) - 1) / (SAMPLES - 1)
    return sorted({numbers[round(place * step)] for place in range(SAMPLES)})


def test_interrupted_at_any_statement_and_run_again_it_completes(server: PrivateCluster) -> None:
    with database_of(server, interruptible) as address:
        migrator.upgrade(address)
        with psycopg.connect(address, autocommit=True) as db:
            by_revision: defaultdict[str, list[int]] = defaultdict(list)
            for number, revision in db.execute("select * from interrupter.log order by number"):
                by_revision[revision].append(number)
            db.execute(REMOVE_INTERRUPTER)
        undisturbed = catalogue_of(address)
    # what the script of revision 0004 does is seen while 0003 is the last that is noted
    assert list(by_revision) == ["0000", "0001", "0002", "0003"]
    commands = [number for numbers in by_revision.values() for number in spread(numbers)]

    for place, number in enumerate(commands):
        with database_of(server, interruptible) as address:
            with psycopg.connect(address, autocommit=True) as db:
                plan = [number, place % 2 == 1]
                db.execute("insert into interrupter.plan values (%s, %s)", plan)
            with pytest.raises(PyscoreError, match=INTERRUPTED):
                migrator.upgrade(address)
            migrator.upgrade(address)
            with psycopg.connect(address, autocommit=True) as db:
                db.execute(REMOVE_INTERRUPTER)
            assert catalogue_of(address) == undisturbed, f"after an interruption at {number}"


def test_an_index_build_that_was_killed_is_built_anew(server: PrivateCluster) -> None:
    # with the column there, the indexes are the first that beside an open writer has to wait
    def with_column(db: Connection[Any]) -> None:
        create_application(db, score="integer default 0")
        db.execute("insert into users (username, email) values ('ada', 'ada@example.org')")

    with database_of(server, with_column) as address:
        migrator.upgrade(address)
        undisturbed = catalogue_of(address)

    with (
        database_of(server, with_column) as address,
        psycopg.connect(address, autocommit=True) as db,
        psycopg.connect(address) as writer,
    ):
        writer.execute("update users set bio = 'an open transaction'")
        migrating = subprocess.Popen(
            [*PYSCORE, "migrate", "--dsn", address],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        builder = wait_for_index_build(db)
        db.execute("select pg_terminate_backend(%s)", [builder])
        _, stderr = migrating.communicate(timeout=30)
        assert migrating.returncode == 1
        assert re.fullmatch(f"pyscore: .*({INTERRUPTED}).*\n", stderr)
        writer.rollback()
        invalid = "select indexrelid::regclass::text from pg_index where not indisvalid"
        assert db.execute(invalid).fetchall() == [("idx_users_builder_score",)]

        migrator.upgrade(address)
        assert catalogue_of(address) == undisturbed


def wait_for_index_build(db: Connection[Any]) -> int:
    """Wait until an index build waits for somebody's transaction; return its backend."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        waiting = db.execute(
            "select pid from pg_stat_activity where query like 'create index concurrently%'"
            " and cardinality(pg_blocking_pids(pid)) > 0"
        ).fetchall()
        if waiting:
            return waiting[0][0]
        time.sleep(0.01)
    raise AssertionError("no index build came to wait for the writer")
