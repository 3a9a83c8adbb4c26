"""Cancelling, leaving, killing, hanging: the next task always runs."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Target, endless, text_to_image
from tests.waiting import until

seeds = itertools.count(500_000)


async def record(http: aiohttp.ClientSession, task_id: str) -> Any:
    """Return a task's whole record."""
    async with http.get("/api/status", params={"id": task_id, "detail": "true"}) as reply:
        return await reply.json()


async def settled(http: aiohttp.ClientSession, task_id: str) -> Any:
    """Wait for a task's end and return its record."""

    async def ended() -> Any:
        found = await record(http, task_id)
        return found if found["state"] not in ("queued", "running") else None

    return await until(ended)


async def stepping(http: aiohttp.ClientSession, task_id: str) -> None:
    """Wait until the sampler of a task has made a step."""

    async def stepped() -> bool:
        found = await record(http, task_id)
        if "state" not in found:
            return False
        assert found["state"] in ("queued", "running"), found
        return bool(found["nodes"].get("3", {}).get("value", 0) >= 1)

    await until(stepped, timeout=90)


async def next_task_runs(http: aiohttp.ClientSession) -> None:
    """Run an ordinary prompt to its end."""
    async with http.post("/api/run", json=text_to_image(next(seeds))) as response:
        assert response.status == 200, await response.text()


@asynccontextmanager
async def accepted(http: aiohttp.ClientSession, prompt: dict[str, Any]) -> AsyncIterator[str]:
    """Submit asynchronously; what still runs at the end is cancelled."""
    task_id = f"e2e-{uuid.uuid4()}"
    headers = {"task-id": task_id, "X-Fc-Invocation-Type": "Async"}
    async with http.post("/api/run", json=prompt, headers=headers) as response:
        assert response.status == 202, await response.text()
    try:
        yield task_id
    finally:
        async with http.delete("/api/status", params={"id": task_id}):
            pass


async def test_cancel_while_running(http: aiohttp.ClientSession) -> None:
    async with accepted(http, endless(next(seeds))) as task_id:
        await stepping(http, task_id)
        async with http.delete("/api/status", params={"id": task_id}) as response:
            assert response.status == 200
        assert (await settled(http, task_id))["state"] == "cancelled"
    await next_task_runs(http)


async def test_cancel_while_waiting(http: aiohttp.ClientSession) -> None:
    async with (
        accepted(http, endless(next(seeds))) as running,
        accepted(http, text_to_image(next(seeds))) as second,
        accepted(http, text_to_image(next(seeds))) as third,
    ):
        await stepping(http, running)
        for task_id in (third, second):
            async with http.delete("/api/status", params={"id": task_id}) as response:
                assert response.status == 200
            assert (await settled(http, task_id))["state"] == "cancelled"
        assert (await record(http, running))["state"] == "running"
    await next_task_runs(http)


@pytest.mark.parametrize("door", ["blocking", "sse", "ws"])
async def test_leaving_cancels(http: aiohttp.ClientSession, target: Target, door: str) -> None:
    task_id = f"e2e-{uuid.uuid4()}"
    prompt = endless(next(seeds))
    async with aiohttp.ClientSession(target.url) as caller:
        if door == "ws":
            socket = await caller.ws_connect("/api/run/ws", headers={"task-id": task_id})
            await socket.send_json(prompt)
            await socket.receive()
            await stepping(http, task_id)
            await socket.close()
        else:
            accept = "text/event-stream" if door == "sse" else "application/json"
            headers = {"task-id": task_id, "Accept": accept}
            call = asyncio.ensure_future(caller.post("/api/run", json=prompt, headers=headers))
            await stepping(http, task_id)
            if door == "sse":
                (await call).close()
            else:
                call.cancel()
    assert (await settled(http, task_id))["state"] == "cancelled"
    await next_task_runs(http)


async def test_a_native_interrupt_is_reported(http: aiohttp.ClientSession) -> None:
    """Somebody presses the front end's stop button: the caller learns that it was interrupted."""
    async with accepted(http, endless(next(seeds))) as task_id:
        await stepping(http, task_id)
        async with http.post("/interrupt", json={}) as response:
            assert response.status == 200
        assert (await settled(http, task_id))["state"] == "cancelled"
    await next_task_runs(http)


async def test_engine_killed_in_mid_task(http: aiohttp.ClientSession, target: Target) -> None:
    async with accepted(http, endless(next(seeds))) as task_id:
        await stepping(http, task_id)
        target.engine_process().kill()
        found = await settled(http, task_id)
    assert found["state"] == "failed"
    assert found["error"]["code"] == "engine_died"
    assert found["error"]["log"]
    await next_task_runs(http)


async def test_engine_hung_in_mid_task(http: aiohttp.ClientSession, target: Target) -> None:
    async with accepted(http, endless(next(seeds))) as task_id:
        await stepping(http, task_id)
        target.engine_process().send_signal(signal.SIGSTOP)
        found = await settled(http, task_id)
    assert found["state"] == "failed"
    assert found["error"]["code"] == "engine_silent"
    await next_task_runs(http)


async def test_an_error_reaches_the_streaming_doors(
    http: aiohttp.ClientSession, target: Target
) -> None:
    """The engine dies under a WebSocket caller: the last message says so."""
    task_id = f"e2e-{uuid.uuid4()}"
    async with http.ws_connect("/api/run/ws", headers={"task-id": task_id}) as socket:
        await socket.send_json(endless(next(seeds)))
        killed = False
        last: Any = None
        async for message in socket:
            last = json.loads(message.data)
            if last["type"] != "progress":
                break
            if not killed and last["data"].get("3", {}).get("value", 0) >= 1:
                target.engine_process().kill()
                killed = True
    assert killed
    assert last["type"] == "error"
    assert last["data"]["code"] == "engine_died"
    await next_task_runs(http)
