"""The README's commands and statements, run; its links, followed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, LiteralString, cast
from uuid import UUID
from xml.etree import ElementTree

import pytest
from psycopg import Connection

from tests.commands import environment
from tests.community import add_project, add_user, drain, queue, score

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)
    assert found is not None, heading
    return found[1]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[list[str]]:
    lines = "\n".join(blocks("sh", text)).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line]


def statements(text: str) -> list[LiteralString]:
    parts = "\n".join(blocks("sql", text)).split(";")
    # a comment may follow the last statement
    return [cast(LiteralString, part) for part in parts if re.sub(r"--.*", "", part).strip()]


def run(command: list[str], address: str) -> "subprocess.CompletedProcess[str]":
    program = str(Path(sys.executable).with_name(command[0]))
    return subprocess.run(
        [program, *command[1:]],
        env=environment(DATABASE_URL=address),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def ada(db: Connection[Any]) -> UUID:
    ada = add_user(db, "ada")
    add_project(db, ada, status="shipped")
    drain(db)
    return ada


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 200


def test_every_command_is_run_by_some_test() -> None:
    told = [" ".join(command) for command in commands(README)]
    by_sections = [
        " ".join(command)
        for heading in ("Adopt it", "Force a recompute")
        for command in commands(section(heading))
    ]
    # the rest: make's by the next tests and by CI, pip's by test_wheel.py
    assert [line for line in told if line not in by_sections] == [
        "make demo",
        "make test",
        "pip install .[embedded]",
        "pyscore demo",
    ]
    assert len(blocks("sql")) == len(blocks("sql", section("Read it"))) + len(
        blocks("sql", section("Force a recompute"))
    ) + len(blocks("sql", section("How the score is made")))
    assert len(blocks("python")) == 1


def test_adopting_and_leaving(empty_database: str) -> None:
    names: list[str] = []
    for command in commands(section("Adopt it")):
        done = run(command, empty_database)
        # no pg_cron works in this database, and these say so
        assert done.returncode == (3 if command[1] in ("doctor", "status") else 0), done.stderr
        assert done.stdout or command[1] == "worker"
        names.append(command[1])
    assert names == [
        *("migrate", "migrate", "migrate", "doctor"),
        *("status", "metrics", "verify", "worker", "uninstall"),
    ]


def test_forcing_a_recompute(database: str, db: Connection[Any], ada: UUID) -> None:
    add_project(db, ada, status="shipped")
    drain(db)
    assert score(db, ada) == 10, "its debounce window is open"
    one, everyone, explain = commands(section("Force a recompute"))
    assert run(one, database).stdout.startswith("ada: 10 -> 16")
    assert run(everyone, database).returncode == 0
    assert [row[:2] for row in queue(db)] == [(None, None)]
    assert "everyone" in run(explain, database).stdout

    add_project(db, ada, status="shipped")
    now, soon = statements(section("Force a recompute"))
    assert db.execute(now).fetchall() == [(20,)]
    add_project(db, ada, status="shipped")
    assert len(db.execute(soon).fetchall()) == 1
    drain(db)
    assert score(db, ada) == 23


def test_reading_in_sql(db: Connection[Any], ada: UUID) -> None:
    queries = statements(section("Read it"))
    first, behind, why, rank = (db.execute(query).fetchall() for query in queries)
    assert first == behind == [("ada", 10)]
    assert [row[0] for row in why] == ["shipped", "vouches", "impact", "profile", "age"]
    assert rank == [(10, 1, 1, 0)]
    add_user(db, "zoe", builder_score=50)
    first, behind, *_ = (db.execute(query).fetchall() for query in queries)
    assert first == [("zoe", 50), ("ada", 10)]
    assert behind == [("ada", 10)]


def test_reading_in_python(database: str, ada: UUID) -> None:
    (code,) = blocks("python", section("Read it"))
    address = "postgresql+psycopg:///app"
    assert address in code
    url = database.replace("postgresql://", "postgresql+psycopg://")
    *setup, last = code.replace(address, url).strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(setup), names)
    assert names["ada"].score == 10
    assert [entry.username for entry in names["page"]] == ["ada"]
    assert eval(last, names)[0] == ("shipped", 10.0)
    results = [line.split("#") for line in setup if "#" in line and "=" not in line.split("#")[0]]
    assert [(eval(call, names), told.strip()) for call, told in results] == [
        (10, "10"),
        ({ada: 10}, "{…: 10}, one query for any number of ids"),
        (1, "1; beside it percentile(user_id), and distribution() of all scores"),
        (names["reader"].above(75), "a page of those with more than 75"),
    ]
    names["reader"]._bind.dispose()


def test_profile_and_age_can_be_switched_off(db: Connection[Any]) -> None:
    ada = add_user(db, "ada", bio="ships", created_at="2020-01-01")
    drain(db)
    assert score(db, ada) == 13
    (switch_off,) = statements(section("How the score is made"))
    db.execute(switch_off)
    db.execute("update builder_score.settings set debounce_window = '0'")
    drain(db)
    assert score(db, ada) == 0


def test_the_table_of_signals_is_the_one_in_force(db: Connection[Any]) -> None:
    told = re.findall(r"^\| (\w+) \| .* \| (\d+)·\S+ \| (\d+) \|$", README, re.MULTILINE)
    rows = db.execute("select signal, scale, max_points from builder_score.signals").fetchall()
    assert sorted((name, float(scale), float(most)) for name, scale, most in told) == sorted(rows)


def test_the_make_targets_run_what_they_say() -> None:
    for command, program in (
        (["make", "demo"], ".venv/bin/pyscore demo"),
        (["make", "example"], ".venv/bin/python -m examples.fastapi"),
        (["make", "test"], ".venv/bin/pytest"),
    ):
        assert command in commands(README) or f"`{' '.join(command)}`" in README
        dry = ["make", "--dry-run", "--no-print-directory", command[1]]
        said = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert any(line.strip().startswith(program) for line in said.splitlines())


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 1
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_picture_reads_in_dark_and_light_and_without_eyes() -> None:
    text = (ROOT / "docs" / "flow.svg").read_text(encoding="utf-8")
    picture = ElementTree.fromstring(text)
    svg = "{http://www.w3.org/2000/svg}"
    assert [picture.findtext(f"{svg}{name}") for name in ("title", "desc")].count(None) == 0
    style = picture.findtext(f"{svg}style") or ""
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    coloured = re.findall(r"^\s*(\.?\w+) {.*#", light, re.MULTILINE)
    assert len(coloured) > 4
    assert re.findall(r"^\s*(\.?\w+) {.*#", dark, re.MULTILINE) == coloured
    drawn = [element for element in picture.iter() if element.tag in (f"{svg}rect", f"{svg}path")]
    assert all(element.get("class") for element in drawn), "each has a colour of both schemes"


def test_what_the_demo_prints_is_a_quotation() -> None:
    (quoted,) = blocks("text")
    printed = (ROOT / "benchmarks" / "results" / "demo.md").read_text(encoding="utf-8")
    assert quoted in printed
