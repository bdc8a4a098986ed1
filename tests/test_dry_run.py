"""``pyscore migrate --dry-run`` says what migrate then does, changes nothing, waits for nobody."""

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.catalogue import dump
from tests.commands import alembic, call, error_line, output
from tests.conftest import dsn, with_pg_cron
from tests.host_schemas import HOSTS
from tests.hosts import create_application
from tests.statements import run

CRON = "with_cron"


@pytest.fixture(scope="module")
def lonely(request: pytest.FixtureRequest) -> Iterator[PrivateCluster]:
    """A server on which nobody has installed us yet, so that our roles are not there."""
    cron_database = with_pg_cron(request.config, CRON)
    with PrivateCluster(settings={"fsync": False}, cron_database=cron_database) as server:
        server.psql("-c", "create role app")
        yield server


@contextmanager
def database_on(server: PrivateCluster, name: str) -> Generator[str]:
    server.psql("-c", f"create database {name}")
    try:
        yield dsn(server, name)
    finally:
        if name != CRON:  # to drop pg_cron's database would end its launcher
            server.psql("-c", f"drop database {name}")


def dry_run(address: str, *options: str) -> dict[str, Any]:
    return json.loads(output(call("migrate", "--dry-run", "--json", "--dsn", address, *options)))


def told(plan: dict[str, Any], kind: str, action: str) -> set[str]:
    """What a plan says of things of a kind."""
    found: set[str] = set()
    for step in plan["steps"]:
        for change in step["changes"]:
            if (change["kind"], change["action"]) == (kind, action):
                found.add(change["what"])
    return found


# What the catalogue knows of what we may make, in the words of the plan.
MADE = r"""
with host as (
    select c.oid, c.oid::regclass::text as name from pg_class as c
    where c.relnamespace = %(schema)s::text::regnamespace
      and c.relname in ('users', 'projects', 'project_collaborators')
)
select 'column' as kind, h.name || '.builder_score' as what
from host as h join pg_attribute as a on a.attrelid = h.oid and a.attname = 'builder_score'
union all
select 'index', i.indexrelid::regclass::text || ' on ' || h.name
from host as h join pg_index as i on i.indrelid = h.oid
union all
select 'trigger', t.tgname || ' on ' || t.tgrelid::regclass
from pg_trigger as t
where not t.tgisinternal and t.tgparentid = 0 and t.tgname like 'builder\_score\_%%'
  and t.tgrelid::regclass::text !~ '^builder_score'
union all
select 'policy', p.polname || ' on ' || h.name
from host as h join pg_policy as p on p.polrelid = h.oid
where p.polname like 'builder\_score\_%%'
union all
select 'grant', lower(a.privilege_type) || ' on ' || h.name || ' to ' || a.grantee::regrole
from host as h join pg_class as c on c.oid = h.oid cross join lateral aclexplode(c.relacl) as a
where a.grantee <> c.relowner
union all
select 'grant', format('%%s (%%s) on %%s to %%s', lower(x.privilege_type), a.attname, h.name,
                       x.grantee::regrole)
from host as h join pg_attribute as a on a.attrelid = h.oid
cross join lateral aclexplode(a.attacl) as x
union all
select 'grant', format('%%s on schema %%s to %%s', lower(x.privilege_type), n.nspname,
                       x.grantee::regrole)
from pg_namespace as n cross join lateral aclexplode(n.nspacl) as x
where n.nspname = %(schema)s::text and x.grantee not in (0, n.nspowner)
union all
select 'role', r.rolname from pg_roles as r where r.rolname like 'builder\_score\_%%'
union all
select 'view', c.oid::regclass::text from pg_class as c
where c.relnamespace = to_regnamespace('builder_score') and c.relname like 'host\_%%'
  and c.relkind = 'v'
"""


def made(address: str, schema: str) -> set[tuple[str, str]]:
    with psycopg.connect(address) as db:
        db.execute("set search_path = pg_catalog")
        return {(kind, what) for kind, what in db.execute(MADE, {"schema": schema})}


def shortened(kind: str, what: str) -> str:
    """What a plan says, without what the catalogue does not say in the same words."""
    if kind == "index":
        table = what.partition(" on ")[2].split(",")[0].split(" ")[0]
        name = what.partition(" on ")[0]
        schema = table.partition(".")[0]
        return f"{name if '.' in name else f'{schema}.{name}'} on {table}"
    return what.split(",")[0]


