"""A private Redis with the settings that Debian's package has it start with, but for where it is.

It listens on a free port of 127.0.0.1 and saves, as it does by default, into a directory of its
own, which goes with it.
"""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import redis


@contextmanager
def private_redis() -> Generator[str]:
    """Run one, and give its URL."""
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("redis-server is not installed: apt-get install redis-server")
    directory = Path(tempfile.mkdtemp(prefix="pyscore-redis-"))
    port = _free_port()
    url = f"redis://127.0.0.1:{port}/0"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)],
            stdout=log,
            stderr=log,
        )
    try:
        _wait_for(url, process, directory / "log")
        yield url
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory)


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    client = cast(Any, redis.Redis).from_url(url)
    while True:
        try:
            client.ping()
        except redis.ConnectionError:
            if process.poll() is not None:
                raise RuntimeError(f"redis-server did not start:\n{log.read_text()}") from None
            time.sleep(0.01)
        else:
            client.close()
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
