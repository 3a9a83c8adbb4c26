"""An agent that has joined a gateway, for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent.joining.gateways import Member, member


@pytest.fixture
async def joined(tmp_path: Path) -> AsyncIterator[Member]:
    """An agent on the service's storage, its engine and its gateway, in this process."""
    async with member(tmp_path) as found:
        yield found