KINDS = ("column", "index", "trigger", "policy", "grant", "role", "view")


@pytest.mark.parametrize("name", HOSTS)
def test_it_says_what_migrate_then_does(lonely: PrivateCluster, name: str) -> None:
    host = HOSTS[name]
    with database_on(lonely, f"dry_{uuid4().hex[:8]}") as address:
        with psycopg.connect(address, autocommit=True) as db:
            run(db, host.tables.replace("{role}", "app"))
            # an equivalent one of the host's own
            run(db, f"create index my_own on {host.schema}.projects (owner_id, status)")
        before, there = dump(lonely, address), made(address, host.schema)
        plan = dry_run(address, "--host-schema", host.schema)
        assert dump(lonely, address) == before
        assert made(address, host.schema) == there
        assert (plan["revision"], plan["target"]) == (None, migrator.head())
        assert plan["host_schema"] == host.schema

        output(call("migrate", "--host-schema", host.schema, "--dsn", address))
        now = made(address, host.schema)
        for kind in KINDS:
            new = {what for one, what in now - there if one == kind}
            assert {shortened(kind, what) for what in told(plan, kind, "make")} == new, kind
            found = {shortened(kind, what) for what in told(plan, kind, "found")}
            assert found <= {what for one, what in there if one == kind}, kind
        mine = f"{host.schema}.my_own on {host.schema}.projects, serves (owner_id)"
        if name != "reference":  # which has a narrower one
            assert mine in told(plan, "index", "found")
        (job,) = told(plan, "job", "none")
        if lonely.has_extension("pg_cron"):
            assert job.startswith('pg_cron works in database "with_cron" (cron.database_name)')
        else:
            assert job.startswith("pg_cron is not installed on this server")

        again = dry_run(address)
        assert (again["revision"], again["steps"]) == (migrator.head(), [])
        migrator.downgrade(address)
        assert {what for kind, what in made(address, host.schema) if kind == "role"} == set()


def test_statements_are_those_that_make_it(lonely: PrivateCluster) -> None:
    with (
        database_on(lonely, f"dry_{uuid4().hex[:8]}") as address,
        psycopg.connect(address, autocommit=True) as db,
    ):
        run(db, HOSTS["partitioned"].tables)
        plan = dry_run(address)
        statements = [one for step in plan["steps"] for one in step["statements"]]
        assert {one["lock"] for one in statements} == {
            None,
            "SHARE",
            "SHARE UPDATE EXCLUSIVE",
            "ACCESS EXCLUSIVE",
        }
        for one in statements:
            concurrently = " index concurrently " in one["sql"]
            assert concurrently == (one["lock"] == "SHARE UPDATE EXCLUSIVE")

        # beside the schema, which 0001 makes, they are all that it takes
        output(alembic("upgrade", "0001", DATABASE_URL=address))
        for one in statements:
            run(db, one["sql"])
        rest = dry_run(address)
        assert rest["revision"] == "0001"
        for kind in ("column", "index", "trigger", "policy"):
            assert told(plan, kind, "make"), kind
            assert told(rest, kind, "make") == set(), kind
        migrator.upgrade(address)
        migrator.downgrade(address)


def test_it_is_told_in_words(lonely: PrivateCluster) -> None:
    with (
        database_on(lonely, f"dry_{uuid4().hex[:8]}") as address,
        psycopg.connect(address, autocommit=True) as db,
    ):
        run(db, HOSTS["ulid ids, enums, triggers and scores of its own"].tables)
        said = output(call("migrate", "--dry-run", "--dsn", address)).splitlines()
        name = conninfo_to_dict(address)["dbname"]
        assert f"database {name}, user postgres, the application's tables in public" in said[0]
        assert said[0].endswith(": builder_score is not installed")
        assert "0002  The column users.builder_score, where the host has none" in said
        assert (
            "  found  column public.users.builder_score, double precision; "
            "uninstalling will leave it there" in said
        )
        assert (
            "  found  index public.project_collaborators_pkey on public.project_collaborators, "
            "serves (project_id)" in said
        )
        assert (
            "         create index concurrently idx_projects_owner_id on public.projects "
            "(owner_id);  -- SHARE UPDATE EXCLUSIVE" in said
        )
        assert "then the worker computes everybody's score (users has no statistics" in said[-2]
        assert said[-1].startswith("not tried: ")
        output(call("migrate", "--dsn", address))
        (said,) = output(call("migrate", "--dry-run", "--dsn", address)).splitlines()
        assert said.endswith(f": at revision {migrator.head()}, nothing to do")


