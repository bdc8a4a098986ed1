"""Whatever a host's columns can hold: no write is refused because of us, every score is 0 to 100.

On every host schema, and on hosts whose columns have types chosen at random.
"""

from collections.abc import Generator
from contextlib import contextmanager
from random import Random
from typing import Any

import psycopg

from tests.attacks import Attack
from tests.commands import call
from tests.community import drain, one
from tests.host_databases import HostDatabase, HostDatabases, install
from tests.host_schemas import HostSchema
from tests.interleave import settle
from tests.oracle import assert_all_right
from tests.statements import run
from tests.values import hostile_value

READ = {
    "users": (
        *("username", "avatar_url", "headline", "bio", "primary_role", "timezone"),
        *("contact_links", "created_at"),
    ),
    "projects": ("status", "github_stars", "impact_metrics"),
    "project_collaborators": ("status",),
}
"""What our views read of the host's, but for keys."""

TEN_MB = 10_000_000

_COLUMNS = """
    with recursive based as (
        select a.attname, a.atttypid from pg_attribute as a
        where a.attrelid = %s::regclass and a.attnum > 0 and not a.attisdropped
          and a.attgenerated = '' and a.attname = any(%s)
        union all
        select b.attname, t.typbasetype
        from based as b join pg_type as t on t.oid = b.atttypid where t.typtype = 'd'
    )
    select b.attname, case t.typtype when 'c' then 'row' else format_type(b.atttypid, null) end,
           array(select e.enumlabel::text from pg_enum as e where e.enumtypid = t.oid
                 order by e.enumsortorder)
    from based as b join pg_type as t on t.oid = b.atttypid where t.typtype <> 'd'
    order by b.attname
"""

Column = tuple[str, str, str, list[str]]


class Writer:
    """An application that writes hostile values into one host's columns."""

    def __init__(self, host: HostDatabase, dice: Random, attack: Attack) -> None:
        self.app, self.db, self.dice, self.attack = host.app, host.db, dice, attack
        self.columns: list[Column] = [
            (table, *column)
            for table, names in READ.items()
            for column in self.db.execute(_COLUMNS, [table, list(names)]).fetchall()
        ]
        # in the order in which they were made, which a replay has too
        self.keys: dict[str, list[tuple[Any, ...]]] = {table: [] for table in READ}

    def populate(self) -> None:
        users = [self.app.sign_up(f"user {number}") for number in range(6)]
        self.keys["users"] = [(user,) for user in users]
        for user in users:
            for other in self.dice.sample(users, 2):
                project = self.app.start(user)
                self.app.invite(project, other)
                self.keys["projects"].append((project,))
                self.keys["project_collaborators"].append((project, other))
        self.attack.count("users", len(users))

    def write(self) -> None:
        """Write one value into a few rows."""
        table, column, type_name, labels = self.dice.choice(self.columns)
        value = hostile_value(self.dice, type_name)
        if labels:
            value = self.dice.choice([*labels, None])
        self._update(table, column, value)

    def write_a_new_label(self) -> None:
        """Write an enum value that was none when our triggers were made, if there are enums."""
        enums = [column for column in self.columns if column[3]]
        if enums:
            table, column, type_name, labels = self.dice.choice(enums)
            value = f"added {len(labels)}"
            run(self.db, f"alter type {type_name} add value if not exists '{value}'")
            labels.append(value)
            assert self._update(table, column, value)
            self.attack.count("enum values added")

    def write_ten_mb(self) -> None:
        """Write so long a text into a column that takes it, if there is one."""
        texts = [column for column in self.columns if column[2] == "text"]
        value = self.dice.choice("9 x") * TEN_MB
        for table, column, *_ in self.dice.sample(texts, len(texts)):
            if column != "username" and self._update(table, column, value):
                self.attack.count("texts of 10 MB")
                return

    def insert(self) -> None:
        """Write a new row of nothing but such values."""
        table = self.dice.choice(["users", "projects"])
        values = {
            column: self.dice.choice(labels) if labels else hostile_value(self.dice, type_name)
            for place, column, type_name, labels in self.columns
            if place == table and column != "username"
        }
        owner = self.dice.choice(self.keys["users"])[0]
        with self._only_its_own_objections():
            if table == "users":
                made = self.app.sign_up(f"one more {self.dice.random()}", **values)
            else:
                made = self.app.start(owner, values.pop("status") or "shipped", **values)
            self.keys[table].append((made,))

    def _update(self, table: str, column: str, value: str | None) -> bool:
        """Write a value into a few rows; say whether the host took it."""
        rows = self.dice.sample(self.keys[table], 3)
        key = "project_id, user_id" if table == "project_collaborators" else "id"
        some = ", ".join(f"({', '.join(['%s'] * len(row))})" for row in rows)
        statement = f"update {table} set {column} = %s where ({key}) in ({some})"
        with self._only_its_own_objections():
            self.app.run(statement, value, *(part for row in rows for part in row))
            return True
        return False

    @contextmanager
    def _only_its_own_objections(self) -> Generator[None]:
        """Let the application's own schema refuse a value, as it would without us."""
        try:
            yield
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            if "builder_score" in f"{error} {error.diag.context}":
                raise
        else:
            self.attack.count("values")


