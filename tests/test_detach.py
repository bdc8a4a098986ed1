"""The application's own DDL: what PostgreSQL refuses while we are attached, and how it is done.

Each error here stands word for word in the DBA guide, so that a search finds it.
"""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection, errors

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.catalogue import schema_dump
from tests.commands import call, output, psql
from tests.community import (
    add_collaborator,
    add_project,
    add_user,
    configure,
    drain,
    one,
    score,
)
from tests.host_schemas import BIGINT_CHECKED
from tests.interleave import (
    GATES,
    Sessions,
    assert_right,
    install_gates,
    settle,
    until,
)
from tests.statements import run


def change(db: Connection[Any], *statements: str, attach: str = "attach()") -> list[str]:
    """Do as the guide says: detach, the DDL, attach, in one transaction. Give what attach said."""
    with db.transaction():
        run(db, "select builder_score.detach()")
        for statement in statements:
            run(db, statement)
        return [said for (said,) in run(db, f"select * from builder_score.{attach}")]


@pytest.fixture
def community(db: Connection[Any]) -> Connection[Any]:
    """Ann and Bob vouch for each other; all of it is scored."""
    configure(db, debounce_window="0")
    ann = add_user(db, "ann", bio="ships", headline="h", contact_links={"site": "x"})
    bob = add_user(db, "bob", bio="x", created_at="2020-01-01")
    add_collaborator(db, add_project(db, ann, status="shipped", github_stars=9), bob)
    settle(db)
    assert_right(db)
    return db


# What PostgreSQL says -----------------------------------------------------------------------------

DROPPED = "cannot drop column {1} of table {0} because other objects depend on it"
TYPE = "cannot alter type of a column used by a view or rule"
ADVICE = "Use DROP ... CASCADE to drop the dependent objects too."

REFUSED = {
    "alter table users drop column bio": (
        DROPPED.format("users", "bio"),
        "view builder_score.host_users depends on column bio of table users\n"
        "trigger builder_score_profile on table users depends on column bio of table users",
    ),
    "alter table users drop column builder_score": (
        DROPPED.format("users", "builder_score"),
        "view builder_score.host_users depends on column builder_score of table users\n"
        "trigger builder_score_overwritten on table users depends on column builder_score"
        " of table users",
    ),
    "alter table users drop column username": (
        DROPPED.format("users", "username"),
        "view builder_score.host_users depends on column username of table users",
    ),
    "drop table project_collaborators": (
        "cannot drop table project_collaborators because other objects depend on it",
        "view builder_score.host_collaborations depends on table project_collaborators",
    ),
    "alter table users alter id type text": (
        TYPE,
        'rule _RETURN on view builder_score.host_users depends on column "id"',
    ),
    "alter table users alter builder_score type double precision": (
        TYPE,
        'rule _RETURN on view builder_score.host_users depends on column "builder_score"',
    ),
    "alter table users alter bio type varchar(500)": (
        TYPE,
        'rule _RETURN on view builder_score.host_users depends on column "bio"',
    ),
    "alter table projects alter status type varchar(20)": (
        TYPE,
        'rule _RETURN on view builder_score.host_projects depends on column "status"',
    ),
    "alter table projects alter owner_id type text": (
        TYPE,
        'rule _RETURN on view builder_score.host_projects depends on column "owner_id"',
    ),
}


def test_postgresql_refuses_what_would_break_us_and_says_who_depends_on_it(
    scratch: Connection[Any],
) -> None:
    for statement, (message, detail) in REFUSED.items():
        with pytest.raises(psycopg.Error) as refused, scratch.transaction():
            run(scratch, statement)
        said = refused.value.diag
        assert (said.message_primary, said.message_detail) == (message, detail)
        assert said.message_hint == (None if message == TYPE else ADVICE)
    # what only a trigger names: every column of ours is named by a view too
    for statement in (
        "alter table users alter email type varchar(100)",
        "alter table users add column headlines text[]",
        "alter table projects drop column description",
        "alter table projects alter title type varchar(100)",
        "create index on users (lower(username))",
    ):
        with scratch.transaction(force_rollback=True):
            run(scratch, statement)


# In one transaction -------------------------------------------------------------------------------


