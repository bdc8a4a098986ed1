"""The intake: which rows each write to the host's tables appends to the queue, and no others."""

from collections.abc import Iterator
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection, IsolationLevel, sql

from pyscore.cluster import PrivateCluster
from tests.community import (
    add_collaborator,
    add_project,
    add_user,
    configure,
    drain,
    insert,
    queue,
    score,
)
from tests.oracle import assert_all_right

Db = Connection[Any]
Row = tuple[UUID | None, UUID | None, int]

EVERYONE: Row = (None, None, 20)
HOST_TABLES = ("users", "projects", "project_collaborators")


def low(user: UUID) -> Row:
    return (user, None, 20)


def medium(user: UUID) -> Row:
    return (user, None, 10)


def of_project(project: UUID) -> Row:
    return (None, project, 10)


def appended(db: Db, query: LiteralString | sql.Composed, *values: object) -> list[Row]:
    """The rows (user, project, priority) that a statement appends, in order of arrival."""
    db.execute("delete from builder_score.score_recalc_queue")
    db.execute(query, values or None)
    return [row[:3] for row in queue(db)]


# users --------------------------------------------------------------------------------------------


def test_a_new_user_is_appended(scratch: Db) -> None:
    ada = uuid4()
    query = "insert into users (id, username, email) values (%s, 'ada', 'ada@example.org')"
    assert appended(scratch, query, ada) == [low(ada)]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("avatar_url", "https://example.org/ada.png"),
        ("headline", "builder"),
        ("bio", ""),
        ("primary_role", "designer"),
        ("timezone", "Europe/Berlin"),
        ("contact_links", '{"web": "https://example.org"}'),
        ("created_at", "2020-01-01"),
    ],
)
def test_what_the_profile_or_age_depends_on_appends_the_user_when_it_really_changes(
    scratch: Db, column: str, value: str
) -> None:
    ada = add_user(scratch, "ada")
    add_user(scratch, "bob")
    name = sql.Identifier(column)
    change = sql.SQL("update users set {} = %s where id = %s").format(name)
    assert appended(scratch, change, value, ada) == [low(ada)]
    assert appended(scratch, change, value, ada) == []
    assert appended(scratch, sql.SQL("update users set {0} = {0}").format(name)) == []
    if column not in ("contact_links", "created_at"):
        assert appended(scratch, change, None, ada) == [low(ada)]
        assert appended(scratch, change, None, ada) == []


@pytest.mark.parametrize(
    "assignment",
    [
        "updated_at = now() + interval '1 day'",
        "display_name = 'Ada L.'",
        "username = 'countess'",
        "email = 'countess@example.org'",
        "availability = 'busy'",
        "id = id, bio = bio, builder_score = builder_score, contact_links = contact_links",
    ],
)
def test_other_columns_of_users_append_nothing(scratch: Db, assignment: LiteralString) -> None:
    add_user(scratch, "ada", bio="builds things")
    query = sql.SQL("update users set {}").format(sql.SQL(assignment))
    assert appended(scratch, query) == []


def test_a_column_that_the_score_does_not_know_appends_nothing(scratch: Db) -> None:
    add_user(scratch, "ada")
    scratch.execute("alter table users add column last_seen timestamptz")
    assert appended(scratch, "update users set last_seen = now()") == []


@pytest.mark.parametrize("stale", ["99", "null"])
def test_a_score_that_somebody_else_writes_appends_the_user(
    scratch: Db, stale: LiteralString
) -> None:
    ada = add_user(scratch, "ada")
    add_user(scratch, "bob")
    query = sql.SQL("update users set builder_score = {} where id = %s").format(sql.SQL(stale))
    assert appended(scratch, query, ada) == [low(ada)]
    assert appended(scratch, query, ada) == []


def test_nobody_can_pose_as_our_writer_by_its_setting(scratch: Db) -> None:
    ada = add_user(scratch, "ada")
    scratch.execute("set local builder_score.writing = 'on'")
    assert appended(scratch, "update users set builder_score = 99") == [low(ada)]


def test_nobody_can_pose_as_our_writer_by_its_role(scratch: Db) -> None:
    ada = add_user(scratch, "ada")
    scratch.execute("delete from builder_score.score_recalc_queue")
    scratch.execute("set local role builder_score_owner")
    scratch.execute("update users set builder_score = 99")
    assert [row[:3] for row in queue(scratch)] == [low(ada)]