def assert_bounded_and_right(host: HostDatabase) -> None:
    """Nobody failed; scores are 0 to 100 and the oracle's; they are explained, and verified."""
    assert one(host.db, "select sum(failed) from builder_score.worker_status") == 0
    assert one(host.db, "select count(*) from builder_score.verify()") == 0
    assert_all_right(host.db)
    odd = run(
        host.db,
        """
        select u.id, e.* from builder_score.host_users as u
        cross join lateral builder_score.explain(u.id) as e
        where e.raw is null or not (e.raw >= 0 and e.raw < 'Infinity')
           or not coalesce(e.points between 0 and e.max_points, false)
           or not coalesce(u.builder_score between 0 and 100, false)
        """,
    )
    assert odd == []


def attack_with_values(host: HostDatabase, dice: Random, attack: Attack) -> None:
    writer = Writer(host, dice, attack)
    writer.populate()
    for last in dice.sample([writer.write_ten_mb, writer.write_a_new_label, writer.write], 3):
        for _ in range(20):
            dice.choice([writer.write, writer.write, writer.write, writer.insert])()
        last()
        settle(host.db)
        assert_bounded_and_right(host)
    # and people can look at them: names are hostile too
    for command in (["verify"], ["verify", "--json"], ["leaderboard"], ["leaderboard", "--json"]):
        done = call(*command, "--dsn", host.address)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert "\x1b" not in done.stdout


def test_no_value_that_a_host_can_store_breaks_its_writes_or_a_score(
    host_databases: HostDatabases, host_schema: HostSchema, attack: Attack
) -> None:
    for dice in attack.rounds(1):
        with host_databases.installed(host_schema) as host:
            attack_with_values(host, dice, attack)


# Columns of any type ------------------------------------------------------------------------------

TYPES = """
    create type kind as enum ('', 'in_progress', 'shipped', 'pending', 'confirmed');
    create type pair as (number integer, extra json);
    create domain words as text check (length(value) < 20000000);
    create domain links as jsonb;
    create domain moment as timestamptz;
    create domain many as integer;
    create domain whole as numeric(5, 0);
"""
STRINGS = ("text", "varchar(3000)", "char(30)", "words")
LISTS = ("json[]", "jsonb[]", "text[]", "pair", "point")
BY_COLUMN = {
    **dict.fromkeys(
        ("avatar_url", "headline", "bio", "timezone", "primary_role"),
        (*STRINGS, "kind", "bytea", "json", "text[]", "boolean", "integer", "point"),
    ),
    "contact_links": ("jsonb", "json", "links", *STRINGS, *LISTS),
    "created_at": ("timestamptz", "timestamp", "date", "moment", "text", "bigint"),
    "builder_score": (
        *("smallint", "integer", "bigint", "real", "double precision", "numeric", "numeric(5, 0)"),
        *("numeric(6, 3)", "many", "whole"),
    ),
    "github_stars": (
        *("smallint", "integer", "bigint", "numeric", "numeric(9, 2)", "real", "double precision"),
        *("many", "json", "jsonb", "boolean", "integer generated always as (likes * 2) stored"),
        *STRINGS,
        *LISTS,
    ),
    "impact_metrics": ("jsonb", "json", "links", *STRINGS, *LISTS),
    "status": (*STRINGS, "kind"),
}
KEYS = (
    "bigint generated by default as identity",
    "uuid default gen_random_uuid()",
    "text default gen_random_uuid()",
)


def host_of_any_types(dice: Random) -> HostSchema:
    """A host whose columns have types at random, or are missing, with foreign keys or without."""

    def columns(*names: str) -> str:
        kept = [name for name in names if name == "status" or dice.random() < 0.85]
        return "".join(f", {name} {dice.choice(BY_COLUMN[name])}" for name in kept)

    key = dice.choice(KEYS)
    reference = dice.choice(["", " references {} on delete cascade"])
    person, project = (key.split()[0] + reference.format(table) for table in ("users", "projects"))
    profile = columns("avatar_url", "headline", "bio", "timezone", "primary_role")
    return HostSchema(f"""
        {TYPES}
        create table users (
            id {key} primary key, username text{profile}
            {columns("contact_links", "created_at", "builder_score")});
        create table projects (
            id {key} primary key, owner_id {person}, likes integer default 4
            {columns("status", "github_stars", "impact_metrics")});
        create table project_collaborators (
            project_id {project}, user_id {person}{columns("status")});
    """)


