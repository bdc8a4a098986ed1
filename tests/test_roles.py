"""Who may do what: the owner, the operator, everybody; and an installer who may create no roles."""

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection, errors
from psycopg.conninfo import conninfo_to_dict

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.catalogue import schema_dump
from tests.commands import call, error_line, output
from tests.community import add_collaborator, add_project, add_user, configure, drain, one, score
from tests.conftest import dsn, janitor
from tests.hosts import create_application
from tests.oracle import assert_all_right
from tests.statements import run
from tests.test_hostile_role import live, set_traps

# Every privilege on everything in the database, but for what an owner has on what is its own and
# for the row types of tables, which nobody can name who may not use their schema.
PRIVILEGES: LiteralString = """
with object(kind, name, owner, acl) as (
    select 'table', c.oid::regclass::text, c.relowner,
           coalesce(c.relacl, acldefault('r', c.relowner))
    from pg_class as c where c.relkind in ('r', 'p', 'v', 'm', 'f')
    union all
    select 'sequence', c.oid::regclass::text, c.relowner,
           coalesce(c.relacl, acldefault('s', c.relowner))
    from pg_class as c where c.relkind = 'S'
    union all
    select 'column', a.attrelid::regclass || '.' || a.attname, c.relowner, a.attacl
    from pg_attribute as a join pg_class as c on c.oid = a.attrelid where a.attacl is not null
    union all
    select 'routine', p.oid::regprocedure::text, p.proowner,
           coalesce(p.proacl, acldefault('f', p.proowner)) from pg_proc as p
    union all
    select 'type', t.oid::regtype::text, t.typowner, coalesce(t.typacl, acldefault('T', t.typowner))
    from pg_type as t where t.typrelid = 0 and t.typelem = 0
    union all
    select 'schema', n.nspname, n.nspowner, coalesce(n.nspacl, acldefault('n', n.nspowner))
    from pg_namespace as n
    union all
    select 'database', 'this one', d.datdba, coalesce(d.datacl, acldefault('d', d.datdba))
    from pg_database as d where d.datname = current_database()
    union all
    select 'language', l.lanname, l.lanowner, coalesce(l.lanacl, acldefault('l', l.lanowner))
    from pg_language as l
    union all
    select 'default', d.defaclobjtype::text, d.defaclrole, d.defaclacl from pg_default_acl as d
    union all
    select 'parameter', p.parname, 10, p.paracl from pg_parameter_acl as p
)
select o.kind, o.name,
       a.privilege_type || case when a.is_grantable then '*' else '' end
from object as o cross join lateral aclexplode(o.acl) as a
where coalesce(nullif(a.grantee, 0)::regrole::text, 'public') = %(role)s and a.grantee <> o.owner
order by 1, 2, 3
"""

HOST: LiteralString = """
create schema app;
revoke all on schema app from public;
create table app.users (id bigint generated always as identity primary key, username text not null,
    email text, bio text, password text);
create table app.projects (id bigint generated always as identity primary key,
    owner_id bigint references app.users on delete cascade,
    title text, status text, github_stars integer);
create table app.project_collaborators (
    project_id bigint references app.projects on delete cascade,
    user_id bigint references app.users on delete cascade, status text);
create table app.invoices (id bigint generated always as identity, amount numeric);
create table app.payments (user_id bigint, amount numeric);
create view app.rich as select * from app.payments;
create function app.charge(bigint) returns void language sql as '';
"""


def privileges(db: Connection[Any], role: str) -> set[tuple[str, str, str]]:
    """What a role may do: the kind of object, its name, the privilege; * with grant option."""
    return set(db.execute(PRIVILEGES, {"role": role}).fetchall())


def named(privileges: set[tuple[str, str, str]]) -> set[tuple[str, str, str]]:
    """The same, with our own objects called by their names alone."""
    return {
        (kind, name.replace("builder_score.", ""), privilege)
        for kind, name, privilege in privileges
    }


@contextmanager
def login(server: PrivateCluster, attributes: str = "") -> Generator[str]:
    """A role that can log in."""
    name = f"person_{uuid4().hex[:10]}"
    server.psql("-c", f"create role {name} login {attributes}")
    try:
        yield name
    finally:
        server.psql("-c", f"drop role {name}")