def test_an_object_saved_whole_by_an_orm_appends_only_its_user(scratch: Db) -> None:
    ada = add_user(scratch, "ada")
    rows = appended(scratch, "update users set bio = 'new', builder_score = 99, updated_at = now()")
    assert set(rows) == {low(ada)}


def test_stale_scores_are_put_right_and_our_own_write_is_not_enqueued(db: Db) -> None:
    configure(db, debounce_window="0")
    ada = add_user(db, "ada", bio="builds things")
    add_project(db, ada, status="shipped")
    drain(db)
    assert score(db, ada) == 13
    assert queue(db) == []
    for stale in (99, None, 0):
        db.execute("update users set builder_score = %s", [stale])
        before = db.execute("select sum(recalculated) from builder_score.worker_status").fetchone()
        drain(db)
        after = db.execute("select sum(recalculated) from builder_score.worker_status").fetchone()
        assert before is not None
        assert after == (before[0] + 1,), "the worker's write made it work again"
        assert score(db, ada) == 13
    assert_all_right(db)


def test_our_writers_mark_does_not_outlive_its_write(db: Db) -> None:
    """As the schema's owner: where the installer may create no roles, the application may be it."""
    ada = add_user(db, "ada", bio="builds things")
    with db.transaction():
        db.execute("set local role builder_score_owner")
        db.execute("select builder_score.recalculate(%s)", [ada])
        assert queue(db) == []
        db.execute("update users set builder_score = 99")
        assert [row[:3] for row in queue(db)] == [low(ada)]


def test_a_deleted_user_is_appended_and_forgotten(db: Db) -> None:
    ada = add_user(db, "ada")
    drain(db)
    assert appended(db, "delete from users") == [low(ada)]
    drain(db)
    assert db.execute("select * from builder_score.score_state").fetchall() == []
    assert queue(db) == []


def test_a_user_who_gets_another_id_is_appended_under_both(db: Db) -> None:
    old, new = add_user(db, "ada", bio="builds things"), uuid4()
    drain(db)
    assert set(appended(db, "update users set id = %s", new)) == {low(old), low(new)}
    drain(db)
    assert_all_right(db)


def test_what_a_trigger_of_the_hosts_changes_before_appends_the_user(scratch: Db) -> None:
    """Also one that has come since we were attached, and sets what the UPDATE does not name."""
    ada = add_user(scratch, "ada")
    scratch.execute(
        "create function boast() returns trigger language plpgsql as "
        "$$ begin new.bio := 'seen ' || new.availability; return new; end $$"
    )
    scratch.execute(
        "create trigger boast before update on users for each row execute function boast()"
    )
    assert appended(scratch, "update users set availability = 'now'") == [low(ada)]
    assert appended(scratch, "update users set availability = 'now'") == []


# projects -----------------------------------------------------------------------------------------


def test_a_new_project_appends_its_owner_whatever_its_status(scratch: Db) -> None:
    ada = add_user(scratch, "ada")
    query = "insert into projects (owner_id, title, status) values (%s, 'it', %s)"
    for status in ("in_progress", "shipped"):
        assert appended(scratch, query, ada, status) == [medium(ada)]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("status", "shipped"),
        ("status", "archived"),
        ("github_stars", "7"),
        ("impact_metrics", '{"users": 7}'),
    ],
)
def test_what_impact_or_shipped_depends_on_appends_the_owner_when_it_really_changes(
    scratch: Db, column: str, value: str
) -> None:
    ada, bob = add_user(scratch, "ada"), add_user(scratch, "bob")
    project = add_project(scratch, ada)
    add_project(scratch, bob)
    add_collaborator(scratch, project, bob)
    name = sql.Identifier(column)
    change = sql.SQL("update projects set {} = %s where id = %s").format(name)
    assert appended(scratch, change, value, project) == [medium(ada)]
    assert appended(scratch, change, value, project) == []
    assert appended(scratch, sql.SQL("update projects set {0} = {0}").format(name)) == []


