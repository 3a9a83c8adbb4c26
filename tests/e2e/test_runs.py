"""Text-to-image through every door of the agent, on each engine."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import uuid
from typing import Any

import aiohttp
import pytest
from PIL import Image

from tests.e2e.conftest import Target, text_to_image
from tests.waiting import until

seeds = itertools.count(1000)


def picture(encoded: str) -> Image.Image:
    """Decode a picture from a node's `results`."""
    image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))
    image.load()
    return image


def assert_complete(nodes: dict[str, Any], prompt: dict[str, Any]) -> None:
    """Every node of the prompt is there and done."""
    assert set(nodes) == set(prompt)
    for node_id, progress in nodes.items():
        assert progress["max"] > 0, node_id
        assert progress["value"] == progress["max"], node_id


async def run(http: aiohttp.ClientSession, prompt: dict[str, Any], **headers: str) -> Any:
    """Post a prompt, wait for its end and return the answer's body."""
    async with http.post("/api/run?output_base64=true", json=prompt, headers=headers) as response:
        body = await response.json()
        assert response.status == 200, body
        return body


async def test_blocking_run(http: aiohttp.ClientSession) -> None:
    prompt = text_to_image(next(seeds))
    nodes = await run(http, prompt)
    assert_complete(nodes, prompt)
    assert nodes["3"]["max"] == 4
    assert picture(nodes["9"]["results"][0]).size == (64, 64)
    output = nodes["9"]["images"][0]
    assert output["type"] == "output"
    async with http.get(output["url"]) as response:
        assert response.status == 200
        assert base64.b64encode(await response.read()).decode() == nodes["9"]["results"][0]


async def test_a_cached_run_is_complete_and_has_its_own_files(http: aiohttp.ClientSession) -> None:
    prompt = text_to_image(next(seeds))
    first = await run(http, prompt)
    second = await run(http, prompt)
    assert_complete(second, prompt)
    assert second["9"]["results"] == first["9"]["results"]
    assert second["9"]["images"][0]["url"] != first["9"]["images"][0]["url"]


async def test_ten_at_once_each_get_their_own(http: aiohttp.ClientSession) -> None:
    """One colour a call, so that a mixed-up answer shows."""

    def coloured(colour: int) -> dict[str, Any]:
        return {
            "1": {
                "class_type": "EmptyImage",
                "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": colour},
            },
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }

    colours = [0x010203 * n for n in range(1, 11)]
    answers = await asyncio.gather(*(run(http, coloured(colour)) for colour in colours))
    for colour, nodes in zip(colours, answers, strict=True):
        seen = picture(nodes["2"]["results"][0]).convert("RGB").getpixel((0, 0))
        assert seen == (colour >> 16 & 255, colour >> 8 & 255, colour & 255)


async def test_websocket_shows_steps_previews_and_the_result(http: aiohttp.ClientSession) -> None:
    prompt = text_to_image(next(seeds), steps=6)
    percents: list[float] = []
    steps: set[float] = set()
    previews = 0
    async with http.ws_connect("/api/run/ws?preview=true&output_base64=true") as socket:
        await socket.send_json(prompt)
        result = None
        async for message in socket:
            assert message.type is aiohttp.WSMsgType.TEXT
            event = json.loads(message.data)
            if event["type"] == "preview":
                previews += 1
            elif event["type"] == "progress":
                percents.append(event["percent"])
                steps.add(event["data"].get("3", {}).get("value", 0))
            else:
                result = event
                break
    assert result is not None
    assert result["type"] == "result", result
    assert_complete(result["data"], prompt)
    assert percents == sorted(percents)
    assert len(steps & {1, 2, 3, 4, 5, 6}) >= 2
    assert previews >= 1


async def test_server_sent_events_end_with_the_result(http: aiohttp.ClientSession) -> None:
    prompt = text_to_image(next(seeds))
    events: list[str] = []
    last: Any = None
    async with http.post(
        "/api/run", json=prompt, headers={"Accept": "text/event-stream"}
    ) as response:
        assert response.content_type == "text/event-stream"
        async for line in response.content:
            if line.startswith(b"event:"):
                events.append(line.split(b":", 1)[1].strip().decode())
            elif line.startswith(b"data:"):
                last = json.loads(line.split(b":", 1)[1])
    assert "progress" in events
    assert events[-1] == "result"
    assert_complete(last["data"], prompt)


