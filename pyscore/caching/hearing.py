"""Listening for ever: connect, listen, have the caches forget, and begin anew whatever happens."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import URL, make_url

from pyscore import address
from pyscore.caching.line import Line
from pyscore.caching.messages import users_in
from pyscore.caching.pauses import Pauses
from pyscore.errors import BadArgumentError, PyscoreError
from pyscore.pooler import passes_on
from pyscore.reading.types import shown

log = logging.getLogger("pyscore")

_DRIVER = re.compile(r"^postgres(?:ql)?\+\w+://")
_LIBPQ_WITH_PRIMARY = 140000

# Option, the environment's variable for it, value: each only where neither says otherwise.
_OPTIONS = (
    ("connect_timeout", "PGCONNECT_TIMEOUT", "10"),
    ("keepalives_idle", None, "30"),
    ("keepalives_interval", None, "10"),
    ("keepalives_count", None, "3"),
    ("tcp_user_timeout", None, "30000"),
    ("client_encoding", None, "utf8"),
    ("fallback_application_name", None, "pyscore listener"),
)


class Forgetful(Protocol):
    """What a listener tells: a cache."""

    def invalidate_user(self, *user_ids: Any) -> None:
        """Forget some users; their ids are text."""
        ...

    def clear(self) -> None:
        """Forget everybody."""
        ...


class Hearing:
    """What both listeners do, for as long as `run` runs.

    Args:
        where: What `conninfo` takes.
        caches: Whom to tell.
        silence: Seconds after which the server is asked whether it is there.
        patience: Seconds in which it has to answer.
        longest_pause: Seconds between two attempts, at most.
        strict: Whether caches are to keep nothing while nothing is heard.
        changed: Called when `listening` or `problem` may have changed.
    """

    def __init__(
        self,
        where: str | URL,
        caches: Sequence[Forgetful],
        *,
        silence: float,
        patience: float,
        longest_pause: float,
        strict: bool,
        changed: Callable[[], None],
    ):
        for cache in caches:
            if strict and not hasattr(cache, "suspend"):
                raise BadArgumentError(
                    f"strict=True takes caches that suspend(), not {shown(cache)}"
                )
        self._conninfo = conninfo(where)
        self._caches = caches
        self._silence = silence
        self._patience = patience
        self._longest_pause = longest_pause
        self._strict = strict
        self._changed = changed
        self.listening = False
        self.listens = 0
        self.problem: PyscoreError | None = None
        self._since: float | None = None
        self._has_warned = False

    async def run(self) -> None:
        """Listen until cancelled."""
        pauses = Pauses(self._longest_pause)
        if self._strict:
            self._tell("suspend")
        try:
            while True:
                self._since = None
                try:
                    await self._listen()
                except Exception as error:  # whatever it is: to stop would be worse
                    self._lost(error)
                if self._since is not None:
                    pauses.lasted(time.monotonic() - self._since)
                await asyncio.sleep(pauses.next())
        finally:
            self.listening = False
            if self._strict:  # nobody else would
                self._tell("resume")
            self._changed()

    async def _listen(self) -> None:
        connection = await psycopg.AsyncConnection[Any].connect(self._conninfo, autocommit=True)
        try:
            line = Line(connection, self._patience)
            # a pooler names a process that does not exist
            backend = await line.backend()
            if backend != connection.info.backend_pid:
                await self._refuse_to_share(connection, backend)
            await line.listen()
            self._took_hold(connection)
            while True:
                for payload in line.heard():
                    self._hear(payload)
                await line.wait(self._silence)
        finally:
            await connection.close()

    async def _refuse_to_share(
        self, connection: psycopg.AsyncConnection[Any], backend: int
    ) -> None:
        asking = asyncio.create_task(
            asyncio.to_thread(passes_on, connection.pgconn, backend, self._conninfo)
        )
        try:
            shared = await asyncio.shield(asking)
        except asyncio.CancelledError:
            # the thread still has the connection, which must not be closed under it
            await asyncio.wait((asking,))
            raise
        if shared:
            raise PyscoreError(
                f"{address.describe(self._conninfo)} is a connection pooler in transaction mode, "
                "or one without a session to spare, through which nothing can be heard; "
                "expected the server itself, or a pooler in session mode"
            )

    def _took_hold(self, connection: psycopg.AsyncConnection[Any]) -> None:
        # what changed before, nobody has heard
        self._tell("resume" if self._strict else "clear")
        self.listens += 1
        self.listening, self.problem = True, None
        self._since, self._has_warned = time.monotonic(), False
        info = connection.info
        log.info("listening for changed scores, at %s port %s", info.host, info.port)
        self._changed()

    def _lost(self, error: Exception) -> None:
        was_listening, self.listening = self.listening, False
        if isinstance(error, PyscoreError):
            problem = error
        else:
            reason = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
            problem = PyscoreError(
                f"cannot listen at {address.describe(self._conninfo)}: {reason or repr(error)}"
            )
        is_new = self.problem is None or str(self.problem) != str(problem)
        self.problem = problem
        if was_listening and self._strict:
            self._tell("suspend")
        # each attempt may say the same
        unforeseen = not isinstance(error, PyscoreError | psycopg.Error | OSError)
        level = logging.ERROR if unforeseen or error is problem else logging.WARNING
        log.log(
            level if is_new else logging.DEBUG,
            "changed scores are not heard, and caches wait for their ttl, until it is mended: %s",
            problem,
            exc_info=error if unforeseen and is_new else None,
        )
        self._changed()

    def _hear(self, payload: bytes) -> None:
        try:
            user_ids = users_in(payload)
        except ValueError as error:
            level = logging.DEBUG if self._has_warned else logging.WARNING  # there may be many
            log.log(level, "a message that is none of ours (%s): %s", error, shown(payload))
            self._has_warned = True
            user_ids = None
        if user_ids is None:
            self._tell("clear")
        else:
            self._tell("invalidate_user", *user_ids)

    def _tell(self, what: str, *user_ids: str) -> None:
        for cache in self._caches:
            try:
                getattr(cache, what)(*user_ids)
            except Exception:  # of one cache; the others are to hear all the same
                log.exception("%r failed to %s", cache, what)


def conninfo(where: str | URL) -> str:
    """Return where to listen, as libpq takes it, with what a listener needs.

    Args:
        where: A libpq URI or ``key=value`` string, or a SQLAlchemy URL.

    Raises:
        PyscoreError: It is none of these, or has options that libpq does not know.
    """
    if isinstance(where, str) and not _DRIVER.match(where):
        text = address.resolve(where, option="the listener's address")
    else:
        text = _of_url(where)
    parts: dict[str, Any] = dict(conninfo_to_dict(text))
    if "PGTARGETSESSIONATTRS" not in os.environ:
        is_new = psycopg.pq.version() >= _LIBPQ_WITH_PRIMARY
        parts.setdefault("target_session_attrs", "primary" if is_new else "read-write")
    for name, variable, value in _OPTIONS:
        if variable is None or variable not in os.environ:
            parts.setdefault(name, value)
    return make_conninfo("", **parts)


def _of_url(where: str | URL) -> str:
    url = make_url(where)
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise BadArgumentError(
            f"the listener's address names a {url.get_backend_name()}:// database; "
            "expected postgresql://user@host:port/database"
        )
    # this dialect knows how several hosts are written
    url = url.set(drivername="postgresql+psycopg")
    dialect: Any = url.get_dialect()()
    arguments: Any = dialect.create_connect_args(url)
    try:
        return make_conninfo("", **arguments[1])
    except psycopg.ProgrammingError as error:
        raise BadArgumentError(
            f"the listener connects with psycopg, which cannot take this URL ({error}); expected "
            "one without options of another driver's"
        ) from None
