"""Reads a guide's code blocks and runs them the way its reader would, in a shell and in psql.

A ``sh`` block goes to bash, a ``sql`` block to psql, both stopping at the first error. A ``text``
block is what the block before it printed: its lines in their order, where ``…`` stands for
anything. A ``sql`` block followed by a ``text`` block that begins with ``ERROR:`` has to fail so.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pyscore.cluster import PrivateCluster
from tests.commands import ROOT, environment

TIMEOUT = 120.0
"""Seconds after which a block counts as hanging."""

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: What follows the fence: sh, sql, text, ini.
        body: The lines between the fences.
    """

    language: str
    body: str


def sections(path: Path) -> dict[str, list[Block]]:
    """Give each second-level heading's blocks, in their order."""
    text = path.read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return {
        heading: [Block(language, body) for language, body in _FENCE.findall(body)]
        for heading, body in zip(parts[1::2], parts[2::2], strict=True)
    }


class Reader:
    """Somebody who follows the guide: in one directory, with one server's address."""

    def __init__(
        self, server: PrivateCluster, directory: Path, *, database: str = "app", **variables: str
    ) -> None:
        programs = [str(Path(sys.executable).parent), str(server.bin_dir), os.environ["PATH"]]
        self._directory = directory
        self._environment = environment(
            PATH=os.pathsep.join(programs),
            PGHOST=server.host,
            PGPORT=str(server.port),
            PGUSER="postgres",
            PGDATABASE=database,
            PYTHONPATH=str(ROOT),
            COLUMNS="120",
            **variables,
        )

    def follow(self, blocks: list[Block]) -> list[str]:
        """Run a section's blocks; return what each sh and sql block printed."""
        printed: list[str] = []
        for number, block in enumerate(blocks):
            if block.language not in ("sh", "sql"):
                continue
            after = blocks[number + 1] if number + 1 < len(blocks) else None
            shown = after.body if after is not None and after.language == "text" else None
            printed.append(self.run(block, shown))
        return printed

    def run(self, block: Block, shown: str | None = None) -> str:
        """Run one block and compare what it prints with what the guide shows."""
        if block.language == "sh":
            command = ["bash", "-euo", "pipefail", "-c", block.body]
        else:
            command = ["psql", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--file", "-"]
        done = subprocess.run(
            command,
            input=block.body if block.language == "sql" else "",
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
        must_fail = shown is not None and shown.startswith("ERROR:")
        assert (done.returncode != 0) == must_fail, f"{block.body}\n{done.stdout}"
        if shown is not None:
            assert_shows(done.stdout, shown)
        return done.stdout


def assert_shows(printed: str, shown: str) -> None:
    """Fail unless the lines shown are among those printed, in their order."""
    rest = iter(printed.splitlines())
    for line in shown.splitlines():
        pattern = re.escape(" ".join(line.split())).replace("…", ".*")
        # psql names the file and the line before an ERROR
        found = any(re.search(f"{pattern}$", " ".join(other.split())) for other in rest)
        assert found, f"the guide shows {line!r}, and what was printed is:\n{printed}"
