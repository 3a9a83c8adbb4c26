"""How many tasks wait in each service, remembered beside SQLite: to count 100,000 rows for every new task takes too long."""

from __future__ import annotations

import sqlite3

from easel.database.sqlite import SqliteDatabase
from easel.tasks.statements import sqlite as sql


class WaitingCounts:
    """Counts that the writer thread keeps in step with what it writes, and takes anew whenever they might be wrong.

    That is: after another process wrote to the file (``PRAGMA data_version``) and after anything was rolled back.
    """

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        self._counts: dict[str, int] = {}
        self._version: tuple[int, int] | None = None

    def of(self, connection: sqlite3.Connection, service: str) -> int:
        """Return how many tasks of a service wait. Within a write transaction."""
        (others,) = connection.execute("PRAGMA data_version").fetchone()
        version = (others, self._database.undone)
        if version != self._version:
            self._counts.clear()
            self._version = version
        count = self._counts.get(service)
        if count is None:
            (count,) = connection.execute(sql.COUNT_WAITING, {"service": service}).fetchone()
            self._counts[service] = count
        return count

    def add(self, service: str, change: int) -> None:
        """Note that this many tasks more (or fewer) wait, in the same work that made them."""
        if service in self._counts:
            self._counts[service] += change

    def forget(self, service: str) -> None:
        """Count anew at the next look."""
        self._counts.pop(service, None)
