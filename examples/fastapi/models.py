"""The application's own tables. The only word about scores is the mixin."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, ForeignKey, Identity, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from pyscore.models import BuilderScoreMixin


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's own way)
        int: BigInteger,
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
    }


class User(BuilderScoreMixin, Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    username: Mapped[str] = mapped_column(unique=True)
    token_hash: Mapped[str | None] = mapped_column(unique=True)
    headline: Mapped[str | None]
    bio: Mapped[str | None]
    avatar_url: Mapped[str | None]
    primary_role: Mapped[str | None]
    timezone: Mapped[str | None]
    contact_links: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    listed: Mapped[bool] = mapped_column(server_default=text("true"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Project(Base):
    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=text("'in_progress'"))
    github_stars: Mapped[int] = mapped_column(server_default=text("0"))

    owner: Mapped[User] = relationship(lazy="joined", innerjoin=True)
    collaborations: Mapped[list[Collaboration]] = relationship(
        lazy="selectin", order_by="Collaboration.user_id"
    )


class Collaboration(Base):
    __tablename__ = "project_collaborators"

    project_id: Mapped[int] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[int] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    status: Mapped[str] = mapped_column(server_default=text("'pending'"))

    user: Mapped[User] = relationship(lazy="joined", innerjoin=True)
