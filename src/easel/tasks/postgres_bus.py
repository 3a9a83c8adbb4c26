"""Waking those who wait in every process that shares a PostgreSQL server, by its LISTEN and NOTIFY.

Two connections of its own: one listens, one sends what was published meanwhile, together and each topic once. Subscribers of
this process are woken directly. While the server is away only those are; when it is back everybody is woken, for something may
have been missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator

import psycopg

from easel.database.connections import Connection
from easel.database.postgres import PostgresDatabase
from easel.errors import StoreFailed
from easel.tasks.bus import LocalBus

log = logging.getLogger(__name__)

CHANNEL = "easel"
EVERYTHING = ""
"""Payload that wakes everybody: for a topic that is no payload, and for too many of them."""
LONGEST = 7999
"""Bytes of a payload."""
MOST_PENDING = 10_000
RETRY_PAUSE = 1.0
"""Seconds until the server is asked again after it failed."""
CLOSE_TIMEOUT = 1.0
"""Seconds for sending what is left."""

_NOTIFY = "SELECT pg_notify(%s, topic) FROM unnest(%s::text[]) AS topic"


class PostgresBus:
    """An `EventBus` over an open `PostgresDatabase`."""

    def __init__(self, database: PostgresDatabase, *, retry_pause: float = RETRY_PAUSE) -> None:
        self._database = database
        self._retry_pause = retry_pause
        self._local = LocalBus()
        self._pending: dict[str, None] = {}
        self._news = asyncio.Event()
        self._sent = asyncio.Event()
        """Nothing is pending or on its way."""
        self._sent.set()
        self._sender: int | None = None
        """The server's number of the sending connection: what it sent was told here already."""
        self._listening = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Begin to listen. Raises StoreFailed when the server does not answer."""
        connection = await self._listen()
        self._loops = [
            asyncio.create_task(
                self._for_ever(self._listen, self._hear, connection), name="easel bus listener"
            ),
            asyncio.create_task(
                self._for_ever(self._database.connect, self._send), name="easel bus sender"
            ),
        ]

    async def close(self) -> None:
        """Send what is left, if that goes quickly, and hang up."""
        if self._loops:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._sent.wait()
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops)
        self._loops = []

    async def heard(self) -> None:
        """Wait until what other processes publish from now on is heard."""
        await self._listening.wait()

    def publish(self, topic: str) -> None:
        """Wake every subscriber of a topic, here at once and in other processes soon."""
        self._local.publish(topic)
        self._pending[topic if _fits(topic) else EVERYTHING] = None
        if len(self._pending) > MOST_PENDING:
            self._pending = {EVERYTHING: None}
        self._sent.clear()
        self._news.set()

    @contextlib.contextmanager
    def subscribe(self, topic: str) -> Iterator[asyncio.Event]:
        """Give an event that is set at each publication from now on, and when something may have been missed."""
        with self._local.subscribe(topic) as event:
            yield event

    # Inside.

    async def _for_ever(
        self,
        connect: Callable[[], Awaitable[Connection]],
        work: Callable[[Connection], Awaitable[None]],
        connection: Connection | None = None,
    ) -> None:
        """Do work with a connection of its own, and with another one when that breaks."""
        clock = asyncio.get_running_loop().time
        failing = False
        while True:
            began = clock()
            try:
                if connection is None:
                    connection = await connect()
                if failing:
                    log.info("the bus reaches the database again")
                    failing = False
                await work(connection)
            except (StoreFailed, psycopg.Error) as error:
                if not failing:
                    said = (
                        self._database.failed(error) if isinstance(error, psycopg.Error) else error
                    )
                    log.warning("the bus does not reach the database: %s", said)
                    failing = True
            finally:
                if connection is not None:
                    await _hang_up(connection)
                connection = None
            if clock() - began < self._retry_pause:  # else it had worked: the server was restarted
                await asyncio.sleep(self._retry_pause)

    async def _listen(self) -> Connection:
        connection = await self._database.connect()
        try:
            await connection.execute(f"LISTEN {CHANNEL}")
        except psycopg.Error as error:
            await _hang_up(connection)
            raise self._database.failed(error) from error
        self._listening.set()
        self._local.publish_all()
        return connection

    async def _hear(self, connection: Connection) -> None:
        """Wake subscribers until the connection breaks."""
        try:
            while True:
                async for notification in connection.notifies(timeout=0):
                    if notification.pid == self._sender:
                        continue
                    if notification.payload == EVERYTHING:
                        self._local.publish_all()
                    else:
                        self._local.publish(notification.payload)
                await _readable(connection)
        finally:
            self._listening.clear()

    async def _send(self, connection: Connection) -> None:
        """Send what was published until the connection breaks."""
        self._sender = connection.info.backend_pid
        while True:
            await self._news.wait()
            self._news.clear()
            topics, self._pending = self._pending, {}
            try:
                await connection.execute(_NOTIFY, [CHANNEL, list(topics)])
            except BaseException:
                self._pending = {**topics, **self._pending}
                self._news.set()
                raise
            if not self._pending:
                self._sent.set()


async def _readable(connection: Connection) -> None:
    """Wait until the server says something, or hangs up. (psycopg itself looks ten times a second.)"""
    loop = asyncio.get_running_loop()
    said = asyncio.Event()
    socket = connection.fileno()
    loop.add_reader(socket, said.set)
    try:
        await said.wait()
    finally:
        loop.remove_reader(socket)


async def _hang_up(connection: Connection) -> None:
    with contextlib.suppress(psycopg.Error):
        await connection.close()


def _fits(topic: str) -> bool:
    try:
        return "\x00" not in topic and 0 < len(topic.encode()) <= LONGEST
    except UnicodeEncodeError:
        return False
