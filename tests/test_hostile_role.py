"""A hostile application role: it may write rows and create objects, and gains nothing by it."""

from collections.abc import Iterator
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection, errors
from psycopg.conninfo import conninfo_to_dict

from pyscore.cluster import PrivateCluster
from tests.community import add_project, add_user, configure, drain, one, score
from tests.conftest import dsn
from tests.oracle import assert_all_right
from tests.statements import run


@pytest.fixture
def role(server: PrivateCluster) -> Iterator[str]:
    name = f"hostile_{uuid4().hex[:12]}"
    server.psql("-c", f"create role {name} login")
    yield name
    server.psql("-c", f"drop role {name}")


@pytest.fixture
def app(
    server: PrivateCluster, database: str, db: Connection[Any], role: str
) -> Iterator[Connection[Any]]:
    """A session of the application's role, which may also create objects in public."""
    configure(db, debounce_window="0")
    run(db, f"grant select, insert, update, delete, truncate on users to {role}")
    run(db, f"grant select, insert, update, delete on projects, project_collaborators to {role}")
    run(db, f"grant create on schema public to {role}")
    name = str(conninfo_to_dict(database)["dbname"])
    with psycopg.connect(dsn(server, name, user=role), autocommit=True) as app:
        yield app
    run(db, f"drop owned by {role}")


def objects(db: Connection[Any], kind: str) -> list[str]:
    queries: dict[str, LiteralString] = {
        "relation": "select oid::regclass::text from pg_class"
        " where relnamespace = 'builder_score'::regnamespace and relkind in ('r', 'v', 'S')",
        "routine": "select oid::regprocedure::text from pg_proc"
        " where pronamespace = 'builder_score'::regnamespace",
    }
    return [name for (name,) in db.execute(queries[kind]).fetchall()]


def test_it_can_neither_read_nor_write_our_tables(
    app: Connection[Any], db: Connection[Any]
) -> None:
    relations = objects(db, "relation")
    assert len(relations) > 15
    for relation in relations:
        for attempt in (f"select * from {relation}", f"delete from {relation}"):
            with pytest.raises(errors.InsufficientPrivilege):
                run(app, attempt)


