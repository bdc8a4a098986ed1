"""What holds for every object we create: checked, described, pinned, and for nobody by default."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator
from tests.commands import ROOT
from tests.hosts import create_application

# What plpgsql_check is wrong about.
ACCEPTED = {
    # what is executed comes from needed_triggers() and needed_access(), not from anybody's input
    ("builder_score.define_triggers()", "text type variable is not sanitized"),
    ("builder_score.define_access()", "text type variable is not sanitized"),
    # one value among others, and a record it is
    ("builder_score.run_batch(text,builder_score.run_memory)", "is not single argument"),
    (
        "builder_score.choose_next(integer,bigint,builder_score.user_id[],"
        "timestamp with time zone[],integer,integer,interval,builder_score.run_memory)",
        "is not single argument",
    ),
    (
        "builder_score.run_round(text,integer,timestamp with time zone,builder_score.run_memory)",
        "is not single argument",
    ),
    # it takes the handler that falls through for one that returns
    ("builder_score.try_write()", "unreachable code"),
}

# A trigger function is checked once per trigger: with its table and its transition tables.
CHECK = """
with target as (
    select p.oid, 0::oid as host_table, null::text as old_rows, null::text as new_rows
    from pg_proc as p
    join pg_language as l on l.oid = p.prolang and l.lanname = 'plpgsql'
    where p.pronamespace = 'builder_score'::regnamespace and p.prorettype <> 'trigger'::regtype
    union
    -- a function that serves several events meets the transition tables of all of them
    select t.tgfoid, t.tgrelid,
           max(t.tgoldtable) over (partition by t.tgfoid),
           max(t.tgnewtable) over (partition by t.tgfoid)
    from pg_trigger as t
    join pg_proc as p on p.oid = t.tgfoid
    where p.pronamespace = 'builder_score'::regnamespace
)
select t.oid::regprocedure::text, c.message
from target as t
cross join lateral plpgsql_check_function_tb(
    t.oid, t.host_table, oldtable => t.old_rows, newtable => t.new_rows,
    other_warnings => true, extra_warnings => true, security_warnings => true
) as c
"""


def names(db: Connection[Any], query: str) -> list[str]:
    return [name for (name,) in db.execute(query).fetchall()]  # type: ignore[call-overload]


@pytest.fixture
def with_pg_cron(cron_database: str) -> Iterator[Connection[Any]]:
    """A migrated database with pg_cron's tables, which some functions read."""
    with psycopg.connect(cron_database) as connection:
        connection.execute("create extension plpgsql_check")
        yield connection
        connection.rollback()


@pytest.fixture
def with_policies(empty_database: str) -> Iterator[Connection[Any]]:
    """A migrated host on which everything that we can create is there: policies and all indexes."""
    with psycopg.connect(empty_database, autocommit=True) as connection:
        create_application(connection)
        connection.execute("alter table users enable row level security")
        migrator.upgrade(empty_database)
        yield connection


def test_plpgsql_check_finds_nothing(with_pg_cron: Connection[Any]) -> None:
    findings = with_pg_cron.execute(CHECK).fetchall()
    unexpected = [
        (function, message)
        for function, message in findings
        if not any(function == name and part in message for name, part in ACCEPTED)
    ]
    assert unexpected == []


def test_every_trigger_function_has_a_trigger_that_it_is_checked_with(
    with_pg_cron: Connection[Any],
) -> None:
    unused = names(
        with_pg_cron,
        """
        select oid::regprocedure::text from pg_proc
        where pronamespace = 'builder_score'::regnamespace and prorettype = 'trigger'::regtype
          and oid not in (select tgfoid from pg_trigger)
        """,
    )
    assert unused == []


def test_every_object_has_a_comment(with_policies: Connection[Any]) -> None:
    silent = names(
        with_policies,
        r"""
        with relation as (
            select c.* from pg_class as c
            where c.relnamespace = 'builder_score'::regnamespace
              and c.relname !~ '^alembic_version'  -- Alembic's, not ours
        ),
        object(kind, name, class, oid, part) as (
            select 'schema', nspname, 'pg_namespace', oid, 0
            from pg_namespace where nspname = 'builder_score'
            union all
            select 'relation', relname, 'pg_class', oid, 0 from relation where relkind in ('r', 'v')
            union all
            select 'column', r.relname || '.' || a.attname, 'pg_class', r.oid, a.attnum
            from relation as r join pg_attribute as a on a.attrelid = r.oid
            where r.relkind in ('r', 'v') and a.attnum > 0 and not a.attisdropped
            union all
            select 'index', c.relname, 'pg_class', c.oid, 0
            from pg_index as i
            join pg_class as c on c.oid = i.indexrelid
            where (i.indrelid in (select oid from relation) or c.relname like 'idx\_%')
              and not exists (select from pg_constraint as k where k.conindid = c.oid)
            union all
            select 'routine', p.oid::regprocedure::text, 'pg_proc', p.oid, 0
            from pg_proc as p where p.pronamespace = 'builder_score'::regnamespace
            union all
            select 'domain', t.typname, 'pg_type', t.oid, 0
            from pg_type as t
            where t.typnamespace = 'builder_score'::regnamespace and t.typtype = 'd'
            union all
            select 'trigger', concat(t.tgname, ' on ', t.tgrelid::regclass), 'pg_trigger', t.oid, 0
            from pg_trigger as t join pg_proc as p on p.oid = t.tgfoid
            where p.pronamespace = 'builder_score'::regnamespace
            union all
            select 'policy', concat(p.polname, ' on ', p.polrelid::regclass), 'pg_policy', p.oid, 0
            from pg_policy as p
            union all
            select 'host column', 'users.builder_score', 'pg_class', a.attrelid, a.attnum
            from pg_attribute as a
            where a.attrelid = 'users'::regclass and a.attname = 'builder_score'
        ),
        role as (
            select rolname, shobj_description(oid, 'pg_authid') as comment
            from pg_roles where rolname like 'builder\_score\_%'
        )
        select concat_ws(' ', o.kind, o.name)
        from object as o
        left join pg_description as d
            on d.classoid = o.class::regclass and d.objoid = o.oid and d.objsubid = o.part
        where d.description is null
        union all
        select 'role ' || rolname from role where comment is null
        """,
    )
    assert silent == []
    policies = with_policies.execute("select count(*) > 0 from pg_policy").fetchone()
    assert policies == (True,), (
        "the host has none of our policies: their comments were not looked at"
    )


