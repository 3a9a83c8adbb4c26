"""WebSockets through the gateway: both directions, closes, sizes, and readers that do not read."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import WSMsgType, web

from easel.gateway import sockets
from tests.agent.web import serve
from tests.gateway.gateways import PAINT, TOKEN, Gateway, gateway
from tests.servers import free_port

HEADERS = {"Authorization": TOKEN}


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Send back what comes; texts of a certain kind are orders."""
    socket = web.WebSocketResponse(max_msg_size=0, protocols=("one", "two"))
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            if message.data.startswith("close "):
                await socket.close(code=int(message.data[6:]), message=b"as asked")
                break
            if message.data == "abort":
                assert request.transport is not None
                request.transport.abort()
                break
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


async def test_messages_go_both_ways_whatever_their_size(served: Gateway) -> None:
    async with serve(echo) as url:
        served.stands(url)
        async with served.http.ws_connect(
            served.url + "/ws?clientId=1", headers=HEADERS, max_msg_size=0, protocols=("two",)
        ) as ws:
            assert ws.protocol == "two"
            for text in ("", "x", "ä\U0001f600", "x" * 300_000):
                await ws.send_str(text)
                assert await ws.receive_str(timeout=10) == text
            for data in (b"", b"\0\1", os.urandom(1_000_000), bytes(40_000_000)):
                await ws.send_bytes(data)
                assert await ws.receive_bytes(timeout=20) == data


async def test_nothing_is_compressed_and_pings_are_answered(served: Gateway) -> None:
    async with serve(echo) as url:
        served.stands(url)
        async with served.http.ws_connect(
            served.url + "/ws", headers=HEADERS, compress=15, autoping=False
        ) as ws:
            assert ws.compress == 0
            await ws.ping(b"here?")
            pong = await ws.receive(timeout=10)
            assert (pong.type, bytes(pong.data)) == (WSMsgType.PONG, b"here?")


async def test_many_messages_keep_their_order(served: Gateway) -> None:
    async with serve(echo) as url:
        served.stands(url)
        async with served.http.ws_connect(served.url + "/ws", headers=HEADERS) as ws:
            count = 3000

            async def send() -> None:
                for number in range(count):
                    await ws.send_str(str(number))

            sending = asyncio.create_task(send())
            got = [await ws.receive_str(timeout=10) for _ in range(count)]
            await sending
            assert got == [str(number) for number in range(count)]


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 4000, 4999])
async def test_the_instances_close_is_the_clients(served: Gateway, code: int) -> None:
    async with serve(echo) as url:
        served.stands(url)
        async with served.http.ws_connect(
            served.url + "/ws", headers=HEADERS, autoclose=False
        ) as ws:
            await ws.send_str("last words")
            await ws.send_str(f"close {code}")
            assert await ws.receive_str(timeout=10) == "last words"
            close = await ws.receive(timeout=10)
            assert (close.type, close.data, close.extra) == (WSMsgType.CLOSE, code, "as asked")


async def test_the_clients_close_is_the_instances(served: Gateway) -> None:
    codes: asyncio.Queue[Any] = asyncio.Queue()

    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for _ in socket:
            pass
        codes.put_nowait(socket.close_code)
        return socket

    async with serve(handler) as url:
        served.stands(url)
        for code in (1000, 4321):
            async with served.http.ws_connect(served.url + "/ws", headers=HEADERS) as ws:
                await ws.close(code=code, message=b"bye")
            assert await asyncio.wait_for(codes.get(), 10) == code
        async with served.http.ws_connect(served.url + "/ws", headers=HEADERS) as ws:
            transport = ws.get_extra_info("socket")
            assert transport is not None
            assert ws._conn is not None
            assert ws._conn.transport is not None
            ws._conn.transport.abort()
            assert await asyncio.wait_for(codes.get(), 10) in (1000, 1001)


async def test_an_instance_that_breaks_off(served: Gateway) -> None:
    async with serve(echo) as url:
        served.stands(url)
        async with served.http.ws_connect(
            served.url + "/ws", headers=HEADERS, autoclose=False
        ) as ws:
            await ws.send_str("abort")
            close = await ws.receive(timeout=10)
            assert (close.type, close.data) == (WSMsgType.CLOSE, 1001)


async def refused(served: Gateway, headers: dict[str, str], path: str = "/ws") -> int:
    with pytest.raises(aiohttp.WSServerHandshakeError) as error:
        await served.http.ws_connect(served.url + path, headers=headers)
    return error.value.status


async def test_refusals_come_before_the_socket_is_accepted(served: Gateway) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=403)

    assert await refused(served, {}) == 401
    assert await refused(served, {"Authorization": "wrong"}) == 401
    assert await refused(served, HEADERS) == 503
    served.stands(f"http://127.0.0.1:{free_port()}")
    assert await refused(served, HEADERS) == 503
    async with serve(handler) as url:
        served.stands(url)
        assert await refused(served, HEADERS) == 403


