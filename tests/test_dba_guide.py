"""The DBA guide's commands and statements, run section by section on servers of their own."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.community import one
from tests.guide import Block, Reader, sections
from tests.hosts import create_application
from tests.interleave import assert_right, settle, until
from tests.pgbouncer import PgBouncer
from tests.standby import standby_of

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "dba-guide.md"
SECTIONS = sections(GUIDE)
SETTINGS = {"fsync": False, "wal_level": "logical", "max_connections": 60}

pytestmark = pytest.mark.pg_cron


def create_production(server: PrivateCluster, name: str, *, key: str = "uuid") -> str:
    """Create an application's database, with people in it; give its address."""
    server.psql("-c", f"create database {name}")
    with psycopg.connect(server.conninfo(name), autocommit=True) as db:
        create_application(db, key=key)
        db.execute(
            "insert into users (username, email, bio)"
            " select 'user' || n, n || '@example.org', 'bio' from generate_series(1, 50) as n"
        )
    return server.conninfo(name)


@pytest.fixture(scope="module")
def production() -> Iterator[PrivateCluster]:
    """A server on which pg_cron works in the application's own database."""
    with PrivateCluster(settings=SETTINGS, cron_database="app", tcp=False) as server:
        create_production(server, "app")
        yield server


@pytest.fixture(scope="module")
def server_of_the_service() -> Iterator[PrivateCluster]:
    """A server on which pg_cron works in the database postgres."""
    with PrivateCluster(settings=SETTINGS, cron_database="postgres", tcp=False) as server:
        yield server


@pytest.fixture
def elsewhere(server_of_the_service: PrivateCluster) -> Iterator[PrivateCluster]:
    """That server, on which ``deploy`` owns the tables of ``app``; no role of ours is there."""
    server = server_of_the_service
    server.psql("-c", "create role deploy login", "-c", "create role grace login")
    try:
        with psycopg.connect(create_production(server, "app"), autocommit=True) as db:
            for table in ("users", "projects", "project_collaborators"):
                db.execute(f"alter table {table} owner to deploy".encode())
        yield server
    finally:
        server.psql("-c", "drop database app with (force)")
        server.psql("-c", "drop owned by deploy, grace", "-c", "drop role deploy, grace")
        server.psql("-c", "drop role if exists builder_score_owner, builder_score_operator")


@pytest.fixture
def reader(production: PrivateCluster, tmp_path: Path) -> Reader:
    return Reader(production, tmp_path)


@pytest.fixture
def app(production: PrivateCluster) -> Iterator[Connection[Any]]:
    """The application's database, with us installed."""
    migrator.upgrade(production.conninfo("app"))
    with psycopg.connect(production.conninfo("app"), autocommit=True) as db:
        yield db


def test_every_section_with_commands_is_followed_by_a_test() -> None:
    with_commands = {
        heading
        for heading, blocks in SECTIONS.items()
        if any(block.language != "text" for block in blocks)
    }
    followed = set(re.findall(r'SECTIONS\["(.+?)"\]', Path(__file__).read_text(encoding="utf-8")))
    assert with_commands == followed


def test_the_contents_name_every_section() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    listed = re.findall(r"^- \[(.+)\]\(#(.+)\)$", text, re.MULTILINE)
    assert [heading for heading, _ in listed] == list(SECTIONS)
    assert [anchor for _, anchor in listed] == [
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in SECTIONS
    ]


def test_a_block_that_fails_or_prints_something_else_is_noticed(reader: Reader) -> None:
    for block in (Block("sql", "select 1/0;\n"), Block("sh", "false\ntrue\n")):
        with pytest.raises(AssertionError):
            reader.follow([block])
    with pytest.raises(AssertionError, match="the guide shows"):
        reader.follow([Block("sh", "echo one\n"), Block("text", "two\n")])
    with pytest.raises(AssertionError):
        reader.follow([Block("sql", "select 1;\n"), Block("text", "ERROR:  division by zero\n")])


