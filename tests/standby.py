"""A hot standby of a private server, by streaming replication."""

import os
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from pyscore.cluster import PrivateCluster, Setting


@contextmanager
def standby_of(
    primary: PrivateCluster, *, settings: Mapping[str, Setting]
) -> Generator[PrivateCluster]:
    """Start a standby that streams from the primary, and throw it away at the end.

    Its files lie inside the primary's directory and go with it.
    """
    directory = primary.directory / f"standby-{os.urandom(2).hex()}"
    as_server: dict[str, Any] = {}
    if os.geteuid() == 0:
        as_server = {"user": primary.data_dir.owner()}
    subprocess.run(
        [
            primary.program("pg_basebackup"),
            *("--pgdata", directory / "data", "--dbname", primary.conninfo()),
            *("--checkpoint=fast", "--no-sync", "--write-recovery-conf"),
        ],
        check=True,
        cwd=primary.directory,
        **as_server,
    )
    with PrivateCluster(directory, settings=settings, tcp=False) as standby:
        try:
            yield standby
        finally:
            standby.stop("immediate")
