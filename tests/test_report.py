"""``pyscore report``: what the page says, to whom, and how it is written; no browser needed."""

import builtins
import json
import os
import random
import re
import stat
import threading
from collections.abc import Generator
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from pyscore.cluster import PrivateCluster
from pyscore.demo.builders import BUILDERS, load
from pyscore.report import formula
from pyscore.report.spread import FEW, Range, spread
from pyscore.report.words import shown
from tests.commands import call, error_line, output, pyscore
from tests.community import add_collaborator, add_project, add_user, configure, drain, one
from tests.conftest import dsn
from tests.host_databases import HostDatabases
from tests.host_schemas import BARE

Db = Connection[Any]


class Text(HTMLParser):
    """What a reader is shown, without the style sheet."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(data)


def text_of(page: str) -> str:
    return " ".join(" ".join(Text(page).pieces).split())


def make(database: str, *arguments: str) -> str:
    return output(call("report", "-o", "-", *arguments, "--dsn", database))


def card(page: str, signal: str) -> str:
    """The text of a signal's card."""
    found = re.search(rf'<article class="card signal {signal}\b.*?</article>', page, re.DOTALL)
    assert found is not None
    return text_of(found[0])


# The formula --------------------------------------------------------------------------------------


def test_points_are_those_that_explain_gives(scratch: Db) -> None:
    chosen = random.Random(7)
    db = scratch
    configure(db, debounce_window="0")
    for round_ in range(12):
        for signal in formula.ORDER:
            db.execute(
                "update builder_score.signals set max_points = %s, scale = %s where signal = %s",
                [chosen.choice([0, 3, 17.3, 100]), chosen.choice([0, 0.3, 9.7, 200]), signal],
            )
        user = random_user(db, chosen, f"user{round_}")
        explained = db.execute(
            "select signal, raw, points from builder_score.explain(%s)", [user]
        ).fetchall()
        raws = [(signal, float(raw)) for signal, raw, _ in explained]
        # a share is a double: its numeric has fewer digits
        filled = one(db, "select profile_filled from builder_score.host_users where id = %s", user)
        raws = [(name, filled / 6 if name == "profile" else raw) for name, raw in raws]
        worth = formula.points(db, raws)
        assert worth == {raw: points for raw, (_, _, points) in zip(raws, explained, strict=True)}
        (total,) = formula.scores(db, [list(worth.values())], 0)
        assert total == one(db, "select builder_score.recalculate(%s)", user)


def random_user(db: Db, chosen: random.Random, name: str) -> UUID:
    profile = {field: "x" for field in ("bio", "headline", "timezone") if chosen.random() < 0.5}
    days = chosen.randrange(900)
    created_at = one(db, "select now() - make_interval(days => %s)", days)
    user = add_user(db, name, created_at=created_at, **profile)
    for _ in range(chosen.randrange(6)):
        status = chosen.choice(["shipped", "in_progress"])
        stars = int(10 ** chosen.uniform(0, 6))
        project = add_project(db, user, status=status, github_stars=stars)
        add_collaborator(db, project, add_user(db, f"{name}-{uuid4().hex}"))
    return user


def test_the_page_follows_the_formula(database: str, db: Db) -> None:
    before = make(database)
    assert "at most 30 points" in card(before, "shipped")
    assert "3 shipped projects 20 points" in card(before, "shipped")
    assert "7 shipped projects or more 30 points" in card(before, "shipped")
    assert "whose status is “shipped”." in card(before, "shipped")
    assert "impact of 99,999 or more 20 points" in card(before, "impact")
    assert "365 days here or more 10 points" in card(before, "age")
    assert "6 of 6 fields 15 points" in card(before, "profile")
    db.execute("update builder_score.signals set max_points = 12 where signal = 'shipped'")
    db.execute("update builder_score.signals set max_points = 0 where signal = 'age'")
    db.execute("insert into builder_score.statuses values ('shipped', 'live & <b>kicking</b>')")
    db.execute("insert into builder_score.impact_keys values ('downloads')")
    after = make(database)
    assert "at most 12 points" in card(after, "shipped")
    assert "2 shipped projects or more 12 points" in card(after, "shipped")
    assert "“live & <b>kicking</b>” or “shipped”" in card(after, "shipped")
    assert "<b>kicking" not in after
    assert "Stars, downloads and users" in card(after, "impact")
    assert "switched off" in card(after, "age")
    assert "curve" not in card(after, "age")
    assert "20 days" not in text_of(after), "nor in the examples"
    assert "the highest score there can be is 72" in text_of(after)
    assert "sum of 4 parts" in text_of(after)
    db.execute("update builder_score.signals set scale = 5 where signal = 'profile'")
    assert "the highest score there can be is 62" in text_of(make(database)), "5 of 15"
    assert "at most 15, which is out of reach" in card(make(database), "profile")
    assert "out of reach" not in card(make(database), "impact")
    db.execute("update builder_score.signals set scale = 0.1 where signal = 'impact'")
    assert "the highest score there can be" not in text_of(make(database)), "10^200 stars"


