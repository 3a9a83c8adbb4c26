"""The agent API behind a real HTTP server, over a real store; an instance is played by the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest_asyncio
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from easel.database.sqlite import SqliteDatabase
from easel.fleet.knowledge import Knowledge
from easel.gateway.agent_api.app import agent_api
from easel.gateway.agent_api.door import CALLER, Door
from easel.gateway.agent_api.submission import Submission
from easel.settings import GatewaySettings, TaskSettings
from easel.storage.outputs import OutputFiles
from easel.tasks.bus import LocalBus
from easel.tasks.model import Assignment, Ending, Progress
from easel.tasks.sqlite_store import SqliteTaskStore
from easel.tasks.tasks import Tasks, now_ms
from easel.workflow.progress import NodeProgress

PREFIX = "/api/predict/paint"
PROMPT: dict[str, Any] = {"1": {"class_type": "SaveImage", "inputs": {}}}


@dataclass(frozen=True)
class Who:
    """The caller that the front would have found."""

    service: str
    owner: str


class NobodyReady:
    """No instance can be asked for its nodes."""

    def ready(self, service: str) -> list[Any]:
        """None."""
        return []


def as_service(app: ASGIApp) -> ASGIApp:
    """What the front does: below a prefix, for a caller (the header ``owner`` plays the token)."""

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = dict(scope["headers"])
            caller = Who("paint", headers.get(b"owner", b"").decode())
            scope = {**scope, "root_path": PREFIX, CALLER: caller}
        await app(scope, receive, send)

    return front


@dataclass
class Bench:
    """The server, and the instance's side of it."""

    url: str
    http: aiohttp.ClientSession
    tasks: Tasks
    files: OutputFiles
    held: list[Assignment] = field(default_factory=list)

    async def claim(self) -> Assignment:
        """Take the next task, as an instance does."""
        with self.tasks.bus.subscribe("queue:paint") as work:
            async with asyncio.timeout(10):
                while (found := await self.tasks.claim("paint", "i-1")) is None:
                    await work.wait()
                    work.clear()
        return found

    async def finish(self, held: Assignment, **fields: Any) -> None:
        """End a task."""
        await self.tasks.finish(held.lease, Ending(state="succeeded", ended=now_ms(), **fields))

    async def half(self, held: Assignment) -> None:
        """Report half of it."""
        nodes = {"1": NodeProgress(max=2, value=1)}
        await self.tasks.start(held.lease, now_ms())
        await self.tasks.progress(
            held.lease, Progress(percent=50, current_node="1", nodes=nodes), border=True
        )

    async def stored(self, held: Assignment, content: bytes) -> dict[str, NodeProgress]:
        """Store an output as an agent does, and return the node map that names it."""
        from easel.workflow.outputs import collect

        async def stream() -> AsyncIterator[bytes]:
            yield content

        outputs = {"1": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}}
        (item,) = collect(outputs, held.body.prompt)
        folder = f"{held.task.uid}.{held.task.attempt}"
        entry = await self.files.store(folder, item, stream())
        return {"1": NodeProgress(max=1, value=1, images=[entry])}

    def post(self, body: Any = PROMPT, path: str = "/api/run", **fields: Any) -> Any:
        """POST a prompt."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(f"{self.url}{path}", data=data, **fields)


@contextlib.asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an ASGI application on a free port."""
    config = uvicorn.Config(
        app, port=0, log_level="warning", lifespan="off", ws="websockets-sansio"
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await running


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A gateway's agent API."""
    database = SqliteDatabase(tmp_path / "easel.db")
    await database.open()
    tasks = Tasks(
        SqliteTaskStore(database, clock=now_ms), LocalBus(), TaskSettings(sweep_interval=3600)
    )
    await tasks.open()
    files = OutputFiles(tmp_path / "easel")
    await files.open()
    settings = GatewaySettings(max_body_bytes=100_000)
    door = Door(
        settings=settings,
        tasks=tasks,
        submission=Submission(settings, tasks, Knowledge(NobodyReady())),
        files=lambda _: files,
        most_waiting=lambda _: 3,
    )
    async with serving(as_service(agent_api(door))) as url, aiohttp.ClientSession() as http:
        yield Bench(url + PREFIX, http, tasks, files)
    await tasks.close()
    await files.close()
    await database.close()
