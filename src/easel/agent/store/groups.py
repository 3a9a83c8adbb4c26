"""Group commit for SQLite: one writer thread, one transaction for all that gathered while the last was committed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa

from easel.agent.store.database import failure
from easel.errors import StoreFailed

T = TypeVar("T")

_LARGEST_GROUP = 200


class _Job(NamedTuple):
    call: Callable[[sa.Connection], Any]
    durable: bool
    outcome: Future[Any]


class GroupWriter:
    """Makes writing calls in the order in which they come; each is done when its transaction is committed."""

    def __init__(self, url: sa.URL, connect: Callable[[], sa.Connection]) -> None:
        self._url = url
        self._connect = connect
        self._thread = ThreadPoolExecutor(1, "easel-store-writer")
        self._waiting: deque[_Job] = deque()
        self._closed = False

    async def run(self, call: Callable[[sa.Connection], T], durable: bool) -> T:
        """Make a call within the next transaction; `durable` ones are synced to the disk. Raises StoreFailed."""
        if self._closed:
            raise StoreFailed("the progress store is closed")
        outcome: Future[T] = Future()
        self._waiting.append(_Job(call, durable, outcome))
        self._thread.submit(self._commit_group)
        return await asyncio.wrap_future(outcome)

    async def close(self) -> None:
        """Refuse further calls and wait for those that were made. Safe to call twice."""
        self._closed = True
        await asyncio.to_thread(self._thread.shutdown)

    def _commit_group(self) -> None:
        group: list[_Job] = []
        while self._waiting and len(group) < _LARGEST_GROUP:
            job = self._waiting.popleft()
            if job.outcome.set_running_or_notify_cancel():
                group.append(job)
        if not group:
            return  # an earlier group took it along
        try:
            results = self._transaction(group)
        except sa.exc.SQLAlchemyError as error:
            for job in group:
                job.outcome.set_exception(failure(error, self._url))
            return
        except Exception as error:  # noqa: BLE001 - nobody may wait for ever
            for job in group:
                job.outcome.set_exception(error)
            return
        for job, result in zip(group, results, strict=True):
            if isinstance(result, sa.exc.SQLAlchemyError):
                job.outcome.set_exception(failure(result, self._url))
            else:
                job.outcome.set_result(result)

    def _transaction(self, group: list[_Job]) -> list[Any]:
        """Return each call's result, or the error of its statement, which leaves the others untouched."""
        durable = any(job.durable for job in group)
        results: list[Any] = []
        with self._connect() as connection:
            if durable:
                connection.exec_driver_sql("PRAGMA synchronous=FULL")
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    for job in group:
                        try:
                            results.append(job.call(connection))
                        except sa.exc.SQLAlchemyError as error:
                            results.append(error)
                    connection.exec_driver_sql("COMMIT")
                except BaseException:
                    connection.invalidate()  # rolls back whatever state the transaction is in
                    raise
            finally:
                if durable and not connection.invalidated:
                    connection.exec_driver_sql("PRAGMA synchronous=NORMAL")
        return results
