"""Reading scores from Python, asynchronously."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from pyscore.reading import async_binds
from pyscore.reading.async_binds import AsyncDatabase
from pyscore.reading.conditions import Condition, Users
from pyscore.reading.questions import Question, Questions
from pyscore.scores import Explanation, Number, Page, Profile, UserScore

if TYPE_CHECKING:
    from pyscore.reading.async_binds import AsyncBind

T = TypeVar("T")


class AsyncScoreReader:
    """`pyscore.ScoreReader` for asyncio: the same methods, awaited.

    On an engine each call is a short transaction of its own, on a connection of its own: calls may
    be made side by side. On anything else it is part of the caller's transaction, and a session or
    a connection does one thing at a time. A call that is cancelled gives its connection back.

        reader = AsyncScoreReader(create_async_engine("postgresql+psycopg:///app"))
        await reader.leaderboard(20, where=User.deleted_at.is_(None))

    Args:
        bind: A SQLAlchemy AsyncEngine, AsyncConnection, AsyncSession or async_scoped_session for
            PostgreSQL, over psycopg or asyncpg, or a psycopg AsyncConnection. SQLAlchemy's need the
            package greenlet: ``pip install 'pyscore[async]'``.
        users: As for `pyscore.ScoreReader`.
        schema: As for `pyscore.ScoreReader`.

    Raises:
        BadArgumentError: An argument is none of these.
    """

    def __init__(self, bind: AsyncBind, *, users: Users | None = None, schema: str | None = None):
        async_binds.check(bind)
        self._bind: AsyncBind = bind
        self._questions = Questions(users, schema)

    async def score(self, user_id: Any) -> Number | None:
        """Return a user's score; None without such a user, or while it was not computed yet.

        As `pyscore.ScoreReader.score`, which says what it takes, returns and raises.
        """
        return await self._ask(self._questions.score(user_id))

    async def scores(self, user_ids: Iterable[Any]) -> dict[Any, Number | None]:
        """Return the scores of many users, in one query however many they are.

        As `pyscore.ScoreReader.scores`, which says what it takes, returns and raises.
        """
        return await self._ask(self._questions.scores(user_ids))

    async def by_username(self, name: str) -> UserScore | None:
        """Return the user with a name, None without one; where several have it, the lowest id's.

        As `pyscore.ScoreReader.by_username`, which says what it takes, returns and raises.
        """
        return await self._ask(self._questions.by_username(name))

    async def profile(self, username: str) -> Profile | None:
        """Return the profile of the user with a name, their score in it; None without one.

        As `pyscore.ScoreReader.profile`, which says what it takes, returns and raises.
        """
        return await self._ask(self._questions.profile(username))

    async def profiles(self, user_ids: Iterable[Any]) -> dict[Any, Profile]:
        """Return the profiles of many users, in one query however many they are.

        As `pyscore.ScoreReader.profiles`, which says what it takes, returns and raises.
        """
        return await self._ask(self._questions.profiles(user_ids))

    async def leaderboard(
        self, limit: int = 20, after: str | None = None, where: Condition | None = None
    ) -> Page:
        """Return a page of the ranking: the highest score first, among equals the highest id.

        As `pyscore.ScoreReader.leaderboard`, which says what it takes, returns and raises.
        """
        return await self._ask(self._questions.page(limit, after, where))

    async def above(
        self,
        threshold: Number | Decimal,
        limit: int = 20,
        after: str | None = None,
        where: Condition | None = None,
    ) -> Page:
        """Return a page of the ranking of those whose score is greater than a threshold.

        As `pyscore.ScoreReader.above`, which says what it takes, returns and raises.
        """
        return await self._ask(self._questions.page(limit, after, where, threshold))

    async def explain(self, user_id: Any) -> Explanation:
        """Return what a user's score would be now, and why.

        As `pyscore.ScoreReader.explain`, which says what it takes, returns and raises.
        """
        return await self._ask(self._questions.explain(user_id))

    async def rank(self, user_id: Any) -> int | None:
        """Return a user's place among all who have a score: 1 for the highest.

        As `pyscore.ScoreReader.rank`, which says what it takes, returns and raises.
        """
        return (await self._ask(self._questions.standing(user_id)))[0]

    async def percentile(self, user_id: Any) -> float | None:
        """Return what share of the other people has a lower score, from 0 to 100.

        As `pyscore.ScoreReader.percentile`, which says what it takes, returns and raises.
        """
        return (await self._ask(self._questions.standing(user_id)))[1]

    async def distribution(self) -> dict[Number, int]:
        """Return how many people have each score that somebody has, the highest score first.

        As `pyscore.ScoreReader.distribution`, which says what it takes, returns and raises.
        """
        return await self._ask(self._questions.distribution())

    async def recompute(self, user_id: Any) -> Number:
        """Compute and write a user's score now, past the debounce, and return it.

        As `pyscore.ScoreReader.recompute`, which says what it takes, returns and raises.
        """
        return await self._ask(self._questions.recompute(user_id), writes=True)

    async def _ask(self, question: Question[T], *, writes: bool = False) -> T:
        try:
            next(question)
        except StopIteration as answered:  # without asking anybody
            return answered.value
        async with async_binds.opened(self._bind, self._questions.table, writes=writes) as db:
            return await _answer(question, db)


async def _answer(question: Question[T], db: AsyncDatabase) -> T:
    try:
        statement = question.send(db)
        while True:
            assert statement is not None
            try:
                rows = await db.rows(statement)
            except Exception as error:
                statement = question.throw(error)
            else:
                statement = question.send(rows)
    except StopIteration as answered:
        return answered.value
