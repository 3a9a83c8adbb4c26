"""What breaks the real ComfyUI (comfyui.md §5) and does not break this engine. docs/engine-deviations.md lists it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from easel.engine.serve import RunningEngine
from tests.conftest import FIXTURES
from tests.engine.engines import PROBES, engine
from tests.engine.replay.recording import is_prompt, load
from tests.waiting import until

DOCS = FIXTURES.parents[2] / "docs" / "engine-deviations.md"

PICTURE: dict[str, Any] = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 7},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "ok"}},
}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningEngine]:
    async with engine(tmp_path / "base", PROBES) as running:
        yield running


@pytest.fixture
async def session(running: RunningEngine) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        running.url, timeout=aiohttp.ClientTimeout(total=20)
    ) as session:
        yield session


async def submit(session: aiohttp.ClientSession, body: Any) -> tuple[int, Any]:
    async with session.post("/prompt", json=body) as response:
        return response.status, json.loads(await response.read())


async def ended(session: aiohttp.ClientSession, prompt_id: str) -> Any:
    """Wait until a prompt is in the history and return its entry."""

    async def there() -> Any:
        async with session.get("/history") as response:  # an id may be any text, even none
            return (await response.json()).get(prompt_id)

    return await until(there, timeout=15, pause=0.01)


async def still_works(session: aiohttp.ClientSession) -> None:
    """Run a prompt to its end."""
    status, answer = await submit(session, {"prompt": PICTURE})
    assert status == 200, answer
    entry = await ended(session, answer["prompt_id"])
    assert entry["status"]["status_str"] == "success"


UNUSED_ODD: list[Any] = [
    {"class_type": "EmptyImage"},
    {"class_type": "EmptyImage", "inputs": []},
    {"class_type": "EmptyImage", "inputs": None},
    {"class_type": "EmptyImage", "inputs": "x"},
]

BODIES: dict[str, Any] = {
    "client_id is a list": {"prompt": PICTURE, "client_id": ["a"]},
    "client_id is an object": {"prompt": PICTURE, "client_id": {"a": 1}},
    "client_id is a number": {"prompt": PICTURE, "client_id": 3},
    "extra_data is null": {"prompt": PICTURE, "extra_data": None},
    "extra_data is a list": {"prompt": PICTURE, "extra_data": [1]},
    "extra_data is a text": {"prompt": PICTURE, "extra_data": "x"},
    "extra_pnginfo is a list": {"prompt": PICTURE, "extra_data": {"extra_pnginfo": [1]}},
    "number is nan": {"prompt": PICTURE, "number": "nan"},
    "number is a text": {"prompt": PICTURE, "number": "x"},
    "number is a list": {"prompt": PICTURE, "number": [1]},
    "prompt_id is a list": {"prompt": PICTURE, "prompt_id": [1]},
    "prompt_id is empty": {"prompt": PICTURE, "prompt_id": ""},
    "targets are a number": {"prompt": PICTURE, "partial_execution_targets": 3},
    "targets are objects": {"prompt": PICTURE, "partial_execution_targets": [{}]},
    "prompt is a list": {"prompt": [1, 2]},
    "prompt is null": {"prompt": None},
    "prompt is a text": {"prompt": "x"},
    "prompt is a UI workflow": {"prompt": {"nodes": [], "links": []}},
    "a node is null": {"prompt": {**PICTURE, "9": None}},
    "a class is a list": {"prompt": {**PICTURE, "9": {"class_type": [], "inputs": {}}}},
    "a link to itself": {
        "prompt": {"1": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}}, **PICTURE}
    },
    "a cycle": {
        "prompt": {
            "1": {"class_type": "ImageInvert", "inputs": {"image": ["3", 0]}},
            "3": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
            "2": PICTURE["2"],
        }
    },
    "a link of objects": {
        "prompt": {**PICTURE, "2": {"class_type": "SaveImage", "inputs": {"images": [{}, {}]}}}
    },
    "a link far out": {
        "prompt": {**PICTURE, "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 99]}}}
    },
    "a lone surrogate": {
        "prompt": {
            **PICTURE,
            "2": {
                "class_type": "SaveImage",
                "inputs": {"images": ["1", 0], "filename_prefix": "a\ud800b"},
            },
        }
    },
    "a NUL": {
        "prompt": {
            **PICTURE,
            "2": {
                "class_type": "SaveImage",
                "inputs": {"images": ["1", 0], "filename_prefix": "a\0b"},
            },
        }
    },
    **{
        f"an unused node {index}": {"prompt": {**PICTURE, "9": node}}
        for index, node in enumerate(UNUSED_ODD)
    },
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_odd_prompts_harm_nobody(session: aiohttp.ClientSession, body: Any) -> None:
    status, answer = await submit(session, body)
    if status == 200:
        entry = await ended(session, answer["prompt_id"])
        assert entry["status"]["status_str"] in ("success", "error")
    else:
        assert status == 400
        assert answer["error"]["type"]
        assert answer["error"]["message"]
        assert isinstance(answer["node_errors"], dict)
    await still_works(session)


async def test_one_id_and_number_twice_while_something_runs(
    session: aiohttp.ClientSession,
) -> None:
    """The real one's worker dies of the second of these; its queue then stands still for ever."""
    slow = {
        "1": {"class_type": "ProbeSleep", "inputs": {"steps": 3, "seconds": 0.05, "salt": 1}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    await submit(session, {"prompt": slow})
    twice = {"prompt": PICTURE, "prompt_id": "same", "number": 5}
    answers = [await submit(session, twice) for _ in range(3)]
    assert answers[0][0] == 200
    assert {status for status, _ in answers} <= {200, 400, 409}
    await ended(session, "same")
    await still_works(session)


@pytest.mark.parametrize("name", ["../output/x.png", "/etc/hostname", "../../secret.png"])
async def test_load_image_reads_only_its_folders(
    running: RunningEngine, session: aiohttp.ClientSession, tmp_path: Path, name: str
) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    (running.state.folders.output / "x.png").write_bytes(b"x")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    status, answer = await submit(session, {"prompt": prompt})
    assert status == 400
    assert answer["node_errors"]["1"]["errors"][0]["type"] == "custom_validation_failed"


async def test_a_reconnected_and_a_duplicate_socket_hear_the_end(
    running: RunningEngine, session: aiohttp.ClientSession
) -> None:
    """``g4``: the socket is lost in mid-prompt and opened again, twice; the elder of the two closes."""
    prompt = {
        "1": {"class_type": "ProbeSleep", "inputs": {"steps": 100, "seconds": 0.01, "salt": 1}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }

    async def kinds(ws: aiohttp.ClientWebSocketResponse, until: str) -> list[Any]:
        seen = []
        async with asyncio.timeout(15):
            async for message in ws:
                seen.append(json.loads(message.data))
                if seen[-1]["type"] == until:
                    break
        return seen

    async with contextlib.AsyncExitStack() as stack:
        first = await session.ws_connect("/ws?clientId=a")
        status, answer = await submit(session, {"prompt": prompt, "client_id": "a"})
        assert status == 200
        await kinds(first, "progress")
        await first.close()
        second = await session.ws_connect("/ws?clientId=a")
        again = await kinds(second, "progress")
        assert [m["type"] for m in again[:2]] == ["status", "executing"]
        assert again[0]["data"]["sid"] == "a"
        assert again[1]["data"] == {"node": "1"}
        third = await stack.enter_async_context(session.ws_connect("/ws?clientId=a"))
        await kinds(third, "progress")
        await second.close()
        end = await kinds(third, "execution_success")
        assert end[-1]["data"]["prompt_id"] == answer["prompt_id"]


async def test_prompt_ids_of_clients(session: aiohttp.ClientSession) -> None:
    """``g6``: the same requests; every accepted prompt runs and no result is overwritten silently."""
    accepted = 0
    for exchange in load("g6_prompt_id_collision").exchanges:
        if is_prompt(exchange):
            status, answer = await submit(session, exchange.record["request_json"])
            assert status in (200, 400, 409), answer
            if status == 200:
                accepted += 1
                entry = await ended(session, answer["prompt_id"])
                assert entry["status"]["status_str"] == "success"
    assert accepted >= 1
    await still_works(session)


def test_the_list_is_written_down() -> None:
    text = DOCS.read_text()
    for word in ("client_id", "extra_data", "LoadImage", "stalled", "g4", "g6", "413"):
        assert word in text, word
