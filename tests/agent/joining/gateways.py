"""A gateway as an agent sees it: the link's protocol on a real port, steered by the test; stopped and started again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import WSMsgType, web

from easel.agent.command import EngineChoice
from easel.engine.serve import RunningEngine
from easel.link import messages
from easel.link.messages import (
    Acknowledge,
    Assign,
    Finished,
    FromAgent,
    FromGateway,
    Held,
    Hello,
    Preview,
    Renew,
    Renewed,
    Returned,
    Started,
    Welcome,
)
from tests.agent.agents import Agent, agent_of
from tests.engine.engines import engine

TOKEN = "joined"
TIMEOUT = 30.0
Message = TypeVar("Message", bound=messages.FromAgent)
Numbered = (Started, Finished, Returned)


class Tunnel:
    """A port that leads to the agent's engine."""

    def __init__(self, url: str, server: asyncio.Server) -> None:
        self.url = url
        self.server = server
        self.waiting: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}


class Gateway:
    """One gateway. What it is told is in ``said``, over all connections; `heard` waits for more."""

    def __init__(self) -> None:
        self.port = 0
        self.said: list[FromAgent] = []
        self.previews: list[tuple[Preview, bytes]] = []
        self.connections = 0
        self.acknowledges = True
        self.closes_with: tuple[int, str] | None = None
        """Close every new connection after its hello, instead of a welcome."""
        self.lost: set[str] = set()
        """Leases that the next renewals find lost."""
        self.welcome = Welcome(
            instance="i-1", service="tested", renew_seconds=0.1, lease_seconds=30.0
        )
        self.files: dict[tuple[str, str], bytes] = {}
        self.upload_answers: list[int] = []
        """Statuses for the next uploads; 201 once they are used up."""
        self.upload_stalls = False
        self.uploads: list[web.Request] = []
        self.tunnel: Tunnel | None = None
        self._news = asyncio.Event()
        self._socket: web.WebSocketResponse | None = None
        self._runner: web.AppRunner | None = None
        self._uids = itertools.count(1)

    @property
    def url(self) -> str:
        """Where agents dial."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; a second time on the same port."""
        app = web.Application(client_max_size=0)
        app.router.add_get(messages.PATH, self._link)
        app.router.add_get(messages.TUNNEL_PATH + "/{id}", self._tunnel)
        app.router.add_put(messages.FILES_PATH + "/{folder}/{name}", self._put)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Be gone, without a word to anybody."""
        await self.cut()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def cut(self) -> None:
        """Break the connection, as a network does."""
        socket, self._socket = self._socket, None
        if socket is not None and socket._req is not None and socket._req.transport is not None:
            socket._req.transport.abort()

    async def close(self, code: int, reason: str = "") -> None:
        """Close the connection in order."""
        socket, self._socket = self._socket, None
        assert socket is not None
        await socket.close(code=code, message=reason.encode())

    # Speaking.

    async def say(self, message: FromGateway) -> None:
        """Send a message to the agent."""
        await self.raw(messages.encode(message).decode())

    async def raw(self, text: str) -> None:
        """Send whatever text to the agent."""
        assert self._socket is not None
        await self._socket.send_str(text)

    async def assign(self, prompt: dict[str, Any], **fields: Any) -> Assign:
        """Give the agent a task."""
        number = next(self._uids)
        uid = fields.pop("uid", f"u{number}")
        lease = fields.pop("lease", f"lease-{number}")
        folder = f"{uid}.1.{lease}"
        assign = Assign(uid=uid, lease=lease, attempt=1, prompt=prompt, folder=folder, **fields)
        await self.say(assign)
        return assign

    # Hearing.

    def all(self, kind: type[Message], uid: str | None = None) -> list[Message]:
        """Everything of a kind that was said, of one task if it is named."""
        return [
            one
            for one in self.said
            if isinstance(one, kind) and uid in (None, getattr(one, "uid", None))
        ]

    async def until(self, look: Callable[[], Any], timeout: float = TIMEOUT) -> Any:
        """Wait until something is true of what was said; returns it."""
        async with asyncio.timeout(timeout):
            while not (found := look()):
                self._news.clear()
                await self._news.wait()
            return found

    async def heard(
        self, kind: type[Message], uid: str | None = None, *, count: int = 1
    ) -> Message:
        """Wait for the ``count``-th message of a kind, and return it."""
        try:
            await self.until(lambda: len(self.all(kind, uid)) >= count)
        except TimeoutError:
            raise AssertionError(f"no {kind.__name__} of {uid} in {self.said}") from None
        return self.all(kind, uid)[count - 1]

    async def connected(self, count: int = 1) -> Hello:
        """Wait for the ``count``-th welcome; returns the agent's hello."""
        await self.until(lambda: self.connections >= count)
        return self.all(Hello)[-1]

    async def ready(self) -> None:
        """Wait until the agent says that its engine is."""

        def is_ready() -> bool:
            reports = [one for one in self.said if isinstance(one, Hello | messages.Report)]
            return bool(reports and reports[-1].engine.ready)

        await self.until(is_ready)

    async def ended(self, assign: Assign) -> Finished:
        """Wait for a task's end."""
        return await self.heard(Finished, assign.uid)

    async def holds(self, *assigns: Assign) -> None:
        """Wait for a renewal of exactly these."""
        wanted = {(one.uid, one.lease) for one in assigns}
        begin = len(self.said)

        def found() -> bool:
            return any(
                isinstance(one, Renew) and {(held.uid, held.lease) for held in one.held} == wanted
                for one in self.said[begin:]
            )

        await self.until(found)

    # The protocol.

    async def _link(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=messages.MAX_MESSAGE)
        await socket.prepare(request)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            await socket.close(code=4401, message=b"the token is wrong")
            return socket
        hello = messages.from_agent(await socket.receive_str(timeout=TIMEOUT))
        assert isinstance(hello, Hello)
        self._note(hello)
        if self.closes_with is not None:
            code, reason = self.closes_with
            await socket.close(code=code, message=reason.encode())
            return socket
        await socket.send_str(messages.encode(self.welcome).decode())
        self._socket = socket
        self.connections += 1
        self._news.set()
        async for frame in socket:
            if frame.type is WSMsgType.BINARY:
                self.previews.append(messages.read_preview(frame.data))
                self._news.set()
            elif frame.type is WSMsgType.TEXT:
                await self._take(socket, messages.from_agent(frame.data))
        return socket

    async def _take(self, socket: web.WebSocketResponse, said: FromAgent | None) -> None:
        assert said is not None
        self._note(said)
        with contextlib.suppress(ConnectionError):
            if isinstance(said, Numbered) and self.acknowledges:
                await socket.send_str(messages.encode(Acknowledge(n=said.n)).decode())
            elif isinstance(said, Renew):
                lost = [one for one in said.held if one.lease in self.lost]
                await socket.send_str(messages.encode(Renewed(lost=lost)).decode())

    def _note(self, said: FromAgent) -> None:
        self.said.append(said)
        self._news.set()

    # Files.

    async def _put(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        assert request.headers[messages.LEASE_HEADER]
        self.uploads.append(request)
        self._news.set()
        if self.upload_stalls:
            await asyncio.sleep(TIMEOUT)
        body = await request.read()
        status = self.upload_answers.pop(0) if self.upload_answers else 201
        if status == 201:
            assert request.content_length == len(body)
            key = (request.match_info["folder"], request.match_info["name"])
            self.files[key] = body
        return web.Response(status=status, text="as the test wants it")

    # Tunnels.

    @contextlib.asynccontextmanager
    async def tunnelled(self) -> AsyncIterator[str]:
        """Open a port whose connections the agent carries to its engine; yields its URL."""
        numbers = itertools.count(1)

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert self.tunnel is not None
            number = str(next(numbers))
            self.tunnel.waiting[number] = (reader, writer)
            await self.say(messages.OpenTunnel(id=number))

        server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self.tunnel = Tunnel(url, server)
        try:
            yield url
        finally:
            server.close()

    async def _tunnel(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=messages.MAX_MESSAGE)
        await socket.prepare(request)
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        assert self.tunnel is not None
        reader, writer = self.tunnel.waiting.pop(request.match_info["id"])

        async def down() -> None:
            while data := await reader.read(65536):
                await socket.send_bytes(data)

        pump = asyncio.create_task(down())
        pump.add_done_callback(lambda _: asyncio.ensure_future(socket.close()))
        try:
            async for frame in socket:
                writer.write(frame.data)
                await writer.drain()
        finally:
            writer.close()  # first: the caller's leaving cancels us
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
        return socket


@contextlib.asynccontextmanager
async def gateway() -> AsyncIterator[Gateway]:
    """Run a gateway until the block ends."""
    running = Gateway()
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


class Member:
    """A gateway and an agent that has joined it."""

    def __init__(self, at: Gateway, agent: Agent, storage: Path, running: RunningEngine) -> None:
        self.gateway = at
        self.agent = agent
        self.storage = storage
        self.engine = running

    def outputs(self, assign: Assign) -> Path:
        """Where the service's storage has a task's outputs."""
        return self.storage / "easel" / "outputs" / assign.folder

    async def queue(self) -> tuple[int, int]:
        """How many prompts the engine runs, and how many wait in it."""
        async with self.agent.http.get("/queue") as answer:
            queue = await answer.json()
            return len(queue["queue_running"]), len(queue["queue_pending"])


def joining(at: Gateway, **changes: Any) -> dict[str, Any]:
    """Return the settings of an agent that joins a gateway."""
    return {"join": at.url, "token": TOKEN, "name": "box", **changes}


@contextlib.asynccontextmanager
async def member(folder: Path, *, shares: bool = True, **changes: Any) -> AsyncIterator[Member]:
    """Run gateway, engine and agent in this process; ``shares``: the agent has the service's storage."""
    storage = folder / "storage"
    storage.mkdir(exist_ok=True)
    if shares:
        changes["storage"] = storage
    async with (
        gateway() as at,
        engine(folder / "engine", "demo", "pretend", previews=True) as running,
        agent_of(
            folder / "agent", EngineChoice(running.url, None), **joining(at, **changes)
        ) as agent,
    ):
        await at.connected()
        await at.ready()
        yield Member(at, agent, storage, running)


def held(assign: Assign) -> Held:
    """Return a task's lease."""
    return Held(uid=assign.uid, lease=assign.lease)
