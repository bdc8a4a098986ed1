"""pg_dump and pg_restore with us in the database: what comes back, and what to do where it is less.

What the DBA guide says about backups, staging copies and moves to another server is tried here.
"""

import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.catalogue import dump, schema_dump
from tests.commands import call, output, psql
from tests.community import (
    add_collaborator,
    add_project,
    add_user,
    configure,
    drain,
    one,
    queue,
    score,
)
from tests.conftest import CRON_DATABASE, dsn, janitor, with_pg_cron
from tests.host_schemas import HOSTS
from tests.hosts import create_application
from tests.interleave import Sessions, assert_right, settle
from tests.poison import poison
from tests.statements import connect


@pytest.fixture
def target(server: PrivateCluster) -> Iterator[str]:
    """The address of an empty database beside the one that is dumped."""
    with janitor(server, f"restored_{uuid4().hex[:12]}") as address:
        yield address


@pytest.fixture(scope="module")
def elsewhere(request: pytest.FixtureRequest) -> Iterator[PrivateCluster]:
    """Another server, where our roles have never been."""
    cron_database = with_pg_cron(request.config, CRON_DATABASE)
    with PrivateCluster(settings={"fsync": False}, cron_database=cron_database) as cluster:
        yield cluster


@contextmanager
def database_elsewhere(cluster: PrivateCluster, name: str) -> Generator[str]:
    """Create a database on the other server; drop it, and then the roles, if they came with it."""
    cluster.psql("-c", f"create database {name}")
    try:
        yield dsn(cluster, name)
    finally:
        cluster.psql("-c", f"drop database {name} with (force)")
        cluster.psql("-c", "drop role if exists builder_score_owner, builder_score_operator")


