"""Runs a script of scripts/ with pgbench."""

import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.servers import postmaster
from benchmarks.usage import children, cpu_seconds_of_children
from pyscore.cluster import PrivateCluster

SCRIPTS = Path(__file__).parent / "scripts"


@dataclass(frozen=True)
class Run:
    """What a run has done.

    Attributes:
        transactions: How many were committed.
        failed: How many the server has refused, with a deadlock or a serialization failure.
        per_second: Committed transactions a second, the time to connect left out.
        cpu: Seconds of processor time that the server's own processes took for one of them.
    """

    transactions: int
    failed: int
    per_second: float
    cpu: float


def pgbench(
    cluster: PrivateCluster,
    database: str,
    script: str,
    *,
    clients: int = 2,
    seconds: float | None = None,
    transactions: int | None = None,
    variables: Mapping[str, int] | None = None,
    settings: Mapping[str, str] | None = None,
    prepared: bool = False,
) -> Run:
    """Run a script; no transaction is tried again.

    Args:
        cluster: The server.
        database: Its database.
        script: The script's name, without its ending.
        clients: How many connections.
        seconds: For how long (whole seconds); or else
        transactions: how many each client does.
        variables: What the script names.
        settings: PostgreSQL settings of the sessions.
        prepared: Whether statements are prepared once, as most drivers do in the end; pgbench's
            own default is to send and plan each anew.
    """
    length = f"--transactions={transactions}" if seconds is None else f"--time={seconds:.0f}"
    defined = [f"--define={name}={value}" for name, value in (variables or {}).items()]
    options = " ".join(f"-c {name}={value}" for name, value in (settings or {}).items())
    server = postmaster(cluster)
    before = children(server)
    cpu = cpu_seconds_of_children(server)
    done = subprocess.run(
        [
            cluster.program("pgbench"),
            *("--no-vacuum", f"--client={clients}", length, *defined),
            f"--protocol={'prepared' if prepared else 'simple'}",
            f"--file={SCRIPTS / script}.sql",
            cluster.conninfo(database),
        ],
        env={**os.environ, "PGOPTIONS": options},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"pgbench {script}: {done.stderr.strip()}")
    # Their time is the server's as soon as it has seen them go.
    deadline = time.monotonic() + 60
    while left := children(server) - before:
        assert time.monotonic() < deadline, f"still there after pgbench: {left}"
        time.sleep(0.001)
    count = _int(r"transactions actually processed: (\d+)", done.stdout)
    return Run(
        transactions=count,
        failed=_int(r"failed transactions: (\d+)", done.stdout),
        per_second=float(_find(r"tps = ([\d.]+) \(without initial", done.stdout)),
        cpu=(cpu_seconds_of_children(server) - cpu) / max(count, 1),
    )


def _int(pattern: str, text: str) -> int:
    return int(_find(pattern, text))


def _find(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, f"pgbench printed no {pattern}:\n{text}"
    return match[1]
