"""What triggers cannot see: verify finds exactly whom it concerns, and repairs them.

On every host schema: rows written under session_replication_role = replica (as by a subscription),
with triggers disabled (as by pg_restore --disable-triggers) or dropped.
"""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pyscore.cluster import PrivateCluster
from tests.attacks import Attack
from tests.commands import call
from tests.community import one
from tests.examining import examine, level_of
from tests.host_databases import Application, HostDatabase, HostDatabases
from tests.host_schemas import HOSTS, REFERENCE, ULID_ENUM
from tests.interleave import assert_right, settle
from tests.oracle import scores
from tests.statements import run
from tests.test_dump_restore import pg_dump, pg_restore

TABLES = ("users", "projects", "project_collaborators")


class Community:
    """An application that writes at random, seen by our triggers or not."""

    def __init__(self, host: HostDatabase, dice: Random) -> None:
        self.db, self.dice = host.db, dice
        self.app = Application(host.db, host.schema)  # as the tables' owner
        self._number = 0
        self._scores_may_be_null = one(
            self.db,
            "select not attnotnull from pg_attribute"
            " where attrelid = 'users'::regclass and attname = 'builder_score'",
        )

    def sign_up(self) -> None:
        self._number += 1
        user = self.app.sign_up(f"user {self._number}")
        if self.app.has("users", "created_at"):
            ago = "update users set created_at = now() - %s::interval where id = %s"
            self.app.run(ago, f"{self.dice.randrange(2000)} days 12 hours", user)

    def write(self) -> None:
        """Do one of the things that applications do, to rows chosen at random."""
        self.dice.choice(
            [
                self.sign_up,
                self._start,
                self._invite,
                lambda: self._update("projects", "status", self.dice.choice(["shipped", None])),
                lambda: self._update("project_collaborators", "status", "confirmed"),
                lambda: self._update("project_collaborators", "status", "pending"),
                lambda: self._update("users", "bio", self.dice.choice(["ships", ""])),
                lambda: self._update("projects", "github_stars", self.dice.randrange(10**6)),
                lambda: self._update("users", "builder_score", self.dice.randrange(101)),
                self._unscore,
                self._transfer,
                lambda: self._delete("project_collaborators"),
                lambda: self._delete("projects"),
                lambda: self._delete("users"),
            ]
        )()

    def _start(self) -> None:
        for user in self._some("users"):
            self.app.start(user, self.dice.choice(["shipped", "in_progress"]))

    def _invite(self) -> None:
        for project, user in zip(self._some("projects"), self._some("users"), strict=False):
            if not self.app.run(
                "select 1 from project_collaborators where project_id = %s and user_id = %s",
                *(project, user),
            ):
                self.app.invite(project, user, self.dice.choice(["confirmed", "pending"]))

    def _unscore(self) -> None:
        if self._scores_may_be_null:
            self.app.run(
                "update users set builder_score = null where builder_score::integer %% 3 = %s",
                self.dice.randrange(3),
            )

    def _transfer(self) -> None:
        for project, user in zip(self._some("projects"), self._some("users"), strict=False):
            self.app.run("update projects set owner_id = %s where id = %s", user, project)

    def _update(self, table: str, column: str, value: object) -> None:
        if self.app.has(table, column):
            value = "in_progress" if value is None else value
            key = "id" if table != "project_collaborators" else "project_id"
            for row in self._some(table, key):
                self.app.run(f"update {table} set {column} = %s where {key} = %s", value, row)

    def _delete(self, table: str) -> None:
        key = "id" if table != "project_collaborators" else "project_id"
        for row in self._some(table, key)[:1]:
            self.app.run(f"delete from {table} where {key} = %s", row)

    def _some(self, table: str, key: str = "id") -> list[Any]:
        order = "username" if table == "users" else f"{key}::text"
        rows = [row for (row,) in self.app.run(f"select {key} from {table} order by {order}")]
        return self.dice.sample(rows, min(len(rows), self.dice.choice([1, 1, 2, 5])))

    def users(self) -> list[Any]:
        return [user for (user,) in self.app.run("select id from users order by username")]


@contextmanager
def as_a_replica(db: Any) -> Generator[None]:
    db.execute("set session_replication_role = replica")
    yield
    db.execute("reset session_replication_role")


@contextmanager
def with_triggers_disabled(db: Any) -> Generator[None]:
    for table in TABLES:
        run(db, f"alter table {table} disable trigger all")
    yield
    for table in TABLES:
        run(db, f"alter table {table} enable trigger all")


@contextmanager
def with_triggers_left_disabled(db: Any) -> Generator[None]:
    for table in TABLES:
        run(db, f"alter table {table} disable trigger user")
    yield


@contextmanager
def with_triggers_dropped(db: Any) -> Generator[None]:
    triggers = """
        select format('drop trigger %I on %s', t.trigger_name, t.host_table)
        from builder_score.needed_triggers() as t join pg_class as c on c.oid = t.host_table
        where not c.relispartition or t.trigger_name = 'builder_score_truncate'
    """
    for (drop,) in run(db, triggers):
        run(db, drop)
    yield


Unseen = Callable[[Any], Any]
UNSEEN: tuple[Unseen, ...] = (
    as_a_replica,
    with_triggers_disabled,
    with_triggers_left_disabled,
    with_triggers_dropped,
)

Wrong = dict[str, tuple[Decimal | None, Decimal]]


def differing(db: Any) -> Wrong:
    """Stored and right score of each user where they differ, by the oracle."""
    stored = dict(run(db, "select id, builder_score::numeric from users"))
    return {
        str(user): (stored[user], score.stored)
        for user, score in scores(db).items()
        if stored[user] != score.stored
    }


