"""The private server that a benchmark runs on."""

import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection

from benchmarks.scales import Scale
from pyscore.cluster import PrivateCluster, Setting

DIRECTORY_VARIABLE = "PYSCORE_BENCH_DIR"
"""The environment variable that names a directory for servers, on a disk that counts."""

_IN_MEMORY = ("tmpfs", "ramfs")


@contextmanager
def server(scale: Scale, **settings: Setting) -> Generator[PrivateCluster]:
    """Start a server whose data is on a disk and, once read, in memory; remove it afterwards.

    Args:
        scale: Decides how much memory the server's own cache gets.
        settings: PostgreSQL settings that win over those here.
    """
    chosen: dict[str, Setting] = {
        "shared_buffers": scale.pick(smoke="64MB", quick="1GB", ordinary="3GB", full="8GB"),
        # No checkpoint comes at random: what it writes would belong to one side alone.
        "checkpoint_timeout": "1h",
        "max_wal_size": scale.pick(smoke="1GB", quick="16GB", ordinary="32GB", full="64GB"),
        **scale.pick(smoke={"fsync": False, "deadlock_timeout": "50ms"}, quick={}, ordinary={}),
        **settings,
    }
    base = None if scale is Scale.SMOKE else _disk()
    directory = None if base is None else base / f"pyscore-bench-{os.urandom(4).hex()}"
    cluster = PrivateCluster(directory, tcp=False, settings=chosen)
    try:
        with cluster:
            yield cluster
    finally:
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def connect(cluster: PrivateCluster, database: str) -> Connection[Any]:
    """Connect; each statement is a transaction of its own."""
    return psycopg.connect(cluster.conninfo(database), autocommit=True)


def postmaster(cluster: PrivateCluster) -> int:
    """Return the id of the server's first process, whose children all others are."""
    return int((cluster.data_dir / "postmaster.pid").read_text().split()[0])


def describe(cluster: PrivateCluster) -> str:
    """Say the version, and each setting that is not PostgreSQL's own default."""
    with connect(cluster, "postgres") as db:
        query = """
            select s.name || ' = ' || current_setting(s.name) from pg_settings as s
            where s.source = 'configuration file' and s.setting is distinct from s.boot_val
              and s.name !~* '^(lc_|log_|port$|unix_socket|listen|default_text|timezone)'
              and s.name !~* '^(dynamic_shared_memory_type|cron\\.host|DateStyle)'
            order by s.name"""
        settings = ", ".join(f"`{name}`" for (name,) in db.execute(query))
        version = re.split(r"\s", str(db.info.parameter_status("server_version")))[0]
    said = f" Settings that are not the defaults: {settings}." if settings else ""
    return f"PostgreSQL {version}.{said}"


def _disk() -> Path:
    """A directory of a file system that is not in memory: fsync has to cost what it costs."""
    if chosen := os.environ.get(DIRECTORY_VARIABLE):
        return Path(chosen)
    candidates = [Path("/var/tmp"), Path(tempfile.gettempdir()), Path("/tmp")]
    return next(
        (path for path in candidates if _file_system(path) not in _IN_MEMORY), candidates[0]
    )


def _file_system(path: Path) -> str:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    held = [(len(at), kind) for at, kind in mounts if path.resolve().is_relative_to(at)]
    return max(held)[1] if held else ""
