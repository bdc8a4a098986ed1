"""Act two, a Linux distribution: 34,289 packages, 3,566 people, as an application writes them."""

import csv
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar
from uuid import UUID, uuid4

from psycopg import Connection
from psycopg.types.json import Jsonb
from rich.table import Table

from pyscore import drawing
from pyscore.demo.stage import Stage, print_step, step
from pyscore.demo.waiting import look, wait_for_worker, wait_until_idle, wait_until_scored
from pyscore.errors import PyscoreError

T = TypeVar("T")

PERSON = "bc9b6b0b9ff"
"""Whom to look at afterwards: the owner of the most projects."""

DATA = "debian-bookworm.csv.gz"
ROWS_PER_TRANSACTION = 300

_TOP = """
    select u.username, u.builder_score,
           max(e.raw) filter (where e.signal = 'shipped'),
           max(e.raw) filter (where e.signal = 'vouches'),
           max(e.raw) filter (where e.signal = 'impact')
    from (select * from users order by builder_score desc, username limit 20) as u
    cross join lateral builder_score.explain(u.id) as e
    group by u.id, u.username, u.builder_score
    order by u.builder_score desc, u.username
"""

_DISTRIBUTION = """
    select builder_score / 5 * 5, count(*) from users where builder_score is not null group by 1
"""

_BUSIEST = """
    select u.id, u.username, u.builder_score, count(*)
    from users as u join projects as p on p.owner_id = u.id
    group by u.id order by count(*) desc, u.username limit 1
"""


@dataclass(frozen=True)
class Package:
    """A source package of the distribution.

    Attributes:
        name: Its name.
        owner: Its maintainer, pseudonymised.
        collaborators: Its co-maintainers.
        status: shipped, in_progress or archived.
        users: How many other packages depend on it.
    """

    name: str
    owner: str
    collaborators: tuple[str, ...]
    status: str
    users: int


def read_packages() -> list[Package]:
    """Read the data that travels with pyscore."""
    text = gzip.decompress(files("pyscore.demo").joinpath(DATA).read_bytes()).decode("utf-8")
    return [
        Package(
            name=row["project"],
            owner=row["owner"],
            collaborators=tuple(row["collaborators"].split()),
            status=row["status"],
            users=int(row["users"]),
        )
        for row in csv.DictReader(text.splitlines())
    ]


def load(connection: Connection[Any], packages: Sequence[Package]) -> dict[str, int]:
    """Write packages and people as an application does: plain SQL, some hundred rows a commit.

    Returns:
        The number of rows by table.
    """
    people = sorted({name for p in packages for name in (p.owner, *p.collaborators)})
    ids: dict[str, UUID] = {name: uuid4() for name in people}
    for names in _chunks(people):
        with connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(
                "insert into users (id, username, email) values (%s, %s, %s)",
                [(ids[name], name, f"{name}@example.org") for name in names],
            )
    confirmed = 0
    for chunk in _chunks(packages):
        projects = [(uuid4(), package) for package in chunk]
        collaborations = [
            (project_id, ids[name])
            for project_id, package in projects
            for name in package.collaborators
        ]
        with connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(
                "insert into projects (id, owner_id, title, status, impact_metrics)"
                " values (%s, %s, %s, %s, %s)",
                [
                    (project_id, ids[p.owner], p.name, p.status, Jsonb({"users": p.users}))
                    for project_id, p in projects
                ],
            )
            cursor.executemany(
                "insert into project_collaborators (project_id, user_id, status, confirmed_at)"
                " values (%s, %s, 'confirmed', now())",
                collaborations,
            )
        confirmed += len(collaborations)
    return {"users": len(people), "projects": len(packages), "project_collaborators": confirmed}


