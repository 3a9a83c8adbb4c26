"""PostgreSQL: asynchronous connections for the hot path, ordinary queries through SQLAlchemy in a few threads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import psycopg
import sqlalchemy as sa
from psycopg.types.numeric import Int8Dumper

from easel.database.connections import Connection, Connections
from easel.database.failures import described, failure, is_lasting
from easel.errors import ConfigurationError, StoreFailed

log = logging.getLogger(__name__)

T = TypeVar("T")

MOST_CONNECTIONS = 8
"""Of the hot path, for one process."""
THREADS = 4
"""For ordinary queries, with a connection each."""
BUSY_TIMEOUT = 30.0
"""Seconds for which a call waits until another has done with its connection."""
PLAN_AGE = 10.0
"""Seconds for which a connection keeps a plan. Tables grow from nothing faster than PostgreSQL looks at their size; to plan
every statement anew costs as much as to execute it."""
ATTEMPTS = 5
"""How often a transaction is tried that other ones get in the way of."""
OLDEST = 130000
"""PostgreSQL 13."""
MIGRATION_LOCK = 0x6561_7365_6C
"""Key of the advisory lock under which one process after the other looks at the tables ("easel")."""

IN_EACH_OTHERS_WAY = frozenset({"40001", "40P01"})
"""Serialization failure, deadlock: nothing was done, and trying again helps."""
_SETTINGS = (
    # Every statement of the hot path has an index for its question: a plan that was made for small tables must not read them
    # all, however good that looked then.
    "SET enable_seqscan = off",
    "SET enable_bitmapscan = off",
    "SET jit = off",
    "SET lock_timeout = '20s'",
    "SET statement_timeout = '60s'",
    "SET idle_in_transaction_session_timeout = '60s'",
)
_ARGUMENTS = {
    "connect_timeout": 10,
    "client_encoding": "utf8",
    "application_name": "easel",
    # A server that vanishes without a word is noticed within half a minute.
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Of each connection, unless the URL's options say otherwise."""


