"""docs/reading.md: its statements, run; its contents, complete; its links, followed.

The sections about one module each are followed by that module's own tests.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from pyscore.cluster import PrivateCluster
from tests import reading_guide
from tests.community import add_user
from tests.guide import Block, Reader
from tests.reading_guide import GUIDE, SECTIONS

TESTS = Path(__file__).parent


@pytest.fixture
def people(db: Connection[Any]) -> Connection[Any]:
    """A small community, whose scores are its own."""
    for name, score in (("ada", 10), ("xia", 50), ("yan", 50), ("zoe", 60), ("new", None)):
        user_id = f"{ord(name[0]):08x}-{'0000-' * 3}{0:012x}"
        timezone = "America/Lima" if name == "yan" else "Europe/Oslo"
        add_user(db, name, builder_score=score, id=user_id, timezone=timezone)
    return db


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


def test_plain_sql(reader: Reader) -> None:
    reader.follow(SECTIONS["Plain SQL"])
    with pytest.raises(AssertionError, match="the guide shows"):
        reader.follow([Block("sql", "select 1;\n"), Block("text", "2\n")])


def test_sqlalchemy(database: str, people: Connection[Any]) -> None:
    url = database.replace("postgresql:", "postgresql+psycopg:", 1)
    names = reading_guide.follow("SQLAlchemy", {}, replacing={"postgresql+psycopg:///app": url})
    session = names["session"]
    session.close()
    session.bind.dispose()