@pytest.fixture
def host(empty_database: str) -> Iterator[Connection[Any]]:
    """An application's database in which nobody may do anything, before us."""
    with psycopg.connect(empty_database, autocommit=True) as db:
        run(db, HOST)
        yield db


# What the catalogue says --------------------------------------------------------------------------

OPERATORS_TABLES = {
    "backfill",
    "health",
    "host",
    "host_additions",
    "host_collaborations",
    "host_projects",
    "host_users",
    "impact_keys",
    "queue_by_priority",
    "scheduled_jobs",
    "score_counts",
    "score_dead_letter",
    "score_recalc_queue",
    "score_state",
    "settings",
    "signals",
    "statuses",
    "worker_status",
    "alembic_version",
}

OPERATORS_ROUTINES = {
    # look
    "column_decimals()",
    "distribution()",
    "explain(user_id)",
    "find_user(text)",
    "is_pending(user_id)",
    "job_runs(integer)",
    "known_jobs()",
    "pending(user_id)",
    "recent_rate(timestamp with time zone,bigint,bigint)",
    "scheduler()",
    "standing(user_id)",
    "unknown_user(user_id)",
    "verify(user_id[])",
    "verify_score_counts()",
    # recompute, retry
    "enqueue(user_id,integer,text)",
    "enqueue_everyone(text)",
    "recalculate(user_id)",
    "repair_score_counts()",
    "retry_dead_letters(user_id[])",
    # run the worker
    "beat(text,interval)",
    "begin_run(text,text)",
    "drain()",
    "housekeeping()",
    "is_alive(text)",
    "is_wanted(text)",
    "may_go_on()",
    "nap_seconds(integer,timestamp with time zone)",
    "purge_job_runs(interval)",
    "run_batch(text,run_memory)",
    "run_by()",
    "run_deadline(interval)",
    "run_round(text,integer,timestamp with time zone,run_memory)",
    "run_worker(interval,integer)",
    "worker_lock(integer)",
    "worker_name(integer)",
}


def test_each_role_has_exactly_the_privileges_it_needs(
    empty_database: str, host: Connection[Any]
) -> None:
    everybody = privileges(host, "public")
    migrator.upgrade(empty_database, settings=migrator.install_settings("app"))
    assert privileges(host, "builder_score_owner") == {
        ("schema", "app", "USAGE"),
        ("table", "app.users", "SELECT"),
        ("table", "app.projects", "SELECT"),
        ("table", "app.project_collaborators", "SELECT"),
        ("column", "app.users.builder_score", "UPDATE"),
    }
    assert named(privileges(host, "builder_score_operator")) == {
        ("schema", "builder_score", "USAGE"),
        *(("type", name, "USAGE") for name in ("user_id", "project_id")),
        *(("table", name, "SELECT") for name in OPERATORS_TABLES),
        *(("routine", name, "EXECUTE") for name in OPERATORS_ROUTINES),
        ("table", "score_dead_letter", "DELETE"),
        ("column", "settings.paused", "UPDATE"),
        ("column", "settings.paused_reason", "UPDATE"),
    }
    assert privileges(host, "public") == everybody, "nothing is granted to PUBLIC"
    roles = host.execute(
        "select rolname, rolcanlogin or rolsuper or rolcreaterole or rolcreatedb or rolreplication"
        " or rolbypassrls, array(select m.roleid::regrole::text from pg_auth_members as m"
        " where m.member = r.oid)"
        " from pg_roles as r where rolname like 'builder%' order by 1"
    ).fetchall()
    assert roles == [("builder_score_operator", False, []), ("builder_score_owner", False, [])]
    (owners,) = host.execute("""
        select array_agg(distinct owner::regrole::text) from (
            select relowner from pg_class where relnamespace = 'builder_score'::regnamespace
                and relname not like 'alembic_version%'
            union select proowner from pg_proc where pronamespace = 'builder_score'::regnamespace
            union select typowner from pg_type where typnamespace = 'builder_score'::regnamespace
                and typname not like '%alembic_version'
            union select nspowner from pg_namespace where nspname = 'builder_score'
        ) as o(owner)
    """).fetchall()
    assert owners == (["builder_score_owner"],)


