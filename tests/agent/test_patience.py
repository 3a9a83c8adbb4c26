"""Callers that must wait before their task is accepted: they can still leave, and their sockets are alive meanwhile."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import WSMsgType

from easel.agent import first_request, run_door
from easel.agent.command import EngineChoice
from easel.agent.serve import RunningAgent, running_agent
from easel.settings import AgentSettings
from tests.agent.agents import QUICK, Agent, node, noop, steps
from tests.servers import free_port
from tests.waiting import until


@asynccontextmanager
async def without_engine(folder: Path) -> AsyncIterator[tuple[RunningAgent, aiohttp.ClientSession]]:
    """Run an agent whose engine is not there: a task waits for it before it can be validated."""
    settings = AgentSettings(port=0, data_dir=folder, supervision=QUICK)
    choice = EngineChoice(f"http://127.0.0.1:{free_port()}", None)
    timeout = aiohttp.ClientTimeout(total=20)
    async with (
        running_agent(settings, choice) as agent,
        aiohttp.ClientSession(agent.url, timeout=timeout) as http,
    ):
        yield agent, http


async def prepared(agent: RunningAgent, count: int) -> None:
    """Wait until so many tasks are in memory."""

    async def counted() -> bool:
        return len(agent.state.tasks._tasks) == count

    await until(counted, timeout=10, pause=0.01)


@pytest.mark.parametrize("how", ["says close", "closes", "breaks off"])
async def test_a_socket_whose_task_is_not_accepted_yet(tmp_path: Path, how: str) -> None:
    async with (
        without_engine(tmp_path) as (agent, http),
        http.ws_connect("/api/run/ws", autoping=False) as socket,
    ):
        await socket.send_json(noop())
        await prepared(agent, 1)
        await socket.ping(b"still there?")
        message = await socket.receive(timeout=10)
        assert (message.type, message.data) == (WSMsgType.PONG, b"still there?")
        if how == "says close":
            await socket.send_json({"type": "close"})
            assert (await socket.receive(timeout=10)).type is WSMsgType.CLOSE
        elif how == "closes":
            await socket.close()
            assert socket.close_code == 1000
        else:
            transport = socket._writer.transport
            assert transport is not None
            transport.abort()
        await prepared(agent, 0)


async def test_an_event_stream_that_is_not_read(
    served: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reader is cut off, its task cancelled; nothing is written behind the events, and nothing of it is an error."""
    monkeypatch.setattr(run_door, "SEND_TIMEOUT", 0.2)
    prompt = {str(n): node("EaselNoop", text=f"{n}" * 40) for n in range(3000)}
    raw = json.dumps({**prompt, "steps": steps(500, 0.02)["1"]}).encode()
    head = "POST /api/run HTTP/1.1\r\nHost: x\r\ntask-id: stalls\r\nAccept: text/event-stream\r\n"
    stalled = sockets.socket()
    stalled.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    stalled.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(stalled, ("127.0.0.1", served.running.port))
    with stalled:
        await loop.sock_sendall(stalled, f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        assert (await served.settled("stalls"))["state"] == "cancelled"
    assert not [entry for entry in caplog.records if entry.levelname == "ERROR"]
    assert await served.run(noop())


async def test_a_connection_on_which_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed, also in the midst of a head; one that has asked something is kept."""
    monkeypatch.setattr(first_request, "TIMEOUT", 0.2)
    monkeypatch.setattr(first_request, "LOOK", 0.02)
    known = b"GET /api/agent HTTP/1.1\r\nHost: x\r\n\r\n"
    async with without_engine(tmp_path) as (agent, _):
        kept_reader, kept = await asyncio.open_connection("127.0.0.1", agent.port)
        kept.write(known)
        assert (await asyncio.wait_for(kept_reader.readline(), 10)).startswith(b"HTTP/1.1 503")
        for begun in (b"", b"POST /api/run HTTP/1.1\r\nHost: x\r\nX-"):
            reader, writer = await asyncio.open_connection("127.0.0.1", agent.port)
            writer.write(begun)
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
        kept.write(known)
        async with asyncio.timeout(10):
            await kept_reader.readuntil(b"HTTP/1.1 503")
        kept.close()
