"""The Function Compute agent's words for what went wrong, where a client may tell cases apart by them."""

from __future__ import annotations

import asyncio
import shutil

from tests.agent.agents import Agent, picture


async def test_results_that_cannot_be_sent(served: Agent) -> None:
    prompt = picture()
    await served.run(prompt, task_id="kept")
    await asyncio.to_thread(shutil.rmtree, served.data / "outputs" / "kept")
    status, body = await served.post(prompt, "?output_base64=true", task_id="kept")
    assert (status, body["message"], body["code"]) == (404, "MarshalResultError", "file_not_found")
    assert await served.run(prompt, task_id="kept"), "the record is there all the same"


async def test_a_socket_that_is_none(served: Agent) -> None:
    async with served.http.get("/api/run/ws") as answer:
        body = await answer.json()
        assert (answer.status, body["message"]) == (400, "WebsocketUpgradeError")
        assert body["code"] == "bad_request"


async def test_progress_that_is_not_known(served: Agent) -> None:
    async with served.http.get("/api/status?id=nobody") as answer:
        body = await answer.json()
        assert (answer.status, body["message"]) == (404, "LoadProgressError")
        assert body["code"] == "task_not_found"
