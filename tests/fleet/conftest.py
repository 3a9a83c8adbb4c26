from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from easel.database import open_database
from easel.services.sql_store import SqlServiceStore
from tests.fleet.stage import Stage


@pytest.fixture(autouse=True)
async def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Every stage of a test is on one SQLite database."""
    database = open_database(None, tmp_path)
    await database.open()
    monkeypatch.setattr(
        Stage, "new_store", lambda stage: SqlServiceStore(database, clock=stage.clock)
    )
    try:
        yield
    finally:
        await database.close()
