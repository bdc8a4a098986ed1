"""The example application, over HTTP, with the worker at work; and the command that starts it."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import uvicorn
from alembic import command
from alembic.config import Config
from psycopg import Connection
from rich.console import Console

from examples.fastapi.adoption import OWNER, WEB, adopted, database_url
from examples.fastapi.app import create_app
from pyscore.demo import servers
from pyscore.demo.builders import BUILDERS
from pyscore.demo.stage import DATABASE, Stage
from tests import demo_runs
from tests.commands import ROOT, environment, pyscore
from tests.community import configure, one
from tests.guide import Block, Reader, sections
from tests.interleave import close_windows, until

EXAMPLE = ROOT / "examples" / "fastapi"


@contextmanager
def served(url: str) -> Generator[str]:
    """Serve the application on a port of loopback, from a thread."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = uvicorn.Server(uvicorn.Config(create_app(url), log_level="warning"))
    thread = Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """What `make example` starts, but for the application; windows close when a test says so."""
    with adopted(Console(file=io.StringIO()), servers.choose()) as stage:
        configure(stage.connection, debounce_window="1 hour")
        yield stage
    assert not stage.cluster.directory.exists(), "it is gone with the block"


@pytest.fixture(scope="module")
def base_url(stage: Stage) -> Iterator[str]:
    with served(database_url(stage.cluster, WEB)) as url:
        yield url


@pytest.fixture(scope="module")
def http(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, timeout=30) as client:
        yield client


