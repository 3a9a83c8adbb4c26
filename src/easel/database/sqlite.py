"""SQLite: one thread writes, with group commit, a few threads read.

Every write of the process, the task store's and ordinary queries alike, goes through the one writer thread: SQLite knows
one writer at a time anyway, and callers that queue here instead of in its lock are committed together. One commit is one
sync of the disk (``synchronous=FULL``: what is accepted survives a power cut), so a busy process syncs once for many
callers. Each caller's work runs within a savepoint of its own: the failing one is undone alone.

A thread waits for Python's lock after every statement, up to ``sys.getswitchinterval()`` while the event loop is never
idle. A server that is to accept tasks under full load should set that to 1 ms: it multiplied their number by four.

Other processes may open the same file; they wait for each other's transactions up to `LOCK_TIMEOUT`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import sqlalchemy as sa

from easel.database.failures import failure
from easel.database.ordinary import RawConnection, ordinary_engine
from easel.errors import ConfigurationError, StoreFailed

log = logging.getLogger(__name__)

T = TypeVar("T")

LOCK_TIMEOUT = 10.0
"""Seconds for which one process waits for another's transaction."""
LARGEST_GROUP = 256
"""Callers in one transaction at most: bounds how long the first of them waits."""
READERS = 4
_FAILURES = (sqlite3.Error, sa.exc.SQLAlchemyError, OverflowError, UnicodeEncodeError)
"""What SQLite raises; the last two for values that it cannot hold."""
OLDEST = (3, 35, 0)
"""The first SQLite that has RETURNING."""


class _Job(NamedTuple):
    work: Callable[[Any], Any]
    ordinary: bool
    """Takes SQLAlchemy's connection instead of the driver's."""
    answer: asyncio.Future[Any]