def verified(address: str, *options: str, exit_code: int) -> dict[str, Any]:
    done = call("verify", "--json", *options, "--dsn", address)
    assert done.returncode == exit_code, done
    return json.loads(done.stdout, parse_float=Decimal, parse_int=Decimal)


def found(data: dict[str, Any], standing: str) -> Wrong:
    return {
        one["user_id"]: (one["stored"], one["computed"])
        for one in data["findings"]
        if one["standing"] == standing
    }


@pytest.mark.parametrize("unseen", UNSEEN, ids=lambda unseen: unseen.__name__)
def test_verify_finds_whom_it_concerns_and_repairs_them(
    host_databases: HostDatabases, attack: Attack, unseen: Unseen
) -> None:
    for dice in attack.rounds(2):
        # so that the variants have different hosts, and two rounds of them have all
        schema = HOSTS[attack.in_turn(list(HOSTS), place=2 * UNSEEN.index(unseen))]
        with host_databases.installed(schema) as host:
            db, community = host.db, Community(host, dice)
            for _ in range(dice.randint(5, 40)):
                community.sign_up()
            for _ in range(20):
                community.write()
            settle(db)
            assert_right(db)

            # of some people the age is as of a while ago
            long_ago = [str(user) for user in community.users() if dice.random() < 0.2]
            db.execute(
                "update builder_score.score_state set computed_at = now() - interval '99 days'"
                " where user_id::text = any(%s)",
                [long_ago],
            )
            with unseen(db):
                for _ in range(dice.randint(1, 30)):
                    community.write()
            everyone = community.users()
            queued = {str(user) for user in everyone if dice.random() < 0.2}
            for user in queued:
                run(db, f"select builder_score.enqueue('{user}')")

            expected = differing(db)
            wrong = {user: both for user, both in expected.items() if user not in queued}
            rows = db.execute("select user_id::text, stored, computed from builder_score.verify()")
            assert {user: both for user, *both in rows} == {
                user: list(both) for user, both in expected.items()
            }
            data = verified(host.address, exit_code=3 if wrong else 0)
            assert data["checked"] == len(everyone)
            assert found(data, "wrong") == wrong
            assert found(data, "pending").keys() == expected.keys() - wrong.keys()
            attack.count("users", len(everyone))

            repaired = verified(host.address, "--repair", exit_code=0)["repairs"]
            assert {one["user_id"]: one["old"] for one in repaired} == {
                user: stored for user, (stored, _) in wrong.items()
            }
            assert differing(db).keys() == expected.keys() - wrong.keys(), "who is the worker's"
            attack.count("repairs", len(repaired))

            if unseen in (with_triggers_left_disabled, with_triggers_dropped):
                assert level_of("triggers", examine(host.address)) != "ok"
                for table in TABLES:
                    run(db, f"alter table {table} enable trigger user")
                run(db, "select builder_score.attach()")
                assert level_of("triggers", examine(host.address)) == "ok"
            else:
                run(db, "select builder_score.enqueue_everyone()")  # forgets who is gone
            settle(db)
            assert_right(db)


def test_a_status_that_is_renamed_is_found(host_databases: HostDatabases) -> None:
    with host_databases.installed(ULID_ENUM) as host:
        app, db = host.app, host.db
        ann, bob, eve = (app.sign_up(name) for name in ("ann", "bob", "eve"))
        app.start(ann, "shipped")
        app.invite(app.start(bob), eve, "confirmed")
        settle(db)
        run(db, "alter type project_status rename value 'shipped' to 'launched'")
        assert found(verified(host.address, exit_code=3), "wrong").keys() == {ann}
        run(db, "alter type collaboration_status rename value 'confirmed' to 'agreed'")
        assert verified(host.address, exit_code=3)["wrong"] == 3
        verified(host.address, "--repair", exit_code=0)
        assert_right(db)
        # what was meant: the formula knows the new words
        run(db, "update builder_score.statuses set status = 'launched' where meaning = 'shipped'")
        settle(db)
        assert_right(db)
        assert app.run("select builder_score >= 10 from users where id = %s", ann) == [(True,)]


def test_rows_restored_with_triggers_disabled_are_found_and_go_on_ageing(
    server: PrivateCluster, host_databases: HostDatabases, tmp_path: Path
) -> None:
    with host_databases.installed(REFERENCE) as host:
        app, db = host.app, host.db
        ann, bob, _ = (app.sign_up(name) for name in ("ann", "bob", "eve"))
        app.start(ann, "shipped")
        app.vouch(bob, ann)
        settle(db)
        app.run("update users set builder_score = 42 where id = %s", bob)  # and dumped like this
        only = ["--data-only", *(f"--table=public.{table}" for table in TABLES)]
        dump = pg_dump(server, host.address, tmp_path / "rows.dump", "--format=custom", *only)
        app.run("truncate users, projects, project_collaborators")
        settle(db)
        assert one(db, "select count(*) from builder_score.score_state") == 0
        assert pg_restore(server, host.address, dump, "--data-only", "--disable-triggers") == ""
        assert one(db, "select count(*) from builder_score.score_recalc_queue") == 0

        assert found(verified(host.address, exit_code=3), "wrong").keys() == {str(bob)}
        verified(host.address, "--repair", exit_code=0)
        assert differing(db) == {}

        # of who needed no repair nothing is known; they are a year older one day
        with as_a_replica(db):
            run(db, "update users set created_at = created_at - interval '365 days'")
        run(db, "update builder_score.score_state set computed_at = now() - interval '8 days'")
        assert one(db, "select builder_score.refresh_ages()")
        settle(db)
        assert_right(db)
        assert app.run("select builder_score >= 10 from users") == [(True,)] * 3
