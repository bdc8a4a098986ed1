"""The private server: its life, its crash, and what it says when it cannot run."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from operator import attrgetter
from pathlib import Path

import psycopg
import pytest

from pyscore import cluster as module
from pyscore.cluster import BIN_DIR_VARIABLE, ClusterError, PrivateCluster, find_bin_dir

# Nothing here outlives the machine, so nothing has to reach the disk.
FAST: dict[str, module.Setting] = {"fsync": False}


@pytest.fixture(scope="module")
def shared_server() -> Iterator[PrivateCluster]:
    with PrivateCluster(settings=FAST) as started:
        yield started


@pytest.fixture
def server(shared_server: PrivateCluster) -> PrivateCluster:
    # A test that failed half-way may have left it down.
    if not shared_server.running:
        shared_server.start()
    return shared_server


@pytest.fixture
def short_directory() -> Iterator[Path]:
    # tmp_path is closed to the server's user when root runs the tests.
    directory = Path("/tmp", f"pyscore-test-{os.urandom(4).hex()}")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def query(server: PrivateCluster, sql: str) -> str:
    return server.psql("-Atc", sql).strip()


def wait_until(condition: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def fake_programs(directory: Path, version: str) -> Path:
    directory.mkdir(parents=True)
    for name in ("postgres", "initdb", "pg_ctl"):
        script = directory / name
        script.write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
        script.chmod(0o755)
    return directory


def test_socket_and_loopback_lead_to_the_same_server(server: PrivateCluster) -> None:
    with (
        psycopg.connect(server.conninfo()) as by_socket,
        psycopg.connect(f"host=127.0.0.1 port={server.port} user=postgres") as by_tcp,
    ):
        sql = "select pg_postmaster_start_time()"
        assert by_socket.execute(sql).fetchone() == by_tcp.execute(sql).fetchone()


def test_defaults(server: PrivateCluster) -> None:
    names = ("server_encoding", "listen_addresses", "fsync", "max_connections")
    shown = query(server, "select " + ", ".join(f"current_setting('{name}')" for name in names))
    assert shown == "UTF8|127.0.0.1|off|200"
    collation = "select datcollate from pg_database where datname = current_database()"
    assert query(server, collation) == "C.UTF-8"


def test_server_is_not_root_and_its_directory_is_closed(server: PrivateCluster) -> None:
    status = server.directory.stat()
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert status.st_uid != 0
    if os.geteuid() != 0:
        assert status.st_uid == os.geteuid()


def test_names_that_need_quoting(server: PrivateCluster) -> None:
    name = "a b/c?d=%&é'"
    with psycopg.connect(server.conninfo(), autocommit=True) as admin:
        admin.execute("""create database "a b/c?d=%&é'" """)
    with psycopg.connect(server.conninfo(name)) as connection:
        assert connection.info.dbname == name
    assert server.psql("-Atc", "select current_database()", dbname=name).strip() == name


def test_settings_are_read_again_at_restart(server: PrivateCluster) -> None:
    port = server.port
    server.settings.update({"cluster_name": "it's \\ here", "work_mem": "5MB", "jit": False})
    server.restart("immediate")
    shown = query(server, "select current_setting('cluster_name'), current_setting('work_mem')")
    assert shown == "it's \\ here|5MB"
    assert query(server, "show jit") == "off"
    assert server.port == port


def test_kill_loses_sessions_and_keeps_commits(server: PrivateCluster) -> None:
    with psycopg.connect(server.conninfo(), autocommit=True) as busy:
        busy.execute("create table kept as select 1 as one")
        server.kill()
        assert not server.running
        with pytest.raises(psycopg.OperationalError):
            busy.execute("select 1")
    server.start()
    assert query(server, "select one from kept") == "1"
    assert "was not properly shut down" in server.log_file.read_text()


def test_kill_takes_a_busy_backend_along(server: PrivateCluster) -> None:
    with closing(psycopg.connect(server.conninfo(), autocommit=True)) as busy:
        pid = busy.info.backend_pid
        busy.pgconn.send_query(b"do 'begin loop end loop; end'")
        server.kill()
        assert not module._process_is_alive(pid)  # pyright: ignore[reportPrivateUsage]
    server.start()


def test_what_needs_a_stopped_or_a_running_server(server: PrivateCluster) -> None:
    with pytest.raises(ClusterError, match=r"runs already: use restart\(\)$"):
        server.start()
    server.stop("immediate")
    server.stop()
    with pytest.raises(ClusterError, match=r"no server runs in .*: start\(\) it first$"):
        server.kill()
    server.start()
    assert server.running


def test_callers_libpq_variables_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATABASE", "elsewhere")
    monkeypatch.setenv("PGOPTIONS", "-c no.such=setting -c work_mem=nonsense")
    with PrivateCluster(settings=FAST, tcp=False) as server:
        assert query(server, "show listen_addresses") == ""
    assert not server.directory.exists()


def test_given_directory_stays(short_directory: Path) -> None:
    with PrivateCluster(short_directory, settings=FAST) as first:
        first.psql("-c", "create table kept as select 1 as one")
    assert not first.running
    with PrivateCluster(short_directory, settings=FAST) as second:
        assert query(second, "select one from kept") == "1"
        (second.data_dir / "PG_VERSION").write_text("14\n")
        second.stop("immediate")
        with pytest.raises(ClusterError, match="was made by PostgreSQL 14, and this is"):
            second.start()


def test_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ClusterError, match=f"port {port} on 127.0.0.1 is taken: give another"),
            PrivateCluster(port=port),
        ):
            pass


def test_refusal_shows_the_log_and_leaves_nothing() -> None:
    refused = PrivateCluster(settings={"shared_preload_libraries": "no_such_library"})
    with pytest.raises(ClusterError, match=r"did not start(?s:.*)no_such_library"), refused:
        pass
    assert not refused.directory.exists()


def test_foreign_directory_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    # not the time of access: looking into a directory sets it
    facts = attrgetter("st_mode", "st_uid", "st_gid", "st_nlink", "st_mtime_ns", "st_ctime_ns")
    before = facts(tmp_path.stat())
    with pytest.raises(ClusterError, match="is not empty and holds no cluster"):
        PrivateCluster(tmp_path).start()
    assert facts(tmp_path.stat()) == before


def test_directory_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="bytes too long for a socket's path"):
        PrivateCluster(tmp_path / ("x" * 100))


def test_psql_reports_the_servers_error(server: PrivateCluster) -> None:
    with pytest.raises(ClusterError, match=r"^psql: .*division by zero"):
        server.psql(stdin="select 1/0; select 2;")


def test_extensions_and_programs(server: PrivateCluster) -> None:
    assert server.has_extension("plpgsql")
    assert not server.has_extension("no_such_extension")
    assert server.program("pg_dump").exists()
    with pytest.raises(ClusterError, match="no_such_program does not exist"):
        server.program("no_such_program")


def test_nothing_is_known_of_extensions_without_a_working_pg_config(tmp_path: Path) -> None:
    programs = fake_programs(tmp_path / "bin", "17.1")
    cluster = PrivateCluster(bin_dir=programs)
    assert not cluster.has_extension("plpgsql")
    (programs / "pg_config").write_text("#!/bin/sh\nexit 1\n")
    (programs / "pg_config").chmod(0o755)
    assert not cluster.has_extension("plpgsql")


def test_newest_server_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BIN_DIR_VARIABLE, raising=False)
    for version in ("9.6", "14", "16", "100"):
        fake_programs(tmp_path / version / "bin", version)
    (tmp_path / "200" / "bin").mkdir(parents=True)
    monkeypatch.setattr(module, "_DISTRIBUTION_ROOT", tmp_path)
    assert find_bin_dir() == tmp_path / "100" / "bin"


def test_no_server_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BIN_DIR_VARIABLE, raising=False)
    fake_programs(tmp_path / "14" / "bin", "14.3")
    monkeypatch.setattr(module, "_DISTRIBUTION_ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError) as caught:
        PrivateCluster()
    assert str(caught.value) == (
        "no PostgreSQL 15+ server programs found: install postgresql-15 or newer (make demo does)"
    )


def test_given_programs_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="holds no PostgreSQL server programs"):
        find_bin_dir(tmp_path)
    with pytest.raises(ClusterError, match="holds PostgreSQL 14: give the programs of 15 or newer"):
        find_bin_dir(fake_programs(tmp_path / "old", "14.3"))


def test_the_environment_may_say_where_the_server_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = fake_programs(tmp_path / "chosen", "100.1")
    monkeypatch.setenv(BIN_DIR_VARIABLE, str(chosen))
    assert find_bin_dir() == PrivateCluster().bin_dir == chosen
    argument = fake_programs(tmp_path / "argument", "16.1")
    assert find_bin_dir(argument) == argument
    monkeypatch.setenv(BIN_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(ClusterError, match=r"^PYSCORE_PG_BINDIR: .* holds no PostgreSQL server"):
        find_bin_dir()


@pytest.mark.pg_cron
def test_pg_cron_finds_a_database_made_later() -> None:
    with PrivateCluster(settings=FAST, cron_database="app") as server:
        server.psql("-c", "create database app")
        server.psql("-c", "create extension pg_cron", dbname="app")
        launcher = "select count(*) from pg_stat_activity where backend_type = 'pg_cron launcher'"
        assert wait_until(lambda: query(server, launcher) == "1")
