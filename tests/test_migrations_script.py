"""The script for psql: worth reading, refuses before it does anything, goes on where it stopped."""

import re
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, LiteralString, cast
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator, revision
from pyscore.cluster import PrivateCluster
from tests.catalogue import Catalogue, catalogue, dump, schema_dump
from tests.commands import Done, alembic, call, environment, output
from tests.conftest import janitor
from tests.hosts import create_application
from tests.interleave import until

STOPPED = 3
"""What psql ends with when a statement of its script failed."""


def application(db: Connection[Any], score: str | None = None) -> None:
    create_application(db, key="bigint", score=score)
    db.execute("insert into users (username, email) values ('ada', 'ada@example.org')")


def up(*options: str) -> str:
    return output(call("migrate", "--sql", *options))


def down(*options: str) -> str:
    return output(call("uninstall", "--sql", *options))


def psql(server: PrivateCluster, address: str, script: str, *options: str) -> Done:
    """Run a script the way its head says."""
    return subprocess.run(
        [str(server.program("psql")), "-X", "-v", "ON_ERROR_STOP=1", *options, "-f", "-", address],
        input=script,
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=60,
    )


def complaint(done: Done) -> str:
    """What psql wrote about the statement that stopped it."""
    assert done.returncode == STOPPED, (done.returncode, done.stdout, done.stderr)
    return done.stderr


def succeeded(done: Done) -> bool:
    """Whether the whole script ran; notices say, for instance, that other databases keep roles."""
    return done.returncode == 0 and "ERROR" not in done.stderr and "WARNING" not in done.stderr


def revision_of(db: Connection[Any]) -> str | None:
    with db.transaction():
        return migrator.database_revision(db)


# To be read ---------------------------------------------------------------------------------------

FILES = migrator.known_revisions()


def sections(script: str) -> dict[str, str]:
    """Each revision's part of the script, from the banner to the end of its condition."""
    found = re.findall(r"^-- =+\n-- (\d{4}) .*?^\\endif$", script, re.MULTILINE | re.DOTALL)
    parts = re.findall(r"^-- =+\n-- \d{4} .*?^\\endif$", script, re.MULTILINE | re.DOTALL)
    return dict(zip(found, parts, strict=True))


def unfolded(comment: str) -> str:
    return " ".join(line.removeprefix("--").strip() for line in comment.splitlines())


@pytest.mark.parametrize("direction", ["up", "down"])
def test_every_section_says_what_it_does_what_it_locks_and_its_transaction(direction: str) -> None:
    script = up() if direction == "up" else down()
    head = unfolded(script.split("\n\n")[0])
    parts = sections(script)
    assert list(parts) == (list(FILES) if direction == "up" else list(FILES)[::-1])
    for name, file in FILES.items():
        read = revision.read(file, direction)
        banner, _, body = parts[name].partition("\\if :pyscore_do_")
        assert read.does in unfolded(banner)
        assert f"Locks on the application's tables: {read.locks}." in unfolded(banner)
        assert f"Locks: {read.locks}." in head
        transaction = re.findall(r"^(?:begin|commit);$", body, re.MULTILINE)
        if read.in_transaction:
            assert "Transaction: one;" in banner
            assert transaction == ["begin;", "commit;"]
            assert "set local lock_timeout = '0.5s';" in body
        else:
            assert "Transaction: NONE." in banner
            assert f"{name} [outside a transaction]" in head
            assert transaction == []
            assert body.count("\n\\gexec\n") == 1


def test_lock_wait_is_in_the_script() -> None:
    for script, seconds in [
        (up(), "600"),
        (up("--lock-wait", "0.5"), "0.5"),
        (down("--lock-wait", "30"), "30"),
        (up("--lock-wait", "inf"), "100000000"),
    ]:
        assert f"\nset builder_score.lock_wait = '{seconds} s';\n" in script
        assert f"tried again, for at most {seconds} s" in unfolded(script.split("\n\n")[0])