def test_columns_change_between_detach_and_attach_and_everybody_is_scored_anew(
    community: Connection[Any],
) -> None:
    db = community
    ann = one(db, "select id from users where username = 'ann'")
    run(db, "update projects set github_stars = 5")
    settle(db)
    before = score(db, ann)

    said = change(db, "alter table users drop column headline")
    assert "everyone is enqueued" in said
    settle(db)
    assert_right(db)
    assert score(db, ann) != before, "one field of the profile less, for everybody"

    for statements in (
        ["alter table users alter builder_score type double precision"],
        [
            "create type project_status as enum ('in_progress', 'shipped', 'archived')",
            "alter table projects alter status drop default,"
            " alter status type project_status using status::project_status,"
            " alter status set default 'in_progress'",
        ],
        ["alter table users alter bio type varchar(500)"],
        ["alter table users alter created_at type timestamp using created_at at time zone 'UTC'"],
        ["alter table projects alter impact_metrics type text"],
        [
            "create table copy as table project_collaborators",
            "drop table project_collaborators",
            "create table project_collaborators ("
            " project_id uuid references projects on delete cascade,"
            " user_id uuid references users on delete cascade, status text,"
            " primary key (user_id, project_id))",
            "insert into project_collaborators select project_id, user_id, status from copy",
            "drop table copy",
        ],
    ):
        change(db, *statements)
        settle(db)
        assert_right(db)
    assert float(score(db, ann) or 0) % 1 != 0, "with a decimal, as the column holds since"
    # and their triggers work
    db.execute("update projects set status = 'archived'")
    db.execute("update project_collaborators set status = 'pending'")
    db.execute("update users set bio = 'more', created_at = '2019-01-01'")
    settle(db)
    assert_right(db)


def test_a_new_column_of_the_profile_counts_from_the_next_attach(
    community: Connection[Any],
) -> None:
    db = community
    change(db, "alter table users drop column headline")
    settle(db)
    run(db, "alter table users add column headline text")  # nothing refuses it
    run(db, "update users set headline = 'here again'")
    settle(db)
    assert run(db, "select * from builder_score.verify()") == []
    fields = "select max(profile_fields) from builder_score.host_users"
    assert one(db, fields) == 5
    run(db, "select builder_score.attach()")
    assert one(db, fields) == 6
    settle(db)
    assert_right(db)


def test_a_table_made_anew_as_a_partitioned_one_is_attached_and_its_indexes_are_named(
    community: Connection[Any], database: str, server: PrivateCluster
) -> None:
    db = community
    said = change(
        db,
        "alter table projects drop constraint projects_owner_id_fkey",
        "alter table project_collaborators drop constraint project_collaborators_user_id_fkey",
        "alter table users rename to users_old",
        "create table users (like users_old including defaults) partition by hash (id)",
        "create table users_0 partition of users for values with (modulus 2, remainder 0)",
        "create table users_1 partition of users for values with (modulus 2, remainder 1)",
        "insert into users select * from users_old",
        "drop table users_old",
        "alter table users add primary key (id)",
        "alter table projects add foreign key (owner_id) references users on delete cascade",
    )
    (missing,) = [line for line in said if "no usable index" in line]
    assert "on public.users (builder_score desc, id desc)" in missing
    psql(server, database, missing.partition("in psql: ")[2])
    assert not [line for (line,) in run(db, "select builder_score.attach()") if "index" in line]
    settle(db)
    assert_right(db)
    run(db, "update users_0 set bio = null")
    run(db, "update users_1 set builder_score = 55")
    settle(db)
    assert_right(db)


def test_nothing_that_the_application_commits_before_or_after_is_lost(
    community: Connection[Any], sessions: Sessions
) -> None:
    db = community
    before, dba, after = sessions("before"), sessions("dba"), sessions("after")
    before.run("begin")
    before.run("update users set bio = null where username = 'ann'")

    dba.run("set builder_score.lock_wait = '20 seconds'")
    dba.run("begin")
    dba.start("select builder_score.detach()")
    dba.waits_for(before)
    # projects is free, or soon is again: detach() keeps no table while it waits for another
    after.run("update projects set status = 'shipped', title = 'x'")
    before.run("commit")
    dba.finish()
    dba.run("alter table users alter builder_score type numeric")
    after.start("update users set avatar_url = 'x'")
    after.waits_for(dba)
    dba.run("select builder_score.attach()")
    dba.run("commit")
    after.finish()
    reasons = {
        reason for (reason,) in run(db, "select reason from builder_score.score_recalc_queue")
    }
    assert {"profile changed", "attach"} <= reasons
    settle(db)
    assert_right(db)


