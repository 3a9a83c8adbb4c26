"""Connections carried to an engine by its agent."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from easel.agent.joining.tunnel import carry
from easel.fleet import tunnel
from easel.link import messages
from tests.fleet.links import Agent, Gateway, joined, running_gateway
from tests.waiting import until


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with running_gateway(tmp_path / "gateway") as running:
        await running.service()
        yield running


@contextlib.asynccontextmanager
async def engine() -> AsyncIterator[str]:
    """An engine of two routes: one hashes what it gets and answers at length, one echoes messages."""

    async def hashed(request: web.Request) -> web.Response:
        body = await request.read()
        return web.Response(body=hashlib.sha256(body).digest() + bytes(3_000_000))

    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_bytes(message.data)
        return socket

    app = web.Application(client_max_size=0)
    app.add_routes([web.post("/hash", hashed), web.get("/ws", echo)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def carrying(gateway: Gateway, agent: Agent, url: str) -> AsyncIterator[None]:
    """Dial every tunnel that the gateway asks for."""

    async def obey() -> None:
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
            while True:
                said = await agent.hears(messages.OpenTunnel)
                dial = f"{gateway.url}{messages.TUNNEL_PATH}/{said.id}"
                group.create_task(carry(http, dial, url))

    obeying = asyncio.create_task(obey())
    try:
        yield
    finally:
        obeying.cancel()
        await asyncio.wait([obeying])


async def test_http_and_websockets_go_through(gateway: Gateway) -> None:
    async with (
        engine() as url,
        joined(gateway, engine_url=None) as agent,
        carrying(gateway, agent, url),
        aiohttp.ClientSession() as http,
    ):
        (member,) = gateway.members.ready("draw")
        body = bytes(range(256)) * 4_000

        async def call() -> None:
            async with http.post(f"{member.upstream}/hash", data=body) as answer:
                found = await answer.read()
                assert found == hashlib.sha256(body).digest() + bytes(3_000_000)

        await asyncio.gather(*(call() for _ in range(5)))
        async with http.ws_connect(f"{member.upstream}/ws", max_msg_size=0) as socket:
            for size in (0, 10, 1_000_000):
                await socket.send_bytes(bytes(size))
                assert await socket.receive_bytes(timeout=10) == bytes(size)


async def test_a_tunnel_that_is_not_dialled_is_closed(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "DIAL_TIMEOUT", 0.2)
    async with joined(gateway, engine_url=None):
        (member,) = gateway.members.ready("draw")
        port = int(member.upstream.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_an_engine_that_is_gone_closes_the_connection(gateway: Gateway) -> None:
    async with engine() as url:
        pass
    async with joined(gateway, engine_url=None) as agent, carrying(gateway, agent, url):
        (member,) = gateway.members.ready("draw")
        port = int(member.upstream.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_everything_is_closed_with_the_member(gateway: Gateway) -> None:
    async with engine() as url, aiohttp.ClientSession() as http:
        async with (
            joined(gateway, engine_url=None) as agent,
            carrying(gateway, agent, url),
        ):
            (member,) = gateway.members.ready("draw")
            socket = await http.ws_connect(f"{member.upstream}/ws")
            await socket.send_bytes(b"x")
            assert await socket.receive_bytes(timeout=10) == b"x"
        message = await asyncio.wait_for(socket.receive(), 10)
        assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        port = int(member.upstream.rpartition(":")[2])

        async def refused() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return True
            writer.close()
            return False

        await until(refused, timeout=10, pause=0.01)
        assert gateway.link._tunnels._waiting == {}


async def test_a_tunnel_is_dialled_once_and_not_guessed(gateway: Gateway) -> None:
    async with joined(gateway, engine_url=None) as agent, aiohttp.ClientSession() as http:
        (member,) = gateway.members.ready("draw")
        port = int(member.upstream.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        said = await agent.hears(messages.OpenTunnel)
        dial = f"{gateway.url}{messages.TUNNEL_PATH}/"
        for wrong in ("", "0" * 32, said.id + "x"):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                await http.ws_connect(dial + wrong)
        async with http.ws_connect(dial + said.id) as socket:
            writer.write(b"up")
            assert await socket.receive_bytes(timeout=10) == b"up"
            await socket.send_bytes(b"down")
            assert await asyncio.wait_for(reader.readexactly(4), 10) == b"down"
            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                await http.ws_connect(dial + said.id)
        writer.close()


async def test_a_slow_reader_holds_up_its_own_connection_alone(gateway: Gateway) -> None:
    """What the engine sends waits on its side: the gateway keeps no more than its buffers."""
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(65536))
                await writer.drain()
                sent += 65536

    server = await asyncio.start_server(flood, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with joined(gateway, engine_url=None) as agent, carrying(gateway, agent, url):
        (member,) = gateway.members.ready("draw")
        port = int(member.upstream.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        last = -1

        async def stands_still() -> bool:
            nonlocal last
            before, last = last, sent
            return sent == before

        await until(stands_still, timeout=20, pause=0.5)
        assert sent < 50_000_000
        writer.transport.abort()
    server.close()
