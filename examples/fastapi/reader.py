"""`pyscore.ScoreReader` on the application's asynchronous engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, select
from sqlalchemy.ext.asyncio import AsyncEngine

from pyscore import Explanation, Page, ScoreReader, Tier
from pyscore.scores import tier_of

from .models import User

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Profile:
    """Somebody's profile with their score."""

    user_id: int
    username: str
    headline: str | None
    bio: str | None
    avatar_url: str | None
    contact_links: dict[str, Any]
    score: int | None

    @property
    def tier(self) -> Tier | None:
        """The range that the score lies in."""
        return None if self.score is None else tier_of(self.score)


class AsyncScoreReader:
    """Each question has a connection of its own, and is asked in SQLAlchemy's greenlet."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def profile(self, username: str) -> Profile | None:
        """Return a profile; None where nobody has the name."""
        if "\0" in username:
            return None
        columns = (User.headline, User.bio, User.avatar_url, User.contact_links)
        query = select(User.id, User.username, *columns, User.builder_score)
        async with self._engine.connect() as connection:
            found = (await connection.execute(query.where(User.username == username))).first()
        return None if found is None else Profile(*found)

    async def explain(self, user_id: int) -> Explanation:
        """Return why a score is what it is."""
        return await self._ask(lambda reader: reader.explain(user_id))

    async def leaderboard(self, limit: int, *, after: str | None, where: Any) -> Page:
        """Return a page of the ranking."""
        return await self._ask(lambda reader: reader.leaderboard(limit, after=after, where=where))

    async def _ask(self, question: Callable[[ScoreReader], Answer]) -> Answer:
        def ask(connection: Connection) -> Answer:
            return question(ScoreReader(connection, users=User))

        async with self._engine.connect() as connection:
            return await connection.run_sync(ask)