@pytest.mark.parametrize(
    "assignment",
    [
        "updated_at = now() + interval '1 day'",
        "title = 'another'",
        "description = 'words'",
        "links = '{\"web\": 1}'",
        "tech_stack = '{sql}'",
        "created_at = '2020-01-01'",
        "id = id, owner_id = owner_id, status = status, impact_metrics = impact_metrics",
    ],
)
def test_other_columns_of_projects_append_nothing(scratch: Db, assignment: LiteralString) -> None:
    add_project(scratch, add_user(scratch, "ada"))
    query = sql.SQL("update projects set {}").format(sql.SQL(assignment))
    assert appended(scratch, query) == []


def test_a_transfer_appends_both_owners_and_the_project(scratch: Db) -> None:
    ada, bob = add_user(scratch, "ada"), add_user(scratch, "bob")
    project = add_project(scratch, ada)
    rows = appended(scratch, "update projects set owner_id = %s", bob)
    assert sorted(rows, key=str) == sorted([medium(ada), medium(bob), of_project(project)], key=str)
    assert appended(scratch, "update projects set owner_id = %s", bob) == []


def test_a_deleted_project_appends_its_owner(scratch: Db) -> None:
    ada = add_user(scratch, "ada")
    add_project(scratch, ada)
    assert appended(scratch, "delete from projects") == [medium(ada)]


def test_a_deleted_project_appends_its_confirmed_collaborators_by_the_cascade(scratch: Db) -> None:
    ada, bob, eve = (add_user(scratch, name) for name in ("ada", "bob", "eve"))
    project = add_project(scratch, ada)
    add_collaborator(scratch, project, bob)
    add_collaborator(scratch, project, eve, "pending")
    rows = appended(scratch, "delete from projects")
    assert set(rows) == {medium(ada), medium(bob), of_project(project)}


def test_a_deleted_user_appends_everyone_concerned_by_the_cascades(db: Db) -> None:
    ada, bob, eve = (add_user(db, name) for name in ("ada", "bob", "eve"))
    of_ada, of_eve = add_project(db, ada), add_project(db, eve)
    add_collaborator(db, of_ada, bob)
    add_collaborator(db, of_eve, ada)
    drain(db)
    configure(db, debounce_window="0")
    rows = appended(db, "delete from users where id = %s", ada)
    expected = {low(ada), medium(ada), medium(bob), of_project(of_ada), of_project(of_eve)}
    assert set(rows) == expected
    drain(db)
    assert (score(db, bob), score(db, eve)) == (0, 0)
    assert_all_right(db)


def test_ids_that_cascade_on_update_leave_every_score_right(db: Db) -> None:
    db.execute(
        "alter table projects drop constraint projects_owner_id_fkey, "
        "add foreign key (owner_id) references users (id) on update cascade"
    )
    db.execute(
        "alter table project_collaborators drop constraint project_collaborators_user_id_fkey, "
        "drop constraint project_collaborators_project_id_fkey, "
        "add foreign key (user_id) references users (id) on update cascade, "
        "add foreign key (project_id) references projects (id) on update cascade"
    )
    configure(db, debounce_window="0")
    ada, bob = add_user(db, "ada"), add_user(db, "bob")
    add_collaborator(db, add_project(db, ada, status="shipped"), bob)
    drain(db)
    for table in ("projects", "users"):
        query = sql.SQL("update {} set id = gen_random_uuid()").format(sql.Identifier(table))
        assert appended(db, query) != []
        drain(db)
        assert_all_right(db)


# project_collaborators ----------------------------------------------------------------------------


@pytest.fixture
def invite(scratch: Db) -> dict[str, UUID]:
    """A pending collaboration, and another project and user to move it to."""
    owner, other_owner = add_user(scratch, "owner"), add_user(scratch, "other_owner")
    ids = {"user": add_user(scratch, "helper"), "other_user": add_user(scratch, "other")}
    ids |= {"project": add_project(scratch, owner), "other": add_project(scratch, other_owner)}
    ids["id"] = add_collaborator(scratch, ids["project"], ids["user"], "pending")
    return ids


def both_sides(user: UUID, project: UUID) -> list[Row]:
    return [medium(user), of_project(project)]


SET_STATUS: LiteralString = "update project_collaborators set status = %s"