def test_a_running_worker_goes_on_over_it(community: Connection[Any], sessions: Sessions) -> None:
    db = community
    ann = one(db, "select id from users where username = 'ann'")
    worker = sessions("worker")
    worker.start("call builder_score.run_worker('30 seconds')")
    run(db, "update users set bio = null")
    until(lambda: one(db, "select count(*) from builder_score.score_recalc_queue") == 0, "it works")
    change(db, "alter table users alter builder_score type double precision")
    run(db, "update users set bio = 'back'")
    until(lambda: one(db, "select count(*) from builder_score.score_recalc_queue") == 0, "it works")
    until(lambda: str(score(db, ann)) == "29.5", "with a decimal, as the column holds now")
    configure(db, paused=True)
    worker.finish()
    configure(db, paused=False)
    settle(db)
    assert_right(db)


def test_a_batch_that_is_under_way_ends_first(
    community: Connection[Any], sessions: Sessions
) -> None:
    db = community
    install_gates(db)
    dba, keeper, worker = sessions("dba"), sessions("keeper"), sessions("worker")
    dba.run("set builder_score.lock_wait = '20 seconds'")
    run(db, "update users set bio = null")
    keeper.run(GATES["after computing"])
    worker.start("call builder_score.drain()")
    worker.waits_for(keeper)
    dba.run("begin")
    dba.start("select builder_score.detach()")
    dba.waits_for(worker)
    keeper.run("select pg_advisory_unlock(7)")
    dba.finish()
    dba.run("alter table users drop column timezone")
    dba.run("select builder_score.attach()")
    dba.run("commit")
    worker.finish()
    settle(db)
    assert_right(db)


def test_who_reads_our_views_meanwhile_waits_and_never_deadlocks(
    community: Connection[Any], sessions: Sessions
) -> None:
    """A reader locks the view and then its table: so does whoever is to replace the view."""
    dba, reader = sessions("dba"), sessions("reader")
    dba.run("begin")
    dba.run("select builder_score.lock_host_tables()")
    reader.start("select count(*) from builder_score.host_users")
    reader.waits_for(dba)
    dba.run("select builder_score.detach()")
    dba.run("alter table users drop column timezone")
    dba.run("select builder_score.attach()")
    dba.run("commit")
    assert reader.finish() == [(2,)]


def test_attach_holds_nobody_up_for_what_the_hosts_own_triggers_want(
    community: Connection[Any], sessions: Sessions
) -> None:
    """It has the tables locked by then: who has what it wants may come to want one of them."""
    db = community
    run(
        db,
        "create table totals (writes bigint); insert into totals values (0);"
        " grant select, update on totals to builder_score_owner;"
        " create function count_writes() returns trigger language plpgsql as"
        " $$ begin update totals set writes = writes + 1; return new; end $$;"
        " create trigger totals before update on users"
        " for each row execute function count_writes()",
    )
    application, dba = sessions("application"), sessions("dba")
    application.run("begin")
    application.run("update totals set writes = 0")
    said = [line for (line,) in dba.run("select * from builder_score.attach()")]
    assert any("was not tried to the end" in line for line in said)
    assert said[-1] == "everyone is enqueued"
    application.run("update users set bio = 'goes on'")
    application.run("commit")
    settle(db)
    assert_right(db)


def test_attach_appends_behind_what_the_queue_was_given_from_elsewhere(
    community: Connection[Any],
) -> None:
    """A replica that takes over has the publisher's rows, and a sequence that is behind them."""
    db = community
    run(
        db,
        "insert into builder_score.score_recalc_queue (id, user_id, priority, reason)"
        " overriding system value"
        " select (select last_value from builder_score.score_recalc_queue_id_seq) + n, u.id, 20, ''"
        " from users as u cross join generate_series(1, 3) as n where u.username = 'ann'",
    )
    run(db, "select builder_score.attach()")
    run(db, "update users set bio = 'goes on'")
    settle(db)
    assert_right(db)


# In several transactions --------------------------------------------------------------------------


