"""Which implementation stands behind each port, by the settings."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

from easel.database import Database
from easel.fleet.runtime import Runtime
from easel.fleet.runtimes.local import LocalRuntime
from easel.settings import Settings
from easel.tasks.bus import EventBus, LocalBus

if TYPE_CHECKING:
    from easel.database.postgres import PostgresDatabase


@contextlib.asynccontextmanager
async def make_bus(database: Database) -> AsyncIterator[EventBus]:
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


def make_runtime(settings: Settings) -> Runtime:
    """Return what instances run on."""
    return LocalRuntime(settings.home, settings.fleet)
