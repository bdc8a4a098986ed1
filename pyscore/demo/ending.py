"""What to go on with when the demo is over."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console

from pyscore.cluster import PrivateCluster
from pyscore.demo import embedded
from pyscore.demo.stage import DATABASE, Stage
from pyscore.demo.workers import WorkerProcess

_STOP = "stop"


def say_how_to_keep(console: Console) -> None:
    """Say how the server can be looked at."""
    console.print(
        "\nThe server is stopped and its files are removed. To look around in it yourself:\n"
        f"  {_pyscore()} demo --keep\n"
        "or, in a checkout:\n"
        "  make demo ARGS=--keep",
        markup=False,
        soft_wrap=True,
    )


def say_what_next(stage: Stage, person: str) -> None:
    """Say how to look at a server that is kept, and leave a script that stops it.

    Args:
        stage: What is kept.
        person: The username of somebody who is worth a look.
    """
    cluster = stage.cluster
    script = _leave_stop_script(stage)
    psql, pyscore = _psql(cluster), _pyscore()
    lines = [
        "",
        "The server goes on running. Look at it with:",
        f"  export PGHOST={shlex.quote(cluster.host)} PGPORT={cluster.port}",
        f"  export PGUSER=postgres PGDATABASE={DATABASE}",
    ]
    if "DATABASE_URL" in os.environ:
        lines.append("  unset DATABASE_URL")  # it goes before these
    lines += [
        f"  {psql} -c 'select username, builder_score from users order by 2 desc limit 5'",
        f"  {pyscore} leaderboard",
        f"  {pyscore} explain {person}",
        f"  {pyscore} status",
        f"  {pyscore} recompute {person}",
        "Write users, projects and project_collaborators as you like: a score",
        "follows in a fifth of a second, or when the person's debounce window",
        f"({_window(stage)} here) closes.",
    ]
    worker = stage.worker
    if isinstance(worker, WorkerProcess) and worker.process is not None:
        lines += [
            f"`pyscore worker` goes on running too, as process {worker.process.pid};",
            f"what it says goes to {cluster.directory / 'worker.log'}.",
        ]
    lines += ["Stop all of it and remove its files with:", f"  sh {shlex.quote(str(script))}"]
    for line in lines:
        stage.console.print(line, markup=False, soft_wrap=True)


def _leave_stop_script(stage: Stage) -> Path:
    """Write a script that ends what is kept, for whoever has started it."""
    cluster = stage.cluster
    stop = [str(cluster.program("pg_ctl")), "-D", str(cluster.data_dir), "-s", "-m", "fast", "stop"]
    if os.geteuid() == 0:
        stop = ["runuser", "-u", cluster.data_dir.owner(), "--", *stop]
    lines = ["set -e", "cd /"]
    worker = stage.worker
    if isinstance(worker, WorkerProcess) and worker.process is not None:
        pid = worker.process.pid
        # by then the number may be somebody else's; and nobody may collect it after its end
        lines += [
            f"if {{ cat /proc/{pid}/cmdline || ps -o args= -p {pid}; }} 2>/dev/null"
            f" | grep -aq pyscore; then kill {pid} || true; fi",
            f"for n in $(seq 50); do kill -0 {pid} 2>/dev/null || break; sleep 0.1; done",
        ]
    remove = ["rm", "-rf", str(cluster.directory)]
    programs = embedded.programs_of(cluster)
    if programs.exists():
        remove.append(str(programs))
    # one line: the shell has read it before the script itself is removed
    status = shlex.join([*stop[: stop.index("-s")], "status"])
    lines.append(f"if {status} >/dev/null; then {shlex.join(stop)}; fi && {shlex.join(remove)}")
    script = cluster.directory / _STOP
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return script


def _window(stage: Stage) -> str:
    window = stage.one("select debounce_window from builder_score.settings")
    seconds = window.total_seconds()
    return f"{seconds:g} s" if seconds < 60 else f"{seconds / 60:g} min"


def _pyscore() -> str:
    """How the command is called from where the caller is."""
    script = Path(sys.executable).with_name("pyscore")
    found = shutil.which("pyscore")
    if not script.exists() or (found and Path(found).samefile(script)):
        return "pyscore"
    inside = script.is_relative_to(Path.cwd())
    return shlex.quote(os.path.relpath(script) if inside else str(script))


def _psql(cluster: PrivateCluster) -> str:
    return "psql" if shutil.which("psql") else shlex.quote(str(cluster.program("psql")))
