"""Reading scores from Python."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any, TypeVar

from pyscore.reading import binds
from pyscore.reading.binds import Bind, Database
from pyscore.reading.conditions import Condition, Users
from pyscore.reading.questions import Question, Questions
from pyscore.scores import Explanation, Number, Page, Profile, UserScore

T = TypeVar("T")


class ScoreReader:
    """Reads scores, and what they are made of, from the application's own database.

    Scores are read from ``users.builder_score`` alone: that needs no privilege but SELECT on users,
    works on a standby and in a read-only transaction, and goes on working whatever happens to the
    rest. `explain`, `rank`, `percentile`, `distribution` and `recompute` call functions of schema
    builder_score, which a role needs a grant for; they say which.

    On an engine each call is a short transaction of its own. On anything else it is part of the
    caller's transaction, which is never committed, rolled back or broken by a bad argument; except
    by a ``where=`` that only the server can see is wrong, raw SQL such as ``text("bann")`` above
    all. A session is flushed first, as for a query of its own.

        reader = ScoreReader(engine)
        reader.leaderboard(20, where=User.deleted_at.is_(None))

    Args:
        bind: A SQLAlchemy Engine, Connection, Session or scoped_session for PostgreSQL, or a
            psycopg Connection.
        users: The application's users, as a SQLAlchemy Table or mapped class; ``users`` if not
            given. A session that is bound by class needs it.
        schema: The schema of users; where the search_path leads if not given.

    Raises:
        BadArgumentError: An argument is none of these.
    """

    def __init__(self, bind: Bind, *, users: Users | None = None, schema: str | None = None):
        binds.check(bind)
        self._bind: Bind = bind
        self._questions = Questions(users, schema)

    def score(self, user_id: Any) -> Number | None:
        """Return a user's score; None without such a user, or while it was not computed yet.

        Args:
            user_id: As ``users.id`` holds it, or as text.

        Raises:
            BadArgumentError: It has not the form of an id.
        """
        return self._ask(self._questions.score(user_id))

    def scores(self, user_ids: Iterable[Any]) -> dict[Any, Number | None]:
        """Return the scores of many users, in one query however many they are.

        Args:
            user_ids: As for `score`.

        Returns:
            Scores by id, as the id was given. Who does not exist is left out; who has no score yet
            has None.

        Raises:
            BadArgumentError: One of them has not the form of an id.
        """
        return self._ask(self._questions.scores(user_ids))

    def by_username(self, name: str) -> UserScore | None:
        """Return the user with a name, None without one; where several have it, the lowest id's.

        Args:
            name: As ``users.username`` holds it.

        Raises:
            BadArgumentError: It is not text, or the connection's client_encoding cannot send it.
            PyscoreError: The application's users have no username.
        """
        return self._ask(self._questions.by_username(name))

    def profile(self, username: str) -> Profile | None:
        """Return the profile of the user with a name, their score in it; None without one.

        Where several have the name, it is the lowest id's.

        Args:
            username: As for `by_username`.

        Raises:
            BadArgumentError: As for `by_username`.
            PyscoreError: As for `by_username`.
        """
        return self._ask(self._questions.profile(username))

    def profiles(self, user_ids: Iterable[Any]) -> dict[Any, Profile]:
        """Return the profiles of many users, in one query however many they are.

        Args:
            user_ids: As for `score`.

        Returns:
            Profiles by id, as the id was given. Who does not exist is left out.

        Raises:
            BadArgumentError: One of them has not the form of an id.
        """
        return self._ask(self._questions.profiles(user_ids))

    def leaderboard(
        self, limit: int = 20, after: str | None = None, where: Condition | None = None
    ) -> Page:
        """Return a page of the ranking: the highest score first, among equals the highest id.

        Who has no score yet is not in it. Reading on with the page's ``next`` neither skips nor
        repeats anybody while scores stand still, however many share one, and though entries already
        read disappear.

        Args:
            limit: Entries on the page, 1 to 1000.
            after: ``next`` of the page before; None for the first page.
            where: A SQLAlchemy condition on the users, for instance to hide deleted or banned ones:
                ``User.deleted_at.is_(None)``, ``text("not banned")``. Other tables go into a
                subquery. Raw SQL is sent as it is: never make it of what a visitor typed, and put
                brackets around an ``or`` that is only part of a condition.

        Raises:
            BadArgumentError: A page cannot have that size, `after` is not a cursor of this ranking,
                or `where` is not a condition on the users alone.
            sqlalchemy.exc.DBAPIError: The server cannot make sense of `where`; psycopg.Error on a
                psycopg Connection.
        """
        return self._ask(self._questions.page(limit, after, where))

    def above(
        self,
        threshold: Number | Decimal,
        limit: int = 20,
        after: str | None = None,
        where: Condition | None = None,
    ) -> Page:
        """Return a page of the ranking of those whose score is greater than a threshold.

        Args:
            threshold: A score; 75 asks for more than 75.
            limit: As for `leaderboard`.
            after: As for `leaderboard`.
            where: As for `leaderboard`.

        Raises:
            BadArgumentError: As for `leaderboard`, or the threshold is not a number.
            sqlalchemy.exc.DBAPIError: As for `leaderboard`.
        """
        return self._ask(self._questions.page(limit, after, where, threshold))

    def explain(self, user_id: Any) -> Explanation:
        """Return what a user's score would be now, and why.

        Args:
            user_id: As for `score`.

        Raises:
            UnknownUserError: There is no such user.
            BadArgumentError: It has not the form of an id.
            PyscoreError: builder_score is missing or detached, or the role needs a grant.
        """
        return self._ask(self._questions.explain(user_id))

    def rank(self, user_id: Any) -> int | None:
        """Return a user's place among all who have a score: 1 for the highest.

        Equal scores share it: 1 + the number of people with a higher score. As of the worker's last
        batch, exact, and as quick among millions as among few, since nobody is counted.

        Args:
            user_id: As for `score`.

        Returns:
            None while the user's score was not computed yet.

        Raises:
            UnknownUserError: There is no such user.
            BadArgumentError: It has not the form of an id.
            PyscoreError: builder_score is missing or detached, or the role needs a grant.
        """
        return self._ask(self._questions.standing(user_id))[0]

    def percentile(self, user_id: Any) -> float | None:
        """Return what share of the other people has a lower score, from 0 to 100.

        100 * (people with a lower score) / (people - 1), as SQL's ``percent_rank()`` has it; 0 for
        somebody who is alone. As of the worker's last batch, exact, and without counting anybody.

        Args:
            user_id: As for `score`.

        Returns:
            None while the user's score was not computed yet.

        Raises:
            UnknownUserError: There is no such user.
            BadArgumentError: It has not the form of an id.
            PyscoreError: builder_score is missing or detached, or the role needs a grant.
        """
        return self._ask(self._questions.standing(user_id))[1]

    def distribution(self) -> dict[Number, int]:
        """Return how many people have each score that somebody has, the highest score first.

        As of the worker's last batch; who has no score yet is not counted.

        Raises:
            PyscoreError: builder_score is missing, or the role needs a grant.
        """
        return self._ask(self._questions.distribution())

    def recompute(self, user_id: Any) -> Number:
        """Compute and write a user's score now, past the debounce, and return it.

        For services. May wait for whoever holds the user's row. On an engine it is committed; on
        anything else it is the caller's to commit, and needs a transaction at READ COMMITTED. An
        object that a session has already loaded keeps its old ``builder_score`` until refreshed.

        Args:
            user_id: As for `score`.

        Raises:
            UnknownUserError: There is no such user.
            BadArgumentError: It has not the form of an id.
            PyscoreError: builder_score is missing or detached, the role needs a grant, or the
                transaction is read only or of a higher isolation level.
        """
        return self._ask(self._questions.recompute(user_id), writes=True)

    def _ask(self, question: Question[T], *, writes: bool = False) -> T:
        try:
            next(question)
        except StopIteration as answered:  # without asking anybody
            return answered.value
        with binds.opened(self._bind, self._questions.table, writes=writes) as db:
            return _answer(question, db)


def _answer(question: Question[T], db: Database) -> T:
    try:
        statement = question.send(db)
        while True:
            assert statement is not None
            try:
                rows = db.rows(statement)
            except Exception as error:
                statement = question.throw(error)
            else:
                statement = question.send(rows)
    except StopIteration as answered:
        return answered.value
