"""The sockets hub: order, isolation of slow readers, several sockets with one id."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from easel.engine.events import Preview
from easel.engine.serve import RunningEngine
from easel.engine.server.sockets import SocketHub
from tests.engine.engines import engine

BIG = 64 * 1024


async def receive(ws: aiohttp.ClientWebSocketResponse) -> Any:
    """Return the next text message, parsed."""
    return json.loads(await asyncio.wait_for(ws.receive_str(), 10))


@contextlib.asynccontextmanager
async def connected(
    session: aiohttp.ClientSession, client_id: str = "", path: str = "/ws"
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Open a socket and take its first status."""
    query = f"?clientId={client_id}" if client_id else ""
    async with session.ws_connect(path + query) as ws:
        first = await receive(ws)
        assert first["type"] == "status"
        assert first["data"]["status"] == {"exec_info": {"queue_remaining": 0}}
        assert first["data"]["sid"] == client_id or not client_id
        yield ws


async def stalled_reader(running: RunningEngine, client_id: str) -> socket.socket:
    """Open a WebSocket by hand and never read from it again after the handshake."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", running.port))
    request = (
        f"GET /ws?clientId={client_id} HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==\r\n\r\n"
    )
    await loop.sock_sendall(raw, request.encode())
    assert b"101" in await asyncio.wait_for(loop.sock_recv(raw, 12), 10)
    return raw


async def until(condition: Any) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the hub tells nobody when it drops a socket
            await asyncio.sleep(0.005)


async def test_events_arrive_in_order_and_only_where_they_belong(
    running: RunningEngine, session: aiohttp.ClientSession
) -> None:
    hub = running.state.sockets
    async with connected(session, "a") as a, connected(session, "b", "/api/ws") as b:

        def work() -> None:
            for number in range(200):
                hub.send("step", {"n": number}, "a")
            hub.queue_changed(7)
            hub.send("step", {"n": "b"}, "b")

        await asyncio.to_thread(work)
        assert [(await receive(a))["data"]["n"] for _ in range(200)] == list(range(200))
        status = {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 7}}}}
        assert await receive(a) == status
        assert await receive(b) == status
        assert (await receive(b))["data"] == {"n": "b"}


async def test_data_is_serialised_at_once(
    running: RunningEngine, session: aiohttp.ClientSession
) -> None:
    async with connected(session, "a") as a:
        data: dict[str, Any] = {"n": 1, "odd": float("nan"), "lone": "\ud800", "path": Path("x")}
        running.state.sockets.send("first", data, "a")
        data["n"] = 2
        assert (await receive(a))["data"]["n"] == 1


async def test_a_burst_costs_one_wake_up() -> None:
    loop = asyncio.get_running_loop()
    wake_ups = 0

    class Counting:
        def call_soon_threadsafe(self, callback: Any, *arguments: Any) -> Any:
            nonlocal wake_ups
            wake_ups += 1
            return loop.call_soon_threadsafe(callback, *arguments)

    hub = SocketHub(Counting())  # type: ignore[arg-type]
    blocked = threading.Event()

    def work() -> None:
        for number in range(20):
            hub.send("step", {"n": number}, None)
        blocked.set()

    thread = threading.Thread(target=work)
    thread.start()
    blocked.wait(10)  # the loop does not turn while the burst comes
    thread.join()
    assert wake_ups == 1


async def test_a_stalled_reader_delays_nobody_and_is_dropped(tmp_path: Path) -> None:
    async with (
        engine(tmp_path / "base", max_queued_bytes=8 * 1024 * 1024) as running,
        aiohttp.ClientSession(running.url) as session,
        connected(session, "reader") as reader,
    ):
        hub = running.state.sockets
        raw = await stalled_reader(running, "stalled")
        with contextlib.closing(raw):
            await until(lambda: len(hub) == 2)
            payload = {"filler": "x" * BIG}

            def work() -> None:
                for _ in range(50):
                    hub.send("big", payload, None)
                hub.send("end", {}, "reader")

            for _ in range(4):
                await asyncio.to_thread(work)
                for _ in range(50):
                    assert (await receive(reader))["type"] == "big"
                assert (await receive(reader))["type"] == "end"
            await until(lambda: len(hub) == 1)
            async with session.get("/queue") as response:
                assert response.status == 200


async def test_a_reader_that_is_only_slow_gets_everything(tmp_path: Path) -> None:
    async with engine(tmp_path / "base") as running:
        raw = await stalled_reader(running, "slow")
        with contextlib.closing(raw):
            hub = running.state.sockets
            await until(lambda: len(hub) == 1)

            def work() -> None:
                for _ in range(100):
                    hub.send("big", {"filler": "x" * BIG}, "slow")

            await asyncio.to_thread(work)
            total = 0
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(10):
                while total < 100 * BIG:
                    total += len(await loop.sock_recv(raw, 1 << 20))
            assert len(hub) == 1


async def test_sockets_with_one_id_all_receive_and_a_late_close_silences_none(
    running: RunningEngine, session: aiohttp.ClientSession
) -> None:
    hub = running.state.sockets
    async with connected(session, "same") as second:
        async with connected(session, "same") as first:
            hub.send("one", {}, "same")
            assert (await receive(first))["type"] == "one"
            assert (await receive(second))["type"] == "one"
        await until(lambda: len(hub) == 1)
        hub.send("two", {}, "same")
        hub.queue_changed(3)
        assert (await receive(second))["type"] == "two"
        assert (await receive(second))["type"] == "status"


async def test_two_hundred_idle_sockets(
    running: RunningEngine, session: aiohttp.ClientSession
) -> None:
    hub = running.state.sockets
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(connected(session, f"c{n}")) for n in range(200)]
        for number in range(5):
            hub.queue_changed(number)
        for ws in sockets:
            seen = [await receive(ws) for _ in range(5)]
            counts = [m["data"]["status"]["exec_info"]["queue_remaining"] for m in seen]
            assert counts == [0, 1, 2, 3, 4]
    await until(lambda: len(hub) == 0)


def preview(colour: str = "red") -> Preview:
    return Preview(Image.new("RGB", (8, 4), colour), "JPEG", 512, "p", "3")


async def test_previews_are_framed_by_what_the_client_announced(
    running: RunningEngine, session: aiohttp.ClientSession
) -> None:
    hub = running.state.sockets
    async with connected(session, "same") as plain, connected(session, "same") as described:
        await described.send_json(
            {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
        )
        assert (await receive(described))["type"] == "feature_flags"

        def work() -> None:
            hub.send_preview(preview(), "same")
            hub.send("progress", {"value": 1}, "same")
            hub.send_text("3", "héllo", "same")

        await asyncio.to_thread(work)
        assert (await receive(plain))["type"] == "progress"  # a plain preview comes after it
        frame = await plain.receive_bytes(timeout=10)
        assert frame[:8] == b"\0\0\0\1\0\0\0\1"
        assert frame[8:10] == b"\xff\xd8"
        frame = await described.receive_bytes(timeout=10)  # one with metadata before it
        assert frame[:4] == b"\0\0\0\4"
        length = int.from_bytes(frame[4:8])
        assert json.loads(frame[8 : 8 + length])["node_id"] == "3"
        assert (await receive(described))["type"] == "progress"
        text = b"\0\0\0\3\0\0\0\x013h\xc3\xa9llo"
        assert await plain.receive_bytes(timeout=10) == text
        assert await described.receive_bytes(timeout=10) == text


async def test_without_a_client_every_socket_gets_the_plain_frame(
    running: RunningEngine, session: aiohttp.ClientSession
) -> None:
    async with connected(session, "a") as a:
        await a.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        assert (await receive(a))["type"] == "feature_flags"
        hub = running.state.sockets
        hub.send_preview(preview(), None)
        hub.send("progress", {}, None)
        assert (await receive(a))["type"] == "progress"
        assert (await a.receive_bytes(timeout=10))[:4] == b"\0\0\0\1"


@pytest.mark.parametrize("odd", ["{not json", "[1]", '"x"', "null", '{"type": 3}', "[" * 5000])
async def test_odd_messages_from_a_client_are_ignored(
    running: RunningEngine, session: aiohttp.ClientSession, odd: str
) -> None:
    async with connected(session) as ws:
        await ws.send_str(odd)
        await ws.send_bytes(b"\0\1")
        running.state.sockets.queue_changed(2)
        assert (await receive(ws))["type"] == "status"


async def test_stopping_closes_sockets_politely(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        async with engine(tmp_path / "base") as running:
            ws = await session.ws_connect(running.url + "/ws")
            await receive(ws)
        message = await ws.receive(timeout=10)
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert message.data == aiohttp.WSCloseCode.GOING_AWAY
        await ws.close()