def test_every_function_pins_its_search_path(db: Connection[Any]) -> None:
    free = names(
        db,
        """
        select oid::regprocedure::text from pg_proc
        where pronamespace = 'builder_score'::regnamespace
          and not ('search_path=pg_catalog, pg_temp' = any(coalesce(proconfig, '{}')))
          and prosqlbody is null  -- in a standard body names are bound when it is created
          and not (prokind = 'p' and prosrc ~ 'commit;')  -- with a pinned path it could not commit
        """,
    )
    assert free == []


def test_nothing_is_granted_to_public(with_policies: Connection[Any]) -> None:
    public = names(
        with_policies,
        """
        select g.name
        from (
            select 'schema', nspname, coalesce(nspacl, acldefault('n', nspowner))
            from pg_namespace where nspname = 'builder_score'
            union all
            select 'relation', relname,
                coalesce(relacl, acldefault(translate(relkind, 'Sv', 'sr')::"char", relowner))
            from pg_class
            where relnamespace = 'builder_score'::regnamespace and relkind in ('r', 'v', 'S')
            union all
            select 'column', concat(attrelid::regclass, '.', attname), attacl
            from pg_attribute as a join pg_class as c on c.oid = a.attrelid
            where c.relnamespace = 'builder_score'::regnamespace and attacl is not null
            union all
            select 'routine', oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner))
            from pg_proc where pronamespace = 'builder_score'::regnamespace
            union all
            select 'domain', typname, coalesce(typacl, acldefault('T', typowner))
            from pg_type
            where typnamespace = 'builder_score'::regnamespace and typtype = 'd'
        ) as g(kind, name, acl)
        cross join lateral aclexplode(g.acl) as a
        where a.grantee = 0
        """,
    )
    assert public == []


def test_trigger_functions_run_as_the_owner_who_cannot_log_in(db: Connection[Any]) -> None:
    functions = db.execute(
        """
        select p.proname, p.prosecdef, r.rolname, r.rolcanlogin
        from pg_proc as p join pg_roles as r on r.oid = p.proowner
        where p.pronamespace = 'builder_score'::regnamespace and p.prorettype = 'trigger'::regtype
          and p.proname <> 'keep_settings_row'  -- only ever raises
        """
    ).fetchall()
    assert len(functions) > 10
    for name, security_definer, owner, owner_may_log_in in functions:
        assert (security_definer, owner, owner_may_log_in) == (
            True,
            "builder_score_owner",
            False,
        ), name


def test_whatever_touches_the_queue_says_first_what_it_reads_and_writes(
    db: Connection[Any],
) -> None:
    touching = db.execute(
        r"""
        select oid::regprocedure::text, prosrc from pg_proc
        where pronamespace = 'builder_score'::regnamespace
          and prosrc ~ ('(from|join|into|update) builder_score\.(score_recalc_queue|score_state'
                        '|score_counts|score_dead_letter|backfill|worker_status|settings'
                        '|host_users|host_projects|host_collaborations)\y')
        """
    ).fetchall()
    assert len(touching) > 25
    for name, source in touching:
        first, second, *_ = source.strip().splitlines()
        assert first.startswith("-- reads: "), name
        assert second.startswith("-- writes: "), name


def test_sql_files_are_clean_text() -> None:
    files = [*(ROOT / "sql").glob("*.sql"), *(ROOT / "migrations" / "versions").glob("*.sql")]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "\t" not in text, f"{path.name}: offline, Alembic turns tabs into spaces"
        assert text.endswith("\n"), path.name
        assert text.isascii(), f"{path.name}: a database may have any encoding"
        dirty = [line for line in text.splitlines() if line != line.rstrip()]
        assert dirty == [], path.name