def test_a_collaboration_confirmed_from_the_start_appends_both_sides(scratch: Db) -> None:
    ada, bob = add_user(scratch, "ada"), add_user(scratch, "bob")
    project = add_project(scratch, ada)
    query = (
        "insert into project_collaborators (project_id, user_id, status) values (%s, %s, %s)"
        " on conflict do nothing"
    )
    assert appended(scratch, query, project, bob, "pending") == []
    scratch.execute("delete from project_collaborators")
    assert appended(scratch, query, project, bob, "confirmed") == both_sides(bob, project)
    assert appended(scratch, query, project, bob, "confirmed") == []


def test_confirming_and_ending_append_both_sides(scratch: Db, invite: dict[str, UUID]) -> None:
    both = both_sides(invite["user"], invite["project"])
    assert appended(scratch, SET_STATUS, "confirmed") == both
    assert appended(scratch, SET_STATUS, "confirmed") == []
    assert appended(scratch, SET_STATUS, "removed") == both


def test_changes_between_statuses_that_do_not_count_append_nothing(
    scratch: Db, invite: dict[str, UUID]
) -> None:
    for status in ("declined", "removed", "pending", "declined"):
        assert appended(scratch, SET_STATUS, status) == [], status
    assert appended(scratch, "delete from project_collaborators") == []
    assert invite["id"]


def test_changes_between_statuses_that_both_count_append_nothing(
    scratch: Db, invite: dict[str, UUID]
) -> None:
    scratch.execute("insert into builder_score.statuses values ('confirmed', 'lead')")
    both = both_sides(invite["user"], invite["project"])
    assert appended(scratch, SET_STATUS, "lead") == both
    assert appended(scratch, SET_STATUS, "confirmed") == []
    assert appended(scratch, SET_STATUS, "pending") == both


@pytest.mark.parametrize(
    "assignment",
    [
        "role_description = 'design'",
        "confirmed_at = now()",
        "invited_at = now() - interval '1 day'",
    ],
)
@pytest.mark.parametrize("status", ["pending", "confirmed"])
def test_other_columns_of_collaborations_append_nothing(
    scratch: Db, invite: dict[str, UUID], assignment: LiteralString, status: str
) -> None:
    scratch.execute(SET_STATUS, [status])
    query = sql.SQL("update project_collaborators set {}").format(sql.SQL(assignment))
    assert appended(scratch, query) == []
    assert invite["id"]


def test_deleting_a_confirmed_collaboration_appends_both_sides(
    scratch: Db, invite: dict[str, UUID]
) -> None:
    scratch.execute(SET_STATUS, ["confirmed"])
    both = both_sides(invite["user"], invite["project"])
    assert appended(scratch, "delete from project_collaborators") == both


MOVE: LiteralString = "update project_collaborators set project_id = %s, user_id = %s, status = %s"


@pytest.mark.parametrize(
    ("project", "user"), [("other", "user"), ("project", "other_user"), ("other", "other_user")]
)
def test_a_confirmed_collaboration_that_moves_appends_all_it_touches(
    scratch: Db, invite: dict[str, UUID], project: str, user: str
) -> None:
    before = both_sides(invite["user"], invite["project"])
    after = both_sides(invite[user], invite[project])
    scratch.execute(SET_STATUS, ["confirmed"])
    rows = appended(scratch, MOVE, invite[project], invite[user], "confirmed")
    assert set(rows) == {*before, *after}


@pytest.mark.parametrize(
    ("project", "user"), [("other", "user"), ("project", "other_user"), ("other", "other_user")]
)
def test_a_collaboration_that_moves_counts_where_it_is_confirmed(
    scratch: Db, invite: dict[str, UUID], project: str, user: str
) -> None:
    before = both_sides(invite["user"], invite["project"])
    after = both_sides(invite[user], invite[project])
    assert appended(scratch, MOVE, invite[project], invite[user], "pending") == []
    scratch.execute(MOVE, [invite["project"], invite["user"], "pending"])
    assert appended(scratch, MOVE, invite[project], invite[user], "confirmed") == after
    scratch.execute(MOVE, [invite["project"], invite["user"], "confirmed"])
    assert appended(scratch, MOVE, invite[project], invite[user], "declined") == before


# many rows ----------------------------------------------------------------------------------------


