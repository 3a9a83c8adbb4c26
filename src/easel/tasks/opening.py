"""The task store and the bus that belong to a database."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, cast

from easel.database.port import Database
from easel.tasks.bus import EventBus, LocalBus
from easel.tasks.store import TaskStore

if TYPE_CHECKING:
    from easel.database.postgres import PostgresDatabase
    from easel.database.sqlite import SqliteDatabase


def open_task_store(database: Database, *, clock: Callable[[], int]) -> TaskStore:
    """Return the store of a database's tasks; ``clock`` tells ms since the epoch. The database is opened by its owner."""
    if database.kind == "sqlite":
        from easel.tasks.sqlite_store import SqliteTaskStore  # noqa: PLC0415

        return SqliteTaskStore(cast("SqliteDatabase", database), clock=clock)
    from easel.tasks.postgres_store import PostgresTaskStore  # noqa: PLC0415

    return PostgresTaskStore(cast("PostgresDatabase", database), clock=clock)


@contextlib.asynccontextmanager
async def open_bus(database: Database) -> AsyncIterator[EventBus]:
    """Give the bus that reaches every process which shares an open database. Raises StoreFailed."""
    if database.kind == "sqlite":
        yield LocalBus()
        return
    from easel.tasks.postgres_bus import PostgresBus  # noqa: PLC0415

    bus = PostgresBus(cast("PostgresDatabase", database))
    await bus.open()
    try:
        yield bus
    finally:
        await bus.close()