def test_adopt(reader: Reader, production: PrivateCluster) -> None:
    reader.follow(SECTIONS["Adopt"])
    with psycopg.connect(production.conninfo("app"), autocommit=True) as db:
        assert one(db, "select count(*) from users where builder_score = 0") == 0


def test_permissions(elsewhere: PrivateCluster, tmp_path: Path) -> None:
    superuser = Reader(elsewhere, tmp_path)
    before, grant, operate, roles, _ = SECTIONS["Permissions"]
    superuser.follow([before])
    deploy = elsewhere.conninfo("app", user="deploy")
    migrator.upgrade(deploy)
    superuser.follow([grant, operate])
    migrator.downgrade(deploy)
    elsewhere.psql("-c", "alter role deploy nocreaterole")
    superuser.follow([roles])
    migrator.upgrade(deploy)
    with psycopg.connect(deploy, autocommit=True) as db:
        assert one(db, "select builder_score.owner_role()") == "builder_score_owner"


def test_an_operator_that_is_nothing_else_runs_the_worker(
    app: Connection[Any], reader: Reader
) -> None:
    by_owner = "alter table users owner to "
    trust = "pyscore doctor | grep -A 1 ' trust '"
    app.execute("create role deploy login")
    app.execute(f"{by_owner} deploy".encode())
    warned = reader.run(Block("sh", trust))
    assert "superuser postgres runs the worker, and deploy (owner of public.users) can" in warned
    reader.follow(SECTIONS["Permissions"][-1:])
    runs_as = "select distinct username from cron.job where jobname like 'builder-score-worker%'"
    assert app.execute(runs_as.encode()).fetchall() == [("builder_score_worker",)]
    assert "ok    trust" in reader.run(Block("sh", trust))
    app.execute("select builder_score.schedule()")
    app.execute(f"{by_owner} postgres; drop role deploy".encode())


def test_what_is_locked(production: PrivateCluster, tmp_path: Path) -> None:
    create_production(production, "busy")
    Reader(production, tmp_path, database="busy").follow(
        SECTIONS["What is locked, and for how long"]
    )


def test_the_locks_are_those_that_the_revisions_state() -> None:
    guide = " ".join(GUIDE.read_text(encoding="utf-8").split())
    scripts = sorted((ROOT / "migrations" / "versions").glob("*.up.sql"))
    assert len(scripts) == 5
    for script in scripts:
        found = re.search(
            r"^-- locks on host tables: (.*(?:\n-- .*)*)", script.read_text(), re.MULTILINE
        )
        assert found is not None, script
        stated = " ".join(found[1].replace("\n--", "").split())
        assert re.search(rf"\| {script.name[:4]} \| [^|]* \| {re.escape(stated)} \|", guide), stated


def test_what_monitoring_will_see(production: PrivateCluster, reader: Reader) -> None:
    migrator.upgrade(production.conninfo("app"))
    production.restart()  # its @reboot job starts the worker at once, and not with the next minute
    with psycopg.connect(production.conninfo("app"), autocommit=True) as db:
        until(lambda: worker_runs(db), "pg_cron has started the worker")
    reader.follow(SECTIONS["What monitoring will see"])


@pytest.mark.usefixtures("app")
def test_metrics_and_alerts(reader: Reader) -> None:
    reader.follow(SECTIONS["Metrics and alerts"])


def worker_runs(db: Connection[Any]) -> bool:
    return one(
        db,
        "select exists (select from pg_stat_activity"
        " where application_name = 'builder-score-worker')",
    )


@pytest.mark.usefixtures("app")
def test_more_than_one_worker(reader: Reader) -> None:
    reader.follow(SECTIONS["More than one worker"])