def test_a_name_cannot_leave_the_comment_it_is_shown_in() -> None:
    script = up("--host-schema", "a\nselect 1; 'b")
    head = script.split("\n\n")[0]
    assert all(line.startswith("--") for line in head.splitlines())
    assert "set builder_score.host_schema = 'a\nselect 1; ''b';" in script


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        ("-- Does it.\n-- locks on host tables: none\n", "lacks: transaction"),
        ("-- Does it.\n-- transaction: one\n", "lacks: locks on host tables"),
        ("-- transaction: one\n-- locks on host tables: none\n", "lacks: what it does"),
        ("-- It.\n-- transaction: two\n-- locks on host tables: none\n", "expected one or none"),
        ("select 1;\n", "lacks: transaction, locks on host tables"),
    ],
)
def test_a_revision_whose_head_does_not_say_everything_is_an_error(
    head: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        revision.parse(head + "\nselect 1;\n")


# What the heads say of locks, weakest first.
LEVELS = {
    "AccessShareLock": "ACCESS SHARE",
    "RowShareLock": "ROW SHARE",
    "RowExclusiveLock": "ROW EXCLUSIVE",
    "ShareUpdateExclusiveLock": "SHARE UPDATE EXCLUSIVE",
    "ShareLock": "SHARE",
    "ShareRowExclusiveLock": "SHARE ROW EXCLUSIVE",
    "AccessExclusiveLock": "ACCESS EXCLUSIVE",
}

TABLES = ("users", "projects", "project_collaborators")

OUR_LOCKS = """
select l.relation::regclass::text, l.mode
from pg_locks as l
where l.pid = pg_backend_pid() and l.granted and l.relation = any(%s::regclass[])
"""


def strongest(db: Connection[Any]) -> dict[str, str]:
    """The strongest lock that this transaction holds on each of the host's tables."""
    order = list(LEVELS)
    held: dict[str, str] = {}
    for table, mode in db.execute(OUR_LOCKS, [list(TABLES)]):
        if table not in held or order.index(mode) > order.index(held[table]):
            held[table] = mode
    return {table: LEVELS[mode] for table, mode in held.items()}


def said_of(locks: str) -> dict[str, str]:
    """What a head says of the tables that it names."""
    if locks.startswith("none"):
        return {}
    level = re.match("[A-Z ]+[A-Z]", locks)
    assert level is not None
    return {table: level[0] for table in TABLES if re.search(rf"\b{table}\b", locks)}


@pytest.mark.parametrize("score", [None, "integer default 0"], ids=["no column", "column"])
def test_sections_lock_what_their_heads_say_and_nothing_more(
    empty_database: str, score: str | None
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        application(db, score)
        db.execute("create schema builder_score")
        db.execute("create table builder_score.alembic_version (version_num varchar(32))")
        for direction, names in (("up", list(FILES)), ("down", list(FILES)[::-1])):
            for name in names:
                read = revision.read(FILES[name], direction)
                if not read.in_transaction:
                    for (statement,) in run_all(db, read.statements.partition("\\gexec")[0]):
                        db.execute(statement)
                    continue
                with db.transaction():
                    run_all(db, read.statements)
                    expected = said_of(read.locks)
                    if name == "0002" and score is not None:
                        assert "none where the column" in read.locks
                        expected = {}
                    assert strongest(db) == expected, f"{name} {direction}"


def run_all(db: Connection[Any], statements: str) -> list[tuple[Any, ...]]:
    """Run statements; give the rows of the last one, if it has any."""
    cursor = db.execute(statements.encode())
    while cursor.nextset():
        pass
    return cursor.fetchall() if cursor.description else []


# Stopped, and run again ---------------------------------------------------------------------------


@contextmanager
def reading(address: str, table: LiteralString) -> Generator[Connection[Any]]:
    """Somebody's long transaction, which has only read a table."""
    with psycopg.connect(address, application_name="a report") as reader:
        reader.execute("select from " + table)
        yield reader


@pytest.fixture(scope="module")
def undisturbed(server: PrivateCluster) -> Catalogue:
    """What `pyscore migrate` makes of the application."""
    with janitor(server, f"script_{uuid4().hex[:12]}") as address:
        with psycopg.connect(address, autocommit=True) as db:
            application(db)
        migrator.upgrade(address)
        with psycopg.connect(address) as db:
            return catalogue(db)


def test_stopped_by_locks_it_says_whose_and_run_again_it_completes(
    server: PrivateCluster, empty_database: str, undisturbed: Catalogue
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        application(db)
        before = schema_dump(server, empty_database)
        script = up("--lock-wait", "0")
        stops: list[tuple[LiteralString, str]] = [
            ("users", "0001"),
            ("project_collaborators", "0003"),
        ]
        for table, at in stops:
            with reading(empty_database, table) as reader:
                said = complaint(psql(server, empty_database, script))
                assert f"public.{table} could not be locked within 0.5 s" in said
                assert f"held by pid {reader.info.backend_pid} (a report, role postgres, " in said
                assert "Run the same again" in said
            assert revision_of(db) == at
        done = psql(server, empty_database, script)
        assert succeeded(done), done.stderr
        assert "the database is at revision 0003\n0004: " in done.stdout
        with psycopg.connect(empty_database) as other:
            assert catalogue(other) == undisturbed

        complete = dump(server, empty_database)
        done = psql(server, empty_database, script)
        assert succeeded(done), done.stderr
        assert done.stdout == "the database is at revision 0005\nat revision 0005\n"
        assert dump(server, empty_database) == complete

        script = down("--lock-wait", "0")
        with reading(empty_database, "projects"):
            said = complaint(psql(server, empty_database, script))
            assert "public.projects could not be locked within 0.5 s" in said
        assert revision_of(db) == "0004"
        done = psql(server, empty_database, script)
        assert succeeded(done), done.stderr
        assert schema_dump(server, empty_database) == before
        done = psql(server, empty_database, script)
        assert succeeded(done), done.stderr
        assert done.stdout.startswith("builder_score is not installed in this database\n")
        assert schema_dump(server, empty_database) == before


def test_it_goes_on_from_any_revision_and_down_from_any(
    server: PrivateCluster, empty_database: str, undisturbed: Catalogue
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        application(db)
    before = schema_dump(server, empty_database)
    output(alembic("upgrade", "0002", DATABASE_URL=empty_database))
    done = psql(server, empty_database, down())
    assert succeeded(done), done.stderr
    assert schema_dump(server, empty_database) == before

    output(alembic("upgrade", "0003", DATABASE_URL=empty_database))
    done = psql(server, empty_database, up())
    assert succeeded(done), done.stderr
    with psycopg.connect(empty_database) as db:
        assert catalogue(db) == undisturbed

    # what `alembic downgrade base` leaves when it is killed at its very end
    with psycopg.connect(empty_database, autocommit=True) as db:
        output(alembic("downgrade", "base", DATABASE_URL=empty_database))
        db.execute("create schema builder_score")
        db.execute(
            "create table builder_score.alembic_version (version_num varchar(32) not null,"
            " constraint alembic_version_pkc primary key (version_num))"
        )
    assert psql(server, empty_database, up()).returncode == 0
    with psycopg.connect(empty_database) as db:
        assert catalogue(db) == undisturbed


def test_beside_a_long_transaction_it_tries_again_by_itself(
    server: PrivateCluster, empty_database: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        application(db)
        with reading(empty_database, "users") as reader:
            script = subprocess.Popen(
                [str(server.program("psql")), "-X", "-q", empty_database],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
            )
            assert script.stdin is not None
            script.stdin.write(up())
            script.stdin.close()
            script.stdin = None

            def waits() -> bool:
                query = (
                    "select count(*) from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
                )
                return db.execute(query, [reader.info.backend_pid]).fetchall() != [(0,)]

            for _ in range(2):
                until(waits, "the script waits for the reader")
                until(lambda: not waits(), "the script gives way")
            assert script.poll() is None
        _, stderr = script.communicate(timeout=60)
        assert (script.returncode, stderr) == (0, "")
        assert revision_of(db) == migrator.head()


# Refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "preparation", "said"),
    [
        (("--host-schema", "nope"), "", 'there is no schema "nope" in this database'),
        (("--host-schema", 'No"pe'), "", 'there is no schema "No"pe" in this database'),
        (
            (),
            "create schema builder_score; create table builder_score.theirs ()",
            "there is a schema builder_score that pyscore did not make",
        ),
        (
            (),
            "create schema builder_score; create table builder_score.alembic_version"
            " as select '9999'::varchar(32) as version_num",
            "the schema is newer than this script: it is at revision 9999",
        ),
        (
            (),
            "create publication feed for table users",
            "publication feed has the table users: its subscribers stop when the column",
        ),
        ((), "alter table projects drop column status", 'in schema "public" lack projects.status'),
    ],
)
def test_what_migrate_would_refuse_its_script_refuses_before_it_does_anything(
    server: PrivateCluster,
    empty_database: str,
    options: tuple[str, ...],
    preparation: str,
    said: str,
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        application(db)
        if preparation:
            db.execute(cast(LiteralString, preparation))
    before = dump(server, empty_database)
    assert said in complaint(psql(server, empty_database, up(*options)))
    assert dump(server, empty_database) == before


def test_subscribers_that_are_ready_are_told_to_the_script(
    server: PrivateCluster, empty_database: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        application(db)
        db.execute("create publication feed for table users")
        assert psql(server, empty_database, up("--subscribers-ready")).returncode == 0
        assert revision_of(db) == migrator.head()


def test_an_installed_database_is_left_alone_by_a_script_that_is_not_for_it(
    server: PrivateCluster, database: str, db: Connection[Any]
) -> None:
    db.execute("create schema other")
    before = dump(server, database)
    said = complaint(psql(server, database, up("--host-schema", "other")))
    assert 'was installed for tables in schema "public", not "other"' in said
    for script in (up(), down()):
        assert "script makes its own transactions" in complaint(
            psql(server, database, script, "-1")
        )
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("select pg_advisory_lock(1651271539, 1)")
            said = complaint(psql(server, database, script))
            assert "another migration of this database is still running" in said
    assert dump(server, database) == before

    db.execute("update builder_score.alembic_version set version_num = '9999'")
    before = dump(server, database)
    said = complaint(psql(server, database, down()))
    assert "the schema is newer than this script: it is at revision 9999" in said
    assert "knows revisions up to 0005" in said
    assert dump(server, database) == before


def test_a_part_of_the_script_is_refused_where_the_part_before_it_is_missing(
    server: PrivateCluster, empty_database: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        application(db)
        before = dump(server, empty_database)
        part = output(alembic("upgrade", "0002:0004", "--sql"))
        said = complaint(psql(server, empty_database, part))
        assert "this script begins at revision 0002, and the database is at none" in said
        assert dump(server, empty_database) == before
        output(alembic("upgrade", "0002", DATABASE_URL=empty_database))
        assert psql(server, empty_database, part).returncode == 0
        assert revision_of(db) == "0004"
        part = output(alembic("downgrade", "0004:0001", "--sql"))
        assert psql(server, empty_database, part).returncode == 0
        assert revision_of(db) == "0001"


def test_the_script_lets_go_of_the_lock_that_keeps_migrations_apart(
    server: PrivateCluster, empty_database: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        application(db)
    held = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid();"
    done = psql(server, empty_database, f"{up()}\n{held}\n{down()}\n{held}\n")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line == "0"] == ["0", "0"]