# What the operator can and cannot do --------------------------------------------------------------


@pytest.fixture
def operator(server: PrivateCluster, database: str) -> Iterator[str]:
    """The address by which a person connects who was granted builder_score_operator."""
    with login(server, "in role builder_score_operator") as name:
        yield dsn(server, str(conninfo_to_dict(database)["dbname"]), user=name)


def test_the_operator_looks_recomputes_pauses_and_retries_by_the_commands(
    db: Connection[Any], operator: str
) -> None:
    configure(db, debounce_window="0", max_attempts=1)
    ann = add_user(db, "ann", bio="ships")
    bob = add_user(db, "bob")
    add_collaborator(db, add_project(db, ann, status="shipped"), bob)

    def do(*arguments: str) -> str:
        return output(call(*arguments, "--dsn", operator))

    do("worker", "--once")
    assert score(db, ann) == 21
    run(db, "update builder_score.worker_status set heartbeat_at = clock_timestamp()")
    run(db, "update builder_score.worker_status set run_by = 'test'")
    assert "healthy" in do("status")
    do("verify")
    assert json.loads(do("explain", "ann", "--json"))["username"] == "ann"
    assert "ann" in do("leaderboard")
    do("settings")
    db.execute("update users set builder_score = 1")
    do("recompute", "ann")
    assert score(db, ann) == 21
    do("recompute", "--all")
    do("pause", "--reason", "a look")
    assert one(db, "select paused_reason from builder_score.settings") == "a look"
    do("resume")
    do("worker", "--once")

    run(
        db,
        "insert into builder_score.score_dead_letter select id, 5, 'P0001', 'no', now(), now()"
        " from users",
    )
    assert "P0001" in do("dead-letter", "list")
    do("dead-letter", "retry", "ann")
    do("dead-letter", "discard", "bob", "--yes")
    do("worker", "--once")
    assert one(db, "select count(*) from builder_score.score_dead_letter") == 0
    assert_all_right(db)