class SqliteDatabase:
    """A `Database` in a file. See the module's text for how it is used.

    `write` and `read` take the driver's own connection and are for the hot path; `run` is for everything else. All three
    raise StoreFailed when SQLite fails or the database is closed.
    """

    kind: Literal["sqlite", "postgresql"] = "sqlite"

    def __init__(self, path: Path, *, lock_timeout: float = LOCK_TIMEOUT) -> None:
        self.path = path
        self.undone = 0
        """Counts transactions and savepoints that were rolled back: what the writer thread remembers beside the database
        may be wrong then. Read it in the writer thread."""
        self._url = sa.URL.create("sqlite", database=str(path))
        self._lock_timeout = lock_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[_Job] = []
        """Jobs of this round of the event loop: handed over together, so that they share a transaction."""
        self._jobs: deque[_Job] = deque()
        self._writer = ThreadPoolExecutor(1, "easel-database-writer")
        self._readers = ThreadPoolExecutor(READERS, "easel-database-reader")
        self._connection: RawConnection | None = None
        self._engine: sa.Engine | None = None
        self._reading = threading.local()
        self._reading_connections: list[sqlite3.Connection] = []
        self._closed = False

    async def open(self) -> None:
        """Make the file if there is none (mode 0600, its folder 0700), and bring the tables to this version's form.

        Raises DatabaseTooNew, ConfigurationError when the file cannot be used, StoreFailed when it is locked.
        """
        self._loop = asyncio.get_running_loop()
        await self._loop.run_in_executor(self._writer, self._open)

    async def close(self) -> None:
        """Finish what is being written and hang up. Safe to call twice."""
        self._flush()
        self._closed = True
        await asyncio.to_thread(self._close)

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Do ordinary queries; see `Database.run`. Within a group's transaction: `commit` and `rollback` there do nothing.

        A violated constraint is an answer, not a failure: it is raised as SQLAlchemy's IntegrityError.
        """
        return await self._hand_over(work, True)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do work in the writer thread; what it did is on the disk when this returns, and undone when it raises."""
        return await self._hand_over(work, False)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do work that only reads, in another thread than the writer; it sees everything that was written before."""
        if self._closed or self._loop is None:
            raise self._not_open()
        try:
            return await self._loop.run_in_executor(self._readers, self._read, work)
        except RuntimeError as error:
            if self._closed:  # between the look and the call
                raise self._not_open() from error
            raise

    # The event loop's side of writing.

    def _hand_over(self, work: Callable[[Any], T], ordinary: bool) -> asyncio.Future[T]:
        if self._closed or self._loop is None:
            raise self._not_open()
        answer: asyncio.Future[T] = self._loop.create_future()
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(_Job(work, ordinary, answer))
        return answer

    def _flush(self) -> None:
        if self._waiting:
            self._jobs.extend(self._waiting)
            self._waiting.clear()
            self._writer.submit(self._drain)

    def _not_open(self) -> StoreFailed:
        said = "is closed" if self._closed else "is not open"
        return StoreFailed(f"the database {self.path} {said}")

    # The writer thread.

    def _drain(self) -> None:
        """Commit groups until nobody waits; later calls of this may then find nothing left."""
        while self._jobs:
            group: list[_Job] = []
            while self._jobs and len(group) < LARGEST_GROUP:
                job = self._jobs.popleft()
                if not job.answer.cancelled():  # nobody would learn of it
                    group.append(job)
            if group:
                self._answer(group, self._commit(group))

    def _commit(self, group: list[_Job]) -> list[Any]:
        """Do a group's work in one transaction; returns each job's result, or what it raised as `_Raised`."""
        connection = self._connection
        if connection is None:
            return [_Raised(self._not_open())] * len(group)
        execute = connection.execute
        outcomes: list[Any] = []
        try:
            execute("BEGIN IMMEDIATE")
            for job in group:
                execute("SAVEPOINT job")
                try:
                    outcomes.append(self._ordinary(job) if job.ordinary else job.work(connection))
                except Exception as error:
                    if not connection.in_transaction:
                        raise  # SQLite has given up the whole transaction (full disk, I/O error)
                    self.undone += 1
                    execute("ROLLBACK TO job")
                    outcomes.append(_Raised(self._told(error)))
                execute("RELEASE job")
            execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - nobody may wait for ever
            self.undone += 1
            self._roll_back(connection)
            return [_Raised(self._told(error)) for _ in group]
        return outcomes

    def _ordinary(self, job: _Job) -> Any:
        assert self._engine is not None
        with self._engine.connect() as connection:
            return job.work(connection)

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            log.error("a transaction could not be rolled back: %s", error)

    def _told(self, error: Exception) -> Exception:
        """Return what a caller gets: its own error as it is, the database's as StoreFailed."""
        if not isinstance(error, _FAILURES) or isinstance(error, sa.exc.IntegrityError):
            return error
        failed = failure(error, self._url)
        failed.__cause__ = error
        return failed

    def _answer(self, group: list[_Job], outcomes: list[Any]) -> None:
        assert self._loop is not None
        with contextlib.suppress(
            RuntimeError
        ):  # the loop is closed, and everybody who waited is gone
            self._loop.call_soon_threadsafe(_resolve, group, outcomes)

    def _open(self) -> None:
        if sqlite3.sqlite_version_info < OLDEST:
            raise ConfigurationError(
                f"this Python has SQLite {sqlite3.sqlite_version}, Easel needs 3.35 or newer",
                hint="use a newer Python, or PostgreSQL",
            )
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives the files beside it (WAL) the same mode. One that exists is not opened: to close it would release
            # the locks that other connections of this process have on it.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            connection = self._connect(RawConnection)
            try:
                _use_wal(connection, self._lock_timeout)
                engine = ordinary_engine(connection)
                self._migrate(connection, engine)
            except BaseException:
                connection.close()
                raise
        except OSError as error:
            raise ConfigurationError(
                f"the database {self.path} cannot be opened: {error.strerror or error}",
                hint="check that the folder exists and Easel's user may write there",
            ) from error
        except (sqlite3.Error, sa.exc.SQLAlchemyError) as error:
            failed = failure(error, self._url)
            if "locked" in failed.message:
                raise failed from error
            raise ConfigurationError(failed.message, hint=failed.hint) from error
        self._connection, self._engine = connection, engine

    def _migrate(self, connection: RawConnection, engine: sa.Engine) -> None:
        # Alembic takes a moment to load, and reads files: not on the event loop.
        from easel.database.migrating import migrate  # noqa: PLC0415

        connection.execute("BEGIN IMMEDIATE")  # one process after the other
        try:
            with engine.connect() as ordinary:
                if migrate(ordinary, str(self.path)):
                    log.info("the database %s has this version's tables now", self.path)
            connection.execute("COMMIT")
        finally:
            self._roll_back(connection)

    def _connect(self, factory: type[sqlite3.Connection]) -> Any:
        connection = sqlite3.connect(
            self.path,
            timeout=self._lock_timeout,
            isolation_level=None,
            check_same_thread=False,  # `close` comes from another one
            cached_statements=256,
            factory=factory,
        )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA temp_store=MEMORY")  # else savepoints make files
        connection.execute("PRAGMA cache_size=-32000")
        connection.execute("PRAGMA journal_size_limit=67108864")  # a burst's log shrinks again
        return connection

    # The reader threads.

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = getattr(self._reading, "connection", None)
            if connection is None:
                connection = self._reading.connection = self._connect(sqlite3.Connection)
                connection.execute("PRAGMA query_only=ON")
                self._reading_connections.append(connection)
            return work(connection)
        except _FAILURES as error:
            raise failure(error, self._url) from error

    def _close(self) -> None:
        self._readers.shutdown()
        self._writer.shutdown()
        while self._reading_connections:
            self._reading_connections.pop().close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Raised(NamedTuple):
    error: Exception


def _resolve(group: list[_Job], outcomes: list[Any]) -> None:
    for job, outcome in zip(group, outcomes, strict=True):
        if job.answer.done():
            continue  # its caller was cancelled meanwhile
        if isinstance(outcome, _Raised):
            job.answer.set_exception(outcome.error)
        else:
            job.answer.set_result(outcome)


def _use_wal(connection: sqlite3.Connection, timeout: float) -> None:
    """Switch to write-ahead logging. SQLite does not wait for a lock there: when several processes start, we do."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)  # in the writer thread
            continue
        if mode != "wal":
            raise ConfigurationError(
                "the database's file system has no shared memory, which SQLite's write-ahead log needs",
                hint="put it on a local disk, not on a network share, or use PostgreSQL",
            )
        return
