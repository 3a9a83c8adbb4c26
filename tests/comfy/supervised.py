"""A supervised engine and the connection to it, put together as an agent does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from easel.comfy.client import ComfyClient
from easel.comfy.connection import Connection
from easel.comfy.events import Event, Progress
from easel.comfy.process import EngineProcess, EngineState
from easel.comfy.run import Run
from easel.errors import EngineError
from easel.settings import SupervisionSettings
from easel.workflow.types import Prompt
from tests.waiting import until


@dataclass
class Instance:
    """An engine's process, the connection, and the deaths told of."""

    process: EngineProcess
    connection: Connection
    deaths: list[EngineError] = field(default_factory=list)

    def died(self, error: EngineError) -> None:
        self.deaths.append(error)
        self.connection.lose(error)

    async def recovered(self, starts: int, prompt: Prompt) -> None:
        """Wait for the process of this number, the socket to it, and a prompt on it."""

        async def look() -> bool:
            return self.process.starts == starts and self.process.state is EngineState.READY

        await until(look, timeout=120)
        await self.connection.wait_connected(30)
        outcome = await (await self.connection.submit(prompt)).outcome()
        assert outcome.status == "success"


@contextlib.asynccontextmanager
async def supervised(
    command: list[str], url: str, settings: SupervisionSettings, cwd: Path | None = None
) -> AsyncIterator[Instance]:
    """Run an engine for a block, connected."""
    process = EngineProcess(command, url=url, cwd=cwd, settings=settings)
    async with ComfyClient(url) as client:
        instance = Instance(process, Connection(client))
        process.on_died = instance.died
        process.activity = instance.connection.stalled_for
        try:
            await process.start()
            await process.wait_ready(120)
            await instance.connection.open()
            yield instance
        finally:
            await instance.connection.close()
            await process.stop()


async def heard(run: Run) -> list[Event]:
    """All events of a run."""
    async with asyncio.timeout(120):
        return [event async for event in run]


async def stepping(run: Run) -> None:
    """Wait until a node has made a step."""
    async with asyncio.timeout(120):
        async for event in run:
            if isinstance(event, Progress):
                return
    raise AssertionError("the run ended without a step")
