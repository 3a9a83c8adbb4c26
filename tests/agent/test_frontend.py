"""The unmodified official front end in headless Chromium, through the agent's proxy."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.agent.agents import Agent, noop, picture, steps
from tests.engine.server.browser import browser_marks, opened, queue_and_see

pytestmark = browser_marks


async def test_the_front_end_through_the_agent(served: Agent) -> None:
    """It loads, queues, hears progress and shows the picture, while the agent's own callers are served."""
    drawn = picture()
    drawn["1"]["inputs"]["width"] = 72
    workflow: dict[str, Any] = {**drawn, "3": steps(4, 0.1)["1"]}
    async with opened(served.url, served.data.parent / "engine" / "user") as page:
        mine = asyncio.ensure_future(served.run(noop("beside")))
        seen = await queue_and_see(page, workflow, 72)
        assert seen.count("progress") == 4
        assert {"executing", "executed"} <= set(seen)
        assert (await mine)["1"]["images"][0]["text"] == "beside"
