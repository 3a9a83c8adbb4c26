"""A gateway for a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.gateway.gateways import Gateway, gateway


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with one service and no instance."""
    async with gateway(tmp_path) as found:
        yield found