def test_the_operator_cannot_do_anything_else(
    db: Connection[Any], database: str, operator: str
) -> None:
    ann = add_user(db, "ann", bio="ships")
    drain(db)
    for command in (
        ("settings", "set", "batch_size", "7"),
        ("migrate",),
        ("uninstall", "--yes"),
        ("schedule",),
        ("unschedule",),
    ):
        before = one(db, "select to_jsonb(s) from builder_score.settings as s")
        done = call(*command, "--dsn", operator)
        if command != ("migrate",):  # which has nothing to do here
            error_line(done)
        assert one(db, "select to_jsonb(s) from builder_score.settings as s") == before
    assert one(db, "select count(*) from builder_score.health where attached") == 1
    others = [
        name
        for (name,) in db.execute(
            "select oid::regprocedure::text from pg_proc"
            " where pronamespace = 'builder_score'::regnamespace"
        ).fetchall()
        if name.replace("builder_score.", "") not in OPERATORS_ROUTINES
    ]
    assert len(others) > 40
    with psycopg.connect(operator, autocommit=True) as person:
        for statement in (
            "update users set builder_score = 100",
            "select * from users",
            "update builder_score.host_users set builder_score = 100",
            "update builder_score.score_state set score = 100",
            "insert into builder_score.score_recalc_queue (priority, reason) values (0, 'x')",
            "delete from builder_score.score_recalc_queue",
            "update builder_score.settings set debounce_window = '0'",
            "delete from builder_score.settings",
            "update builder_score.signals set max_points = 99",
            "insert into builder_score.statuses values ('shipped', 'anything')",
            "insert into builder_score.impact_keys values ('x')",
            "update builder_score.host set attached_at = null",
            "update builder_score.alembic_version set version_num = '0001'",
            "insert into builder_score.score_dead_letter select",
            "insert into builder_score.scheduled_jobs select",
            "truncate builder_score.score_dead_letter",
            "select builder_score.attach()",
            "select builder_score.detach()",
            "select builder_score.schedule()",
            "create table builder_score.mine ()",
            "create trigger mine after update on users for each row"
            " execute function builder_score.host_truncated()",
            "set role builder_score_owner",
            "drop schema builder_score cascade",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                run(person, statement)
        allowed = [
            name
            for name in others
            if one(person, "select has_function_privilege(%s, 'execute')", name)
        ]
        assert allowed == []
    assert score(db, ann) == 3


# Where the installer may create no roles ----------------------------------------------------------


@contextmanager
def owned_database(server: PrivateCluster, attributes: str = "") -> Generator[str]:
    """A database of a role of its own, no superuser; the address by which it connects."""
    with login(server, attributes) as owner:
        name = f"owned_{uuid4().hex[:10]}"
        with janitor(server, name):
            server.psql("-c", f"alter database {name} owner to {owner}")
            yield dsn(server, name, user=owner)


@pytest.fixture
def owned(server: PrivateCluster, template: str) -> Iterator[str]:
    """Installed by a plain owner, in a cluster where another database has our roles."""
    with owned_database(server) as address:
        said = output(call("migrate", "--dsn", address))
        assert "may not create or become the role builder_score_owner" in said
        yield address


def test_without_roles_everything_is_the_installers_and_nobody_elses(
    owned: str, server: PrivateCluster, db: Connection[Any]
) -> None:
    with psycopg.connect(owned, autocommit=True) as installer:
        me = one(installer, "select current_user::text")
        assert one(installer, "select builder_score.owner_role()") == me
        for other in ("builder_score_owner", "builder_score_operator"):
            assert privileges(installer, other) == set(), "they are another database's"
        everybody = {name for _, name, _ in privileges(installer, "public")}
        assert not {name for name in everybody if name.startswith("builder_score")}
        owners = installer.execute(
            "select proowner::regrole::text, count(*) > 50 from pg_proc"
            " where pronamespace = 'builder_score'::regnamespace group by 1"
        ).fetchall()
        assert owners == [(me, True)]
        assert one(installer, "select count(*) from pg_policy") == 0

        configure(installer, debounce_window="0")
        ann = add_user(installer, "ann", bio="ships")
        output(call("worker", "--once", "--dsn", owned))
        assert score(installer, ann) == 3
        installer.execute("update users set builder_score = 99")
        drain(installer)
        assert_all_right(installer)
    # operators of the other database are none here, and are told whom to ask
    with login(server, "in role builder_score_operator") as person:
        there = dsn(server, str(conninfo_to_dict(owned)["dbname"]), user=person)
        line = error_line(call("status", "--dsn", there))
        assert "connect as the role that installed builder_score" in line

    output(call("uninstall", "--yes", "--dsn", owned))
    assert one(db, "select count(*) from pg_roles where rolname like 'builder%%'") == 2
    assert one(db, "select has_schema_privilege('builder_score_operator','builder_score','usage')")


def test_without_roles_a_hostile_application_gains_nothing_by_the_installers_triggers(
    owned: str, server: PrivateCluster
) -> None:
    with psycopg.connect(owned, autocommit=True) as installer, login(server) as role:
        me = one(installer, "select current_user::text")
        configure(installer, debounce_window="0")
        everything = "users, projects, project_collaborators"
        run(installer, f"grant select, insert, update, delete on {everything} to {role}")
        run(installer, f"grant create on schema public to {role}")
        address = dsn(server, str(conninfo_to_dict(owned)["dbname"]), user=role)
        with psycopg.connect(address, autocommit=True) as app:
            for call_ in (
                "select * from builder_score.settings",
                "select builder_score.recalculate(gen_random_uuid())",
                "call builder_score.drain()",
                "create trigger mine after update on users"
                " for each row execute function builder_score.users_after_update('x')",
            ):
                with pytest.raises(errors.InsufficientPrivilege):
                    run(app, call_)
            set_traps(app)
            run(app, "create temporary table score_recalc_queue (id bigint, user_id uuid)")
            run(app, "set search_path = public, pg_catalog, pg_temp")
            ann = live(app)
            app.execute("select set_config('builder_score.writing', '1', false)")
            run(app, "update users set builder_score = 100 where username like 'a%'")
            drain(installer)
            installer.execute("select builder_score.recalculate(id) from users")
            installer.execute("select * from builder_score.attach()")
            drain(installer)
            assert_all_right(installer)
            assert score(installer, ann) is not None
            ran = {who for (who,) in installer.execute("select who from public.loot").fetchall()}
            assert ran <= {role}
            assert me not in ran
        server.psql("-c", f"drop owned by {role}", dbname=str(conninfo_to_dict(owned)["dbname"]))


@pytest.mark.parametrize("may_create_roles", ["createrole", "nocreaterole"])
def test_default_privileges_of_the_installers_give_nothing_of_ours_away(
    server: PrivateCluster, empty_database: str, may_create_roles: str
) -> None:
    """As is usual where an application's role has DML only: on all that the installer creates."""
    name = str(conninfo_to_dict(empty_database)["dbname"])
    with login(server, may_create_roles) as installer, login(server, "") as web:
        server.psql("-c", f"alter database {name} owner to {installer}")
        address = dsn(server, name, user=installer)
        with psycopg.connect(address, autocommit=True) as db:
            for kind in ("tables", "sequences", "routines"):
                run(db, f"alter default privileges grant all on {kind} to {web}")
            migrator.upgrade(address)
            assert one(db, f"select has_table_privilege('{web}', 'users', 'delete')"), "not ours"
            for _ in range(2):
                ours = {found for found in privileges(db, web) if "builder_score" in str(found)}
                assert ours == set()
                run(db, "select builder_score.attach()")
        migrator.downgrade(address)
        with psycopg.connect(empty_database, autocommit=True) as db:
            run(db, f"drop owned by {web}; drop owned by {installer} cascade")
        server.psql("-c", f"alter database {name} owner to postgres")


def test_forced_row_security_on_the_installer_is_refused_until_a_policy_shows_it_every_row(
    owned: str,
) -> None:
    """Our own policy would end the row security of an application that connects as its owner."""
    with psycopg.connect(owned, autocommit=True) as installer:
        ann = add_user(installer, "ann", bio="ships")
        for table in ("users", "projects", "project_collaborators"):
            run(installer, f"alter table {table} enable row level security")
        installer.execute("select builder_score.attach()")
        run(installer, "alter table users force row level security")
        run(installer, "create policy mine on users using (username = 'ann')")
        with pytest.raises(
            errors.ObjectNotInPrerequisiteState, match=r"is forced on public\.users"
        ) as no:
            installer.execute("select builder_score.attach()")
        hint = no.value.diag.message_hint or ""
        assert "CREATE ROLE builder_score_owner NOLOGIN" in hint
        doctor = call("doctor", "--dsn", owned).stdout
        assert "row level security is forced on public.users" in doctor
        mend = hint[hint.index("CREATE POLICY") : hint.index("; then attach again")]
        run(installer, mend)
        installer.execute("select builder_score.attach()")
        assert "row level security is forced on" not in call("doctor", "--dsn", owned).stdout
        policies = "select array_agg(polname::text order by polname) from pg_policy"
        assert one(installer, policies) == ["every_row", "mine"], "none of ours"
        drain(installer)
        assert score(installer, ann) == 3
        run(installer, "create policy tenants on users as restrictive using (true)")
        with pytest.raises(
            errors.ObjectNotInPrerequisiteState, match=r"is forced on public\.users"
        ):
            installer.execute("select builder_score.attach()")


def test_what_the_host_granted_to_the_installer_survives(
    server: PrivateCluster, template: str
) -> None:
    """An installer that owns the tables by membership may have privileges of its own on them."""
    with login(server) as host, owned_database(server, f"in role {host}") as address:
        parts = conninfo_to_dict(address)
        owner, superusers = parts["user"], dsn(server, str(parts["dbname"]))
        with psycopg.connect(superusers, autocommit=True) as db:
            create_application(db, key="bigint", score="integer")
            run(db, f"grant usage on schema public to {owner}")
            run(db, f"grant select, update on users to {owner}")
            run(db, f"grant update (builder_score) on users to {owner}")
            for table in ("users", "projects", "project_collaborators"):
                run(db, f"alter table {table} owner to {host}")
            before = schema_dump(server, superusers)
            output(call("migrate", "--dsn", address))
            output(call("uninstall", "--yes", "--dsn", address))
            assert schema_dump(server, superusers) == before
            run(db, f"drop owned by {host}")


def test_what_our_roles_may_do_in_another_database_survives_an_uninstallation(
    server: PrivateCluster, database: str, empty_database: str
) -> None:
    name = str(conninfo_to_dict(database)["dbname"])
    granted = f"select datacl::text from pg_database where datname = '{name}'"
    output(call("migrate", "--dsn", empty_database))
    with psycopg.connect(database, autocommit=True) as db:
        run(db, f"revoke connect on database {name} from public")
        run(db, f"grant connect on database {name} to builder_score_operator")
        before = one(db, granted)
        output(call("uninstall", "--yes", "--dsn", empty_database))
        assert one(db, granted) == before


def test_an_installer_that_may_create_no_index_is_refused_before_anything_is_done(
    server: PrivateCluster, template: str
) -> None:
    with owned_database(server) as address:
        parts = conninfo_to_dict(address)
        with psycopg.connect(dsn(server, str(parts["dbname"])), autocommit=True) as db:
            run(db, HOST)
            for table in ("users", "projects", "project_collaborators"):
                run(db, f"alter table app.{table} owner to {parts['user']}")
            run(db, f"grant usage on schema app to {parts['user']}")
            line = error_line(call("migrate", "--host-schema", "app", "--dsn", address))
            assert f'role {parts["user"]} may create no index in schema "app"' in line
            assert one(db, "select to_regnamespace('builder_score') is null")
            run(db, line[line.index("GRANT CREATE") : line.index("; which may")])
            output(call("migrate", "--host-schema", "app", "--dsn", address))
            run(db, f"revoke create on schema app from {parts['user']}")
        output(call("uninstall", "--yes", "--dsn", address))


def test_roles_that_a_dba_has_created_and_granted_are_used(
    server: PrivateCluster, template: str
) -> None:
    with owned_database(server) as address:
        owner = str(conninfo_to_dict(address)["user"])
        server.psql("-c", f"grant builder_score_owner to {owner}")
        said = output(call("migrate", "--dsn", address))
        assert "may not create or become" not in said
        with psycopg.connect(address, autocommit=True) as installer:
            assert one(installer, "select builder_score.owner_role()") == "builder_score_owner"
            configure(installer, debounce_window="0")
            ann = add_user(installer, "ann", bio="ships")
            drain(installer)
            assert score(installer, ann) == 3
            assert privileges(installer, "builder_score_owner") == {
                *(
                    ("table", name, "SELECT")
                    for name in ("users", "projects", "project_collaborators")
                ),
                ("column", "users.builder_score", "UPDATE"),
            }
            run(installer, "truncate users cascade")
        output(call("uninstall", "--yes", "--dsn", address))


def test_an_installer_that_does_not_inherit_is_refused_before_anything_is_done(
    server: PrivateCluster, template: str
) -> None:
    with owned_database(server, "noinherit") as address:
        owner = str(conninfo_to_dict(address)["user"])
        server.psql("-c", f"grant builder_score_owner to {owner}")
        with psycopg.connect(address) as installer:  # in public it may create nothing either
            installer.execute("create schema mine")
        migrate = ("migrate", "--host-schema", "mine", "--dsn", address)
        line = error_line(call(*migrate))
        assert f"role {owner} does not inherit the rights of builder_score_owner" in line
        with psycopg.connect(address) as installer:
            assert one(installer, "select to_regnamespace('builder_score') is null")
        # of the role until PostgreSQL 15, of the grant since
        mend = f"GRANT builder_score_owner TO {owner} WITH INHERIT TRUE, SET TRUE"
        if server.version < 16:
            mend = f"ALTER ROLE {owner} INHERIT"
        assert f"As a superuser: {mend}; then migrate again" in line
        server.psql("-c", mend)
        assert "may not create or become" not in output(call(*migrate))
        with psycopg.connect(address) as installer:
            assert one(installer, "select builder_score.owner_role()") == "builder_score_owner"
        output(call("uninstall", "--yes", "--dsn", address))