def test_rows_of_one_statement_append_each_person_once(scratch: Db) -> None:
    ada, bob = add_user(scratch, "ada"), add_user(scratch, "bob")
    query = (
        "insert into projects (owner_id, title) "
        "select owner, 'project ' || n from unnest(%s::uuid[]) as owner, generate_series(1, 50) n"
    )
    assert set(appended(scratch, query, [ada, bob])) == {medium(ada), medium(bob)}
    assert len(queue(scratch)) == 2

    query = (
        "insert into project_collaborators (project_id, user_id, status) "
        "select id, case when owner_id = %s then %s::uuid else %s end, 'confirmed' from projects"
    )
    rows = appended(scratch, query, ada, bob, ada)
    projects = scratch.execute("select id from projects").fetchall()
    people = [medium(ada), medium(bob)]
    assert sorted(rows, key=str) == sorted(people + [of_project(id) for (id,) in projects], key=str)

    assert len(appended(scratch, "delete from project_collaborators")) == 2 + 100
    assert set(appended(scratch, "delete from projects")) == {medium(ada), medium(bob)}
    assert len(queue(scratch)) == 2


def test_copy_appends_like_insert(scratch: Db) -> None:
    ada, bob, project = uuid4(), uuid4(), uuid4()
    with scratch.cursor().copy("copy users (id, username, email) from stdin") as copy:
        copy.write_row([ada, "ada", "ada@example.org"])
        copy.write_row([bob, "bob", "bob@example.org"])
    with scratch.cursor().copy("copy projects (id, owner_id, title) from stdin") as copy:
        copy.write_row([project, ada, "it"])
    columns = "project_id, user_id, status"
    with scratch.cursor().copy(f"copy project_collaborators ({columns}) from stdin") as copy:
        copy.write_row([project, ada, "pending"])
        copy.write_row([project, bob, "confirmed"])
    assert [row[:3] for row in queue(scratch)] == [
        low(ada),
        low(bob),
        medium(ada),
        *both_sides(bob, project),
    ]


def test_an_upsert_appends_what_it_really_does(scratch: Db) -> None:
    ada, bob = add_user(scratch, "ada"), add_user(scratch, "bob")
    project = add_project(scratch, ada)
    query = (
        "insert into project_collaborators (project_id, user_id, status) values (%s, %s, %s) "
        "on conflict (project_id, user_id) do update set status = excluded.status"
    )
    both = both_sides(bob, project)
    assert appended(scratch, query, project, bob, "pending") == []
    assert appended(scratch, query, project, bob, "confirmed") == both
    assert appended(scratch, query, project, bob, "confirmed") == []
    assert appended(scratch, query, project, bob, "declined") == both


def test_merge_appends_what_it_really_does(scratch: Db) -> None:
    ada, bob, eve = (add_user(scratch, name) for name in ("ada", "bob", "eve"))
    kept = add_project(scratch, ada, title="kept")
    add_project(scratch, bob, title="dropped")
    query = (
        "merge into projects as p "
        "using (values (%s::uuid, 'kept', 'update'), (%s, 'dropped', 'delete'), (%s, 'new', ''))"
        "   as s (owner_id, title, what) on p.title = s.title "
        "when matched and what = 'delete' then delete "
        "when matched then update set github_stars = 7, title = 'kept and counted' "
        "when not matched then insert (owner_id, title) values (s.owner_id, s.title)"
    )
    rows = appended(scratch, query, ada, bob, eve)
    assert sorted(rows, key=str) == sorted([medium(ada), medium(bob), medium(eve)], key=str)
    assert kept


def test_a_statement_that_touches_no_row_appends_nothing(scratch: Db) -> None:
    add_project(scratch, add_user(scratch, "ada"))
    for table in HOST_TABLES:
        name = sql.Identifier(table)
        for statement in (
            "insert into {0} select * from {0} where false",
            "update {0} set id = gen_random_uuid() where false",
            "delete from {0} where false",
        ):
            assert appended(scratch, sql.SQL(statement).format(name)) == [], statement


# truncate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "tables"),
    [
        ("truncate project_collaborators", 1),
        ("truncate projects, project_collaborators", 2),
        ("truncate users cascade", 3),
    ],
)
def test_truncate_appends_one_row_for_everyone(
    db: Db, statement: LiteralString, tables: int
) -> None:
    ada, bob = add_user(db, "ada"), add_user(db, "bob")
    add_collaborator(db, add_project(db, ada, status="shipped"), bob)
    drain(db)
    configure(db, debounce_window="0")
    assert appended(db, statement) == [EVERYONE] * tables
    drain(db)
    assert_all_right(db)