async def test_the_instance_sees_neither_token_nor_origin(served: Gateway) -> None:
    seen: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.WebSocketResponse:
        seen.append({name.lower(): value for name, value in request.headers.items()})
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.close()
        return socket

    async with serve(handler) as url:
        served.stands(url)
        headers = {**HEADERS, "Origin": "http://x.example", "X-Kept": "1"}
        async with served.http.ws_connect(served.url + "/ws", headers=headers) as ws:
            await ws.receive(timeout=10)
    assert seen[0]["x-kept"] == "1"
    assert not {"authorization", "origin", "sec-websocket-extensions"} & set(seen[0])


async def test_an_upgrade_to_something_else_is_an_ordinary_request(served: Gateway) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=request.headers.get("Upgrade", "none"))

    async with serve(handler) as url:
        served.stands(url)
        headers = {"Connection": "Upgrade", "Upgrade": "h2c"}
        async with served.get("/x", headers=headers) as answer:
            assert (answer.status, await answer.text()) == (200, "none")


@contextlib.asynccontextmanager
async def raw_socket(served: Gateway) -> AsyncIterator[None]:
    """Open a WebSocket and take nothing from it until the block ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.running.port, limit=1024)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET /api/predict/{PAINT}/ws HTTP/1.1\r\nHost: x\r\nAuthorization: {TOKEN}\r\n"
        f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    try:
        assert (await reader.readline()).startswith(b"HTTP/1.1 101")
        yield
    finally:
        writer.transport.abort()


async def test_a_client_that_does_not_read_holds_up_nobody_and_is_dropped(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """The instance goes on sending to a client that takes nothing: it is never held up, and memory stays bounded."""
    monkeypatch.setattr(sockets, "MAX_BEHIND", 4 * 1024 * 1024)
    piece = bytes(64 * 1024)
    dropped, held_up = asyncio.Event(), asyncio.Event()
    sent = 0

    async def handler(request: web.Request) -> web.WebSocketResponse:
        nonlocal sent
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        try:
            while True:
                async with asyncio.timeout(5):
                    await socket.send_bytes(piece)
                sent += len(piece)
        except TimeoutError:
            held_up.set()
        finally:
            dropped.set()
        return socket

    process = psutil.Process(os.getpid())
    async with serve(handler) as url, gateway(tmp_path) as served:
        served.stands(url)
        before = process.memory_info().rss
        async with raw_socket(served):
            await asyncio.wait_for(dropped.wait(), 20)
            assert process.memory_info().rss - before < 80 * 1024 * 1024
    assert sent > 4 * 1024 * 1024
    assert not held_up.is_set()


async def test_a_client_that_takes_one_message_for_ever_is_dropped(
    served: Gateway, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sockets, "STALLED", 0.2)
    gone = asyncio.Event()

    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for _ in range(200):
            await socket.send_bytes(bytes(64 * 1024))
        async for _ in socket:
            pass
        gone.set()
        return socket

    async with serve(handler) as url:
        served.stands(url)
        async with raw_socket(served):
            await asyncio.wait_for(gone.wait(), 20)


async def test_an_instance_that_does_not_read_holds_the_client_up(served: Gateway) -> None:
    go_on = asyncio.Event()

    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        await go_on.wait()
        return socket

    async with serve(handler) as url:
        served.stands(url)
        sent = 0
        process = psutil.Process(os.getpid())
        before = process.memory_info().rss
        async with served.http.ws_connect(served.url + "/ws", headers=HEADERS) as ws:
            with contextlib.suppress(TimeoutError):
                for _ in range(3000):
                    async with asyncio.timeout(1):
                        await ws.send_bytes(bytes(64 * 1024))
                    sent += 64 * 1024
            assert sent < 60 * 1024 * 1024
            assert process.memory_info().rss - before < 60 * 1024 * 1024
            go_on.set()


async def test_open_sockets_are_not_counted_as_requests_at_a_time(served: Gateway) -> None:
    await served.change(concurrency_limit=1)
    async with serve(echo) as url:
        served.stands(url)
        async with (
            served.http.ws_connect(served.url + "/ws", headers=HEADERS) as one,
            served.http.ws_connect(served.url + "/ws", headers=HEADERS) as two,
        ):
            for ws in (one, two):
                await ws.send_str("x")
                assert await ws.receive_str(timeout=10) == "x"


async def test_the_gateways_end_closes_sockets(tmp_path: Path) -> None:
    async with serve(echo) as url, aiohttp.ClientSession() as http:
        async with gateway(tmp_path) as served:
            served.stands(url)
            ws = await http.ws_connect(served.url + "/ws", headers=HEADERS, autoclose=False)
            await ws.send_str("x")
            assert await ws.receive_str(timeout=10) == "x"
        close = await ws.receive(timeout=10)
        assert (close.type, close.data) == (WSMsgType.CLOSE, 1012)
