"""Server-sent events and the WebSocket: their form, their ends, their readers that are slow, wrong or gone."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

import aiohttp
import pytest
from PIL import Image

from easel.agent import run_door, socket_door
from tests.agent.agents import Agent, node, noop, picture, salts, sleep, steps
from tests.waiting import until

EVENTS = {"Accept": "text/event-stream"}


def events(raw: bytes) -> list[tuple[str, Any]]:
    """Parse a whole event stream strictly; comments are left out."""
    assert raw.endswith(b"\n\n")
    found = []
    for block in raw[:-2].split(b"\n\n"):
        if block.startswith(b":"):
            continue
        name, data = block.split(b"\n")
        assert name.startswith(b"event: ")
        assert data.startswith(b"data: ")
        found.append((name[7:].decode(), json.loads(data[6:])))
    return found


async def test_the_form_of_events(served: Agent) -> None:
    headers = {**EVENTS, "task-id": "form"}
    async with served.http.post(
        "/api/run?output_base64=true", json=picture(), headers=headers
    ) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["task-id"] == "form"
        told = events(await answer.read())
    assert [name for name, _ in told[:-1]] == ["progress"] * (len(told) - 1)
    name, last = told[-1]
    assert (name, last["type"], last["state"], last["percent"]) == (
        "result",
        "result",
        "succeeded",
        100,
    )
    assert last["task_id"] == "form"
    with Image.open(io.BytesIO(base64.b64decode(last["data"]["2"]["results"][0]))) as image:
        assert image.size == (8, 8)
    percents = [data["percent"] for _, data in told]
    assert percents == sorted(percents)


async def test_an_error_ends_the_events(served: Agent) -> None:
    bad = node("EaselFail", message="no\n\nway", exception="ValueError", steps=3, salt=0)
    async with served.http.post("/api/run", json={"1": bad}, headers=EVENTS) as answer:
        name, last = events(await answer.read())[-1]
    assert (name, last["type"], last["state"]) == ("error", "error", "failed")
    assert last["data"]["code"] == "execution_failed"
    assert last["data"]["message"] == "CallComfyUIPromptError"
    assert last["data"]["node_id"] == "1"


async def test_silence_is_filled(served: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_door, "KEEPALIVE", 0.02)
    async with served.http.post("/api/run", json=sleep(0.5), headers=EVENTS) as answer:
        raw = await answer.read()
    assert raw.count(b": waiting\n\n") >= 2
    assert events(raw)[-1][0] == "result"


async def test_the_place_in_line_is_told(served: Agent) -> None:
    for name in ("one", "two"):  # both places in the engine
        await served.submit(sleep(60), name)
        await until(lambda: _waiting(served, 0))
    ahead = asyncio.ensure_future(served.http.post("/api/run", json=noop("ahead"), headers=EVENTS))
    await until(lambda: _waiting(served, 1))
    async with served.http.post("/api/run", json=noop("behind"), headers=EVENTS) as answer:
        await until(lambda: _waiting(served, 2))
        assert (await served.cancel("one")) == "cancelled"
        assert (await served.cancel("two")) == "cancelled"
        told = [data["queue_position"] for _, data in events(await answer.read())]
    (await ahead).close()
    assert told[0] == 1
    assert told[-1] is None
    places = [place for place in told if place is not None]
    assert places == sorted(places, reverse=True)


async def _waiting(served: Agent, count: int) -> bool:
    return served.running.state.tasks.waiting == count


async def receive_all(socket: aiohttp.ClientWebSocketResponse) -> list[Any]:
    """Every message until the socket closes."""
    return [json.loads(message.data) async for message in socket]


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
async def test_a_prompt_as_text_or_bytes(served: Agent, binary: bool) -> None:
    async with served.http.ws_connect("/api/run/ws", headers={"task-id": "ws"}) as socket:
        raw = json.dumps(noop("said")).encode()
        await (socket.send_bytes(raw) if binary else socket.send_str(raw.decode()))
        told = await receive_all(socket)
        assert socket.close_code == 1000
    assert told[-1]["type"] == "result"
    assert told[-1]["data"]["1"]["images"][0]["text"] == "said"
    assert told[-1]["task_id"] == "ws"
    assert {message["type"] for message in told} <= {"progress", "result"}


@pytest.mark.parametrize("wanted", [True, False])
async def test_previews_for_those_who_want_them(served: Agent, wanted: bool) -> None:
    query = "?preview=true" if wanted else ""
    async with served.http.ws_connect("/api/run/ws" + query) as socket:
        await socket.send_json(steps(20, 0.01, preview=True))
        told = await receive_all(socket)
    shown = [message["data"] for message in told if message["type"] == "preview"]
    assert bool(shown) is wanted
    for preview in shown:
        assert preview["node"] == "1"
        with Image.open(io.BytesIO(base64.b64decode(preview["image"]))) as image:
            assert Image.MIME[image.format or ""] == preview["image_type"]
    assert told[-1]["type"] == "result"


async def test_close_cancels_and_a_ping_is_answered(served: Agent) -> None:
    async with served.http.ws_connect(
        "/api/run/ws", headers={"task-id": "close"}, autoping=False
    ) as socket:
        await socket.send_json(sleep(60))
        await served.runs("close")
        await socket.ping(b"there?")
        while (message := await socket.receive(timeout=10)).type is not aiohttp.WSMsgType.PONG:
            assert message.type is aiohttp.WSMsgType.TEXT
        assert message.data == b"there?"
        for chatter in ("hello", "[]", '{"type": 1}', "[" * 100_000):
            await socket.send_str(chatter)
        await socket.send_bytes(b"\xff\xfe")
        await served.http.get("/api/status", params={"id": "close"})
        assert (await served.record("close"))["state"] == "running"
        await socket.send_json({"type": "close"})
        await receive_all(socket)
        assert socket.close_code == 1000
    assert (await served.settled("close"))["state"] == "cancelled"


@pytest.mark.parametrize("first", ['{"type": "close"}', "[]", "null", '"x"', "", "\ud800"])
async def test_a_wrong_first_message(served: Agent, first: str) -> None:
    async with served.http.ws_connect("/api/run/ws") as socket:
        await socket.send_bytes(first.encode("utf-8", "surrogatepass"))
        told = await receive_all(socket)
    assert [message["type"] for message in told] == ["error"]
    assert told[0]["data"]["message"] == "RequestParamsError"
    assert await served.engine_idle()


async def test_no_first_message(served: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_door, "FIRST_MESSAGE", 0.05)
    async with served.http.ws_connect("/api/run/ws") as socket:
        told = await receive_all(socket)
    assert told[0]["data"]["code"] == "bad_request"
    async with served.http.ws_connect("/api/run/ws") as socket:
        await socket.close()  # said nothing and left
    assert await served.run(noop())


def many(count: int) -> dict[str, Any]:
    """A prompt whose progress messages are large: each names every node."""
    nodes = {str(n): node("EaselNoop", text=f"{n} " + "x" * 50) for n in range(2, count)}
    return {
        "1": node("EaselSteps", steps=400, seconds=0.005, preview=False, salt=next(salts)),
        **nodes,
    }


@pytest.mark.parametrize("door", ["ws", "sse"])
async def test_a_slow_reader_gets_the_result(served: Agent, door: str) -> None:
    """It reads nothing while the task runs: what it misses is thrown away, the result is not, and others are not held up."""
    prompt = many(1000)
    read_nothing = aiohttp.ClientSession(served.url, read_bufsize=1024)
    async with read_nothing as http:
        headers = {"task-id": "slow"}
        if door == "ws":
            socket = await http.ws_connect("/api/run/ws", headers=headers)
            await socket.send_json(prompt)
            connection: Any = socket._response.connection
        else:
            answer = await http.post("/api/run", json=prompt, headers={**headers, **EVENTS})
            connection = answer.connection
        assert connection is not None
        transport = connection.transport
        transport.pause_reading()
        assert (await served.settled("slow"))["state"] == "succeeded"
        assert await served.run(noop())
        transport.resume_reading()
        if door == "ws":
            told = await receive_all(socket)
        else:
            told = [data for _, data in events(await answer.read())]
    assert told[-1]["type"] == "result"
    assert len(told[-1]["data"]) == len(prompt)
    assert len(told) < 400, "a slow reader was sent every step"


async def test_two_watchers_of_one_id_hear_the_same_end(served: Agent) -> None:
    prompt = steps(30, 0.02)
    headers = {"task-id": "two"}
    async with (
        served.http.ws_connect("/api/run/ws", headers=headers) as one,
        served.http.ws_connect("/api/run/ws", headers=headers) as two,
    ):
        await one.send_json(prompt)
        await served.runs("two")
        await two.send_json(prompt)
        first, second = await asyncio.gather(receive_all(one), receive_all(two))
    assert first[-1] == second[-1]
    assert first[-1]["type"] == "result"
    assert await served.executed() == 1