# nobody -------------------------------------------------------------------------------------------


def test_a_project_without_an_owner_is_nobodys_not_everyones(scratch: Db) -> None:
    scratch.execute("alter table projects alter owner_id drop not null")
    ada = add_user(scratch, "ada")
    owned, orphan = add_project(scratch, ada), uuid4()
    query = "insert into projects (id, title, status) values (%s, 'orphan', 'shipped')"
    assert appended(scratch, query, orphan) == []
    assert appended(scratch, "update projects set github_stars = 7 where owner_id is null") == []
    set_owner = "update projects set owner_id = %s where id = %s"
    assert set(appended(scratch, set_owner, None, owned)) == {medium(ada), of_project(owned)}
    assert set(appended(scratch, set_owner, ada, orphan)) == {medium(ada), of_project(orphan)}
    scratch.execute(set_owner, [None, orphan])
    assert appended(scratch, "delete from projects") == []


def test_a_confirmed_collaboration_without_a_user_is_nobodys_not_everyones(scratch: Db) -> None:
    scratch.execute(
        "alter table project_collaborators alter user_id drop not null, "
        "alter project_id drop not null"
    )
    ada = add_user(scratch, "ada")
    project = add_project(scratch, ada)
    query = "insert into project_collaborators (project_id, user_id, status) values (%s, %s, %s)"
    assert appended(scratch, query, project, None, "confirmed") == [of_project(project)]
    assert appended(scratch, SET_STATUS, "declined") == [of_project(project)]
    assert appended(scratch, query, None, ada, "confirmed") == [medium(ada)]
    assert appended(scratch, query, None, None, "confirmed") == []
    assert set(appended(scratch, SET_STATUS, "confirmed")) == {of_project(project)}
    rows = appended(scratch, "delete from project_collaborators")
    assert set(rows) == {medium(ada), of_project(project)}


# whoever writes, and however ----------------------------------------------------------------------


def write_everything(db: Db, prefix: LiteralString = "") -> None:
    """Every kind of event there is, by an application that may name its tables in full."""
    ada, bob = uuid4(), uuid4()
    project, other = uuid4(), uuid4()
    events: list[tuple[LiteralString, list[UUID]]] = [
        ("insert into {users} (id, username, email) values (%s, 'ada', 'a@example.org')", [ada]),
        ("insert into {users} (id, username, email) values (%s, 'bob', 'b@example.org')", [bob]),
        ("update {users} set bio = 'builds', builder_score = 99", []),
        ("insert into {projects} (id, owner_id, title) values (%s, %s, 'it')", [project, ada]),
        ("insert into {projects} (id, owner_id, title) values (%s, %s, 'it')", [other, ada]),
        ("update {projects} set status = 'shipped', github_stars = 9", []),
        (
            "insert into {project_collaborators} (project_id, user_id, status) "
            "values (%s, %s, 'pending'), (%s, %s, 'confirmed')",
            [project, bob, other, bob],
        ),
        ("update {project_collaborators} set status = 'confirmed'", []),
        (
            "update {project_collaborators} set project_id = %s where project_id = %s",
            [other, other],
        ),
        ("update {projects} set owner_id = %s where id = %s", [bob, project]),
        ("delete from {project_collaborators} where project_id = %s", [other]),
        ("delete from {projects} where id = %s", [other]),
        ("update {users} set builder_score = null", []),
    ]
    for statement, values in events:
        names = {table: sql.SQL(prefix) + sql.Identifier(table) for table in HOST_TABLES}
        db.execute(sql.SQL(statement).format(**names), values)


def count_events(db: Db) -> int:
    return len(queue(db))


@pytest.fixture
def application(db: Db, server: PrivateCluster) -> Iterator[Db]:
    """A connection of a role that may write the host's tables and knows nothing of ours."""
    role = sql.Identifier(f"application_{db.info.dbname}")
    db.execute(sql.SQL("create role {} login").format(role))
    db.execute(sql.SQL("grant usage on schema public to {}").format(role))
    for table in HOST_TABLES:
        grant = sql.SQL("grant select, insert, update, delete on {} to {}")
        db.execute(grant.format(sql.Identifier(table), role))
    address = server.conninfo(db.info.dbname, user=f"application_{db.info.dbname}")
    with psycopg.connect(address, autocommit=True) as connection:
        yield connection
    db.execute(sql.SQL("drop owned by {}").format(role))
    db.execute(sql.SQL("drop role {}").format(role))


