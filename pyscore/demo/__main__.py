"""``python -m pyscore.demo``, which ``make demo`` runs."""

import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Never

import click
import psycopg
from rich.console import Console

from pyscore.cluster import ClusterError
from pyscore.demo import debian
from pyscore.demo.stage import DATABASE, Stage, open_stage
from pyscore.errors import PyscoreError, from_database

ACTS = (debian.play,)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--keep", is_flag=True, help="Leave the server running, and say how to use it.")
def demo(keep: bool) -> None:
    """See pyscore work, on a private PostgreSQL server.

    Starts a server of its own, loads the packages and maintainers of a Linux distribution (34,289
    projects, 3,566 people), and lets the pg_cron job score them: about a minute, most of it spent
    waiting for pg_cron's next tick. Stops the server and removes its files at the end.
    """
    # a closed terminal or a kill ends it as Ctrl-C does: with everything cleaned up
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    console = Console(highlight=False)
    with open_stage(console, keep=keep) as stage:
        for play in ACTS:
            play(stage)
        if keep:
            _say_what_next(stage)


def main() -> None:
    """Run the demo; every error is a message on stderr and exit code 1, or 2 for usage."""
    try:
        sys.exit(demo.main(standalone_mode=False) or 0)
    except (KeyboardInterrupt, click.exceptions.Abort):
        _fail("stopped", 1)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except PyscoreError as error:
        _fail(str(error), error.exit_code)
    except ClusterError as error:
        _fail(str(error), 1)  # may end with the server's log, which keeps its lines
    except psycopg.Error as error:
        _fail(str(from_database(error)), 1)


def _fail(message: str, exit_code: int) -> Never:
    click.echo(f"demo: {message}", err=True)
    sys.exit(exit_code)


def _interrupt(number: int, frame: FrameType | None) -> Never:
    raise KeyboardInterrupt


def _say_what_next(stage: Stage) -> None:
    cluster = stage.cluster
    script = Path(sys.executable).with_name("pyscore")
    pyscore = os.path.relpath(script) if script.is_relative_to(Path.cwd()) else "pyscore"
    stop = [str(cluster.program("pg_ctl")), "-D", str(cluster.data_dir), "-s", "stop"]
    if os.geteuid() == 0:
        stop = ["runuser", "-u", cluster.data_dir.owner(), "--", *stop]
    lines = (
        "",
        "The server goes on running. Look at it with:",
        f"  export DATABASE_URL='{cluster.conninfo(DATABASE)}'",
        f"  {pyscore} status",
        f"  {pyscore} recompute bc9b6b0b9ff",
        '  psql "$DATABASE_URL" -xc "select * from builder_score.health"',
        "Write users, projects and project_collaborators as you like: a score follows in",
        "half a second, or five minutes after it was last computed, whichever is later.",
        "Stop it and remove its files with:",
        f"  {shlex.join(stop)} && rm -r {shlex.quote(str(cluster.directory))}",
    )
    for line in lines:
        stage.console.print(line, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