@dataclass
class Visitor:
    """Somebody who has signed up."""

    http: httpx.Client
    username: str
    token: str = field(repr=False)

    @classmethod
    def sign_up(cls, http: httpx.Client, username: str, **profile: Any) -> Visitor:
        answer = http.post("/people", json={"username": username} | profile)
        assert answer.status_code == 201, answer.text
        return cls(http, username, answer.json()["token"])

    def send(self, method: str, path: str, **json: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        return self.http.request(method, path, json=json, headers=headers)

    def post(self, path: str, **json: Any) -> Any:
        answer = self.send("POST", path, **json)
        assert answer.is_success, answer.text
        return answer.json()

    def score(self) -> int:
        return self.http.get(f"/people/{self.username}").json()["score"]

    def points(self) -> float:
        return self.http.get(f"/people/{self.username}/score").json()["points"]

    def until_score(self, score: int) -> None:
        until(lambda: self.score() == score, f"{self.username} has {score}")


def settle(db: Connection[Any]) -> int:
    """Let all windows have closed; return how many recalculations the worker then makes."""
    recalculated = "select recalculated from builder_score.health"
    before: int = one(db, recalculated)
    close_windows(db)
    empty = "select queue_depth = 0 from builder_score.health"
    until(lambda: one(db, empty), "the worker has nothing left to do")
    return one(db, recalculated) - before


def test_from_sign_up_to_the_leaderboard(stage: Stage, http: httpx.Client) -> None:
    db = stage.connection
    settle(db)
    lin = Visitor.sign_up(http, "lin", headline="Bicycles with radar")
    noor = Visitor.sign_up(http, "noor", bio="Bells")
    lin.until_score(3)  # at once: computed never before
    noor.until_score(3)

    project = lin.post("/projects", title="Bell")
    path = f"/projects/{project['id']}"
    invited = lin.post(f"{path}/invitations", username="noor")
    assert invited["collaborators"] == [{"username": "noor", "status": "pending"}]
    noor.post(f"{path}/confirm")
    shipped = lin.post(f"{path}/ship")
    assert http.get(path).json() == shipped
    assert shipped == {
        "id": project["id"],
        "title": "Bell",
        "owner": "lin",
        "status": "shipped",
        "collaborators": [{"username": "noor", "status": "confirmed"}],
    }
    assert (lin.points(), noor.points()) == (20.5, 10.5)

    # the worker has been at work after all of this, and has left both alone
    later = Visitor.sign_up(http, "later", bio="Comes last")
    later.until_score(3)
    assert (lin.score(), noor.score()) == (3, 3), "their windows are open"

    assert settle(db) == 2, "one for each of them, whatever happened"
    assert (lin.score(), noor.score()) == (21, 11)

    page = http.get("/leaderboard", params={"limit": 100}).json()
    assert {"username": "lin", "score": 21} in page["entries"]
    assert page["next"] is None


def test_pages_of_the_leaderboard_and_who_is_not_on_it(http: httpx.Client) -> None:
    shy = Visitor.sign_up(http, "shy", headline="Rather not", listed=False)
    shy.until_score(3)
    whole = http.get("/leaderboard", params={"limit": 100}).json()["entries"]
    scores = [entry["score"] for entry in whole]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 50
    assert len(whole) >= len(BUILDERS)
    assert "shy" not in [entry["username"] for entry in whole]

    read: list[Any] = []
    after: dict[str, str] = {}
    while True:
        page = http.get("/leaderboard", params={"limit": 5} | after).json()
        read += page["entries"]
        if page["next"] is None:
            break
        assert len(page["entries"]) == 5
        after = {"after": page["next"]}
    assert read == whole

    assert shy.send("PATCH", "/me", listed=True).json()["headline"] == "Rather not"
    found = http.get("/leaderboard", params={"limit": 100}).json()["entries"]
    assert {"username": "shy", "score": 3} in found


def test_pages_for_people(http: httpx.Client) -> None:
    Visitor.sign_up(http, "mallory", headline="<script>alert(1)</script>")
    profile = http.get("/@mallory")
    assert profile.headers["content-type"] == "text/html; charset=utf-8"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in profile.text
    assert "<script>" not in profile.text
    for signal_name in ("shipped", "vouches", "impact", "profile", "age"):
        assert f"<td>{signal_name}</td>" in profile.text
    with ThreadPoolExecutor(4) as several:
        names = [f"crowd{number}" for number in range(20)]
        list(several.map(partial(Visitor.sign_up, http), names))
    first = http.get("/").text
    assert first.count('href="/@') == 20
    (link,) = (line.split('"')[1] for line in first.splitlines() if "Next page" in line)
    second = http.get(link).text
    assert 'href="/@kit"' in second
    assert 'href="/@maren"' in first
    assert 'href="/@maren"' not in second


def test_one_of_many_gets_a_username(http: httpx.Client) -> None:
    with ThreadPoolExecutor(4) as several:
        given = [several.submit(http.post, "/people", json={"username": "same"}) for _ in range(8)]
    assert sorted(answer.result().status_code for answer in given) == [201] + 7 * [409]
    answer = Visitor.sign_up(http, "other").send("PATCH", "/me", username="same")
    assert (answer.status_code, answer.json()["detail"]) == (409, "the username same is taken")


def test_a_new_name_leads_to_the_profile_and_the_old_one_no_longer(http: httpx.Client) -> None:
    person = Visitor.sign_up(http, "before", bio="Moves")
    assert person.send("PATCH", "/me", username="after", headline="Moved").is_success
    assert http.get("/people/before").status_code == 404
    found = http.get("/people/after").json()
    assert (found["headline"], found["bio"]) == ("Moved", "Moves")
    assert person.send("PATCH", "/me", username=None).status_code == 422


def test_who_may_what(http: httpx.Client) -> None:
    owner, guest, other = (Visitor.sign_up(http, name) for name in ("owner", "guest", "stranger"))
    path = f"/projects/{owner.post('/projects', title='Lathe')['id']}"
    expected: list[tuple[Visitor, str, dict[str, str], int]] = [
        (guest, f"{path}/confirm", {}, 403),  # not invited yet
        (guest, f"{path}/ship", {}, 403),
        (guest, f"{path}/invitations", {"username": "stranger"}, 403),
        (owner, f"{path}/invitations", {"username": "nobody"}, 404),
        (owner, f"{path}/invitations", {"username": "owner"}, 409),
        (owner, f"{path}/invitations", {"username": "guest"}, 201),
        (owner, f"{path}/invitations", {"username": "guest"}, 409),
        (owner, f"{path}/confirm", {}, 403),
        (other, f"{path}/confirm", {}, 403),
        (guest, f"{path}/confirm", {}, 200),
        (guest, f"{path}/confirm", {}, 200),
        (guest, f"{path}/ship", {}, 403),
        (owner, f"{path}/ship", {}, 200),
        (owner, f"{path}/ship", {}, 200),
        (guest, "/projects/999999999/ship", {}, 404),
        (guest, "/projects/999999999/confirm", {}, 404),
    ]
    answers = [person.send("POST", where, **json) for person, where, json, _ in expected]
    assert [answer.status_code for answer in answers] == [status for *_, status in expected]
    assert all(answer.json() for answer in answers)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}, {"Authorization": "x"}])
