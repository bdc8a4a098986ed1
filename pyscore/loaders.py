"""Loading scores, and profiles, by id within one request: many questions, one query.

`load_scores` and `load_profiles` return batch functions, as loaders of other packages take them;
`ScoreLoader` and `ProfileLoader` are loaders for code without an event loop. Make them anew for
each request: what they have loaded, they keep.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, Self, TypeVar, overload
from uuid import UUID

from pyscore.async_reader import AsyncScoreReader
from pyscore.errors import BadArgumentError
from pyscore.reader import ScoreReader
from pyscore.reading.questions import Question, Questions, several
from pyscore.reading.types import shown
from pyscore.scores import Number, Profile

T = TypeVar("T")


def cache_key(user_id: Any) -> Hashable:
    """Return one key for all forms of an id, such as a UUID and its text.

    For Strawberry's ``cache_key_fn`` and aiodataloader's ``get_cache_key``. Without it an id in two
    forms is kept twice, and ``True`` has what ``1`` has.

    Args:
        user_id: Anything; what can be no id has a key as well.
    """
    if isinstance(user_id, str):
        return str.__str__(user_id)
    name = type(user_id).__qualname__
    try:
        if isinstance(user_id, UUID) or (isinstance(user_id, int) and name != "bool"):
            return str(user_id)
        return name, operator.index(user_id)
    except TypeError:
        return name, repr(user_id)
    except ValueError:  # of more digits than Python prints
        return user_id


@overload
def load_scores(reader: ScoreReader) -> Callable[[Sequence[Any]], list[Number | None]]: ...
@overload
def load_scores(
    reader: AsyncScoreReader,
) -> Callable[[Sequence[Any]], Coroutine[Any, Any, list[Number | None]]]: ...
def load_scores(reader: ScoreReader | AsyncScoreReader) -> Callable[[Sequence[Any]], Any]:
    """Return a batch function for scores: a list of ids in, the list of their scores out.

    It is a coroutine function where the reader is asynchronous, as Strawberry's and aiodataloader's
    ``DataLoader`` take it. However many the ids are, it makes one query. In the place of each id is
    its score; None for who does not exist or has no score yet; a `BadArgumentError` for what has
    not the form of an id, which a ``DataLoader`` raises for that id alone.

        DataLoader(load_fn=load_scores(AsyncScoreReader(engine)), cache_key_fn=cache_key)

    Args:
        reader: Best on an engine: loaders run their batches side by side, and a session or a
            connection is one task's at a time.

    Raises:
        BadArgumentError: It is no reader.
    """
    return _batch(reader, Questions.scores_in_order)


@overload
def load_profiles(reader: ScoreReader) -> Callable[[Sequence[Any]], list[Profile | None]]: ...
@overload
def load_profiles(
    reader: AsyncScoreReader,
) -> Callable[[Sequence[Any]], Coroutine[Any, Any, list[Profile | None]]]: ...
def load_profiles(reader: ScoreReader | AsyncScoreReader) -> Callable[[Sequence[Any]], Any]:
    """Return a batch function for profiles, which have the score among them.

    Like `load_scores`; None for who does not exist.

    Args:
        reader: As for `load_scores`.

    Raises:
        BadArgumentError: It is no reader.
    """
    return _batch(reader, Questions.profiles_in_order)


def _batch(
    reader: Any, in_order: Callable[[Questions, Iterable[Any]], Question[list[Any]]]
) -> Callable[[Sequence[Any]], Any]:
    match reader:
        case AsyncScoreReader():

            async def load_soon(user_ids: Sequence[Any]) -> list[Any]:
                return await reader._ask(in_order(reader._questions, user_ids))  # pyright: ignore[reportPrivateUsage]

            return load_soon
        case ScoreReader():

            def load_now(user_ids: Sequence[Any]) -> list[Any]:
                return reader._ask(in_order(reader._questions, user_ids))  # pyright: ignore[reportPrivateUsage]

            return load_now
        case _:
            raise BadArgumentError(
                f"a loader takes a ScoreReader or an AsyncScoreReader, not {shown(reader)}"
            )


def _not_asynchronous(reader: ScoreReader) -> ScoreReader:
    if isinstance(reader, AsyncScoreReader):
        raise BadArgumentError(
            "this loader takes a ScoreReader; with an AsyncScoreReader use a DataLoader, such as "
            "Strawberry's, of load_scores(reader) or load_profiles(reader)"
        )
    return reader


class _Loader(Generic[T]):
    """What the loaders share. Not for several threads at once."""

    def __init__(self, batch: Callable[[Sequence[Any]], list[T]]):
        self._batch = batch
        self._kept: dict[Hashable, T | BadArgumentError] = {}
        self._put_off: dict[Hashable, Any] = {}

    def load(self, user_id: Any) -> T:
        """Return what belongs to an id; None without such a user.

        What is put off is loaded along with it.

        Args:
            user_id: As for the reader's own methods.

        Raises:
            BadArgumentError: It has not the form of an id.
        """
        (value,) = self.load_many([user_id])
        return value

    def load_many(self, user_ids: Iterable[Any]) -> list[T]:
        """Return what belongs to many ids, in their order, by one query for those not yet known.

        Args:
            user_ids: As for `load`.

        Raises:
            BadArgumentError: One of them has not the form of an id. The others are loaded all the
                same, and kept. Or it is one text, and not several ids.
        """
        asked = several(user_ids)
        keys = [cache_key(user_id) for user_id in asked]
        missing = self._unknown(dict(zip(keys, asked, strict=True)))
        if missing:
            missing |= self._unknown(self._put_off)
            answers = self._batch(list(missing.values()))
            self._kept.update(zip(missing, answers, strict=True))
            self._put_off.clear()
        return [self._answer(key) for key in keys]

    def later(self, user_id: Any) -> Callable[[], T]:
        """Put off a `load`: the first of the functions returned that is called loads for all.

        A template of Django's calls them by itself.

        Args:
            user_id: As for `load`.
        """
        self._put_off[cache_key(user_id)] = user_id
        return partial(self.load, user_id)

    def prime(self, user_id: Any, value: T) -> Self:
        """Keep what is already known for an id; nothing changes where the loader has a value.

        Args:
            user_id: As for `load`.
            value: What `load` is to return.
        """
        self._kept.setdefault(cache_key(user_id), value)
        return self

    def clear(self, user_id: Any) -> Self:
        """Forget what belongs to an id, so that it is loaded again.

        Args:
            user_id: In any form.
        """
        self._kept.pop(cache_key(user_id), None)
        return self

    def clear_all(self) -> Self:
        """Forget everything."""
        self._kept.clear()
        return self

    def _unknown(self, user_ids: dict[Hashable, Any]) -> dict[Hashable, Any]:
        return {key: user_id for key, user_id in user_ids.items() if key not in self._kept}

    def _answer(self, key: Hashable) -> T:
        answer = self._kept[key]
        if isinstance(answer, BadArgumentError):
            raise answer
        return answer


class ScoreLoader(_Loader[Number | None]):
    """Loads scores by id within one request, and keeps them; for code without an event loop.

        scores = ScoreLoader(reader)
        scores.load_many(ids)  # one query
        scores.load(ids[0])  # none

    Args:
        reader: A ScoreReader, on anything that it may be given.

    Raises:
        BadArgumentError: It is no ScoreReader.
    """

    def __init__(self, reader: ScoreReader):
        super().__init__(load_scores(_not_asynchronous(reader)))


class ProfileLoader(_Loader[Profile | None]):
    """Loads profiles by id within one request, and keeps them, as `ScoreLoader` does scores.

    Args:
        reader: As for `ScoreLoader`.

    Raises:
        BadArgumentError: It is no ScoreReader.
    """

    def __init__(self, reader: ScoreReader):
        super().__init__(load_profiles(_not_asynchronous(reader)))
