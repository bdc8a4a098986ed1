"""Hosts that are not like the reference tables: each of these once scored wrongly, or broke."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator
from pyscore.errors import PyscoreError
from tests.community import configure, drain
from tests.interleave import assert_right
from tests.statements import run

Install = Callable[[str], Connection[Any]]

USERS = "create table users (id bigint primary key, username text);"
PROJECTS = """
    create table projects (
        id bigint primary key, owner_id bigint references users on delete cascade, status text);
"""
COLLABORATORS = """
    create table project_collaborators (
        project_id bigint references projects on delete cascade,
        user_id bigint references users on delete cascade,
        status text);
"""


@pytest.fixture
def install(empty_database: str) -> Iterator[Install]:
    """Create a host with the given statements, migrate it, switch the debounce off."""
    opened: list[Connection[Any]] = []

    def create(tables: str) -> Connection[Any]:
        db = psycopg.connect(empty_database, autocommit=True)
        opened.append(db)
        run(db, tables)
        migrator.upgrade(empty_database)
        configure(db, debounce_window="0")
        return db

    yield create
    for db in opened:
        db.close()


def scores(db: Connection[Any]) -> dict[Any, Any]:
    return dict(run(db, "select id, builder_score from users"))  # type: ignore[arg-type]


def test_a_transfer_to_another_partition_reaches_the_collaborators(install: Install) -> None:
    db = install(
        USERS
        + """
        create table projects (id bigint, owner_id bigint, status text, primary key (id, owner_id))
            partition by list (owner_id);
        create table projects_1 partition of projects for values in (1);
        create table projects_2 partition of projects for values in (2);
        create table project_collaborators (project_id bigint, user_id bigint, status text);
        """
    )
    run(db, "insert into users values (1), (2), (3)")
    run(db, "insert into projects values (8, 1, 'shipped'), (9, 2, 'shipped')")
    run(db, "insert into project_collaborators values (8, 3, 'confirmed'), (9, 3, 'confirmed')")
    drain(db)
    assert scores(db)[3] == 13  # two people vouch
    # an update that changes the partition fires as a delete and an insert
    run(db, "update projects set owner_id = 1 where id = 9")
    drain(db)
    assert scores(db)[3] == 8
    # nor does anything keep a collaborator from being there before the project
    run(db, "insert into project_collaborators values (7, 3, 'confirmed')")
    drain(db)
    run(db, "insert into projects values (7, 2, 'x')")
    drain(db)
    assert scores(db)[3] == 13
    assert_right(db)


def test_what_is_written_to_a_partition_directly_counts(install: Install) -> None:
    db = install(
        """
        create table users (id bigint primary key) partition by hash (id);
        create table users_0 partition of users for values with (modulus 2, remainder 0);
        create table users_1 partition of users for values with (modulus 2, remainder 1);
        """
        + PROJECTS
        + COLLABORATORS
    )
    run(db, "insert into users select generate_series(1, 10)")
    run(db, "insert into projects select i, i, 'shipped' from generate_series(1, 10) i")
    drain(db)
    run(db, "delete from users_0")
    run(
        db,
        "insert into users_0 select i from generate_series(1, 99) i"
        " where satisfies_hash_partition('users'::regclass, 2, 0, i::bigint) limit 1",
    )
    drain(db)
    assert_right(db)
    assert run(db, "select count(*) from builder_score.score_state") == run(
        db, "select count(*) from users"
    )
    valid = "select bool_and(indisvalid) from pg_index where indrelid = 'users'::regclass"
    assert run(db, valid) == [(True,)]


def test_without_foreign_keys_collaborators_come_before_and_outlive_projects(
    install: Install,
) -> None:
    db = install(
        USERS
        + """
        create table projects (id bigint primary key, owner_id bigint, status text);
        create table project_collaborators (project_id bigint, user_id bigint, status text);
        """
    )
    run(db, "insert into users values (1), (2)")
    run(db, "insert into project_collaborators values (9, 2, 'confirmed')")
    drain(db)
    assert scores(db) == {1: 0, 2: 0}
    run(db, "insert into projects values (9, 1, 'x')")
    drain(db)
    assert scores(db) == {1: 8, 2: 8}
    run(db, "delete from projects")
    drain(db)
    assert scores(db) == {1: 0, 2: 0}
    assert_right(db)


def test_dates_beyond_the_range_of_timestamps_score_and_refresh(install: Install) -> None:
    db = install(
        "create table users (id bigint primary key, created_at date);" + PROJECTS + COLLABORATORS
    )
    run(
        db,
        "insert into users values (1, '5874897-12-31'), (2, '4713-01-01 BC'), (3, 'infinity'),"
        " (4, '-infinity'), (5, null)",
    )
    drain(db)
    assert scores(db) == {1: 0, 2: 10, 3: 0, 4: 10, 5: 0}
    run(db, "update builder_score.score_state set computed_at = computed_at - interval '8 days'")
    run(db, "select builder_score.refresh_ages()")
    drain(db)
    assert run(db, "select * from builder_score.backfill") == []
    assert run(db, "select last_error from builder_score.health") == [(None,)]


def test_row_level_security_that_is_switched_on_later_hides_nothing(install: Install) -> None:
    db = install(USERS + PROJECTS + COLLABORATORS)
    run(db, "insert into users values (1)")
    run(db, "insert into projects values (1, 1, 'shipped')")
    for table in ("users", "projects", "project_collaborators"):
        run(db, f"alter table {table} enable row level security")
        run(db, f"alter table {table} force row level security")
    drain(db)
    assert scores(db) == {1: 10}
    assert run(db, "select count(*) from builder_score.score_state") == [(1,)]


def test_a_restrictive_policy_on_our_role_is_refused(install: Install) -> None:
    db = install(USERS + PROJECTS + COLLABORATORS)
    run(db, "alter table projects enable row level security")
    run(db, "create policy tenants on projects as restrictive using (false)")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="tenants") as refused:
        run(db, "select builder_score.attach()")
    assert "ALTER POLICY" in (refused.value.diag.message_hint or "")


def test_an_owner_longer_than_any_id_does_not_break_the_application(install: Install) -> None:
    db = install(
        """
        create table users (id varchar(26) primary key, username text);
        create table projects (id varchar(26) primary key, owner_id text, status text);
        create table project_collaborators (project_id text, user_id text, status text);
        """
    )
    ulid = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    run(db, f"insert into users values ('{ulid}', 'ada')")
    run(db, "insert into projects values ('p', 'imported:' || repeat('x', 40), 'shipped')")
    run(db, f"insert into projects values ('q', '{ulid}', 'shipped')")
    drain(db)
    assert scores(db) == {ulid: 10}
    # an id that was typed too long is nobody's
    assert run(db, f"select builder_score.find_user('{ulid}-and-more')") == [(None,)]


def test_a_user_is_found_by_name_where_ids_have_a_check(install: Install) -> None:
    db = install(
        """
        create domain ulid as text check (length(value) = 26);
        create table users (id ulid primary key, username text);
        create table projects (id bigint primary key, owner_id ulid, status text);
        create table project_collaborators (project_id bigint, user_id ulid, status text);
        """
    )
    ulid = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    run(db, f"insert into users values ('{ulid}', 'ada')")
    for name in ("ada", ulid):
        assert run(db, f"select builder_score.find_user('{name}')::text") == [(ulid,)]


def test_a_key_of_a_foreign_type_is_refused(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        # an operator class of its own, as citext has, in a schema that the worker does not search
        run(db, "create type pair as (a int, b int)")
        run(db, "create table users (id pair primary key)")
        run(db, "create table projects (id bigint primary key, owner_id pair, status text)")
        run(db, "create table project_collaborators (project_id int, user_id pair, status text)")
    with pytest.raises(PyscoreError, match=r"users\.id has type .*pair\. Expected a type of"):
        migrator.upgrade(empty_database)


def test_a_score_that_a_host_trigger_writes_beside_ours_is_mended(install: Install) -> None:
    db = install(USERS + PROJECTS + COLLABORATORS)
    run(db, "insert into users values (1), (2)")
    drain(db)
    run(
        db,
        """
        create function meddle() returns trigger language plpgsql as $$
        begin
            update public.users set builder_score = 77 where id = 2;
            return null;
        end $$;
        create trigger meddle after update of builder_score on users
            for each row when (new.id = 1) execute function meddle();
        """,
    )
    run(db, "insert into projects values (1, 1, 'shipped')")
    drain(db)
    assert scores(db) == {1: 10, 2: 0}
    assert_right(db)


def test_partitions_with_long_names_get_an_index_each(install: Install) -> None:
    long = "project_collaborators_of_a_rather_long_name_part"
    db = install(f"""
        {USERS}
        {PROJECTS}
        create table project_collaborators (project_id bigint, user_id bigint, status text)
            partition by hash (user_id);
        create table {long}_1 partition of project_collaborators
            for values with (modulus 2, remainder 0);
        create table {long}_2 partition of project_collaborators
            for values with (modulus 2, remainder 1);
    """)
    indexes = run(
        db,
        "select c.relname, i.indisvalid, count(p.inhrelid) from pg_index as i"
        " join pg_class as c on c.oid = i.indexrelid"
        " left join pg_inherits as p on p.inhparent = i.indexrelid"
        " where i.indrelid = 'project_collaborators'::regclass group by 1, 2",
    )
    assert len(indexes) == 2
    assert {(valid, parts) for _, valid, parts in indexes} == {(True, 2)}


def test_the_grant_that_a_hosts_trigger_lacks_names_the_schema_of_its_table(
    install: Install,
) -> None:
    db = install(USERS + PROJECTS + COLLABORATORS)
    run(
        db,
        """
        create schema audit;
        create table audit.entries (what text);
        create function audit() returns trigger language plpgsql as
            'begin insert into audit.entries values (new.username); return new; end';
        create trigger audit before update on users for each row execute function audit();
        grant usage on schema audit to builder_score_owner;
        insert into users values (1, 'ada')
        """,
    )
    (advice,) = (line for (line,) in run(db, "select builder_score.attach()") if "failed" in line)
    run(db, advice.partition("mend it with: ")[2])
    assert not any("failed" in line for (line,) in run(db, "select builder_score.attach()"))
