"""An agent that starts again: what it had accepted goes on, and can be cancelled from the first moment."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from easel.agent.command import EngineChoice
from easel.agent.tasks import Tasks
from tests.agent.agents import QUICK, agent_of, sleep
from tests.engine.engines import engine
from tests.servers import free_port
from tests.waiting import until

IMPATIENT = QUICK.model_copy(update={"drain_timeout": 0.05})
"""Stops without waiting for running tasks."""


async def test_stopping_in_order_costs_a_task_no_attempt(tmp_path: Path) -> None:
    """However often an agent is updated meanwhile: only a task that ends its agent is given up some time."""
    async with engine(tmp_path / "engine", "demo") as running:
        choice = EngineChoice(running.url, None)
        prompt = sleep(1.5)
        for start in range(3):
            async with agent_of(tmp_path / "agent", choice, supervision=IMPATIENT) as stopped:
                if start == 0:
                    await stopped.submit(prompt, "long")
                await stopped.runs("long")
        async with agent_of(tmp_path / "agent", choice, supervision=IMPATIENT) as last:
            found = await last.settled("long")
            assert (found["state"], found["attempt"]) == ("succeeded", 1), found["error"]


async def test_a_task_is_cancelled_before_it_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DELETE comes while the agent still looks at what the last one left."""
    arrived, go_on = asyncio.Event(), asyncio.Event()
    recover, cancel = Tasks._recover, Tasks.cancel

    async def slow(self: Tasks, record: Any) -> None:
        await go_on.wait()
        await recover(self, record)

    async def noted(self: Tasks, task_id: str) -> Any:
        arrived.set()
        return await cancel(self, task_id)

    port = free_port()

    async def delete() -> str:
        url = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=20)) as http:

            async def listens() -> bool:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with http.get("/api/agent"):
                        return True
                return False

            await until(listens, timeout=20, pause=0.02)
            call = asyncio.ensure_future(http.delete("/api/status", params={"id": "long"}))
            await asyncio.wait_for(arrived.wait(), 10)
            go_on.set()
            async with await call as answer:
                return answer.headers["task-status"]

    async with engine(tmp_path / "engine", "demo") as running:
        choice = EngineChoice(running.url, None)
        async with agent_of(tmp_path / "agent", choice, supervision=IMPATIENT) as first:
            await first.submit(sleep(60), "long")
            await first.runs("long")
        monkeypatch.setattr(Tasks, "_recover", slow)
        monkeypatch.setattr(Tasks, "cancel", noted)
        deleting = asyncio.ensure_future(delete())
        async with agent_of(tmp_path / "agent", choice, port=port) as second:
            assert await deleting == "cancelled"
            assert (await second.record("long"))["state"] == "cancelled"
            await until(second.engine_idle, timeout=10)
