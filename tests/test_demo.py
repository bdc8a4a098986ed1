"""The demo: its loader, its drawings, and one whole run with the real pg_cron job."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow
from rich.console import Console

from pyscore.cluster import PrivateCluster
from pyscore.demo import debian, drawing
from pyscore.demo.stage import Stage
from pyscore.demo.waiting import look, wait_until_scored
from pyscore.errors import PyscoreError
from tests.community import add_user, configure, drain, one
from tests.oracle import assert_all_right

DEMO = [sys.executable, "-m", "pyscore.demo"]


@pytest.fixture
def stage(server: PrivateCluster, db: Connection[TupleRow]) -> Stage:
    with open(os.devnull, "w") as nowhere:
        return Stage(Console(file=nowhere), server, db)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory of the run's own for temporary files, which the server's user may enter."""
    directory = Path(tempfile.mkdtemp(prefix="demo-", dir="/tmp"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


def environment(temporary: Path) -> dict[str, str]:
    # the caller's own server must not matter
    elsewhere = {"PGHOST": "/nowhere", "PGOPTIONS": "-c no.such=setting -c work_mem=nonsense"}
    return {**os.environ, **elsewhere, "TMPDIR": str(temporary)}


def processes_of(directory: Path) -> list[str]:
    """The command lines of running processes that name the directory."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if str(directory) in words:
            found.append(words)
    return found


def read_back(db: Connection[Any]) -> list[debian.Package]:
    """The packages as the application's tables hold them."""
    rows = db.execute("""
        select p.title, o.username, coalesce(c.names, '{}'), p.status,
               (p.impact_metrics ->> 'users')::integer
        from projects as p
        join users as o on o.id = p.owner_id
        left join lateral (
            select array_agg(u.username order by u.username) as names
            from project_collaborators as k join users as u on u.id = k.user_id
            where k.project_id = p.id and k.status = 'confirmed'
        ) as c on true
        order by p.title collate "C"
    """).fetchall()
    return [debian.Package(name, owner, tuple(c), status, n) for name, owner, c, status, n in rows]


def test_the_data_is_complete() -> None:
    packages = debian.read_packages()
    people = {name for p in packages for name in (p.owner, *p.collaborators)}
    assert (len(packages), len(people)) == (34289, 3566)
    assert sum(p.owner == "bc9b6b0b9ff" for p in packages) == 3904
    assert {p.status for p in packages} == {"shipped", "in_progress", "archived"}
    assert packages[7] == debian.Package("3270font", "bb8436a8334", ("bc28ef4c917",), "shipped", 1)


def test_a_loaded_slice_is_scored_right(db: Connection[TupleRow]) -> None:
    packages = debian.read_packages()[::60]
    rows = debian.load(db, packages)
    for table, count in rows.items():
        assert one(db, f"select count(*) from {table}") == count
    assert read_back(db) == sorted(packages, key=lambda package: package.name)
    configure(db, debounce_window="0")
    drain(db)
    assert_all_right(db)
    assert one(db, "select max(builder_score) from users") > 30


def test_every_write_of_the_load_is_an_event(db: Connection[TupleRow]) -> None:
    rows = debian.load(db, debian.read_packages()[:100])
    # a collaboration appends its user, and its project for the owner
    events = rows["users"] + rows["projects"] + 2 * rows["project_collaborators"]
    assert one(db, "select count(*) from builder_score.score_recalc_queue") == events


def test_the_load_commits_every_few_hundred_rows(db: Connection[TupleRow]) -> None:
    debian.load(db, debian.read_packages()[:700])
    for table in ("users", "projects"):
        largest = one(
            db, f"select max(n) from (select count(*) as n from {table} group by xmin::text) as t"
        )
        assert 100 < largest <= 300


def test_waiting_counts_what_the_worker_did(stage: Stage, database: str) -> None:
    configure(stage.connection, paused=True)
    for name in ("ada", "bo", "cy"):
        add_user(stage.connection, name)
    before = look(stage)
    configure(stage.connection, paused=False)
    with psycopg.connect(database, autocommit=True) as connection, ThreadPoolExecutor(1) as pool:

        def work() -> None:
            connection.execute("select pg_sleep(0.3)")
            connection.execute("call builder_score.run_worker('1 second')")

        worker = pool.submit(work)
        scored = wait_until_scored(stage, before, patience=20)
        worker.result()
    assert (scored.people, scored.recalculated, scored.put_off) == (3, 3, 0)
    assert scored.waited.total_seconds() >= 0.2
    assert scored.worked.total_seconds() >= 0


def test_waiting_for_a_worker_that_never_comes_ends_with_what_is_known(stage: Stage) -> None:
    add_user(stage.connection, "ada")
    with pytest.raises(PyscoreError) as caught:
        wait_until_scored(stage, look(stage), patience=0.3)
    assert str(caught.value) == (
        "0 of 1 people are scored and nothing has moved for 0.3 s; "
        "scheduler: none, last error: none"
    )


@pytest.mark.parametrize(
    ("value", "drawn"),
    [(0, "    "), (1, "#   "), (37, "#   "), (38, "##  "), (99, "####"), (100, "####")],
)
def test_a_bar_shows_a_share_and_all_that_is_not_nothing(value: int, drawn: str) -> None:
    assert drawing.bar(value, 100, 4, full="#") == drawn


def test_a_bar_of_a_signal_that_is_off_is_empty() -> None:
    assert drawing.bar(0, 0, 0) == ""


def test_a_histogram_has_a_line_for_every_range_up_to_the_highest() -> None:
    assert drawing.histogram({0: 2, 5: 1000, 15: 500}, step=5, width=4, full="#") == [
        "  0 - 4   #         2",
        "  5 - 9   ####  1,000",
        " 10 - 14            0",
        " 15 - 19  ##      500",
    ]
    assert drawing.histogram({}, step=5, width=4) == []


def test_an_explanation_draws_points_against_the_most(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=80)
    console.print(drawing.explanation([("impact", 11533, 16.25, 20)], ascii_only=True))
    assert capsys.readouterr().out.splitlines()[1] == "impact  11,533   16.25  20  " + (
        "#" * 16 + "." * 4
    )


def test_help_says_what_it_does_and_starts_nothing(temporary: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--help"], capture_output=True, text=True, check=True, env=environment(temporary)
    )
    assert "--keep" in done.stdout
    assert list(temporary.iterdir()) == []


def test_a_whole_run_scores_everybody_by_pg_cron_and_leaves_nothing(temporary: Path) -> None:
    done = subprocess.run(
        DEMO, capture_output=True, text=True, check=False, env=environment(temporary), timeout=240
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    (verified,) = (line for line in lines if line.startswith("verify "))
    assert verified.endswith("all 3,566 scores are right")
    assert any("pg_cron 1." in line for line in lines)
    assert any(line.endswith("112,425 events coalesced into") for line in lines)

    top = lines[lines.index("The top 20") + 2 :][:20]
    assert [line.split()[0] for line in top] == [str(place) for place in range(1, 21)]
    scores = [int(line.split()[2]) for line in top]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 71

    start = lines.index("How many people have which score") + 1
    counts = [int(line.split()[-1].replace(",", "")) for line in lines[start : start + 15]]
    assert sum(counts) == 3566

    assert max(map(len, lines)) <= 80
    assert processes_of(temporary) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_nothing(temporary: Path, number: signal.Signals) -> None:
    demo = subprocess.Popen(
        DEMO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(temporary),
    )
    with demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        for line in demo.stdout:
            if line.startswith("pyscore migrate"):
                break
        assert processes_of(temporary)  # the server
        demo.send_signal(number)
        said = demo.stderr.read()
        demo.stdout.read()
    assert (demo.returncode, said.strip()) == (1, "demo: stopped")
    assert processes_of(temporary) == []
    assert list(temporary.iterdir()) == []