def pg_dump(server: PrivateCluster, address: str, file: Path, *options: str) -> Path:
    command = [server.program("pg_dump"), *options, "--file", file, address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return file


def pg_restore(server: PrivateCluster, address: str, file: Path, *options: str) -> str:
    """Restore, and give what pg_restore complained of; it goes on after an error."""
    command = [server.program("pg_restore"), *options, "--dbname", address, file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (done.stderr == ""), done.stderr
    return done.stderr


def inhabit(db: Connection[Any]) -> None:
    """People with scores, one who is pending, one who is given up, settings that were turned."""
    configure(db, debounce_window="0", max_attempts=1)
    ada, bob = add_user(db, "ada", bio="builds"), add_user(db, "bob")
    project = add_project(db, ada, status="shipped", github_stars=41)
    add_collaborator(db, project, bob)
    poison(db)
    add_user(db, "eve", bio="has none")
    drain(db)
    assert one(db, "select count(*) from builder_score.score_dead_letter") == 1
    db.execute("update builder_score.signals set max_points = 12 where signal = 'age'")
    db.execute("delete from builder_score.score_recalc_queue")
    add_project(db, bob, status="shipped")


def assert_alive(db: Connection[Any]) -> None:
    """Triggers and worker do what they did: what was pending is computed, and what comes is too."""
    db.execute("drop trigger if exists poison on users")
    db.execute("select builder_score.retry_dead_letters(null)")
    settle(db)
    assert_right(db)
    carol = add_user(db, "carol", bio="comes later")
    add_project(db, carol, status="shipped")
    db.execute("update projects set status = 'shipped'")
    db.execute("delete from users where username = 'ada'")
    settle(db)
    assert score(db, carol) == 13
    assert_right(db)


# Ways to dump and restore everything --------------------------------------------------------------


def custom(server: PrivateCluster, source: str, target: str, folder: Path) -> None:
    file = pg_dump(server, source, folder / "app.dump", "--format=custom")
    assert pg_restore(server, target, file) == ""


def plain(server: PrivateCluster, source: str, target: str, folder: Path) -> None:
    psql(server, target, pg_dump(server, source, folder / "app.sql").read_text())


def parallel(server: PrivateCluster, source: str, target: str, folder: Path) -> None:
    file = pg_dump(server, source, folder / "app.dir", "--format=directory")
    assert pg_restore(server, target, file, "--jobs=4") == ""


def by_section(server: PrivateCluster, source: str, target: str, folder: Path) -> None:
    file = pg_dump(server, source, folder / "app.dump", "--format=custom")
    for section in ("pre-data", "data", "post-data"):
        assert pg_restore(server, target, file, f"--section={section}") == ""


def schema_then_data(server: PrivateCluster, source: str, target: str, folder: Path) -> None:
    psql(server, target, pg_dump(server, source, folder / "s.sql", "--schema-only").read_text())
    data = pg_dump(server, source, folder / "d.sql", "--data-only", "--disable-triggers")
    psql(server, target, data.read_text())


Way = Callable[[PrivateCluster, str, str, Path], None]


@pytest.mark.parametrize("restore", [custom, plain, parallel, by_section, schema_then_data])
def test_what_is_restored_is_what_was_dumped(
    server: PrivateCluster,
    database: str,
    db: Connection[Any],
    target: str,
    tmp_path: Path,
    restore: Way,
) -> None:
    inhabit(db)
    restore(server, database, target, tmp_path)
    # rows too: scores, settings, the pending, the dead letter
    assert dump(server, target) == dump(server, database)
    with connect(target) as restored:
        assert one(restored, "select count(*) from builder_score.verify()") > 0  # the pending one
        assert_alive(restored)


@pytest.mark.parametrize(
    "name",
    ["ulid ids, enums, triggers and scores of its own", "another schema", "partitioned"],
)
def test_every_host_schema_is_restored_as_it_was(
    server: PrivateCluster, empty_database: str, target: str, tmp_path: Path, name: str
) -> None:
    host = HOSTS[name]
    with connect(empty_database) as db:
        db.execute(host.tables.encode())
    migrator.upgrade(empty_database, settings=migrator.install_settings(host.schema))
    custom(server, empty_database, target, tmp_path)
    assert dump(server, target) == dump(server, empty_database)


# Data alone ---------------------------------------------------------------------------------------


def test_the_applications_rows_alone_are_scored_where_they_are_loaded(
    server: PrivateCluster, database: str, db: Connection[Any], target: str, tmp_path: Path
) -> None:
    inhabit(db)
    db.execute("drop trigger poison on users; drop function poison")
    file = pg_dump(server, database, tmp_path / "rows.dump", "-Fc", "--data-only", "-n", "public")
    migrator.upgrade(target)
    with connect(target) as restored:
        configure(restored, debounce_window="0")
        # the triggers fire, with an empty search_path
        assert pg_restore(server, target, file) == ""
        assert {row[3] for row in queue(restored)} >= {"user inserted", "project inserted"}
        assert_alive(restored)

        # and where they do not fire, everyone is to be enqueued
        restored.execute("truncate users cascade")
        settle(restored)
        assert pg_restore(server, target, file, "--disable-triggers") == ""
        assert queue(restored) == []
        wrong = "select distinct standing from builder_score.verify()"
        assert restored.execute(wrong).fetchall() == [("wrong",)]
        output(call("recompute", "--all", "--dsn", target))
        settle(restored)
        assert_right(restored)


def test_ids_of_the_queue_that_a_data_only_restore_left_behind_are_caught_up(
    server: PrivateCluster, empty_database: str, target: str, tmp_path: Path
) -> None:
    with connect(empty_database) as db:
        create_application(db, key="bigint")
        db.execute("""
            insert into users (username, email) select i, i from generate_series(1, 3) as i;
            insert into projects (owner_id, title) select 1 + i % 3, i from generate_series(1, 9) i;
            insert into project_collaborators (project_id, user_id, status)
            select i, 1 + i % 3, 'confirmed' from generate_series(1, 9) i
        """)
        migrator.upgrade(empty_database)
        drain(db)
    schema = pg_dump(server, empty_database, tmp_path / "schema.sql", "--schema-only")
    data = pg_dump(server, empty_database, tmp_path / "data.sql", "--data-only")
    psql(server, target, schema.read_text())
    # triggers append, and then the sequence is set to where it was in the other database
    psql(server, target, data.read_text())
    with connect(target) as restored:
        insert = "insert into users (username, email) values ('new', 'new')"
        with pytest.raises(psycopg.errors.UniqueViolation, match="score_recalc_queue_pkey"):
            restored.execute(insert)
        drain(restored)
        restored.execute(insert)
        configure(restored, debounce_window="0")
        settle(restored)
        assert_right(restored)


def test_one_worker_at_a_time_catches_the_ids_up(db: Connection[Any], sessions: Sessions) -> None:
    for name in ("ada", "grace", "linus"):
        add_user(db, name)
    last = one(db, "select max(id) from builder_score.score_recalc_queue")
    db.execute("select setval('builder_score.score_recalc_queue_id_seq', 1, false)")
    last_value = "select last_value from builder_score.score_recalc_queue_id_seq"
    other = sessions("another worker")
    other.run("begin")
    other.run("select builder_score.wait_for_our_turn('catch ids up')")
    # what the other worker sets may be handed out already when this one would set it back
    db.execute("select builder_score.keep_queue_ids_ahead()")
    assert one(db, last_value) == 1
    other.run("commit")
    db.execute("select builder_score.keep_queue_ids_ahead()")
    assert one(db, last_value) == last


def test_a_worker_that_runs_during_a_restore_does_no_harm_that_attach_does_not_mend(
    server: PrivateCluster, database: str, db: Connection[Any], target: str, tmp_path: Path
) -> None:
    ada = add_user(db, "ada", bio="builds")
    drain(db)
    db.execute("update builder_score.score_state set computed_at = computed_at - interval '1 day'")
    add_project(db, ada, status="shipped")
    file = pg_dump(server, database, tmp_path / "app.dump", "--format=custom")
    assert pg_restore(server, target, file, "--section=pre-data") == ""
    # pg_restore loads by schema and name: our queue comes before the application's tables
    assert pg_restore(server, target, file, "--section=data", "-n", "builder_score") == ""
    with connect(target) as restored:
        drain(restored)
        assert pg_restore(server, target, file, "--section=data", "-n", "public") == ""
        assert pg_restore(server, target, file, "--section=post-data") == ""
        assert score(restored, ada) == 3  # 13 was pending, and is forgotten
        assert queue(restored) == []
        restored.execute("select * from builder_score.attach()")
        configure(restored, debounce_window="0")
        settle(restored)
        assert score(restored, ada) == 13
        # what was computed while there were no triggers nobody has counted
        restored.execute("select builder_score.housekeeping()")
        assert_right(restored)


# Another server -----------------------------------------------------------------------------------

OWNER = "select nspowner::regrole::text from pg_namespace where nspname = 'builder_score'"


def test_roles_go_to_another_server_first(
    server: PrivateCluster,
    database: str,
    db: Connection[Any],
    elsewhere: PrivateCluster,
    tmp_path: Path,
) -> None:
    inhabit(db)
    file = pg_dump(server, database, tmp_path / "app.dump", "--format=custom")
    roles = subprocess.run(
        [server.program("pg_dumpall"), "--roles-only", "--dbname", database],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    ours = [line for line in roles.splitlines() if "builder_score" in line]
    with database_elsewhere(elsewhere, "moved") as address:
        psql(elsewhere, address, "\n".join(ours))
        assert pg_restore(elsewhere, address, file) == ""
        assert dump(elsewhere, address) == dump(server, database)
        with connect(address) as restored:
            assert_alive(restored)


@pytest.mark.parametrize("options", [(), ("--no-owner", "--no-acl")])
def test_what_was_restored_without_the_roles_is_installed_anew(
    server: PrivateCluster,
    database: str,
    db: Connection[Any],
    elsewhere: PrivateCluster,
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    inhabit(db)
    db.execute("drop trigger poison on users; drop function poison")
    file = pg_dump(server, database, tmp_path / "app.dump", "--format=custom")
    with database_elsewhere(elsewhere, "moved") as address, connect(address) as restored:
        said = pg_restore(elsewhere, address, file, *options)
        assert 'role "builder_score_owner" does not exist' in said
        # the rows are there, and everything of ours runs with the restoring superuser's rights
        assert one(restored, "select count(*) from users") == 3
        assert one(restored, OWNER) == "postgres"
        migrator.downgrade(address)
        migrator.upgrade(address)
        assert one(restored, OWNER) == "builder_score_owner"
        configure(restored, debounce_window="0")
        assert_alive(restored)


def test_an_application_dumped_without_us_is_adopted_like_any_other(
    server: PrivateCluster, database: str, db: Connection[Any], target: str, tmp_path: Path
) -> None:
    inhabit(db)
    db.execute("drop trigger poison on users; drop function poison")
    schema = "--exclude-schema=builder_score"
    file = pg_dump(server, database, tmp_path / "app.dump", "--format=custom", schema)
    said = pg_restore(server, target, file)
    lines = [line for line in said.splitlines() if "ERROR" in line]
    assert len(lines) == 26  # each of 13 triggers, and its comment
    assert all("builder_score" in line for line in lines)
    migrator.upgrade(target)
    with connect(target) as restored:
        configure(restored, debounce_window="0")
        assert_alive(restored)
    assert schema_dump(server, target) == schema_dump(server, database)


# pg_cron ------------------------------------------------------------------------------------------

JOBS = """
    select jobname, database, nodename, nodeport from cron.job
    where jobname = 'builder-score-worker'
"""


def test_a_restored_job_leads_to_the_old_server_until_it_is_scheduled_anew(
    server: PrivateCluster, cron_database: str, elsewhere: PrivateCluster, tmp_path: Path
) -> None:
    with connect(cron_database) as db:
        assert db.execute(JOBS).fetchall() == [
            ("builder-score-worker", CRON_DATABASE, server.host, server.port)
        ]
    file = pg_dump(server, cron_database, tmp_path / "app.dump", "--format=custom")
    elsewhere.psql(
        "-c", "create role builder_score_owner", "-c", "create role builder_score_operator"
    )
    elsewhere.psql("-c", f"create database {CRON_DATABASE}")
    # not dropped again: pg_cron's launcher would end
    assert pg_restore(elsewhere, dsn(elsewhere, CRON_DATABASE), file) == ""
    with connect(dsn(elsewhere, CRON_DATABASE)) as db:
        assert db.execute(JOBS).fetchall() == [
            ("builder-score-worker", CRON_DATABASE, server.host, server.port)
        ]
        db.execute("select * from builder_score.unschedule()")
        db.execute("select * from builder_score.schedule()")
        assert db.execute(JOBS).fetchall() == [
            ("builder-score-worker", CRON_DATABASE, elsewhere.host, elsewhere.port)
        ]


def test_a_job_is_not_restored_into_another_database(
    server: PrivateCluster, cron_database: str, target: str, tmp_path: Path
) -> None:
    file = pg_dump(server, cron_database, tmp_path / "app.dump", "--format=custom")
    said = pg_restore(server, target, file)
    lines = [line for line in said.splitlines() if "ERROR" in line]
    assert all("cron" in line for line in lines)
    assert len(lines) == 6  # the extension, its comment, two tables' rows, two sequences
    with connect(target) as restored:
        (said,) = one(restored, "select array_agg(s) from builder_score.schedule() as s")
        assert "no pg_cron job: pg_cron works in database" in said
        add_user(restored, "ada", bio="builds")
        settle(restored)
        assert_right(restored)
