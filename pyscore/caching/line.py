"""One connection that listens, without ever waiting for an answer for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import psycopg
from psycopg.pq import DiagnosticField, ExecStatus

from pyscore.caching.messages import CHANNEL
from pyscore.errors import PyscoreError

# a server may end sessions that are idle, and ours is, most of the time
_LISTEN = f"set idle_session_timeout = 0; listen {CHANNEL}".encode()
_PROBE = b"select pg_backend_pid()"
_DURING_RECOVERY = "25006"


class Line:
    """A connection, told when there is something to be read.

    psycopg's own waits for the end of a statement that it cancels, and a server that died without a
    word never says that.

    Args:
        connection: In autocommit.
        patience: Seconds in which the server has to answer.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any], patience: float):
        self._pgconn = connection.pgconn
        self._patience = patience

    async def backend(self) -> int:
        """Ask the server for the process that serves this connection.

        Raises:
            psycopg.Error: It does not answer in time.
        """
        return int(await self._ask(_PROBE) or 0)

    async def listen(self) -> None:
        """Have the server send what is notified from now on.

        Raises:
            PyscoreError: It is a standby.
            psycopg.Error: It does not, or does not answer in time.
        """
        await self._ask(_LISTEN)

    async def wait(self, silence: float) -> None:
        """Return once something came; ask whether anybody is there when nothing does.

        Args:
            silence: Seconds before asking.

        Raises:
            psycopg.Error: The connection is lost, or nobody answers in time.
        """
        try:
            async with asyncio.timeout(silence):
                await self._readable()
            self._pgconn.consume_input()
        except TimeoutError:
            await self._ask(_PROBE)

    def heard(self) -> Generator[bytes]:
        """Give the messages that came, each once."""
        while (notice := self._pgconn.notifies()) is not None:
            yield notice.extra

    async def _ask(self, statements: bytes) -> bytes | None:
        try:
            async with asyncio.timeout(self._patience):
                self._pgconn.send_query(statements)
                while self._pgconn.flush():
                    await self._readable()
                    self._pgconn.consume_input()
                return await self._answered()
        except TimeoutError:
            raise psycopg.OperationalError(
                f"the server did not answer within {self._patience:g} s"
            ) from None

    async def _answered(self) -> bytes | None:
        value: bytes | None = None
        while True:
            while self._pgconn.is_busy():
                await self._readable()
                self._pgconn.consume_input()
            result = self._pgconn.get_result()
            if result is None:
                return value
            if result.status not in (ExecStatus.FATAL_ERROR, ExecStatus.NONFATAL_ERROR):
                value = result.get_value(0, 0) if result.ntuples else value
                continue
            state = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode("ascii", "replace")
            if state == _DURING_RECOVERY:
                raise PyscoreError(
                    "the server is a standby, which cannot LISTEN; expected the primary: name all "
                    "servers in the address, without target_session_attrs"
                )
            raise psycopg.OperationalError(result.error_message.decode("utf-8", "replace").strip())

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        socket = self._pgconn.socket
        loop.add_reader(socket, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(socket)