async def test_asynchronous_run_and_status(http: aiohttp.ClientSession) -> None:
    task_id = f"e2e-{uuid.uuid4()}"
    prompt = text_to_image(next(seeds))
    headers = {"task-id": task_id, "X-Fc-Invocation-Type": "Async"}
    async with http.post("/api/run", json=prompt, headers=headers) as response:
        assert response.status == 202
        assert response.headers["task-id"] == task_id

    async def ended() -> Any:
        async with http.get("/api/status", params={"id": task_id, "detail": "true"}) as reply:
            assert reply.status == 200
            found = await reply.json()
        return found if found["state"] not in ("queued", "running") else None

    record = await until(ended)
    assert record["state"] == "succeeded", record
    assert record["percent"] == 100
    assert_complete(record["nodes"], prompt)


async def test_a_random_seed_is_reported(http: aiohttp.ClientSession) -> None:
    task_id = f"e2e-{uuid.uuid4()}"
    prompt = text_to_image(-1)
    await run(http, prompt, **{"task-id": task_id})
    async with http.get("/api/status", params={"id": task_id, "detail": "true"}) as reply:
        record = await reply.json()
    assert record["seeds"]["3.seed"] >= 0


async def test_an_inline_picture_is_an_input(http: aiohttp.ClientSession, target: Target) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 9), (200, 100, 50)).save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": uri}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "inv"}},
    }
    nodes = await run(http, prompt)
    image = picture(nodes["3"]["results"][0]).convert("RGB")
    assert image.size == (16, 9)
    seen = image.getpixel((3, 3))
    assert isinstance(seen, tuple)
    # Floats are cut, not rounded, on their way to bytes.
    assert all(abs(a - b) <= 1 for a, b in zip(seen, (55, 155, 205), strict=True))


@pytest.mark.parametrize("door", ["/prompt", "/api/prompt"])
async def test_the_native_api_through_the_proxy(http: aiohttp.ClientSession, door: str) -> None:
    client_id = uuid.uuid4().hex
    async with http.ws_connect(f"/ws?clientId={client_id}") as socket:
        status = await socket.receive_json()
        assert status["data"]["sid"] == client_id
        body = {"prompt": text_to_image(next(seeds)), "client_id": client_id}
        async with http.post(door, json=body) as response:
            prompt_id = (await response.json())["prompt_id"]
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                if event["type"] == "executing" and event["data"]["node"] is None:
                    break
    async with http.get(f"/history/{prompt_id}") as response:
        image = (await response.json())[prompt_id]["outputs"]["9"]["images"][0]
    async with http.get("/view", params=image) as response:
        assert response.status == 200
        assert response.content_type == "image/png"


async def test_what_the_engine_refuses_is_named(http: aiohttp.ClientSession) -> None:
    prompt = text_to_image(next(seeds))
    prompt["4"]["inputs"]["ckpt_name"] = "no-such-model.safetensors"
    async with http.post("/api/run", json=prompt) as response:
        assert response.status == 400
        error = await response.json()
    assert error["code"] == "invalid_prompt"
    assert error["node_errors"]["4"]["errors"][0]["type"] == "value_not_in_list"


async def test_a_failing_node_is_named(http: aiohttp.ClientSession) -> None:
    """A file that is no picture, put into the input folder behind the agent's back."""
    form = aiohttp.FormData()
    form.add_field("image", b"no picture", filename="odd.png", content_type="image/png")
    form.add_field("overwrite", "true")
    async with http.post("/upload/image", data=form) as response:
        assert response.status == 200
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "odd.png"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    async with http.post("/api/run", json=prompt) as response:
        assert response.status == 500
        error = await response.json()
    assert error["message"] == "CallComfyUIPromptError"
    assert (error["code"], error["node_id"], error["node_type"]) == (
        "execution_failed",
        "1",
        "LoadImage",
    )
    assert error["exception_type"]
