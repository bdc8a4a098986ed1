"""The intake on every host schema: which rows each write appends to the queue, and no others.

Everything is written as the application's own role. What holds for the reference schema alone, such
as upserts on its unique constraint, is in test_intake.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pyscore import migrator
from tests.community import queue
from tests.host_databases import PROFILE, Application, HostDatabase, HostDatabases
from tests.host_schemas import PARTITIONED, ULID_ENUM
from tests.interleave import assert_right, settle

Row = tuple[Any, Any, int]

EVERYONE: Row = (None, None, 20)
TABLES = ("users", "projects", "project_collaborators")


def low(user: Any) -> Row:
    return (user, None, 20)


def medium(user: Any) -> Row:
    return (user, None, 10)


def of_project(project: Any) -> Row:
    return (None, project, 10)


class Intake:
    """Writes as the application, and tells which rows that appended."""

    def __init__(self, host: HostDatabase) -> None:
        self._host = host

    def of(self, statement: str, *values: Any) -> list[Row]:
        """The rows (user, project, priority), sorted."""
        self._forget()
        self._host.app.run(statement, *values)
        return self.now()

    def now(self) -> list[Row]:
        """What was appended since the last look."""
        rows = [row[:3] for row in queue(self._host.db)]
        self._forget()
        return in_order(rows)

    def _forget(self) -> None:
        self._host.db.execute("delete from builder_score.score_recalc_queue")

    def project_gone_or_new(self, owner: Any, project: Any) -> list[Row]:
        """Where a move between partitions fires as a delete and an insert, the project too."""
        moved = [of_project(project)] if self._host.schema.is_partitioned else []
        return in_order([medium(owner), *moved])


def in_order(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=str)


def both_sides(user: Any, project: Any) -> list[Row]:
    return in_order([medium(user), of_project(project)])


@pytest.fixture
def intake(scratch_host: HostDatabase) -> Intake:
    return Intake(scratch_host)


@pytest.fixture
def app(scratch_host: HostDatabase) -> Application:
    return scratch_host.app


def test_users(intake: Intake, app: Application) -> None:
    ada = app.sign_up("ada")
    assert intake.now() == [low(ada)]
    bob = app.sign_up("bob")
    intake.now()

    changes = dict.fromkeys(PROFILE, "words") | {
        "contact_links": '{"web": "x"}',
        "created_at": "2020-01-01",
        "builder_score": "99",
    }
    for column in filter(lambda name: app.has("users", name), changes):
        change = f"update users set {column} = %s where id = %s"
        assert intake.of(change, changes[column], ada) == [low(ada)], column
        assert intake.of(change, changes[column], ada) == [], column
        assert intake.of(f"update users set {column} = {column}") == [], column

    assert intake.of("update users set username = username || '!'") == []
    # as an ORM saves an object whole; a generated id it leaves out
    every = ", ".join(f"{name} = {name}" for name in app.types("users") if name != "id")
    assert intake.of(f"update users set {every}") == []

    assert intake.of("delete from users where id = %s", bob) == [low(bob)]
    assert intake.of("delete from users where id = %s", bob) == []


def test_projects(intake: Intake, app: Application) -> None:
    ada, bob = app.sign_up("ada"), app.sign_up("bob")
    intake.now()
    for status in ("in_progress", "shipped"):
        project = app.start(ada, status)
        assert intake.now() == intake.project_gone_or_new(ada, project)
    app.invite(project, bob, "confirmed")
    intake.now()

    changes = {"status": "in_progress", "github_stars": 7, "impact_metrics": '{"users": 7}'}
    for column in filter(lambda name: app.has("projects", name), changes):
        change = f"update projects set {column} = %s where id = %s"
        assert intake.of(change, changes[column], project) == [medium(ada)], column
        assert intake.of(change, changes[column], project) == [], column
        assert intake.of(f"update projects set {column} = {column}") == [], column
    for column in ("title", "description"):
        if app.has("projects", column):
            assert intake.of(f"update projects set {column} = 'another'") == []

    transfer = "update projects set owner_id = %s where id = %s"
    expected = in_order([medium(ada), medium(bob), of_project(project)])
    assert intake.of(transfer, bob, project) == expected
    assert intake.of(transfer, bob, project) == []

    assert intake.of("delete from project_collaborators") == both_sides(bob, project)
    gone = intake.project_gone_or_new(bob, project)
    assert intake.of("delete from projects where id = %s", project) == gone


def test_what_a_before_trigger_of_the_hosts_undoes_appends_nothing(
    host_databases: HostDatabases,
) -> None:
    with host_databases.scratch(ULID_ENUM) as host:
        intake = Intake(host)
        ada = host.app.sign_up("ada")
        project = host.app.start(ada, github_stars=-3)
        intake.now()
        set_stars = "update projects set github_stars = %s where id = %s"
        assert intake.of(set_stars, -5, project) == []  # tidied to 0, which it was
        assert intake.of(set_stars, 5, project) == [medium(ada)]


def test_collaborations(intake: Intake, app: Application) -> None:
    owner, other_owner, ann, bob = (app.sign_up(name) for name in ("o", "oo", "ann", "bob"))
    project, other = app.start(owner), app.start(other_owner)
    intake.now()
    app.invite(project, ann)
    assert intake.now() == []
    app.invite(other, ann, "confirmed")
    assert intake.now() == both_sides(ann, other)

    set_status = "update project_collaborators set status = %s where project_id = %s"
    assert intake.of(set_status, "confirmed", project) == both_sides(ann, project)
    assert intake.of(set_status, "confirmed", project) == []

    # a confirmed one moves to another user, and to another project
    move = "update project_collaborators set user_id = %s, project_id = %s where project_id = %s"
    to_bob = in_order([medium(ann), medium(bob), of_project(project), of_project(project)])
    assert intake.of(move, bob, project, project) == to_bob
    both = in_order([*both_sides(bob, other), *both_sides(bob, project)])
    assert intake.of(move, bob, other, project) == both

    assert intake.of(set_status, "pending", other) == in_order(
        [medium(ann), medium(bob), of_project(other), of_project(other)]
    )
    assert intake.of("delete from project_collaborators where user_id = %s", bob) == []
    assert intake.of(set_status, "confirmed", other) == both_sides(ann, other)
    assert intake.of("delete from project_collaborators") == both_sides(ann, other)


def test_cascades(intake: Intake, app: Application) -> None:
    ada, bob, eve = (app.sign_up(name) for name in ("ada", "bob", "eve"))
    project = app.vouch(ada, bob)
    app.invite(project, eve)
    intake.now()
    rows = intake.of("delete from projects where id = %s", project)
    assert set(rows) == {medium(ada), medium(bob), of_project(project)}

    of_ada, of_eve = app.vouch(ada, bob), app.vouch(eve, ada)
    intake.now()
    rows = intake.of("delete from users where id = %s", ada)
    assert set(rows) == {
        low(ada),
        *(medium(user) for user in (ada, bob)),
        *(of_project(project) for project in (of_ada, of_eve)),
    }


def test_copy(intake: Intake, app: Application) -> None:
    ada = app.copy_in("users", username="ada")
    bob = app.copy_in("users", username="bob")
    assert intake.now() == in_order([low(ada), low(bob)])
    project = app.copy_in("projects", owner_id=ada, status="in_progress")
    assert intake.now() == intake.project_gone_or_new(ada, project)
    app.copy_in("project_collaborators", project_id=project, user_id=ada, status="pending")
    assert intake.now() == []
    app.copy_in("project_collaborators", project_id=project, user_id=bob, status="confirmed")
    assert intake.now() == both_sides(bob, project)


def test_truncate(intake: Intake, app: Application, scratch_host: HostDatabase) -> None:
    app.vouch(app.sign_up("ada"), app.sign_up("bob"))
    for number in (1, 2, 3):
        tables = ", ".join(TABLES[-number:])
        rows = intake.of(f"truncate {tables}")
        assert set(rows) == {EVERYONE}
        # one for each of the tables, and for each partition
        assert len(rows) == number + (2 * (number - 1) if scratch_host.schema.is_partitioned else 0)


def test_nothing_is_appended_for_what_touches_no_row(intake: Intake, app: Application) -> None:
    app.vouch(app.sign_up("ada"), app.sign_up("bob"))
    intake.now()
    for table in TABLES:
        column = "username" if table == "users" else "status"
        assert intake.of(f"update {table} set {column} = null where false") == []
        assert intake.of(f"delete from {table} where false") == []


# partitions ---------------------------------------------------------------------------------------


@pytest.fixture
def partitioned(host_databases: HostDatabases) -> Iterator[HostDatabase]:
    with host_databases.installed(PARTITIONED) as host:
        yield host


def partition_of(host: HostDatabase, table: str, row: Any) -> str:
    where = f"select tableoid::regclass::text from {table} where id = %s"
    return host.app.run(where, row)[0][0]


def id_in(host: HostDatabase, table: str, partition: int) -> int:
    """A free id whose row is in the given partition."""
    found = host.db.execute(
        "select n from generate_series(5000, 9000) as n"
        " where satisfies_hash_partition(%s::regclass, 2, %s, n::bigint)"
        f" and not exists (select from {table} where id = n) limit 1".encode(),
        [table, partition],
    ).fetchone()
    assert found is not None
    return found[0]


def test_a_row_that_moves_to_another_partition(partitioned: HostDatabase) -> None:
    app, db = partitioned.app, partitioned.db
    ada, bob = app.sign_up("ada"), app.sign_up("bob")
    project = app.start(ada, "shipped")
    settle(db)
    for table, old in (("projects", project), ("users", bob)):
        here = partition_of(partitioned, table, old)
        new = id_in(partitioned, table, 1 - int(here[-1]))
        app.run(f"update {table} set id = %s where id = %s", new, old)
        assert partition_of(partitioned, table, new) != here
        if table == "users":
            expected = {low(old), low(new)}
        else:
            expected = {medium(ada), of_project(old), of_project(new)}
        assert {row[:3] for row in queue(db)} == expected
        settle(db)
        assert_right(db)


def test_what_is_written_to_a_partition_directly(partitioned: HostDatabase) -> None:
    app, db, intake = partitioned.app, partitioned.db, Intake(partitioned)
    ada, bob = (id_in(partitioned, "users", number) for number in (0, 1))
    assert intake.of("insert into users_0 (id, username) values (%s, 'ada')", ada) == [low(ada)]
    with app.db.cursor().copy("copy users_1 (id, username) from stdin") as copy:
        copy.write_row([bob, "bob"])
    assert intake.now() == [low(bob)]
    assert intake.of("update users_0 set bio = 'ships'") == [low(ada)]
    assert intake.of("update users_1 set builder_score = 50") == [low(bob)]
    assert intake.of("update users_1 set username = 'robert'") == []

    project = id_in(partitioned, "projects", 1)
    insert = "insert into projects_1 (id, owner_id) values (%s, %s)"
    assert intake.of(insert, project, ada) == both_sides(ada, project)
    assert intake.of("update projects_1 set status = 'shipped'") == [medium(ada)]
    transfer = "update projects_1 set owner_id = %s"
    expected = in_order([medium(ada), medium(bob), of_project(project)])
    assert intake.of(transfer, bob) == expected
    assert intake.of("delete from projects_1") == both_sides(bob, project)
    assert intake.of("delete from users_1") == [low(bob)]
    assert db.execute("select count(*) from users").fetchall() == [(1,)]


def test_a_partition_that_is_truncated_and_one_that_is_detached(
    host_databases: HostDatabases,
) -> None:
    """Without foreign keys nothing else is truncated with it."""
    tables = re.sub(r" references \w+ on delete cascade", "", PARTITIONED.tables)
    with host_databases.installed(replace(PARTITIONED, tables=tables)) as host:
        app, db = host.app, host.db
        users = [app.sign_up(f"user{number}") for number in range(8)]
        projects = [app.start(user, "shipped") for user in users]
        for project, user in zip(projects, reversed(users), strict=True):
            app.invite(project, user, "confirmed")
        settle(db)
        for partition in ("projects_0", "users_1"):
            app.run(f"truncate {partition}")
            assert [row[:3] for row in queue(db)] == [EVERYONE]
            settle(db)
            assert_right(db)

        # a trigger that stayed on it must not be in the way of taking us out
        db.execute("alter table users detach partition users_1")
        migrator.downgrade(host.address)
        app.run("truncate users_1")
        left = "select tgrelid::regclass from pg_trigger where tgname like 'builder%'"
        assert db.execute(left).fetchall() == []