def test_the_examples_add_up(database: str, db: Db) -> None:
    said = text_of(make(database))
    assert "3 shipped projects 20 points 4 people vouching 18.6 points" in said
    # 20 + 8 log2(5) + 4 log10(151) + 10 + 10
    assert re.search(r"400 days here 10 points Score 67\b", said)


@pytest.mark.parametrize(
    ("max_points", "scale"),
    [(100, 1000), (100, 1e-300), (1e-300, 1000), (100, 0.001), (0.5, 0.01), (100, 1.5), (7, 0)],
)
def test_no_formula_is_too_odd(database: str, db: Db, max_points: float, scale: float) -> None:
    db.execute("update builder_score.signals set max_points = %s, scale = %s", [max_points, scale])
    for page in (make(database), make(database, "--public")):
        assert not re.search(r"\b(nan|inf)\b", page, re.IGNORECASE)
        assert len(page) < 150_000


def test_a_signal_without_a_row_is_off(database: str, db: Db) -> None:
    db.execute("delete from builder_score.signals where signal = 'vouches'")
    assert "switched off" in card(make(database), "vouches")
    db.execute("truncate builder_score.signals, builder_score.statuses, builder_score.impact_keys")
    assert re.search("everybody.s is 0", text_of(make(database)))


def test_what_the_host_lacks_is_said(host_databases: HostDatabases) -> None:
    with host_databases.installed(BARE) as host:
        page = make(host.address)
    assert "nobody gets points" in card(page, "age")
    assert "nobody gets points" in card(page, "profile")


def test_fields_count_as_attach_has_found_them(database: str, db: Db) -> None:
    db.execute("select builder_score.detach()")
    db.execute("alter table users drop column timezone")
    db.execute("alter table users alter column created_at type text")
    assert "5 of 5 fields 15 points" in card(make(database), "profile"), "as it would find them"
    db.execute("select builder_score.attach()")
    db.execute("alter table users add column timezone text")
    page = make(database)
    assert "5 of 5 fields 15 points" in card(page, "profile")
    assert "no time zone" in card(page, "profile")
    assert "nobody gets points" in card(page, "age"), "text is no moment"
    db.execute("select builder_score.attach()")
    assert "6 of 6 fields 15 points" in card(make(database), "profile")


# How scores are spread ----------------------------------------------------------------------------


def test_ranges_are_those_of_the_tiers() -> None:
    found = spread(
        {Decimal("30.9"): 1, Decimal(31): 2, Decimal(100): 4, Decimal(0): 8}, public=False
    )
    assert [one.label for one in found.tiers] == ["0-30", "31-55", "56-75", "76-100"]
    assert [one.people for one in found.tiers] == [9, 2, 0, 4]
    assert {one.label: one.people for one in found.ranges if one.people} == {
        "0-5": 8,
        "26-30": 1,
        "31-35": 2,
        "96-100": 4,
    }
    assert (found.people, found.median, found.highest) == (15, 0, 100)