def play(stage: Stage) -> None:
    """Load, let the worker score everyone, verify, and show the scores."""
    console = stage.console
    drawing.heading(console, "Act two: a whole distribution, and the people who maintain it")
    if stage.one("select exists (select from users)"):
        _empty(stage)
    # A person scored in the middle of the load would be scored again when their debounce window
    # closes, minutes later. Paused, the worker finds everybody's events complete at its first look.
    _pause(stage, paused=True)
    with step(console, "load the data") as remarks:
        rows = load(stage.connection, read_packages())
        remarks += [
            f"{rows['projects']:,} projects of {rows['users']:,} people,",
            f"{rows['project_collaborators']:,} confirmed collaborations",
            "(worker paused: everyone is to be computed once)",
        ]
    before = look(stage)
    _pause(stage, paused=False)
    stage.worker.begin(stage)
    began = wait_for_worker(stage, before["now"])
    scored = wait_until_scored(stage, before, began)
    print_step(
        console,
        "score everyone",
        scored.worked.total_seconds(),
        f"{before['queue_depth']:,} events coalesced into",
        f"{scored.recalculated:,} recalculations",
    )
    with step(console, "verify") as remarks:
        _verify(stage)
        remarks.append(f"all {scored.people:,} scores are right")
    if scored.put_off:
        console.print(
            f"\n{scored.put_off:,} events came up for people whose score had just been computed:\n"
            "they are looked at when these people's debounce windows close, in five minutes.",
            markup=False,
        )
    show_top(stage)
    show_distribution(stage)
    show_busiest(stage)


def show_top(stage: Stage) -> None:
    """Print the twenty highest scores."""
    drawing.heading(stage.console, "The top 20")
    table = Table(box=None, pad_edge=False)
    for name in ("", "person", "score", "shipped", "vouches", "impact"):
        table.add_column(name, justify="left" if name == "person" else "right")
    for place, row in enumerate(stage.connection.execute(_TOP).fetchall(), start=1):
        username, *numbers = row
        table.add_row(str(place), username, *(f"{number:,.6g}" for number in numbers))
    stage.console.print(table)


def show_distribution(stage: Stage) -> None:
    """Print how many people have which score."""
    drawing.heading(stage.console, "How many people have which score")
    full = drawing.ASCII_FULL if stage.console.options.ascii_only else drawing.FULL
    counts = dict(stage.connection.execute(_DISTRIBUTION).fetchall())
    for line in drawing.histogram(counts, step=5, width=60, full=full):
        stage.console.print(line, markup=False)


def show_busiest(stage: Stage) -> None:
    """Print why the person with the most projects has their score."""
    row = stage.connection.execute(_BUSIEST).fetchone()
    if row is None:
        return
    user_id, username, score, projects = row
    drawing.heading(
        stage.console, f"Why {username}, who owns {projects:,} projects, has a score of {score}"
    )
    signals = stage.connection.execute(
        "select signal, raw, points, max_points from builder_score.explain(%s)", [user_id]
    ).fetchall()
    stage.console.print(drawing.explanation(signals, ascii_only=stage.console.options.ascii_only))
    stage.console.print(
        "Profile and age are 0 for everybody here: the data has no profiles, and every\n"
        "account is new. So 75 is the most that anybody can have."
    )


def _empty(stage: Stage) -> None:
    """Take out what an earlier act has left, so that this one's figures are always the same."""
    with step(stage.console, "empty the tables") as remarks:
        stage.connection.execute("truncate users, projects, project_collaborators")
        stage.connection.execute("update builder_score.settings set debounce_window = default")
        wait_until_idle(stage)
        window = stage.one("select debounce_window from builder_score.settings")
        remarks.append(f"of act one; the debounce is {window.total_seconds() / 60:g} minutes again")


def _pause(stage: Stage, *, paused: bool) -> None:
    stage.connection.execute(
        "update builder_score.settings set paused = %s, paused_reason = %s",
        [paused, "the demo is loading data" if paused else None],
    )


def _verify(stage: Stage) -> None:
    found = stage.connection.execute(
        "select standing, count(*) from builder_score.verify() group by standing order by standing"
    ).fetchall()
    if found:
        said = ", ".join(f"{count} {standing}" for standing, count in found)
        raise PyscoreError(f"verify: stored scores are not what compute() says: {said}")


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), ROWS_PER_TRANSACTION):
        yield items[start : start + ROWS_PER_TRANSACTION]