class PostgresDatabase:
    """A `Database` on a PostgreSQL server.

    `connection` lends an autocommitting connection and is for the hot path; `run` is for everything else; `connect` makes
    a connection of one's own. All raise StoreFailed when the server does not answer.
    """

    kind: Literal["sqlite", "postgresql"] = "postgresql"

    def __init__(self, url: sa.URL | str) -> None:
        self._url = sa.make_url(url).set(drivername="postgresql")
        self.name = described(self._url)
        """The database in messages: its URL without password and options."""
        arguments = {k: v for k, v in _ARGUMENTS.items() if k not in self._url.query}
        driver_url = self._url.set(drivername="postgresql+psycopg")
        self._engine = sa.create_engine(
            driver_url,
            pool_size=THREADS,
            max_overflow=0,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args=arguments,
        )
        _, named = self._engine.dialect.create_connect_args(driver_url)
        self._arguments: dict[str, Any] = {**named, **arguments}
        self._threads = ThreadPoolExecutor(THREADS, "easel-database")
        self.pool = Connections(self._connect_for_hot_path, most=MOST_CONNECTIONS)
        self._planned: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()
        self._closed = False

    async def open(self) -> None:
        """Bring the tables to this version's form. Of processes that open it at once, one does.

        Raises DatabaseTooNew, ConfigurationError for what waiting does not help against, StoreFailed.
        """
        try:
            await self._in_thread(self._open)
        except sa.exc.SQLAlchemyError as error:
            failed = self.failed(error)
            if is_lasting(error):
                raise ConfigurationError(failed.message, hint=failed.hint) from error
            raise failed from error

    async def close(self) -> None:
        """Hang up when what is being done is done. Safe to call twice."""
        self._closed = True
        await self.pool.close()
        await asyncio.to_thread(self._close)

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Do ordinary queries; see `Database.run`. ``work`` is repeated when other transactions get in its way.

        A violated constraint is an answer, not a failure: it is raised as SQLAlchemy's IntegrityError.
        """
        try:
            return await self._in_thread(self._run, work)
        except sa.exc.IntegrityError:
            raise
        except sa.exc.SQLAlchemyError as error:
            raise self.failed(error) from error

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend an autocommitting connection of the hot path. What psycopg raises in the block becomes StoreFailed."""
        if self._closed:
            raise self._is_closed()
        try:
            async with self.pool.connection(BUSY_TIMEOUT) as connection:
                await self._plan_anew(connection)
                try:
                    yield connection
                except psycopg.errors.ReadOnlySqlTransaction:
                    await connection.close()  # another server may be the primary one by now
                    raise
        except psycopg.Error as error:
            raise self._is_closed() if self._closed else self.failed(error) from error

    async def repeated(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Await ``work`` with a connection of the hot path, again when other transactions get in its way."""
        for attempt in range(1, ATTEMPTS + 1):
            async with self.connection() as connection:
                try:
                    return await work(connection)
                except psycopg.OperationalError as error:
                    if error.sqlstate not in IN_EACH_OTHERS_WAY or attempt == ATTEMPTS:
                        raise
                    log.debug("tried again: %s", error)
            await asyncio.sleep(_pause(attempt))
        raise AssertionError  # the last attempt returns or raises

    async def connect(self) -> Connection:
        """Return an autocommitting connection of the caller's own, who closes it. Raises StoreFailed."""
        try:
            return await psycopg.AsyncConnection.connect(**self._arguments, autocommit=True)
        except psycopg.Error as error:
            raise self.failed(error) from error

    def failed(self, error: Exception) -> StoreFailed:
        """Return what callers meet when the server or the way to it fails; without the password."""
        return failure(error, self._url)

    async def _connect_for_hot_path(self) -> Connection:
        connection = await psycopg.AsyncConnection.connect(**self._arguments, autocommit=True)
        # One type for every number: else a statement is prepared anew for each size of its numbers.
        connection.adapters.register_dumper(int, Int8Dumper)
        try:
            await connection.execute("; ".join(_SETTINGS))
        except BaseException:
            await connection.close()
            raise
        self._planned[connection] = time.monotonic()
        return connection

    async def _plan_anew(self, connection: Connection) -> None:
        now = time.monotonic()
        if now - self._planned[connection] > PLAN_AGE:
            self._planned[connection] = now
            await connection.execute("DISCARD PLANS")

    async def _in_thread(self, work: Callable[..., T], *values: Any) -> T:
        if self._closed:
            raise self._is_closed()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *values)

    def _is_closed(self) -> StoreFailed:
        return StoreFailed(f"the database {self.name} is closed")

    # In threads.

    def _open(self) -> None:
        from easel.database.migrating import migrate  # noqa: PLC0415 - it takes a moment to load

        with self._engine.begin() as connection:
            server = connection.connection.driver_connection
            assert isinstance(server, psycopg.Connection)
            if server.info.server_version < OLDEST:
                raise ConfigurationError(
                    f"the server of {self.name} is PostgreSQL {server.info.server_version // 10000}",
                    hint="Easel needs PostgreSQL 13 or newer",
                )
            encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
            if encoding != "UTF8":
                raise ConfigurationError(
                    f"the database {self.name} has the encoding {encoding}, which not every text fits into",
                    hint="create it with ENCODING 'UTF8' TEMPLATE template0",
                )
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            if migrate(connection, self.name):
                log.info("the database %s has this version's tables now", self.name)

    def _run(self, work: Callable[[sa.Connection], T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except sa.exc.DBAPIError as error:
                state = getattr(error.orig, "sqlstate", None)
                if state not in IN_EACH_OTHERS_WAY or attempt == ATTEMPTS:
                    raise
            time.sleep(_pause(attempt))
        raise AssertionError  # the last attempt returns or raises

    def _close(self) -> None:
        self._threads.shutdown()
        self._engine.dispose()


def _pause(attempt: int) -> float:
    """Return the seconds after which a transaction is tried again: not all at once, or they meet again."""
    return random.uniform(0, 0.02 * attempt)  # noqa: S311
