"""The score as a service function of an application with an ORM (SQLAlchemy 2).

The models have only the columns that the score needs, so no query reads more. A user comes with
projects, collaborators and collaborations in four queries whatever their number (selectin and
joined loading), the score is computed in Python, and an unchanged one is not written.
"""

import math
import re
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    selectinload,
)


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    avatar_url: Mapped[str | None]
    headline: Mapped[str | None]
    bio: Mapped[str | None]
    primary_role: Mapped[str | None]
    timezone: Mapped[str | None]
    contact_links: Mapped[dict[str, Any]] = mapped_column(JSONB)
    builder_score: Mapped[int | None]
    created_at: Mapped[datetime]
    projects: Mapped[list["Project"]] = relationship(back_populates="owner")
    collaborations: Mapped[list["Collaboration"]] = relationship()


class Project(Base):
    __tablename__ = "projects"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    status: Mapped[str]
    github_stars: Mapped[int]
    impact_metrics: Mapped[dict[str, Any]] = mapped_column(JSONB)
    owner: Mapped[User] = relationship(back_populates="projects")
    collaborators: Mapped[list["Collaboration"]] = relationship(back_populates="project")


class Collaboration(Base):
    __tablename__ = "project_collaborators"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    status: Mapped[str]
    project: Mapped[Project] = relationship(back_populates="collaborators")


_EVERYTHING = (
    selectinload(User.projects).selectinload(Project.collaborators),
    selectinload(User.collaborations).joinedload(Collaboration.project),
)


def recalculate(session: Session, user_id: UUID) -> None:
    """Load the user with all that counts, compute, write. The caller commits."""
    user = session.scalars(select(User).where(User.id == user_id).options(*_EVERYTHING)).one()
    user.builder_score = score(user, datetime.now(UTC))


def score(user: User, now: datetime) -> int:
    shipped = sum(project.status == "shipped" for project in user.projects)
    people = {
        collaboration.user_id
        for project in user.projects
        for collaboration in project.collaborators
        if collaboration.status == "confirmed"
    } | {
        collaboration.project.owner_id
        for collaboration in user.collaborations
        if collaboration.status == "confirmed"
    }
    people.discard(user.id)
    impact = sum(
        project.github_stars + count(project.impact_metrics.get("users"))
        for project in user.projects
    )
    texts = (user.avatar_url, user.headline, user.bio, user.primary_role, user.timezone)
    filled = sum(bool(text and text.strip()) for text in texts) + bool(user.contact_links)
    days = max((now - user.created_at).days, 0)
    total = (
        min(30, 10 * math.log(shipped + 1) / math.log(2))
        + min(25, 8 * math.log(len(people) + 1) / math.log(2))
        + min(20, 4 * math.log10(impact + 1))
        + 15 * filled / 6
        + min(10, 10 * days / 365)
    )
    # Halves go up, as in SQL; the six decimals forgive what floats add.
    exact = Decimal(total).quantize(Decimal("1e-6"), ROUND_HALF_UP)
    return int(exact.quantize(Decimal(1), ROUND_HALF_UP))


def count(value: object) -> float:
    """What people type into impact_metrics: a number, or text of the form 12 or 12.5."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return max(value, 0)
    return 0