def test_the_backfill_is_sized_by_the_servers_statistics(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        create_application(db, key="bigint")
        db.execute(
            "insert into users (username, email)"
            " select 'u' || n, n || '@example.org' from generate_series(1, 20000) as n"
        )
        assert dry_run(empty_database)["backfill"] == {"users": None, "per_second": 5000}
        db.execute("analyze users")
        assert dry_run(empty_database)["backfill"] == {"users": 20000, "per_second": 5000}
        said = output(call("migrate", "--dry-run", "--dsn", empty_database))
        assert "then the worker computes about 20,000 scores, 5,000 a second at most" in said
        assert said.splitlines()[-2].endswith("backfill_per_second): 4 s or more")
        output(alembic("upgrade", "0002", DATABASE_URL=empty_database))
        plan = dry_run(empty_database)
        assert [step["revision"] for step in plan["steps"]] == ["0003", "0004", "0005"]
        assert plan["backfill"]["users"] == 20000


@pytest.mark.pg_cron
def test_in_pg_crons_database_it_tells_of_extension_and_job(lonely: PrivateCluster) -> None:
    with database_on(lonely, CRON) as address:
        plan = dry_run(address)
        assert told(plan, "table", "make") == {
            f"public.{table} (reference table: the database has none of the three)"
            for table in ("users", "projects", "project_collaborators")
        }
        assert told(plan, "extension", "make") == {"pg_cron"}
        (job,) = told(plan, "job", "make")
        assert job == "pg_cron job builder-score-worker, as postgres"
        with psycopg.connect(address, autocommit=True) as db:
            db.execute("create extension pg_cron")
            output(alembic("upgrade", "0004", DATABASE_URL=address))
            before = dump(lonely, address)
            plan = dry_run(address)
            assert told(plan, "job", "make") == {job}
            assert dump(lonely, address) == before
            # no rollback gives the numbers of a sequence back
            called = db.execute("select is_called from cron.jobid_seq").fetchall()
            assert called == [(False,)]
            migrator.upgrade(address)
            assert db.execute("select jobname from cron.job order by 1").fetchone() == (
                "builder-score-worker",
            )
            migrator.downgrade(address)


# Waiting for nobody -------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [None, "0002", "head"])
def test_it_locks_no_table_of_the_applications(empty_database: str, at: str | None) -> None:
    with (
        psycopg.connect(empty_database, autocommit=True) as db,
        psycopg.connect(empty_database) as application,
    ):
        create_application(db)
        if at is not None:
            output(alembic("upgrade", at, DATABASE_URL=empty_database))
        # beside this even reading a row would wait
        application.execute("lock table users, projects, project_collaborators")
        plan = dry_run(empty_database)
        assert len(plan["steps"]) == {None: 5, "0002": 3, "head": 0}[at]


def test_beside_a_migration_it_does_not_wait(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        db.execute("select pg_advisory_lock(1651271539, 1)")
        line = error_line(call("migrate", "--dry-run", "--dsn", empty_database))
        assert "another migration of this database is still running: pid " in line


# Where migrate would refuse -----------------------------------------------------------------------

Prepare = Callable[[Connection[Any]], object]


def statement(text: LiteralString) -> Prepare:
    return lambda db: run(db, text)


REFUSED: dict[str, tuple[Prepare, str]] = {
    "a column is missing": (
        statement("alter table projects drop column owner_id cascade"),
        'the tables in schema "public" lack projects.owner_id',
    ),
    "a table is missing": (statement("drop table project_collaborators"), "has only some of"),
    "the score is no number": (
        statement("alter table users add builder_score text"),
        "users.builder_score has type text",
    ),
    "a key of a type of somebody's own": (
        statement(
            "create type pair as (a integer, b integer);"
            "create table people (id pair primary key);"
            "alter table projects drop constraint projects_owner_id_fkey;"
            "alter table project_collaborators drop constraint project_collaborators_user_id_fkey;"
            "alter table users drop column id; alter table users add id pair"
        ),
        "users.id has type public.pair",
    ),
    "a restrictive policy": (
        statement("create policy mine on projects as restrictive using (false)"),
        "restrictive policy mine on public.projects applies to builder_score_owner",
    ),
    "the name of an index is taken": (
        statement("create index idx_projects_owner_id on projects (title)"),
        "the name public.idx_projects_owner_id is taken",
    ),
    "subscribers": (
        statement("create publication feed for all tables"),
        "publication feed is FOR ALL TABLES",
    ),
    "a schema of our name": (
        statement("create schema builder_score; create table builder_score.theirs ()"),
        "a schema builder_score that pyscore did not make",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses_in_the_words_of_migrate_and_neither_does_anything(
    server: PrivateCluster, empty_database: str, case: str
) -> None:
    prepare, said = REFUSED[case]
    with psycopg.connect(empty_database, autocommit=True) as db:
        create_application(db)
        prepare(db)
    before = dump(server, empty_database)
    line = error_line(call("migrate", "--dry-run", "--dsn", empty_database))
    assert said in line
    assert dump(server, empty_database) == before
    assert error_line(call("migrate", "--dsn", empty_database)) == line
    assert dump(server, empty_database) == before


def test_subscribers_that_are_ready_are_told_of_in_the_plan(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        create_application(db)
        db.execute("create publication everything for all tables")
        db.execute("create publication feed for table users")
        db.execute("create publication unconcerned for table projects")
        everything = "publication everything is FOR ALL TABLES: its subscribers get the rows of our"
        plan = dry_run(empty_database, "--subscribers-ready")
        assert plan["publications"] == [
            f"{everything} tables and the column",
            "publication feed has the table users: its subscribers get the column",
        ]
        db.execute("alter table users add builder_score integer")
        plan = dry_run(empty_database, "--subscribers-ready")
        assert plan["publications"] == [f"{everything} tables"]
        said = output(call("migrate", "--dry-run", "--subscribers-ready", "--dsn", empty_database))
        assert f"\n{everything} tables\n" in said


@pytest.fixture
def plain_role(server: PrivateCluster) -> Iterator[str]:
    name = f"plain_{uuid4().hex[:12]}"
    server.psql("-c", f"create role {name} login")
    yield name
    server.psql("-c", f"drop role {name}")


def test_a_role_that_may_not_migrate_is_told_so(
    server: PrivateCluster, plain_role: str, empty_database: str
) -> None:
    name = str(conninfo_to_dict(empty_database)["dbname"])
    address = dsn(server, name, user=plain_role)
    with psycopg.connect(empty_database, autocommit=True) as db:
        create_application(db)
        line = ""
        for _ in range(2):
            line = error_line(call("migrate", "--dry-run", "--dsn", address))
            assert line == error_line(call("migrate", "--dsn", address))
            run(db, f"grant create on database {name} to {plain_role}")
        assert "is not the owner of public.project_collaborators (owned by postgres)" in line


def test_a_role_that_may_create_no_roles_is_told_what_that_means(
    server: PrivateCluster, plain_role: str, empty_database: str
) -> None:
    name = str(conninfo_to_dict(empty_database)["dbname"])
    server.psql("-c", f"alter database {name} owner to {plain_role}")
    address = dsn(server, name, user=plain_role)
    plan = dry_run(address)
    (note,) = plan["notes"]
    assert note.startswith(f"{plain_role} may not create or become the role builder_score_owner")
    assert told(plan, "schema", "make") == {f"builder_score, owned by {plain_role}"}
    # it owns the tables too, so nothing is granted to anybody
    assert told(plan, "grant", "make") == set()
    with psycopg.connect(empty_database, autocommit=True) as db:
        run(db, f"alter database {name} owner to postgres")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--dry-run", "--sql"), "give one of them"),
        (("--json",), "--json goes with --dry-run"),
        (("--sql", "--json"), "--json goes with --dry-run"),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(
    empty_database: str, options: tuple[str, ...], complaint: str
) -> None:
    assert complaint in error_line(call("migrate", *options, "--dsn", empty_database), 2)
    with psycopg.connect(empty_database) as db:
        assert migrator.database_revision(db) is None


@pytest.mark.parametrize("schema", ["nope", "other"])
def test_the_host_schema_is_checked_as_migrate_checks_it(database: str, schema: str) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("create schema other")
    line = error_line(call("migrate", "--dry-run", "--host-schema", schema, "--dsn", database))
    assert line == error_line(call("migrate", "--host-schema", schema, "--dsn", database))
    assert f'"{schema}"' in line
