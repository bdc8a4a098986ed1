"""Makes and drops databases, and tells where their servers keep them: in memory if it has room."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from psycopg import Connection, Cursor
from pytest_postgresql.janitor import DatabaseJanitor

from tests.interleave import until

MEMORY = Path("/dev/shm")
ROOM = 2 * 1024**3
"""Bytes that the servers of one process of pytest may need."""


class Janitor(DatabaseJanitor):
    """Like its parent, but drops a database as soon as its sessions are gone."""

    @staticmethod
    def _terminate_connection(cur: Cursor[Any], dbname: str) -> None:
        end_sessions(cur, dbname)


def end_sessions(db: Connection[Any] | Cursor[Any], name: str) -> None:
    """End a database's sessions, and wait until they are gone.

    CREATE and DROP DATABASE look again for one that is still ending only after a nap of 0.1 s.
    """
    query = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = %s"

    def are_gone() -> bool:
        row = db.execute(query, (name,)).fetchone()
        return row is not None and row[0] == 0

    until(are_gone, f"the sessions of {name} have ended")


def memory(processes: int) -> Path | None:
    """Where files are in memory; None where that is no place for servers.

    A container may have 64 MB there, or may run no programs from there, as the demo does.
    """
    if not os.access(MEMORY, os.W_OK) or os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
        return None
    available = re.search(r"^MemAvailable: *(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    room = min(shutil.disk_usage(MEMORY).free, int(available[1]) * 1024 // 2 if available else 0)
    return MEMORY if room >= processes * ROOM else None
