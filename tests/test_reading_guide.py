"""docs/reading.md: its statements, run; its contents, complete; its links, followed.

The sections about one module each are followed by that module's own tests.
"""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from pyscore.cluster import PrivateCluster
from pyscore.scores import TIERS
from tests import reading_guide
from tests.community import add_user
from tests.guide import Block, Reader
from tests.reading_guide import GUIDE, SECTIONS
from tests.statements import run

TESTS = Path(__file__).parent


@pytest.fixture
def people(db: Connection[Any]) -> Connection[Any]:
    """A small community, whose scores are its own."""
    for name, score in (("ada", 10), ("xia", 50), ("yan", 50), ("zoe", 60), ("new", 0)):
        user_id = f"{ord(name[0]):08x}-{'0000-' * 3}{0:012x}"
        role, timezone = (
            ("designer", "America/Lima") if name == "yan" else ("developer", "Europe/Oslo")
        )
        person = {"builder_score": score, "primary_role": role, "timezone": timezone}
        add_user(db, name, id=user_id, **person)
    db.execute(
        "insert into builder_score.score_state (user_id, score, computed_at)"
        " select id, builder_score, now() from users"
    )
    add_user(db, "nobody", builder_score=None)
    return db


@pytest.fixture
def app_role(people: Connection[Any]) -> Iterator[None]:
    run(people, "create role app")
    yield
    run(people, "drop owned by app; drop role app")


@pytest.fixture
def reader(server: PrivateCluster, people: Connection[Any], tmp_path: Path) -> Reader:
    return Reader(server, tmp_path, database=people.info.dbname)


def test_every_section_with_code_is_followed_by_some_test() -> None:
    with_code = {
        heading
        for heading, blocks in SECTIONS.items()
        if any(block.language != "text" for block in blocks)
    }
    tests = "".join(path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py"))
    followed = re.findall(r'(?:follow(?:_async)?\(|blocks\(|SECTIONS\[)\s*"(.+?)"', tests)
    assert with_code - set(followed) == set()


def test_the_contents_name_every_section() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    listed = re.findall(r"^- \[(.+)\]\(#(.+)\)$", text, re.MULTILINE)
    assert [heading for heading, _ in listed] == list(SECTIONS)
    anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in SECTIONS]
    assert [anchor for _, anchor in listed] == anchors
    assert set(re.findall(r"\]\(#(.+?)\)", text)) <= set(anchors)
    files = [link for link in re.findall(r"\]\(([^)#]+)", text) if "//" not in link]
    assert [file for file in files if not (GUIDE.parent / file).exists()] == []


def test_an_answer_that_is_not_what_is_shown_is_noticed() -> None:
    names = {"one": 1}
    reading_guide.run("two = one + 1\ntwo  # 2; as expected\n[two, one]  # [2, …]\n", names)
    assert names["two"] == 2
    with pytest.raises(AssertionError, match="shown '3', got 2"):
        reading_guide.run("two  # 3\n", names)
    with pytest.raises(ZeroDivisionError):
        reading_guide.run("1 / 0\n", names)


def test_plain_sql(reader: Reader, app_role: None) -> None:
    reader.follow(SECTIONS["Plain SQL"])
    with pytest.raises(AssertionError, match="the guide shows"):
        reader.follow([Block("sql", "select 1;\n"), Block("text", "2\n")])


def test_tiers_in_sql_are_those_in_python(people: Connection[Any]) -> None:
    texts = [block.body for block in reading_guide.blocks("Plain SQL", "sql")]
    (bounds,) = set(re.findall(r"width_bucket\(\w+, '\{(.+?)\}'\)", "".join(texts)))
    assert [int(bound) for bound in bounds.split(", ")] == [tier.low for tier in TIERS[1:]]
    assert ", ".join(map(str, TIERS[:3])) + f", and {TIERS[3]}" in GUIDE.read_text(encoding="utf-8")


@pytest.fixture
def crowd(people: Connection[Any]) -> Connection[Any]:
    """So many people that every statement shows how it goes about it."""
    run(people, "alter table users set (autovacuum_enabled = false)")
    run(people, "set session_replication_role = replica")
    fill = """
        insert into users (id, username, email, builder_score, primary_role)
        select md5(n::text)::uuid, 'user' || n, n::text, nullif(n % 101, 100),
               case when n % 200 = 0 then 'designer' else 'developer' end
        from generate_series(1, 20000) as n
    """
    run(people, fill)
    return people


@pytest.mark.parametrize("statistics", ["none", "analyzed"])
def test_plain_sql_goes_by_the_index(crowd: Connection[Any], statistics: str) -> None:
    if statistics == "analyzed":
        crowd.execute("analyze users")
    looks: list[tuple[str, set[str]]] = []
    for block in reading_guide.blocks("Plain SQL", "sql"):
        for statement in block.body.split(";"):
            if statement.strip().startswith("create index"):
                run(crowd, statement)
            elif re.search(r"\bfrom users\b", statement):
                explained = f"explain (analyze, format json) {statement}"
                ((plan,),) = run(crowd, explained)
                nodes = list(nodes_of(plan[0]["Plan"]))
                assert all(node["Node Type"] != "Sort" for node in nodes), statement
                scans = [node for node in nodes if node.get("Relation Name") == "users"]
                for scan in scans:
                    assert scan["Node Type"] == "Index Scan", statement
                    assert scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0) <= 3
                looks.append((statement, {scan["Index Name"] for scan in scans}))
    by_name, by_score = "users_username_key", "idx_users_builder_score"
    assert [indexes for _, indexes in looks] == [
        *({by_score}, {by_score}, {"designers_by_score"}, {by_score}, {by_name}),
        *({by_score, by_name}, {by_name}),
    ]


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes_of(child)


def test_sqlalchemy(database: str, people: Connection[Any]) -> None:
    url = database.replace("postgresql:", "postgresql+psycopg:", 1)
    names = reading_guide.follow("SQLAlchemy", {}, replacing={"postgresql+psycopg:///app": url})
    session = names["session"]
    session.close()
    session.bind.dispose()


def test_async(database: str, people: Connection[Any]) -> None:
    url = database.replace("postgresql:", "postgresql+psycopg:", 1)
    replacing = {"postgresql+psycopg:///app": url}
    asyncio.run(reading_guide.follow_async("Async", {}, replacing=replacing))
