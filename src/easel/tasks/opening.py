"""The task store that belongs to a database."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from easel.database.port import Database
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