def test_it_can_call_none_of_our_functions(app: Connection[Any], db: Connection[Any]) -> None:
    role = one(app, "select current_user::text")
    routines = objects(db, "routine")
    assert len(routines) > 50
    usable = [
        routine
        for routine in routines
        if one(db, "select has_function_privilege(%s, %s, 'execute')", role, routine)
    ]
    assert usable == []
    for call in (
        "select builder_score.recalculate(id) from users",
        "select builder_score.enqueue(gen_random_uuid())",
        "call builder_score.drain()",
        "create trigger mine after update on users"
        " for each row execute function builder_score.users_after_update('x')",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            run(app, call)


@pytest.mark.parametrize("flag", ["", "0", "1", "2", "on"])
def test_it_cannot_forge_a_score_by_posing_as_our_writer(
    app: Connection[Any], db: Connection[Any], flag: str
) -> None:
    ann = add_user(app, "ann", bio="ships")
    drain(db)
    app.execute("select set_config('builder_score.writing', %s, false)", [flag])
    app.execute("update users set builder_score = 100 where id = %s", [ann])
    drain(db)
    assert score(db, ann) == 3
    assert_all_right(db)


def test_advisory_locks_that_anybody_may_take_keep_no_transaction_of_ours_waiting(
    app: Connection[Any], db: Connection[Any]
) -> None:
    people = [add_user(app, f"user{number}", bio="ships") for number in range(20)]
    drain(db)
    run(app, "select pg_advisory_lock(1651271539, key) from generate_series(2, 100) as key")
    run(db, "set statement_timeout = '10s'")
    db.execute(
        "update builder_score.signals set max_points = 30, scale = 30 where signal = 'profile'"
    )
    db.execute("insert into builder_score.statuses values ('shipped', 'live')")
    for person in people:
        db.execute("select builder_score.recalculate(%s)", [person])
    db.execute("call builder_score.run_worker('0.5 seconds')")
    assert one(db, "select count(*) from builder_score.score_counts") < 8
    drain(db)
    assert_all_right(db)
    run(db, "select setval('builder_score.score_recalc_queue_id_seq', 1, false)")
    run(
        db,
        "insert into builder_score.score_recalc_queue (id, priority, reason)"
        " overriding system value values (9, 20, '')",
    )
    run(db, "select builder_score.keep_queue_ids_ahead()")
    assert one(db, "select last_value from builder_score.score_recalc_queue_id_seq") == 9


def test_what_an_operator_left_for_the_end_of_a_transaction_is_not_run_by_our_owner(
    app: Connection[Any], db: Connection[Any]
) -> None:
    operator, role = app, one(app, "select current_user::text")
    run(db, f"grant builder_score_operator to {role}")
    ann = add_user(db, "ann", bio="ships")
    run(operator, "create temporary table bait (n integer)")
    run(operator, "create temporary table loot (who text)")
    run(operator, "grant insert on loot to public")
    run(
        operator,
        """
        create function pg_temp.mine() returns trigger language plpgsql as $$
        begin
            insert into pg_temp.loot values (current_user);
            return null;
        end $$;
        create constraint trigger mine after insert on bait deferrable initially deferred
            for each row execute function pg_temp.mine();
        """,
    )
    with operator.transaction():
        run(operator, "insert into bait values (1)")
        run(operator, f"select builder_score.enqueue('{ann}', 0)")
        assert one(operator, "select recalculated from builder_score.run_batch('drain')") == 1
        with pytest.raises(errors.InsufficientPrivilege), operator.transaction():
            run(operator, "select builder_score.fire_deferred_triggers()")
    assert operator.execute("select distinct who from pg_temp.loot").fetchall() == [(role,)]
    drain(db)
    assert_all_right(db)


# Each records who runs it. With public first on the search_path they are found before pg_catalog's.
FUNCTIONS = {
    "clock_timestamp()": ("timestamptz", "pg_catalog.clock_timestamp()"),
    "now()": ("timestamptz", "pg_catalog.now()"),
    "set_config(text, text, boolean)": ("text", "pg_catalog.set_config($1, $2, $3)"),
    "current_setting(text)": ("text", "pg_catalog.current_setting($1)"),
    "current_setting(text, boolean)": ("text", "pg_catalog.current_setting($1, $2)"),
    "pg_trigger_depth()": ("integer", "pg_catalog.pg_trigger_depth()"),
    "unnest(anyarray)": ("setof anyelement", "pg_catalog.unnest($1)"),
    "cardinality(anyarray)": ("integer", "pg_catalog.cardinality($1)"),
    "round(numeric, integer)": ("numeric", "pg_catalog.round($1, $2)"),
    "log(double precision)": ("double precision", "pg_catalog.log($1)"),
    "jsonb_typeof(jsonb)": ("text", "pg_catalog.jsonb_typeof($1)"),
    "octet_length(text)": ("integer", "pg_catalog.octet_length($1)"),
    "is_filled(text)": ("boolean", "true"),
    "count_of(numeric)": ("numeric", "1e9"),
}
OPERATORS = {
    "=": ["uuid", "text", "integer", "timestamptz", "bigint", "smallint"],
    "<>": ["uuid", "text", "integer"],
    "<": ["uuid", "timestamptz", "integer"],
    "<=": ["timestamptz"],
    ">": ["uuid", "timestamptz", "integer"],
    "-": ["timestamptz"],
}


def set_traps(app: Connection[Any]) -> None:
    run(app, "create table public.loot (who text, what text)")
    run(app, "grant all on public.loot to public")
    for signature, (returns, body) in FUNCTIONS.items():
        query = "return query select" if returns.startswith("setof") else "return"
        run(
            app,
            f"create function public.{signature} returns {returns} language plpgsql as $x$ begin"
            f" insert into public.loot values (current_user, '{signature}');"
            f" {query} {body}; end $x$",
        )
    for operator, types in OPERATORS.items():
        for number, name in enumerate(types):
            function = f"trap_{'_'.join(str(ord(letter)) for letter in operator)}_{number}"
            result = "interval" if operator == "-" else "boolean"
            run(
                app,
                f"create function public.{function}({name}, {name}) returns {result}"
                f" language plpgsql as $x$ begin insert into public.loot values"
                f" (current_user, '{function}');"
                f" return $1 operator(pg_catalog.{operator}) $2; end $x$",
            )
            run(
                app,
                f"create operator public.{operator} (leftarg = {name}, rightarg = {name},"
                f" function = public.{function})",
            )


def live(app: Connection[Any]) -> UUID:
    """Fire every trigger."""
    ann = UUID(str(add_user(app, "ann", bio="ships")))
    bob = add_user(app, "bob")
    project = add_project(app, ann, github_stars=7)
    app.execute("update projects set status = 'shipped' where title like 'a%'")
    app.execute(
        "insert into project_collaborators (project_id, user_id, status)"
        " values (%s, %s, 'confirmed')",
        [project, bob],
    )
    app.execute("update users set bio = 'more', builder_score = 99 where username like 'a%'")
    app.execute("update projects set owner_id = %s where title like 'a%%'", [bob])
    app.execute("delete from project_collaborators")
    app.execute("delete from projects where title like 'z%'")
    return ann


def test_what_it_shadows_never_runs_as_anybody_else(
    app: Connection[Any], db: Connection[Any]
) -> None:
    role = one(app, "select current_user::text")
    set_traps(app)
    run(app, "set search_path = public, pg_catalog")
    live(app)
    # a DBA's sessions have the default search_path, as pg_cron's do
    drain(db)
    db.execute("select builder_score.recalculate(id) from users")
    db.execute("select count(*) from users as u cross join builder_score.explain(u.id)")
    db.execute("select count(*) from builder_score.verify()")
    db.execute("select * from builder_score.health")
    db.execute("call builder_score.run_worker('0.1 seconds')")
    db.execute("select * from builder_score.attach()")
    drain(db)
    assert_all_right(db)
    ran = {who for (who,) in db.execute("select who from public.loot").fetchall()}
    assert ran <= {role}


def test_the_traps_catch_whoever_is_careless(app: Connection[Any], db: Connection[Any]) -> None:
    """Without this the test above could not fail."""
    set_traps(app)
    with db.transaction(force_rollback=True):
        run(db, "set local search_path = public, pg_catalog")
        run(db, "select clock_timestamp()")
        run(db, "select '6ad9'::text = '6ad9'::text")
        caught = db.execute("select who, what from public.loot").fetchall()
    assert len({what for _, what in caught}) == 2


def test_temporary_tables_of_our_names_divert_nothing(
    app: Connection[Any], db: Connection[Any]
) -> None:
    for name in ("score_recalc_queue", "settings", "host", "score_state", "signals"):
        run(app, f"create temporary table {name} (id bigint, user_id uuid, paused boolean)")
    run(app, "set search_path = pg_temp, public")
    ann = live(app)
    # its own session's temporary tables would be first for whatever runs there as our owner
    assert one(db, "select count(*) from builder_score.score_recalc_queue") > 5
    assert one(app, "select count(*) from pg_temp.score_recalc_queue") == 0
    drain(db)
    assert_all_right(db)
    assert score(db, ann) is not None
