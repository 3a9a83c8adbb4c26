"""Accepting tasks into PostgreSQL, no more than may wait: without counting 100,000 rows for every new one."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

from easel.database.connections import Connection
from easel.database.postgres import PostgresDatabase
from easel.tasks.statements import postgres as sql

Row: TypeAlias = tuple[Any, ...]

ANY_NUMBER = 2**63 - 1


class _Count(NamedTuple):
    """How many waited in a service when the sequence of tasks had come to a number."""

    number: int
    waiting: int

    def last(self, most: int) -> int:
        """Return the last number that may be given to a waiting task, so that ``most`` wait even if none has left."""
        return self.number + most - self.waiting


class Line:
    """The way into the lines of all services.

    A count bounds how many can wait for as long as the numbers drawn since then, by whatever process and service, could all
    be waiting tasks of this service. Only when that is too many, the line is locked and counted again.
    """

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._counts: dict[str, _Count] = {}
        self._counting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._lining_up: WeakValueDictionary[tuple[str, str, int], asyncio.Lock] = (
            WeakValueDictionary()
        )

    async def put(self, row: dict[str, Any], most: int | None) -> bool | Row:
        """Accept a task: True. When its id is taken: that task's row and result. False: ``most`` wait already.

        ``row`` has the values of `statements.postgres.INSERT_TASK` but ``last``.
        """
        # A statement does not see what another one is about to add: tasks of one owner that came together would all get the
        # same turn. Those of this process go one after the other; with n gateways, n may share a turn.
        owner = row["service"], row["owner"], row["priority"]
        async with self._lining_up.setdefault(owner, asyncio.Lock()):
            return await self._put(row, most)

    async def _put(self, row: dict[str, Any], most: int | None) -> bool | Row:
        service: str = row["service"]
        while True:
            count = self._counts.get(service)
            if most is None or count is not None:
                last = ANY_NUMBER if count is None or most is None else count.last(most)
                number, added = await self._insert(row, last)
                if added:
                    return True
                known = await self._known(row)
                if known is not None:
                    return known
                if number <= last:
                    continue  # the task of that id was forgotten between two looks
                if self._counts.get(service) is count:
                    del self._counts[service]
            assert most is not None
            async with self._counting.setdefault(service, asyncio.Lock()):
                if service in self._counts:
                    continue  # somebody has counted meanwhile
                outcome = await self._database.repeated(lambda c: self._count_and_put(c, row, most))
            if outcome is not None:
                return outcome

    async def _insert(self, row: dict[str, Any], last: int) -> tuple[int, bool]:
        async def insert(connection: Connection) -> Row:
            cursor = await connection.execute(sql.INSERT_TASK, {**row, "last": last}, binary=True)
            (found,) = await cursor.fetchall()
            return found

        number, added = await self._database.repeated(insert)
        return number, added

    async def _known(self, row: dict[str, Any]) -> Row | None:
        async with self._database.connection() as connection:
            return await _by_id(connection, row)

    async def _count_and_put(
        self, connection: Connection, row: dict[str, Any], most: int
    ) -> bool | Row | None:
        """Like `put`, with nobody else adding to the line. None: the id was taken, and is not any more."""
        service = row["service"]
        async with connection.transaction():
            await connection.execute(sql.LOCK_LINE, {"service": service})
            cursor = await connection.execute(
                sql.COUNT_LINE, {"service": service, "most": max(0, most)}, binary=True
            )
            ((number, waiting),) = await cursor.fetchall()
            if waiting >= most:
                return await _by_id(connection, row) or False
            cursor = await connection.execute(
                sql.INSERT_TASK, {**row, "last": ANY_NUMBER}, binary=True
            )
            ((_, added),) = await cursor.fetchall()
            known = None if added else await _by_id(connection, row)
        if most - waiting > 1:
            self._counts[service] = _Count(number, waiting)
        return True if added else known


async def _by_id(connection: Connection, row: dict[str, Any]) -> Row | None:
    cursor = await connection.execute(sql.SELECT_BY_ID, row, binary=True)
    return await cursor.fetchone()
