"""The one command, `make example`: a private PostgreSQL, the application's tables, pyscore, and it.

All of it is gone after Ctrl-C.
"""

import argparse
import socket
import sys
from datetime import timedelta

import uvicorn
from rich.console import Console

from pyscore.cluster import ClusterError
from pyscore.demo import servers, signals
from pyscore.errors import PyscoreError

from .adoption import WEB, adopted, database_url
from .app import create_app

HOST = "127.0.0.1"
WINDOW = timedelta(seconds=3)
"""The debounce, short enough to be watched; by default it is five minutes."""


def main() -> None:
    options = _options()
    console = Console(highlight=False)
    try:
        with signals.stoppable(), socket.create_server((HOST, options.port)) as listening:
            # asyncio sets it only where it has made the socket; without, each answer takes 40 ms
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _play(console, listening, servers.choose(embedded_only=options.embedded))
    except KeyboardInterrupt:
        console.print("stopped; nothing is left")
    except (ClusterError, OSError, PyscoreError) as error:
        sys.exit(f"example: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make example", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one [8000]")
    parser.add_argument("--embedded", action="store_true", help="use the PostgreSQL from PyPI")
    return parser.parse_args()


def _play(console: Console, listening: socket.socket, server: servers.Server) -> None:
    with adopted(console, server) as stage:
        stage.connection.execute("update builder_score.settings set debounce_window = %s", [WINDOW])
        _say_where(console, listening.getsockname()[1])
        app = create_app(database_url(stage.cluster, WEB))
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _say_where(console: Console, port: int) -> None:
    url = f"http://{HOST}:{port}"
    lines = [
        "",
        f"Builders runs: {url}/ is its leaderboard, {url}/docs its API.",
        "Sign up, and look at your score; with the token that you are given, go on in /docs:",
        f"""  curl {url}/people --json '{{"username": "grace", "headline": "Nanoseconds"}}'""",
        f"  curl {url}/people/grace",
        f"A score comes at once, or {WINDOW.total_seconds():g} s after the one before.",
        "Ctrl-C stops all of it and removes it.",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
