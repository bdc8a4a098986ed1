"""pg_upgrade brings us along: schema, queue and scores, from one major version to the next."""

import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from pyscore.demo.embedded import PACKAGE, bring_within_reach
from tests.community import add_project, add_user, configure, drain, queue, score
from tests.interleave import assert_right, settle

OLD, NEW = "pginstall", "pginstall18"
"""PostgreSQL 16 and 18, in the package from PyPI."""


@contextmanager
def server_of(folder: str) -> Generator[PrivateCluster]:
    """Start a server, from a copy of its programs where root alone can read them."""
    spec = find_spec(PACKAGE)
    assert spec is not None
    (package,) = list(spec.submodule_search_locations or ())
    cluster = PrivateCluster(bin_dir=Path(package, folder, "bin"), tcp=False)
    copy = bring_within_reach(cluster)
    try:
        with cluster:
            yield cluster
    finally:
        if copy is not None:
            shutil.rmtree(copy)


def run_as_server(cluster: PrivateCluster, program: str, *arguments: str | Path) -> None:
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        identity = {"user": cluster.data_dir.owner(), "group": cluster.data_dir.group()}
    done = subprocess.run(
        [cluster.program(program), *arguments],
        cwd=cluster.directory,
        capture_output=True,
        text=True,
        check=False,
        **identity,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_pg_upgrade_keeps_scores_queue_and_triggers() -> None:
    with server_of(OLD) as old, server_of(NEW) as new:
        old.psql("-c", "create database app")
        migrator.upgrade(old.conninfo("app"))
        with psycopg.connect(old.conninfo("app"), autocommit=True) as db:
            configure(db, debounce_window="0")
            ann = add_user(db, "ann", bio="bio")
            drain(db)
            add_project(db, ann, status="shipped")
            waiting = queue(db)
            assert (score(db, ann), len(waiting)) == (3, 1)
        old.stop()
        new.stop()
        # made with checksums, as 18 makes them unless told otherwise; pg_upgrade wants both alike
        run_as_server(new, "pg_checksums", "--disable", "-D", new.data_dir)
        run_as_server(
            new,
            "pg_upgrade",
            *("--old-bindir", old.bin_dir, "--new-bindir", new.bin_dir),
            *("--old-datadir", old.data_dir, "--new-datadir", new.data_dir),
            *("--username", "postgres", "--link"),
        )
        new.start()
        with psycopg.connect(new.conninfo("app"), autocommit=True) as db:
            assert db.info.server_version // 10000 == 18
            assert (score(db, ann), queue(db)) == (3, waiting)
            bob = add_user(db, "bob", bio="bio")
            settle(db)
            assert (score(db, ann), score(db, bob)) == (13, 3)
            assert_right(db)
        migrator.downgrade(new.conninfo("app"))