@pytest.mark.usefixtures("app")
def test_show_how_it_works(reader: Reader, tmp_path: Path) -> None:
    reader.follow(SECTIONS["Show how it works"])
    operators, public = (
        (tmp_path / name).read_text(encoding="utf-8") for name in ("operators.html", "scores.html")
    )
    assert len(re.findall(r"<bdi>user\d+</bdi>", operators)) == 20
    assert not re.search(r"user\d", public)
    assert "<title>How scores are made here</title>" in public


@pytest.mark.usefixtures("app")
def test_when_something_is_wrong(reader: Reader) -> None:
    reader.follow(SECTIONS["When something is wrong"])


def test_change_the_applications_tables(production: PrivateCluster, tmp_path: Path) -> None:
    *blocks, other_type, error, leave, reinstall = SECTIONS["Change the application's tables"]
    address = create_production(production, "changed")
    migrator.upgrade(address)
    Reader(production, tmp_path, database="changed").follow(blocks)
    with psycopg.connect(address, autocommit=True) as db:
        settle(db)
        assert_right(db)

    address = create_production(production, "numbered", key="integer")
    migrator.upgrade(address)
    Reader(production, tmp_path, database="numbered").follow([other_type, error, leave, reinstall])
    with psycopg.connect(address, autocommit=True) as db:
        assert one(db, "select count(*) from users where builder_score is null") == 0
        settle(db)
        assert_right(db)


@pytest.mark.usefixtures("app")
def test_upgrade(reader: Reader) -> None:
    reader.follow(SECTIONS["Upgrade"])


@pytest.mark.usefixtures("app")
def test_dump_and_restore(production: PrivateCluster, tmp_path: Path) -> None:
    migrator.upgrade(create_production(production, "shop"))
    with PrivateCluster(settings=SETTINGS, tcp=False) as new:
        reader = Reader(production, tmp_path, ELSEWHERE=new.conninfo("postgres"))
        reader.follow(SECTIONS["Dump and restore"])


def test_logical_replication(production: PrivateCluster, tmp_path: Path) -> None:
    publisher = create_production(production, "publisher")
    subscriber = create_production(production, "subscriber")
    with psycopg.connect(publisher, autocommit=True) as db:
        db.execute("create publication feed for all tables")
    reader = Reader(production, tmp_path, database="publisher", SUBSCRIBER=subscriber)
    reader.follow(SECTIONS["Logical replication"])


@pytest.mark.usefixtures("app")
def test_connection_poolers(production: PrivateCluster, tmp_path: Path) -> None:
    bouncer = PgBouncer(production, "app")
    with bouncer.running():
        reader = Reader(production, tmp_path, POOLER=bouncer.address("wide"))
        reader.follow(SECTIONS["Connection poolers"])


def test_what_developers_will_see(production: PrivateCluster, tmp_path: Path) -> None:
    migrator.upgrade(create_production(production, "developed"))
    Reader(production, tmp_path, database="developed").follow(
        SECTIONS["What the application's developers will see"]
    )


def test_managed_services(elsewhere: PrivateCluster, tmp_path: Path) -> None:
    elsewhere.psql("-c", "alter database app owner to deploy")
    migrator.upgrade(elsewhere.conninfo("app", user="deploy"))
    Reader(elsewhere, tmp_path).follow(SECTIONS["Managed services"])


@pytest.mark.usefixtures("app")
def test_failover(production: PrivateCluster, tmp_path: Path) -> None:
    with standby_of(production, settings=SETTINGS) as standby:
        production.stop("immediate")
        reader = Reader(production, tmp_path, STANDBY=standby.conninfo("app"))
        reader.follow(SECTIONS["Failover"])
    production.start()


@pytest.mark.usefixtures("app")
def test_uninstall(reader: Reader, production: PrivateCluster) -> None:
    reader.follow(SECTIONS["Uninstall"])
    with psycopg.connect(production.conninfo("app"), autocommit=True) as db:
        assert one(db, "select to_regnamespace('builder_score')") is None
