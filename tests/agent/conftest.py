"""An agent over an engine for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent.agents import Agent, agent


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Agent]:
    """An agent and its engine, in this process."""
    async with agent(tmp_path) as found:
        yield found