def test_what_changed_while_detached_is_found_when_we_are_attached_again(
    community: Connection[Any],
) -> None:
    db = community
    run(db, "select builder_score.detach()")
    assert one(db, "select attached from builder_score.health") is False
    cyd = add_user(db, "cyd", bio="x")
    run(db, "update users set builder_score = 42")
    run(db, "update projects set status = 'in_progress'")
    run(db, "delete from users where username = 'bob'")
    run(db, "alter table users drop column timezone")
    drain(db)
    assert one(db, "select count(*) from builder_score.score_recalc_queue") == 0
    assert score(db, cyd) == 42, "nobody has noticed"
    run(db, "select builder_score.attach()")
    settle(db)
    assert_right(db)


# What PostgreSQL does not refuse ------------------------------------------------------------------


def test_a_renamed_column_of_the_profile_counts_until_the_next_attach(
    community: Connection[Any],
) -> None:
    db = community
    run(db, "alter table users rename bio to biography")
    run(db, "update users set biography = null where username = 'ann'")
    settle(db)
    assert run(db, "select * from builder_score.verify()") == []
    assert one(db, "select max(profile_fields) from builder_score.host_users") == 6
    run(db, "select builder_score.attach()")
    assert one(db, "select max(profile_fields) from builder_score.host_users") == 5
    settle(db)
    assert_right(db)


RENAMED = {
    "users": ("id", "update {0} set bio = 'y'", "delete from {0} where username = 'bob'"),
    "projects": (
        "owner_id",
        "insert into {0} ({1}, title) select {1}, 'y' from {0} limit 1",
        "update {0} set github_stars = 50",
        "delete from {0} where title = 'y'",
    ),
    "project_collaborators": (
        "status",
        "update {0} set {1} = 'pending'",
        "insert into {0} (project_id, user_id, {1})"
        " select p.id, u.id, 'confirmed' from projects as p cross join users as u"
        " where u.username = 'cyd' limit 1",
        "delete from {0}",
    ),
}


@pytest.mark.parametrize("table", RENAMED)
def test_a_column_that_we_need_may_be_renamed_without_breaking_the_applications_writes(
    community: Connection[Any], table: str
) -> None:
    db = community
    add_user(db, "cyd")
    settle(db)
    column, *writes = RENAMED[table]
    run(db, f"alter table {table} rename {column} to renamed")
    for write in writes:
        run(db, write.format(table, "renamed"))
        reasons = [row[0] for row in run(db, "select reason from builder_score.score_recalc_queue")]
        assert f"column renamed: {table}" in reasons
        settle(db)
        assert run(db, "select * from builder_score.verify()") == []
    with pytest.raises(errors.UndefinedColumn, match=rf"lacks {table}\.{column}"):
        run(db, "select builder_score.attach()")
    run(db, f"alter table {table} rename renamed to {column}")
    run(db, "select builder_score.attach()")
    settle(db)
    assert_right(db)


def test_a_renamed_table_is_followed_and_released(
    community: Connection[Any], database: str, server: PrivateCluster
) -> None:
    db = community
    run(db, "alter table users rename to members")
    run(db, "update members set bio = 'y'")
    settle(db)
    assert run(db, "select * from builder_score.verify()") == []
    with pytest.raises(errors.UndefinedColumn, match=r"lacks users\.id, users\.builder_score"):
        run(db, "select builder_score.attach()")
    run(db, "create view users as select * from members")
    run(db, "drop view users")
    triggers = "select count(*) from pg_trigger where tgname like 'builder%' and not tgisinternal"
    with db.transaction(force_rollback=True):
        # another table takes its name: the old one is let go
        run(db, "create table users (like members including all)")
        said = [line for (line,) in run(db, "select builder_score.attach()")]
        assert "5 triggers on public.members removed" in said
        on_old = f"{triggers} and tgrelid = 'members'::regclass"
        assert one(db, on_old) == 0
        acl = "select relacl::text ~ 'builder_score' from pg_class where oid = 'members'::regclass"
        assert one(db, acl) is False
    run(db, "select builder_score.detach()")
    assert one(db, "select count(*) from pg_policy") == 0
    on_host = f"{triggers} and tgrelid in ('members'::regclass, 'projects'::regclass)"
    assert one(db, on_host) == 0
    run(db, "update members set bio = 'free'")