def test_in_public_no_count_and_no_difference_of_counts_is_small() -> None:
    chosen = random.Random(3)
    for _ in range(400):
        scores = {
            Decimal(chosen.randrange(101)): chosen.choice([1, 1, 2, 5, 40]) for _ in range(12)
        }
        scores = dict(list(scores.items())[: chosen.randrange(13)])
        found = spread(scores, public=True)
        people = sum(scores.values())
        if people < FEW:
            assert found == spread({}, public=True)
            continue
        for parts in (found.ranges, found.tiers):
            assert sum(one.people for one in parts) == people == found.people
            assert all(one.people == 0 or one.people >= FEW for one in parts)
            ends = [(one.first, one.first + one.width) for one in parts]
            assert [first for first, _ in ends] == [0, *(end for _, end in ends[:-1])]
            assert ends[-1][1] == 20
        # each tier is made of whole ranges, so a difference is made of ranges too
        starts = {one.first for one in found.ranges}
        assert {one.first for one in found.tiers} <= starts
        assert found.highest is None
        assert found.median is None or people >= 4 * FEW


def test_a_range_names_its_scores() -> None:
    assert Range(0, 1, 0).label == "0-5"
    assert Range(17, 3, 0).label == "86-100"


# People -------------------------------------------------------------------------------------------


@pytest.fixture
def community(db: Db) -> None:
    load(db, BUILDERS)
    drain(db)


def test_operators_see_people_and_health(database: str, community: None) -> None:
    page = make(database)
    said = text_of(page)
    assert re.search(r"1 maren \d+ 2 idris \d+", said)
    assert "nothing runs the worker: pyscore schedule , or keep" in said
    assert "noindex" in page


def test_the_public_sees_neither(database: str, db: Db, community: None) -> None:
    page = make(database, "--public")
    rows = db.execute("select id::text, username, builder_score::text from users").fetchall()
    names = {name for _, name, _ in rows} | {user_id for user_id, _, _ in rows}
    words = set(re.findall(r"[\w-]+", text_of(page)))
    assert names & words == set()
    assert [user_id for user_id, _, _ in rows if user_id in page] == []
    for gone in ("leaderboard", "health", "queue", "priority", "is the highest", "worker"):
        assert gone not in text_of(page).lower(), gone
    assert "noindex" not in page
    counted = re.findall(r'<th scope="row">\d+.\d+</th><td class="n">(\d+)</td>', page)
    assert sum(map(int, counted)) == len(rows)
    assert [count for count in counted if 0 < int(count) < FEW] == []
    assert re.search(r'</th><td class="n">[1-4]</td>', make(database)), "which operators see"
    configure(db, debounce_window="0")
    db.execute("delete from users where username not in ('maren', 'idris', 'yuki', 'lena')")
    drain(db)
    page = make(database, "--public")
    assert "Fewer than 5 people have a score so far" in text_of(page)
    assert 'class="figures"' not in page


def test_names_cannot_play_with_the_page(database: str, db: Db) -> None:
    hostile = [
        "<script>alert(1)</script>",
        "&lt;b&gt;",
        "\u202egnp.exe",
        "\x1b[31mred\x07",
        "x" * 10_000,
        "\"' onmouseover=alert(1) x='",
        "{{ 7 * 7 }}{% raw %}",
    ]
    for name in hostile:
        add_user(db, name, bio="x", email=f"{uuid4()}@example.org")
    drain(db)
    page = make(database, "--title", "<b>All of it</b>")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&amp;lt;b&amp;gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert "x" * 61 not in page
    assert "<title>&lt;b&gt;All of it&lt;/b&gt;</title>" in page
    assert [c for c in page if not c.isprintable() and c not in "\n\u00a0\u202f"] == []
    assert len(page.encode()) < 150_000


def test_names_of_many_languages_are_shown_as_they_are() -> None:
    for name in ("Zoë", "محمد", "राम", "👩\u200d💻", "李小龍"):
        assert shown(name) == name


def test_somebody_without_a_name_is_shown_by_id(database: str, db: Db) -> None:
    ada = add_user(db, "ada", bio="x")
    drain(db)
    db.execute("select builder_score.detach()")
    db.execute("alter table users drop column username")
    db.execute("select builder_score.attach()")
    assert str(ada) in text_of(make(database))
    assert str(ada) not in make(database, "--public")


# How it is written --------------------------------------------------------------------------------


