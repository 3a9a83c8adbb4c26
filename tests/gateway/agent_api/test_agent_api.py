"""The agent API of a service: four ways to listen, one task."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest

from easel.errors import ExecutionFailed
from easel.link.messages import Preview
from easel.tasks.model import Ending
from tests.gateway.agent_api.conftest import PREFIX, PROMPT, Bench

ASYNC = {"X-Fc-Invocation-Type": "Async"}


async def test_a_blocking_run_answers_the_node_map_with_urls_below_the_service(
    bench: Bench,
) -> None:
    answer = asyncio.create_task(_read(bench.post(headers={"task-id": "a"})))
    held = await bench.claim()
    await bench.finish(held, nodes=await bench.stored(held, b"picture"))
    status, headers, body = await answer
    assert (status, headers["task-id"], headers["task-status"]) == (200, "a", "succeeded")
    url = body["1"]["images"][0]["url"]
    assert url.startswith(f"{PREFIX}/api/outputs/{held.task.uid}.1/")
    origin = bench.url.removesuffix(PREFIX)
    async with bench.http.get(origin + url) as file:
        assert await file.read() == b"picture"
        assert file.headers["Content-Type"] == "image/png"
    async with bench.http.get(origin + url, headers={"Range": "bytes=0-2"}) as part:
        assert (part.status, await part.read()) == (206, b"pic")
    async with bench.http.get(origin + url, headers={"owner": "somebody"}) as foreign:
        assert foreign.status == 404


async def test_base64_is_in_the_results(bench: Bench) -> None:
    answer = asyncio.create_task(_read(bench.post(path="/api/run?output_base64=true")))
    held = await bench.claim()
    await bench.finish(held, nodes=await bench.stored(held, b"picture"))
    _, _, body = await answer
    assert base64.b64decode(body["1"]["results"][0]) == b"picture"


async def test_an_asynchronous_run_is_asked_for_later(bench: Bench) -> None:
    async with bench.post(headers={**ASYNC, "task-id": "b"}) as accepted:
        assert accepted.status == 202
        assert accepted.headers["task-status"] == "queued"
    status = f"{bench.url}/api/status?id=b"
    async with bench.http.get(f"{status}&detail=true") as answer:
        detail = await answer.json()
        assert (detail["state"], detail["queue_position"]) == ("queued", 0)
        assert not {"uid", "signature", "owner"} & set(detail)
    held = await bench.claim()
    await bench.half(held)
    async with bench.http.get(status) as answer:
        assert answer.headers["task-progress"] == "50"
        assert (await answer.json())["1"]["value"] == 1
    await bench.finish(held)
    async with bench.http.get(status) as answer:
        assert answer.headers["task-status"] == "succeeded"


async def test_the_same_id_joins_and_with_another_body_conflicts(bench: Bench) -> None:
    calls = [asyncio.create_task(_read(bench.post(headers={"task-id": "c"}))) for _ in range(3)]
    held = await bench.claim()
    other = {"2": {"class_type": "SaveImage", "inputs": {}}}
    async with bench.post(other, headers={"task-id": "c"}) as conflict:
        assert conflict.status == 409
        assert (await conflict.json())["code"] == "task_conflict"
    await bench.finish(held)
    assert [status for status, _, _ in await asyncio.gather(*calls)] == [200, 200, 200]
    assert (await bench.tasks.store.counts("paint")).get("succeeded") == 1
    status, _, _ = await _read(bench.post(headers={"task-id": "c"}))
    assert status == 200


async def test_a_failure_names_its_node(bench: Bench) -> None:
    answer = asyncio.create_task(_read(bench.post()))
    held = await bench.claim()
    error = ExecutionFailed("no such colour", node_id="1", node_type="SaveImage")
    stored = {**error.to_json(), "http_status": 500}
    ending = Ending(state="failed", ended=2, error=stored)
    await bench.tasks.finish(held.lease, ending)
    status, _, body = await answer
    assert (status, body["message"], body["node_id"]) == (500, "CallComfyUIPromptError", "1")


async def test_events_are_streamed(bench: Bench) -> None:
    async with bench.post(headers={"Accept": "text/event-stream", "task-id": "d"}) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        held = await bench.claim()
        await bench.half(held)
        events = []
        async for line in stream.content:
            if line.startswith(b"data: "):
                events.append(json.loads(line[6:]))
                if events[-1]["percent"] == 50 and len(events) < 9:
                    await bench.finish(held)
                    break
        rest = (await stream.content.read()).decode()
    assert events[0]["type"] == "progress"
    assert "event: result" in rest


async def test_the_socket_shows_progress_previews_and_the_result(bench: Bench) -> None:
    url = f"{bench.url}/api/run/ws?preview=true"
    async with bench.http.ws_connect(url, headers={"task-id": "e"}) as socket:
        await socket.send_str(json.dumps(PROMPT))
        held = await bench.claim()
        await bench.half(held)
        head = Preview(uid=held.task.uid, node="1", image_type="image/jpeg")
        bench.tasks.preview(held.task.uid, head, b"jpeg")
        seen: list[dict[str, Any]] = []
        async for message in socket:
            seen.append(json.loads(message.data))
            if seen[-1]["type"] == "preview":
                await bench.finish(held)
        assert seen[-1]["type"] == "result"
        shown = next(one for one in seen if one["type"] == "preview")["data"]
        assert base64.b64decode(shown["image"]) == b"jpeg"


async def test_a_caller_that_leaves_does_not_end_its_task(bench: Bench) -> None:
    async with bench.http.ws_connect(f"{bench.url}/api/run/ws?task_id=f") as socket:
        await socket.send_str(json.dumps(PROMPT))
        await socket.receive()
    held = await bench.claim()
    await bench.finish(held)
    assert (await bench.tasks.get("paint", "", "f")).state == "succeeded"


async def test_cancelling(bench: Bench) -> None:
    async with bench.post(headers={**ASYNC, "task-id": "g"}):
        pass
    async with bench.http.delete(f"{bench.url}/api/status?id=g") as cancelled:
        assert cancelled.headers["task-status"] == "cancelled"
    status, _, body = await _read(bench.post(headers={"task-id": "g"}))
    assert (status, body["code"]) == (409, "task_cancelled")


async def test_owners_do_not_see_each_other(bench: Bench) -> None:
    async with bench.post(headers={**ASYNC, "task-id": "h", "owner": "ann"}):
        pass
    for method in ("GET", "DELETE"):
        asked = bench.http.request(method, f"{bench.url}/api/status?id=h", headers={"owner": "bob"})
        async with asked as foreign:
            assert foreign.status == 404
    async with bench.post(headers={**ASYNC, "task-id": "h", "owner": "bob"}) as own:
        assert own.status == 202


async def test_a_deadline_that_passes_is_an_error_of_its_own(bench: Bench) -> None:
    headers = {"Easel-Deadline-Seconds": "1", "task-id": "i", **ASYNC}
    async with bench.post(headers=headers) as accepted:
        assert accepted.status == 202
    store = bench.tasks.store
    store._clock = lambda: 10**15  # type: ignore[attr-defined]
    await bench.tasks.sweep()
    status, _, body = await _read(bench.post(headers={"task-id": "i"}))
    assert (status, body["code"]) == (504, "task_expired")


@pytest.mark.parametrize(
    ("body", "headers", "path", "status", "code"),
    [
        (b"{", {}, "/api/run", 400, "not_json"),
        ({"nodes": [], "links": []}, {}, "/api/run", 400, "ui_format_workflow"),
        (b" " * 100_001, {}, "/api/run", 413, "body_too_large"),
        (PROMPT, {"task-id": "../x"}, "/api/run", 400, "invalid_task_id"),
        (PROMPT, {"Easel-Priority": "high"}, "/api/run", 400, "bad_request"),
        (PROMPT, {"Easel-Deadline-Seconds": "-1"}, "/api/run", 400, "bad_request"),
        (PROMPT, {"X-Fc-Invocation-Type": "Later"}, "/api/run", 400, "bad_request"),
        (PROMPT, {}, "/api/run?output_base64=perhaps", 400, "bad_request"),
    ],
)
async def test_bad_input_is_refused_and_leaves_nothing(
    *, bench: Bench, body: Any, headers: dict[str, str], path: str, status: int, code: str
) -> None:
    got, _, said = await _read(bench.post(body, path, headers=headers))
    assert (got, said["code"]) == (status, code)
    assert await bench.tasks.store.counts("paint") in ({}, {"queued": 0})


async def test_a_full_line_says_when_to_come_again(bench: Bench) -> None:
    for number in range(3):
        async with bench.post(headers={**ASYNC, "task-id": f"n{number}"}) as accepted:
            assert accepted.status == 202
    async with bench.post(headers=ASYNC) as full:
        assert full.status == 450
        assert int(full.headers["Retry-After"]) > 0


async def test_other_methods_are_not_served(bench: Bench) -> None:
    async with bench.http.get(f"{bench.url}/api/run") as answer:
        assert answer.status in (404, 405)
    async with bench.http.get(f"{bench.url}/api/run/ws") as answer:
        assert (await answer.json())["message"] == "WebsocketUpgradeError"
    async with bench.http.get(f"{bench.url}/api/status") as answer:
        assert answer.status == 400


async def _read(request: Any) -> tuple[int, Mapping[str, str], Any]:
    async with request as response:
        return response.status, response.headers, await response.json(content_type=None)
