"""A few asynchronous connections to PostgreSQL, shared by the hot path.

Not psycopg's own pool: that one connects in the background with growing pauses, so that while the server is down each caller
waits for a time-out and learns nothing of the reason, and for a while after it is back, too. Here the caller connects
itself: what fails, fails at once with the server's words, and the first call after the server is back succeeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus

Connection: TypeAlias = psycopg.AsyncConnection[tuple[Any, ...]]


class Connections:
    """Up to ``most`` connections, made when they are needed. ``connect`` makes one and says what it raises."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], *, most: int) -> None:
        self._connect = connect
        self._most = most
        self._count = 0
        """Connections that are open or being opened."""
        self._idle: list[Connection] = []
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._closed = False

    @contextlib.asynccontextmanager
    async def connection(self, timeout: float) -> AsyncIterator[Connection]:
        """Lend a connection. Raises psycopg.OperationalError where there is none within ``timeout`` seconds."""
        connection = await self._take(timeout)
        try:
            yield connection
        finally:
            await self._give_back(connection)

    async def close(self) -> None:
        """Hang up; those that are lent are closed when they come back."""
        self._closed = True
        while self._waiting:
            self._hand_over(None)
        while self._idle:
            await self._drop(self._idle.pop())

    async def _take(self, timeout: float) -> Connection:
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            if self._closed:
                raise psycopg.OperationalError("the connections are closed")
            while self._idle:
                connection = self._idle.pop()
                if _is_alive(connection):
                    return connection
                await self._drop(connection)
            if self._count < self._most:
                return await self._make()
            found = await self._wait(deadline)
            if found is not None:
                return found

    async def _make(self) -> Connection:
        self._count += 1
        try:
            return await self._connect()
        except BaseException:
            self._count -= 1
            self._hand_over(None)
            raise

    async def _wait(self, deadline: float) -> Connection | None:
        """Wait for a connection, or for the right to make one (None)."""
        place: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout_at(deadline):
                return await place
        except BaseException as error:
            if place.done() and not place.cancelled():  # it was given one at the last moment
                found = place.result()
                if found is None:
                    self._hand_over(None)
                else:
                    await self._give_back(found)
            if isinstance(error, TimeoutError):
                raise psycopg.OperationalError("timeout: every connection is busy") from error
            raise

    async def _give_back(self, connection: Connection) -> None:
        usable = connection.pgconn.transaction_status == TransactionStatus.IDLE
        if self._closed or not usable:
            await self._drop(connection)
        elif not self._hand_over(connection):
            self._idle.append(connection)

    async def _drop(self, connection: Connection) -> None:
        self._count -= 1
        self._hand_over(None)
        with contextlib.suppress(psycopg.Error):
            await connection.close()

    def _hand_over(self, connection: Connection | None) -> bool:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(connection)
                return True
        return False


def _is_alive(connection: Connection) -> bool:
    """Look whether the server has hung up, without asking it. Nothing else comes by itself on these connections."""
    if connection.closed:
        return False
    look = select.poll()
    look.register(connection.pgconn.socket, select.POLLIN)
    return not look.poll(0)