def test_the_file_is_replaced_whole(database: str, db: Db, tmp_path: Path) -> None:
    file, link = tmp_path / "page.html", tmp_path / "link.html"
    output(call("report", "-o", str(file), "--dsn", database))
    first = file.read_text(encoding="utf-8")
    assert first.startswith("<!DOCTYPE html>")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask, "a web server may read it"
    file.chmod(0o640)
    link.symlink_to(file.name)
    with file.open(encoding="utf-8") as being_read:
        output(call("report", "-o", str(link), "--title", "Anew", "--dsn", database))
        assert being_read.read() == first
    assert "<title>Anew</title>" in file.read_text(encoding="utf-8")
    assert (link.is_symlink(), stat.S_IMODE(file.stat().st_mode)) == (True, 0o640)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "page.html"]


def test_a_failure_leaves_the_old_file(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "page.html"
    file.write_text("old")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in error_line(call("report", "-o", str(file), "--dsn", database))
    assert (file.read_text(), list(tmp_path.iterdir())) == ("old", [file])


def test_what_is_no_file_is_refused_or_written_to(database: str, tmp_path: Path) -> None:
    line = error_line(call("report", "-o", str(tmp_path), "--dsn", database))
    assert line == f"pyscore: {tmp_path} is a directory: name a file in it"
    line = error_line(call("report", "-o", str(tmp_path / "none" / "x.html"), "--dsn", database))
    assert line == f"pyscore: there is no directory {tmp_path / 'none'}"
    assert "--output" in error_line(call("report", "--dsn", database), 2)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    output(call("report", "-o", str(pipe), "--dsn", database))
    reader.join()
    assert got[0].endswith("</html>\n")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    # as the shell's >(…) it is a link that leads nowhere a file could be
    assert output(pyscore("report", "-o", "/dev/stdout", "--dsn", database)).endswith("</html>\n")


def test_a_page_has_a_title(database: str) -> None:
    line = error_line(call("report", "-o", "-", "--title", " ", "--dsn", database), 2)
    assert "--title: expected some text" in line


def test_without_jinja_it_says_what_to_install(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "jinja2":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    line = error_line(call("report", "-o", "-", "--dsn", database))
    assert line.endswith("install it with: pip install 'pyscore[report]'")


# Who may, and where -------------------------------------------------------------------------------


def test_a_session_that_may_not_write_will_do(database: str, community: None) -> None:
    read_only = {"PGOPTIONS": "-c default_transaction_read_only=on"}
    assert "maren" in output(call("report", "-o", "-", "--dsn", database, **read_only))


def test_a_detached_database_still_has_its_scores(database: str, db: Db, community: None) -> None:
    db.execute("select builder_score.detach()")
    page = make(database)
    assert "maren" in text_of(page)
    assert "detached: SELECT * FROM builder_score.attach();" in text_of(page)


@pytest.fixture
def role(server: PrivateCluster) -> Generator[str]:
    name = f"reporter_{uuid4().hex[:12]}"
    server.psql("-c", f"create role {name} login")
    yield name
    server.psql("-c", f"drop role {name}")


def test_the_operator_may_make_it(
    server: PrivateCluster, database: str, role: str, community: None
) -> None:
    address = dsn(server, str(conninfo_to_dict(database)["dbname"]), user=role)
    line = error_line(call("report", "-o", "-", "--dsn", address))
    assert line.endswith(f"GRANT builder_score_operator TO {role}")
    server.psql("-c", f"grant builder_score_operator to {role}")
    assert "maren" in make(address)
    assert "maren" not in text_of(make(address, "--public"))


def test_all_of_it_is_of_one_moment(
    database: str, db: Db, community: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that commits after the first statement is on none of it."""
    read = formula.read

    def meanwhile(connection: Connection[Any]) -> formula.Formula:
        found = read(connection)
        db.execute("update builder_score.signals set max_points = 1")
        db.execute("update users set username = 'renamed' where username = 'maren'")
        return found

    monkeypatch.setattr(formula, "read", meanwhile)
    page = make(database)
    assert "3 shipped projects 20 points" in card(page, "shipped")
    assert "maren" in text_of(page)


def test_the_style_is_allowed_by_its_hash_and_nothing_else_is(database: str) -> None:
    page = make(database)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy[1]
    assert " style=" not in page
    assert json.dumps(page).count("http") == page.count("http://www.w3.org/2000/svg") + page.count(
        "http-equiv"
    )