def test_who_has_no_token_only_reads(http: httpx.Client, headers: dict[str, str]) -> None:
    for method, path in (("POST", "/projects"), ("PATCH", "/me"), ("POST", "/projects/1/ship")):
        answer = http.request(method, path, json={"title": "x"}, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/people/nobody", 404),
        ("/people/nobody/score", 404),
        ("/people/a%00b", 404),
        ("/@nobody", 404),
        ("/projects/999999999", 404),
        ("/projects/one", 422),
        ("/projects/99999999999999999999", 422),
        ("/leaderboard?limit=0", 422),
        ("/leaderboard?limit=101", 422),
        ("/leaderboard?after=nonsense", 422),
        ("/?after=nonsense", 422),
    ],
)
def test_what_cannot_be_read(http: httpx.Client, path: str, status: int) -> None:
    answer = http.get(path)
    assert answer.status_code == status
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"username": "x"},
        {"username": "Capital"},
        {"username": "new\nline"},
        {"username": "line\n"},
        {"username": "valid", "headline": "a\0b"},
        {"username": "valid", "headline": 201 * "x"},
        {"username": "valid", "contact_links": ["https://x.example"]},
        {"username": "valid", "contact_links": {"web": "a\0b"}},
    ],
)
def test_what_cannot_be_written(http: httpx.Client, form: dict[str, Any]) -> None:
    assert http.post("/people", json=form).status_code == 422
    assert http.get("/people/valid").status_code == 404


def test_tokens_are_stored_as_digests(stage: Stage, http: httpx.Client) -> None:
    token = Visitor.sign_up(http, "secret").token
    stored = one(stage.connection, "select u::text from users as u where username = 'secret'")
    assert token not in stored


def test_its_role_reads_and_writes_rows_and_no_more(stage: Stage) -> None:
    query = """
        select rolsuper or rolcreaterole or rolcreatedb
            or has_schema_privilege(oid, 'public', 'create')
            or exists (
                select from pg_class as c
                where c.relnamespace = 'builder_score'::regnamespace and c.relkind in ('r', 'v')
                and has_table_privilege(r.oid, c.oid, 'select, insert, update, delete'))
        from pg_roles as r where rolname = %s
    """
    assert one(stage.connection, query, WEB) is False


def test_its_migrations_do_not_see_pyscore(stage: Stage) -> None:
    config = Config(EXAMPLE / "alembic.ini", stdout=io.StringIO())
    config.attributes["database_url"] = database_url(stage.cluster, OWNER)
    command.check(config)


def test_doctor_finds_nothing_wrong(stage: Stage) -> None:
    done = pyscore("doctor", "--dsn", stage.cluster.conninfo(DATABASE, user=OWNER))
    assert done.returncode == 0, done.stdout


def test_its_readme(stage: Stage, base_url: str, tmp_path: Path) -> None:
    """What the reader types, against the server that runs here."""
    blocks = sections(EXAMPLE / "README.md")["Try it"]
    assert blocks[0].body.strip() == "make example"
    address = "http://127.0.0.1:8000"
    typed = [Block(b.language, b.body.replace(address, base_url)) for b in blocks[1:]]
    assert typed[0] != blocks[1]
    Reader(stage.cluster, tmp_path, database=DATABASE).follow(typed)


# The command -------------------------------------------------------------------------------------


@pytest.fixture
def temporary() -> Iterator[Path]:
    with demo_runs.temporary_directory() as directory:
        yield directory


def start(temporary: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.fastapi", *options],
        cwd=ROOT,
        env=environment(TMPDIR=str(temporary), PYTHONUNBUFFERED="1", **demo_runs.ELSEWHERE),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_serves_until_it_is_stopped_and_leaves_nothing(temporary: Path) -> None:
    with start(temporary, "--port", "0") as example:
        assert example.stdout is not None
        assert example.stderr is not None
        said: list[str] = []
        for line in example.stdout:
            said.append(line)
            if line.startswith("Ctrl-C"):
                break
        (told,) = (line for line in said if line.startswith("Builders runs: "))
        url = told.split()[2].rstrip("/")
        with httpx.Client(base_url=url, timeout=30) as client:
            Visitor.sign_up(client, "grace", headline="Nanoseconds").until_score(3)
        assert demo_runs.processes_of(temporary)
        example.send_signal(signal.SIGINT)
        last, errors = example.communicate(timeout=60)
    assert (example.returncode, last, errors) == (0, "stopped; nothing is left\n", "")
    demo_runs.assert_nothing_is_left(temporary)


def test_a_port_that_is_taken_is_one_line_before_anything_starts(temporary: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        example = start(temporary, "--port", str(taken.getsockname()[1]))
        printed, said = example.communicate(timeout=60)
    assert (example.returncode, printed) == (1, "")
    assert said.startswith("example: ")
    assert os.strerror(98) in said
    demo_runs.assert_nothing_is_left(temporary)
