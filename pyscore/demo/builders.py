"""The sample community: a dozen people who build things, none of them real."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.types.json import Jsonb


@dataclass(frozen=True)
class Project:
    """What somebody builds.

    Attributes:
        title: Its name.
        status: in_progress, shipped or archived.
        stars: On GitHub.
        users: How many people use it.
        confirmed: Usernames of those who have confirmed that they work on it.
        pending: Usernames of those who were invited and have not answered.
    """

    title: str
    status: str = "shipped"
    stars: int = 0
    users: int = 0
    confirmed: Sequence[str] = ()
    pending: Sequence[str] = ()


@dataclass(frozen=True)
class Builder:
    """One of the community; what is None they have not filled in.

    Attributes:
        username: Unique.
        name: For people.
        days: Age of the account.
        role: What they mostly do.
        headline: One line about them.
        bio: Some more.
        avatar: The path of a picture.
        timezone: Where they are.
        links: Where else they are found.
        projects: What they own.
    """

    username: str
    name: str
    days: int
    role: str | None = None
    headline: str | None = None
    bio: str | None = None
    avatar: str | None = None
    timezone: str | None = None
    links: Mapping[str, str] = field(default_factory=dict[str, str])
    projects: Sequence[Project] = ()


def load(connection: Connection[Any], builders: Sequence[Builder]) -> dict[str, int]:
    """Write builders and what they own, in the caller's transaction.

    Returns:
        The number of rows by table.
    """
    ids = {builder.username: _add_builder(connection, builder) for builder in builders}
    projects = collaborations = 0
    for builder in builders:
        for project in builder.projects:
            project_id = _add_project(connection, ids[builder.username], project)
            projects += 1
            answers = [(name, "confirmed") for name in project.confirmed]
            answers += [(name, "pending") for name in project.pending]
            for name, status in answers:
                connection.execute(
                    "insert into project_collaborators (project_id, user_id, status, confirmed_at)"
                    " values (%s, %s, %s, case when %s = 'confirmed' then now() end)",
                    [project_id, ids[name], status, status],
                )
            collaborations += len(answers)
    return {"users": len(ids), "projects": projects, "project_collaborators": collaborations}


def _add_builder(connection: Connection[Any], builder: Builder) -> UUID:
    row = connection.execute(
        "insert into users (username, email, display_name, primary_role, headline, bio,"
        " avatar_url, timezone, contact_links, created_at)"
        " values (%s, %s, %s, %s, %s, %s, %s, %s, %s, now() - make_interval(days => %s))"
        " returning id",
        [
            builder.username,
            f"{builder.username}@example.org",
            builder.name,
            builder.role,
            builder.headline,
            builder.bio,
            builder.avatar,
            builder.timezone,
            Jsonb(builder.links),
            builder.days,
        ],
    ).fetchone()
    assert row is not None  # RETURNING
    return row[0]


def _add_project(connection: Connection[Any], owner: UUID, project: Project) -> UUID:
    row = connection.execute(
        "insert into projects (owner_id, title, status, github_stars, impact_metrics)"
        " values (%s, %s, %s, %s, %s) returning id",
        [
            owner,
            project.title,
            project.status,
            project.stars,
            Jsonb({"users": project.users} if project.users else {}),
        ],
    ).fetchone()
    assert row is not None  # RETURNING
    return row[0]


BUILDERS = (
    Builder(
        "maren",
        "Maren Holt",
        days=1460,
        role="backend",
        headline="Boring databases, interesting questions",
        bio="Ten years of other people's outages, now my own.",
        avatar="/avatars/maren.png",
        timezone="Europe/Oslo",
        links={"web": "https://maren.example"},
        projects=(
            Project("Tidepool", stars=4100, users=2600, confirmed=("idris", "yuki", "lena")),
            Project("Rowdy", stars=870, users=400, confirmed=("samir",)),
            Project("Ledgerline", stars=310, users=90, confirmed=("idris",)),
            Project("Quiet Hours", users=1200, confirmed=("chidi",)),
            Project("Pgmarks", stars=64),
            Project("Slowlog", stars=18, users=7),
            Project("Tidepool Cloud", "in_progress", pending=("tomas",)),
        ),
    ),
    Builder(
        "idris",
        "Idris Bello",
        days=930,
        role="full stack",
        headline="Maps for people who walk",
        bio="Lagos, then Lisbon. I ship on Fridays.",
        avatar="/avatars/idris.png",
        timezone="Europe/Lisbon",
        links={"web": "https://idris.example", "git": "https://git.example/idris"},
        projects=(
            Project("Footpath", stars=640, users=5200, confirmed=("lena", "rosa")),
            Project("Contour", stars=120, users=300, confirmed=("maren",)),
            Project("Milestone", stars=35, users=80),
            Project("Footpath for Wrists", "in_progress", stars=12, pending=("tomas",)),
        ),
    ),
    Builder(
        "yuki",
        "Yuki Arai",
        days=610,
        role="design",
        headline="Type, grids and the space between",
        avatar="/avatars/yuki.png",
        timezone="Asia/Tokyo",
        links={"web": "https://yuki.example"},
        projects=(
            Project("Kerned", stars=210, users=900, confirmed=("bea",)),
            Project("Halftone", stars=48, users=60),
        ),
    ),
    Builder(
        "lena",
        "Lena Brandt",
        days=480,
        role="mobile",
        headline="Small apps that stay small",
        bio="I remove one feature a month.",
        timezone="Europe/Berlin",
        projects=(
            Project("Einkauf", stars=90, users=1500, confirmed=("rosa",)),
            Project("Nachbar", "archived", stars=22, users=40),
        ),
    ),
    Builder(
        "tomas",
        "Tomas Lind",
        days=395,
        role="embedded",
        headline="Solder first, ask later",
        bio="Firmware for things that must not crash.",
        avatar="/avatars/tomas.png",
        timezone="Europe/Stockholm",
        links={"git": "https://git.example/tomas"},
        projects=(
            Project("Antenna Club", stars=75, users=30),
            Project("Dry Joint", "in_progress", stars=4),
        ),
    ),
    Builder(
        "samir",
        "Samir Haddad",
        days=300,
        role="data",
        headline="Charts with error bars",
        timezone="Asia/Beirut",
        links={"web": "https://samir.example"},
        projects=(Project("Whisker", stars=140, users=220, confirmed=("chidi",)),),
    ),
    Builder(
        "chidi",
        "Chidi Okafor",
        days=220,
        role="backend",
        headline="Queues all the way down",
        bio="Formerly payments.",
        projects=(Project("Turnstile", stars=15, users=12),),
    ),
    Builder(
        "rosa",
        "Rosa Pellegrini",
        days=150,
        role="product",
        headline="Fewer, better meetings",
        avatar="/avatars/rosa.png",
        timezone="Europe/Rome",
        projects=(Project("Standup, Seated", "in_progress", pending=("bea",)),),
    ),
    Builder(
        "bea",
        "Bea Novak",
        days=75,
        role="design",
        headline="Icons, by the hundred",
        projects=(Project("Pictograb", users=45),),
    ),
    Builder(
        "wen",
        "Wen Zhao",
        days=40,
        role="games",
        headline="One button is enough",
        projects=(Project("Hop", stars=3, users=600), Project("Hop Again", "in_progress")),
    ),
    Builder("omar", "Omar Said", days=21, headline="Learning in public"),
    Builder("kit", "Kit Larsen", days=2),
)