def test_a_role_with_nothing_but_its_tables_can_do_all_of_this(db: Db, application: Db) -> None:
    configure(db, debounce_window="0")
    write_everything(application)
    with application.cursor().copy("copy users (username, email) from stdin") as copy:
        copy.write_row(["eve", "eve@example.org"])
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        application.execute("select * from builder_score.score_recalc_queue")
    assert count_events(db) > 0
    drain(db)
    assert_all_right(db)
    assert application.execute("select count(*) from users where builder_score > 0").fetchone() == (
        2,
    )
    application.execute("delete from users")
    drain(db)
    assert_all_right(db)


@pytest.mark.parametrize("search_path", ["", "hostile, pg_catalog, public"])
def test_triggers_do_not_depend_on_the_search_path(db: Db, search_path: str) -> None:
    """A data-only restore runs with an empty one; another may put its own operators first."""
    configure(db, debounce_window="0")
    db.execute("create schema hostile")
    db.execute(
        "create function hostile.refuse(text, text) returns boolean language plpgsql as "
        "$$ begin raise exception 'the host''s operator was called'; end $$"
    )
    db.execute(
        "create operator hostile.= (leftarg = text, rightarg = text, function = hostile.refuse)"
    )
    db.execute("select set_config('search_path', %s, false)", [search_path])
    write_everything(db, prefix="public.")
    db.execute("reset search_path")
    assert count_events(db) > 0
    drain(db)
    assert_all_right(db)


@pytest.mark.parametrize(
    "level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE], ids=lambda i: i.name
)
def test_triggers_work_at_every_isolation_level(
    db: Db, database: str, level: IsolationLevel
) -> None:
    configure(db, debounce_window="0")
    with psycopg.connect(database) as connection:
        connection.isolation_level = level
        write_everything(connection)
    assert count_events(db) > 0
    drain(db)
    assert_all_right(db)


def test_what_is_rolled_back_appends_nothing(db: Db) -> None:
    with db.transaction(force_rollback=True):
        write_everything(db)
        assert count_events(db) > 0
    assert count_events(db) == 0


def test_triggers_read_no_host_table(db: Db) -> None:
    """Every event is run with and without our triggers: the host's tables are scanned as often."""

    def scans() -> dict[str, tuple[int, int]]:
        rows = db.execute(
            "select relname, coalesce(seq_scan, 0), coalesce(idx_scan, 0) "
            "from pg_stat_xact_user_tables where schemaname = 'public'"
        )
        return {name: (sequential, by_index) for name, sequential, by_index in rows}

    def scans_of_everything() -> dict[str, tuple[int, int]]:
        with db.transaction(force_rollback=True):
            before = scans()
            write_everything(db)
            db.execute(
                "update project_collaborators set user_id = (select min(id::text)::uuid from users)"
            )
            db.execute("delete from users")
            after = scans()
        return {
            table: (after[table][0] - before[table][0], after[table][1] - before[table][1])
            for table in HOST_TABLES
        }

    # The first run pays for plans that look at the tables.
    scans_of_everything()
    with_triggers = scans_of_everything()
    for table in HOST_TABLES:
        disable = sql.SQL("alter table {} disable trigger {}")
        for (trigger,) in db.execute(
            "select tgname from pg_trigger "
            "where tgrelid = %s::regclass and tgname like 'builder\\_score\\_%%'",
            [table],
        ).fetchall():
            db.execute(disable.format(sql.Identifier(table), sql.Identifier(trigger)))
    assert with_triggers == scans_of_everything()


def test_a_row_is_due_at_once(scratch: Db) -> None:
    insert(scratch, "users", {"username": "ada", "email": "ada@example.org"})
    due = scratch.execute(
        "select not_before between clock_timestamp() - interval '1 minute' and clock_timestamp() "
        "from builder_score.score_recalc_queue"
    ).fetchall()
    assert due == [(True,)]
