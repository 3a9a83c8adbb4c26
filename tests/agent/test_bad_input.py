"""What bad input gets: a typed 4xx that names node and input, nothing left behind, and the next request served."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from PIL import Image

from tests.agent.agents import Agent, node, noop
from tests.servers import free_port


def png(side: int = 64) -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((side, side), 50).save(sink, "PNG")
    return sink.getvalue()


def bomb() -> bytes:
    """A small PNG of 400 megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(b"\0" * 20_000, 9)
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def load(image: str) -> dict[str, Any]:
    return {"7": node("LoadImage", image=image), "8": node("PreviewImage", images=["7", 0])}


def inline(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def empty(**changes: Any) -> dict[str, Any]:
    return node("EmptyImage", **{"width": 8, "height": 8, "batch_size": 1, "color": 0, **changes})


SAVE = node("SaveImage", images=["1", 0], filename_prefix="x")
UI_FORMAT = {
    "last_node_id": 1,
    "nodes": [{"id": 1, "type": "SaveImage"}],
    "links": [],
    "version": 1,
}
MANY = {str(n): node("EaselNoop", text="") for n in range(10_000)}

CASES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "not json": (b"{not json", "not_json", {}),
    "no object": (b"[1, 2]", "not_json", {}),
    "nothing": (b"", "not_json", {}),
    "not utf-8": (b'{"1": "\xff"}', "not_json", {}),
    "deep": (b'{"1":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "", {}),
    "empty": ({}, "invalid_prompt", {}),
    "ui format": (UI_FORMAT, "ui_format_workflow", {}),
    "ui format in an envelope": ({"prompt": UI_FORMAT}, "ui_format_workflow", {}),
    "a node that is none": ({"1": "SaveImage"}, "invalid_prompt", {"node_id": "1"}),
    "unknown class": ({"1": node("Nonesuch")}, "invalid_prompt", {"node_id": "1"}),
    "missing input": (
        {"1": empty(), "2": node("SaveImage", images=["1", 0])},
        "invalid_prompt",
        {"node_id": "2", "node_type": "SaveImage", "input": "filename_prefix"},
    ),
    "ill-typed input": (
        {"1": empty(width="wide"), "2": SAVE},
        "invalid_prompt",
        {"node_id": "1", "node_type": "EmptyImage", "input": "width"},
    ),
    "a list where a link belongs": (
        {"1": empty(), "2": node("SaveImage", images=[1, 2, 3], filename_prefix="x")},
        "invalid_prompt",
        {"node_id": "2", "input": "images"},
    ),
    "a link of the wrong type": (
        {"1": node("PrimitiveString", value="a"), "2": SAVE},
        "invalid_prompt",
        {"node_id": "2", "input": "images"},
    ),
    "a link to nowhere": (
        {"2": node("SaveImage", images=["404", 0], filename_prefix="x")},
        "invalid_prompt",
        {"node_id": "2", "input": "images"},
    ),
    "a link to an output that is not there": (
        {"1": empty(), "2": node("SaveImage", images=["1", 7], filename_prefix="x")},
        "invalid_prompt",
        {"node_id": "2", "input": "images"},
    ),
    "a cycle": (
        {
            "1": node("ImageInvert", image=["2", 0]),
            "2": node("ImageInvert", image=["1", 0]),
            "3": SAVE,
        },
        "invalid_prompt",
        {},
    ),
    "no output node": ({"1": empty()}, "invalid_prompt", {}),
    "10,000 nodes": (MANY, "too_many_nodes", {}),
    "an unreachable url": (
        load(f"http://127.0.0.1:{free_port()}/x.png"),
        "input_rejected",
        {"node_id": "7", "node_type": "LoadImage", "input": "image"},
    ),
    "an unresolvable url": (
        load("http://nowhere.invalid/x.png"),
        "input_rejected",
        {"node_id": "7", "input": "image"},
    ),
    "an address of the operator's network": (
        load("http://169.254.169.254/latest/meta-data/"),
        "input_rejected",
        {"node_id": "7", "input": "image"},
    ),
    "a truncated picture": (
        load(inline(png()[:-600])),
        "input_rejected",
        {"node_id": "7", "input": "image"},
    ),
    "a decompression bomb": (
        load(inline(bomb())),
        "input_rejected",
        {"node_id": "7", "input": "image"},
    ),
    "base64 of nothing that is a picture": (
        load(base64.b64encode(b"\0" * 300).decode()),
        "input_rejected",
        {"node_id": "7", "input": "image"},
    ),
    "a name that leaves the folder": (
        load("../../secret.png"),
        "input_rejected",
        {"node_id": "7", "input": "image"},
    ),
    "an absolute name": (load("/etc/hostname"), "input_rejected", {"node_id": "7"}),
}

WORDS = {"RequestParamsError"}


def check(body: Any, code: str, named: dict[str, Any]) -> None:
    """The error says what it must."""
    assert body["message"] in WORDS, body
    assert body["error"], body
    if code:
        assert body["code"] == code, body
    for key, value in named.items():
        assert body.get(key) == value, body
    if code == "ui_format_workflow":
        assert "Export (API)" in body["hint"]


async def nothing_left(served: Agent, before: set[str], *task_ids: str) -> None:
    """No file, no task, nothing in the engine; and the next request is served."""
    for task_id in task_ids:
        assert (await served.record(task_id)).get("code") == "task_not_found"
    assert await served.engine_idle()
    assert served.files() == before
    assert not served.running.state.tasks._tasks
    assert await served.run(noop())


@pytest.mark.parametrize("case", CASES)
async def test_every_door_refuses(served: Agent, case: str) -> None:
    body, code, named = CASES[case]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    before = served.files()

    status, said = await served.post(raw, task_id="blocking")
    assert status == 400, said
    check(said, code, named)

    status, said = await served.post(raw, task_id="later", X_Fc_Invocation_Type="Async")
    assert status == 400, said
    check(said, code, named)

    status, said = await served.post(raw, task_id="events", Accept="text/event-stream")
    assert status == 400, said
    check(said, code, named)

    async with served.http.ws_connect("/api/run/ws", headers={"task-id": "socket"}) as socket:
        await socket.send_bytes(raw)
        said = await socket.receive_json(timeout=20)
        assert said["type"] == "error"
        check(said["data"], code, named)
        assert (await socket.receive(timeout=20)).type.name in ("CLOSE", "CLOSED")

    await nothing_left(served, before, "blocking", "later", "events", "socket")


HUNDRED_MB = 100_000_000


async def refused_in_mid_send(served: Agent, head: str, chunked: bool) -> bytes:
    """Send a request head and then a body of 100 MB without waiting; return what is answered. Counts what was taken."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.running.port)
    piece = b"x" * 65536
    framed = b"10000\r\n" + piece + b"\r\n" if chunked else piece
    writer.write(head.encode())

    async def send() -> None:
        for _ in range(HUNDRED_MB // len(piece)):
            writer.write(framed)
            await writer.drain()

    sender = asyncio.ensure_future(send())
    try:
        async with asyncio.timeout(20):
            answer = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in answer.splitlines()
                if line.lower().startswith(b"content-length")
            )
            return answer + await reader.readexactly(length)
    finally:
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        writer.transport.abort()


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize("later", [False, True], ids=["blocking", "async"])
async def test_a_hundred_megabytes(served: Agent, chunked: bool, later: bool) -> None:
    before = served.files()
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {HUNDRED_MB}"
    head = f"POST /api/run HTTP/1.1\r\nHost: x\r\ntask-id: large\r\n{length}\r\n"
    head += "X-Fc-Invocation-Type: Async\r\n" if later else ""
    answer = await refused_in_mid_send(served, head + "\r\n", chunked)
    assert answer.startswith(b"HTTP/1.1 413 ")
    said = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert said["code"] == "body_too_large"
    assert said["message"] == "RequestParamsError"
    await nothing_left(served, before, "large")


async def test_a_hundred_megabytes_are_not_asked_for(served: Agent) -> None:
    """``Expect: 100-continue``: the answer comes instead of the permission to send."""
    head = f"POST /api/run HTTP/1.1\r\nHost: x\r\nContent-Length: {HUNDRED_MB}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", served.running.port)
    writer.write((head + "Expect: 100-continue\r\n\r\n").encode())
    assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in await asyncio.wait_for(reader.read(), 10)
    writer.close()
    small = json.dumps(noop()).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.running.port)
    head = f"POST /api/run HTTP/1.1\r\nHost: x\r\nContent-Length: {len(small)}\r\n"
    writer.write((head + "Expect: 100-continue\r\n\r\n").encode())
    assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 100 ")
    writer.write(small)
    await asyncio.wait_for(reader.readline(), 10)
    assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_a_first_message_that_is_too_large(served: Agent) -> None:
    """It is refused by its announced length, in the WebSocket's own words."""
    before = served.files()
    async with served.http.ws_connect("/api/run/ws", headers={"task-id": "large"}) as socket:
        # The head of a masked binary message of 100 MB; nothing of it follows.
        transport = socket._writer.transport
        transport.write(b"\x82\xff" + struct.pack(">Q", HUNDRED_MB) + b"\0\0\0\0")
        message = await socket.receive(timeout=30)
        assert message.type.name == "CLOSE"
        assert message.data == 1009
    await nothing_left(served, before, "large")


async def test_a_body_that_ends_early(served: Agent) -> None:
    before = served.files()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.running.port)
    writer.write(
        b"POST /api/run HTTP/1.1\r\nHost: x\r\ntask-id: cut\r\nContent-Length: 500\r\n\r\n{"
    )
    await writer.drain()
    writer.close()
    await asyncio.wait_for(reader.read(), 10)
    await nothing_left(served, before, "cut")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("PUT", "/api/run", {}, 405),
        ("POST", "/api/status?id=x", {}, 405),
        ("GET", "/api/status", {}, 400),
        ("DELETE", "/api/status?id=", {}, 400),
        ("GET", "/api/status?id=nobody", {}, 404),
        ("DELETE", "/api/status?id=../x", {}, 404),
        ("GET", "/api/status?id=" + "x" * 5000, {}, 404),
        ("GET", "/api/status?id=%ed%a0%80", {}, 404),
        ("GET", "/api/run/ws", {}, 400),
        ("GET", "/api/outputs/..%2f..%2fetc/passwd", {}, 404),
        ("GET", "/api/outputs/x/..%2f..%2ftasks", {}, 404),
        ("POST", "/api/run?output_base64=perhaps", {}, 400),
        ("POST", "/api/run", {"X-Fc-Invocation-Type": "Sometimes"}, 400),
    ],
)
async def test_requests_that_make_no_sense(
    served: Agent, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    from yarl import URL

    url = URL(served.url + path, encoded=True)
    data = json.dumps(noop()) if method == "POST" else None
    async with served.http.request(method, url, headers=headers, data=data) as answer:
        said = await answer.json()
        assert answer.status == status, said
        assert said["message"]
        assert said["code"]
        assert said["error"]


async def test_unknown_classes_do_not_make_the_agent_ask_the_engine_again_and_again(
    served: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    client = served.running.state.link.client
    original = client.object_info

    async def counted() -> Any:
        nonlocal asked
        asked += 1
        return await original()

    monkeypatch.setattr(client, "object_info", counted)
    for _ in range(20):
        status, _ = await served.post({"1": node("Nonesuch")})
        assert status == 400
    assert asked <= 2


async def test_a_partly_valid_prompt_runs_and_says_what_was_left_out(served: Agent) -> None:
    prompt = {
        "1": empty(),
        "2": node("SaveImage", images=["1", 0], filename_prefix="ok"),
        "3": node("SaveImage", images=["404", 0], filename_prefix="bad"),
    }
    async with served.http.post("/api/run", json=prompt, headers={"task-id": "part"}) as answer:
        nodes = await answer.json()
        assert answer.status == 200, nodes
        assert answer.headers["task-warnings"] == "1"
    assert nodes["2"]["images"]
    assert not nodes.get("3", {}).get("images")
    found = await served.record("part")
    assert list(found["node_errors"]) == ["3"]
    assert found["percent"] == 100


@pytest.fixture
async def trickle() -> AsyncIterator[str]:
    """A server that never comes to an end."""
    from tests.agent.web import serve_raw

    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 99999\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.2)

    async with serve_raw(handler) as url:
        yield url


async def test_a_url_that_is_too_slow(served: Agent, trickle: str) -> None:
    before = served.files()
    status, said = await served.post(load(f"{trickle}/x.png"), task_id="slow")
    assert status == 400
    check(said, "input_rejected", {"node_id": "7", "input": "image"})
    await nothing_left(served, before, "slow")