def test_columns_of_any_type_are_read_and_no_value_breaks_anything(
    host_databases: HostDatabases, attack: Attack
) -> None:
    for dice in attack.rounds(4):
        schema = host_of_any_types(dice)
        with host_databases.before_us(schema) as host:
            install(host.address, host.db, schema)
            attack_with_values(host, dice, attack)
            attack.count("schemas")


# Each of these once broke -------------------------------------------------------------------------


@contextmanager
def made(databases: HostDatabases, tables: str) -> Generator[HostDatabase]:
    schema = HostSchema(TYPES + tables)
    with databases.before_us(schema) as host:
        install(host.address, host.db, schema)
        yield host


PROJECTS = "create table projects (id text, owner_id text, status text);"
COLLABORATORS = "create table project_collaborators (project_id text, user_id text, status text);"


def test_a_column_whose_type_has_no_equality_is_written_and_scored(
    host_databases: HostDatabases,
) -> None:
    """Once the application's own update failed: a trigger compared what cannot be compared."""
    columns = {
        "contact_links json[]": "{}",
        "avatar_url point": "(1,2)",
        "bio point[]": '{"(1,2)"}',
        "headline pair": "(1,{})",
        "timezone polygon": "((1,2),(3,4))",
    }
    users = f"create table users (id text primary key, {', '.join(columns)});"
    with made(host_databases, users + PROJECTS + COLLABORATORS) as host:
        host.app.run("insert into users (id) values ('ann')")
        settle(host.db)
        for column, value in columns.items():
            for _ in range(2):  # the second time nothing changes
                host.app.run(f"update users set {column.split()[0]} = %s", value)
                queued = one(host.db, "select count(*) from builder_score.score_recalc_queue")
                assert queued == 1, column
            settle(host.db)
            assert_bounded_and_right(host)
        assert one(host.db, "select builder_score from users") == 12  # four of five


def test_an_id_longer_than_a_notification_is_told_as_all(host_databases: HostDatabases) -> None:
    """Once NOTIFY raised, and the user was given up."""
    users = "create table users (id text primary key);"
    with made(host_databases, users + PROJECTS + COLLABORATORS) as host:
        host.app.run("insert into users values ('ann'), (repeat('a', 20000))")
        host.app.run("insert into projects select id, id, 'shipped' from users")
        host.db.execute("listen builder_score_changed")
        drain(host.db)
        told = [notify.payload for notify in host.db.notifies(timeout=0, stop_after=2)]
        assert sorted(told) == ['{"all": true}', '{"user_ids": ["ann"]}']
        assert_bounded_and_right(host)


def test_a_user_without_an_id_is_nobody_and_not_everybody(host_databases: HostDatabases) -> None:
    """Once the walk over everyone began anew behind the null, for ever; and so did verify()."""
    tables = """
        create table users (id bigint unique, bio text);
        create table projects (id bigint, owner_id bigint, status text);
        create table project_collaborators (project_id bigint, user_id bigint, status text);
    """
    with made(host_databases, tables) as host:
        host.db.execute("set statement_timeout = '60s'")  # not for ever
        host.app.run("insert into users select n from generate_series(1, 999) as n")
        settle(host.db)
        host.app.run("insert into users values (null, 'x')")
        host.app.run("update users set bio = 'y' where id is null")
        host.app.run("insert into projects values (null, null, 'shipped'), (null, 1, 'shipped')")
        host.app.run("update projects set owner_id = 2 where owner_id = 1")
        host.app.run("insert into project_collaborators values (null, null, 'confirmed')")
        names_nobody = "user_id is null and project_id is null"
        everyone = f"select count(*) from builder_score.score_recalc_queue where {names_nobody}"
        assert one(host.db, everyone) == 0
        host.db.execute("select builder_score.enqueue_everyone()")
        drain(host.db)
        assert one(host.db, "select count(*) from builder_score.verify()") == 0
        assert one(host.db, "select builder_score from users where id = 2") == 10
        host.app.run("update users set id = 1000, bio = null where id is null")
        host.app.run("update users set id = null where id = 1")
        host.app.run("delete from users where id is null")
        assert one(host.db, everyone) == 0
        settle(host.db)
        assert_bounded_and_right(host)


def test_a_score_is_rounded_to_what_a_domain_holds(host_databases: HostDatabases) -> None:
    """Once verify() called every such score wrong."""
    users = (
        "create table users (id text primary key, bio text, headline text, builder_score whole);"
    )
    with made(host_databases, users + PROJECTS + COLLABORATORS) as host:
        host.app.run("insert into users values ('ann', 'ships', '')")
        settle(host.db)
        assert one(host.db, "select builder_score from users") == 8
        assert_bounded_and_right(host)
