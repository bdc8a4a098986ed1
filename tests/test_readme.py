"""The README's commands and statements, run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, LiteralString, cast

from psycopg import Connection

from tests.community import add_project, add_user, drain

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_commands_do_what_they_say(empty_database: str) -> None:
    commands = [
        shlex.split(line, comments=True)
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("pyscore")
    ]
    assert [command[1] for command in commands] == [
        "migrate",
        "migrate",
        "status",
        "worker",
        "uninstall",
    ]
    for command in commands:
        program = str(Path(sys.executable).with_name(command[0]))
        done = subprocess.run(
            [program, *command[1:]],
            env=os.environ | {"DATABASE_URL": empty_database},
            capture_output=True,
            text=True,
            check=False,
        )
        # no pg_cron works in this database, and status says so
        assert done.returncode == (3 if command[1] == "status" else 0), done.stderr
        assert done.stdout or command[1] == "worker"


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE)
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_statements_run_and_find_ada(db: Connection[Any]) -> None:
    ada = add_user(db, "ada")
    add_project(db, ada, status="shipped")
    drain(db)
    results: list[list[tuple[Any, ...]]] = []
    for block in blocks("sql"):
        for statement in block.split(";"):
            if statement.strip():
                results.append(db.execute(cast(LiteralString, statement)).fetchall())
    page, why, now, soon = results
    assert page == [("ada", 10)]
    assert [row[0] for row in why] == ["shipped", "vouches", "impact", "profile", "age"]
    assert now == [(10,)]
    assert len(soon) == 1


def test_the_table_of_signals_is_the_one_in_force(db: Connection[Any]) -> None:
    told = re.findall(r"^\| (\w+) \| .* \| (\d+)·\S+ \| (\d+) \|$", README, re.MULTILINE)
    rows = db.execute("select signal, scale, max_points from builder_score.signals").fetchall()
    assert sorted((name, float(scale), float(most)) for name, scale, most in told) == sorted(rows)
