"""Copies of a private server: a backup of its files, and a hot standby by streaming replication."""

import os
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyscore.cluster import PrivateCluster, Setting


def base_backup(server: PrivateCluster, *options: str) -> Path:
    """Copy a server's files while it runs; give the directory, for a PrivateCluster of its own.

    It lies inside the server's directory and goes with it.
    """
    directory = server.directory / f"copy-{os.urandom(2).hex()}"
    as_server: dict[str, Any] = {}
    if os.geteuid() == 0:
        as_server = {"user": server.data_dir.owner()}
    subprocess.run(
        [
            server.program("pg_basebackup"),
            *("--pgdata", directory / "data", "--dbname", server.conninfo()),
            *("--checkpoint=fast", "--no-sync", *options),
        ],
        check=True,
        cwd=server.directory,
        **as_server,
    )
    return directory


@contextmanager
def standby_of(
    primary: PrivateCluster, *, settings: Mapping[str, Setting], port: int | None = None
) -> Generator[PrivateCluster]:
    """Start a standby that streams from the primary, and throw it away at the end."""
    directory = base_backup(primary, "--write-recovery-conf")
    with PrivateCluster(directory, settings=settings, port=port, tcp=False) as standby:
        try:
            yield standby
        finally:
            standby.stop("immediate")
