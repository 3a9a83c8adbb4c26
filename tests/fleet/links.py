"""A gateway's end of the agent link on a real server and a real store, and agents that say whatever a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import uvicorn

from easel.database.sqlite import SqliteDatabase
from easel.fleet.dispatcher import Dispatcher
from easel.fleet.link_server import AgentLink
from easel.fleet.members import Members
from easel.gateway.protocol import GatewayProtocol, GatewaySocketProtocol
from easel.link import messages
from easel.link.messages import EngineReport, FromAgent, FromGateway, Held, Hello
from easel.services.model import Instance, Service
from easel.services.sql_store import SqlServiceStore
from easel.services.tokens import token_hash
from easel.settings import TaskSettings
from easel.storage.outputs import OutputFiles
from easel.tasks.bus import LocalBus
from easel.tasks.model import NewTask, Task, TaskBody
from easel.tasks.sqlite_store import SqliteTaskStore
from easel.tasks.tasks import Tasks
from tests.fleet.stage import spec
from tests.waiting import until

Message = TypeVar("Message")
LIMIT = 1_000_000
READY = EngineReport(state="ready", ready=True)


class Gateway:
    """Everything behind the link. ``now`` is its clock."""

    def __init__(self, folder: Path, database: SqliteDatabase, **settings: Any) -> None:
        self.now = 1_800_000_000_000
        self.database = database
        self.bus = LocalBus()
        self.store = SqlServiceStore(database, clock=self.clock)
        kept = SqliteTaskStore(database, clock=self.clock)
        fields = {"sweep_interval": 3600, "lease_seconds": 30, "poll_interval": 0.5, **settings}
        self.tasks = Tasks(kept, self.bus, TaskSettings(**fields), clock=self.clock)
        self.members = Members(self.bus)
        self.dispatcher = Dispatcher(self.tasks, self.members)
        self.files = OutputFiles(folder / "outputs")
        self.link = AgentLink(
            self.members,
            self.tasks,
            self.store,
            publish=self.bus.publish,
            outputs=lambda service: self.files,
            max_output_bytes=LIMIT,
            clock=self.clock,
            hello_timeout=0.5,
        )
        self.url = ""
        self._numbers = itertools.count(1)

    def clock(self) -> int:
        return self.now

    async def service(self, name: str = "draw", **fields: Any) -> None:
        row = Service(
            name=name,
            edition="api",
            revision=1,
            instances=0,
            token="t",
            join_token=f"join-{name}",
            created=self.now,
            updated=self.now,
            **fields,
        )
        await self.store.create(row, spec(name), "{}", [])

    async def instance(self, instance: str, service: str = "draw", **fields: Any) -> str:
        """Add an instance as the platform starts it; returns its token."""
        token = f"token-{instance}"
        await self.store.add_instance(
            Instance(
                id=instance,
                service=service,
                revision=1,
                status="starting",
                token_hash=token_hash(token),
                created=self.now,
                started=self.now,
                updated=self.now,
                **fields,
            )
        )
        return token

    async def submit(self, task_id: str | None = None, service: str = "draw") -> Task:
        prompt: Any = {"1": {"class_type": "PreviewImage", "inputs": {}}}
        new = NewTask(
            service=service,
            owner="",
            id=task_id or f"t{next(self._numbers)}",
            signature="s",
            body=TaskBody(prompt=prompt),
        )
        task, _ = await self.tasks.submit(new, 1000)
        return task

    async def task(self, uid: str) -> Task:
        return await self.tasks.store.get_uid(uid)

    async def in_state(self, uid: str, state: str) -> Task:
        async def look() -> Task | None:
            found = await self.task(uid)
            return found if found.state == state else None

        return await until(look, timeout=10, pause=0.01)

    async def row(self, instance: str, **fields: Any) -> Instance:
        """Wait until an instance's row says so."""

        async def look() -> Instance | None:
            row = await self.store.instance(instance)
            return row if all(getattr(row, k) == v for k, v in fields.items()) else None

        return await until(look, timeout=10, pause=0.01)


