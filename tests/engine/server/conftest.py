"""A running engine and a client for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from easel.engine.serve import RunningEngine
from tests.engine.engines import engine


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningEngine]:
    async with engine(tmp_path / "base") as running:
        yield running


@pytest.fixture
async def session(running: RunningEngine) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        running.url,
        timeout=aiohttp.ClientTimeout(total=20),
        connector=aiohttp.TCPConnector(limit=0),
    ) as session:
        yield session