def test_uninstall_works_after_a_table_was_renamed(
    empty_database: str, server: PrivateCluster, template: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        run(db, BIGINT_CHECKED.tables)
        before = schema_dump(server, empty_database)
        migrator.upgrade(empty_database)
        run(db, "alter table users rename to members")
        said = output(call("uninstall", "--yes", "--dsn", empty_database))
        assert "the column builder_score stays: its table public.users is gone, or has" in said
        run(db, "alter table members rename to users")
        run(db, "alter table users drop column builder_score")
    assert schema_dump(server, empty_database) == before


@pytest.fixture
def installed(empty_database: str, template: str) -> Iterator[Connection[Any]]:
    """A host with a primary key of type integer's big sister, and no column of ours before."""
    with psycopg.connect(empty_database, autocommit=True) as db:
        run(db, BIGINT_CHECKED.tables)
        run(db, "insert into users (username, bio) values ('ann', 'x'), ('bob', null)")
        run(db, "insert into projects (owner_id, status) select id, 'shipped' from users")
        migrator.upgrade(empty_database)
        configure(db, debounce_window="0")
        settle(db)
        yield db


def test_the_tables_may_move_to_another_schema(
    installed: Connection[Any], empty_database: str, server: PrivateCluster
) -> None:
    db = installed
    tables = ("users", "projects", "project_collaborators")
    move = [f"alter table {table} set schema app" for table in tables]
    with db.transaction():
        run(db, "create schema app")
    change(db, *move, attach="attach(host_schema => 'app')")
    assert one(db, "select host_schema from builder_score.host") == "app"
    run(db, "set search_path = app")
    run(db, "update users set bio = 'y'")
    run(db, "insert into projects (owner_id, status) select id, 'shipped' from users")
    settle(db)
    assert_right(db)
    with pytest.raises(errors.UndefinedColumn, match='schema "nowhere" lacks'):
        run(db, "select builder_score.attach(host_schema => 'nowhere')")
    assert one(db, "select host_schema from builder_score.host") == "app"

    output(call("uninstall", "--yes", "--dsn", empty_database))
    left = schema_dump(server, empty_database)
    assert "builder_score" not in left
    assert "idx_" not in left


# Keys of another type -----------------------------------------------------------------------------


def test_a_key_of_another_type_is_refused_with_the_way_to_install_anew(
    installed: Connection[Any], empty_database: str
) -> None:
    db = installed
    scores = run(db, "select id::text, builder_score from users order by 1")
    new_type = [
        "alter table projects drop constraint projects_owner_id_fkey",
        "alter table project_collaborators drop constraint project_collaborators_user_id_fkey",
        "alter table users alter id drop identity",
        "alter table users alter id type text",
        "alter table projects alter owner_id type text",
        "alter table project_collaborators alter user_id type text",
    ]
    with pytest.raises(errors.DatatypeMismatch) as refused:
        change(db, *new_type)
    said = refused.value.diag
    assert said.message_primary == (
        "users.id has type text, and builder_score was installed for bigint"
    )
    hint = said.message_hint or ""
    assert one(db, "select attached_at is not null from builder_score.host"), "rolled back"

    run(db, "select builder_score.detach()")
    for statement in new_type:
        run(db, statement)
    keep = hint[hint.index("DELETE FROM") : hint.index(" before it")]
    run(db, keep)
    for command in (("uninstall", "--yes"), ("migrate",)):
        assert f"pyscore {command[0]}" in hint
        output(call(*command, "--dsn", empty_database))
        assert run(db, "select id, builder_score from users order by 1") == scores
    run(db, "insert into projects (owner_id, status) select id, 'shipped' from users limit 1")
    configure(db, debounce_window="0")
    settle(db)
    assert_right(db)


def test_a_key_that_fits_into_the_one_installed_for_stays(installed: Connection[Any]) -> None:
    db = installed
    change(
        db,
        "alter table users alter id type integer",
        "alter table projects alter owner_id type integer",
        "alter table project_collaborators alter user_id type integer",
    )
    run(db, "insert into users (username) values ('cyd')")
    settle(db)
    assert_right(db)
    plan = "explain select * from builder_score.host_users where id = 7::builder_score.user_id"
    run(db, "set enable_seqscan = off")
    assert "Index" in str(run(db, plan))