@contextlib.asynccontextmanager
async def running_gateway(folder: Path, **settings: Any) -> AsyncIterator[Gateway]:
    """Serve the link on a free port until the block ends."""
    folder.mkdir(exist_ok=True)
    database = SqliteDatabase(folder / "easel.db")
    await database.open()
    gateway = Gateway(folder, database, **settings)
    await gateway.tasks.open()
    config = uvicorn.Config(
        gateway.link,
        http=GatewayProtocol,
        ws=GatewaySocketProtocol,
        lifespan="off",
        log_config=None,
        host="127.0.0.1",
        port=0,
        ws_max_size=messages.MAX_MESSAGE,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve())

    async def listens() -> bool:
        return server.started

    await until(listens, timeout=10, pause=0.01)
    gateway.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield gateway
    finally:
        gateway.dispatcher.close()
        server.should_exit = True
        await asyncio.wait_for(serving, 20)
        await gateway.tasks.close()
        await gateway.files.close()
        await database.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


class Agent:
    """A stand-in: one connection."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.number = 0
        self.seen: list[FromGateway] = []

    async def send(self, message: FromAgent) -> None:
        await self.socket.send_str(messages.encode(message).decode())

    async def next(self) -> FromGateway:
        """Return what the gateway says next."""
        message = await self.socket.receive(timeout=10)
        assert message.type is aiohttp.WSMsgType.TEXT, (message, self.socket.close_code)
        said = messages.from_gateway(message.data)
        assert said is not None
        self.seen.append(said)
        return said

    async def hears(self, kind: type[Message]) -> Message:
        """Skip to a message of a kind."""
        async with asyncio.timeout(10):
            while True:
                said = await self.next()
                if isinstance(said, kind):
                    return said

    async def closed(self) -> int:
        """Wait for the gateway's close; returns its code."""
        async with asyncio.timeout(10):
            while True:
                message = await self.socket.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    assert self.socket.close_code is not None
                    return self.socket.close_code

    async def start(self, given: messages.Assign, at: int = 1_800_000_000_000) -> None:
        self.number += 1
        await self.send(messages.Started(n=self.number, uid=given.uid, lease=given.lease, at=at))

    async def finish(self, given: messages.Assign, **fields: Any) -> None:
        self.number += 1
        fields = {"state": "succeeded", "started": None, "ended": 1, "nodes": {}, **fields}
        await self.send(
            messages.Finished(n=self.number, uid=given.uid, lease=given.lease, **fields)
        )

    async def give_back(self, given: messages.Assign, *, counted: bool = False) -> None:
        self.number += 1
        await self.send(
            messages.Returned(
                n=self.number, uid=given.uid, lease=given.lease, reason="r", counted=counted
            )
        )

    async def acknowledged(self) -> None:
        """Wait until all that was numbered is stored."""
        while (await self.hears(messages.Acknowledge)).n < self.number:
            pass

    async def leave(self) -> None:
        await self.socket.close()


def hello(**fields: Any) -> Hello:
    """An agent's first message."""
    whole: dict[str, Any] = {
        "name": "box",
        "boot": "b1",
        "easel": "0",
        "capacity": 2,
        "engine": READY,
        "engine_url": "http://127.0.0.1:9",
        **fields,
    }
    return Hello(**whole)


def held(given: messages.Assign) -> Held:
    return Held(uid=given.uid, lease=given.lease)


@contextlib.asynccontextmanager
async def dialled(url: str, token: str) -> AsyncIterator[Agent]:
    """Dial a gateway and say nothing yet."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.ws_connect(url + messages.PATH, max_msg_size=0) as socket,
    ):
        yield Agent(socket)


@contextlib.asynccontextmanager
async def joined(gateway: Gateway, token: str = "join-draw", **fields: Any) -> AsyncIterator[Agent]:
    """Be taken in."""
    async with dialled(gateway.url, token) as agent:
        await agent.send(hello(**fields))
        welcome = await agent.next()
        assert isinstance(welcome, messages.Welcome)
        yield agent
