"""The controller over real processes and the real agent link."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import uvicorn
from starlette.types import Receive, Scope, Send

from easel.database import open_database
from easel.fleet.controller import Controller
from easel.fleet.dispatcher import Dispatcher
from easel.fleet.link_server import AgentLink
from easel.fleet.members import Members
from easel.fleet.runtimes.local import LocalRuntime
from easel.fleet.ties import Ties
from easel.services.description import Description
from easel.services.services import Services
from easel.services.sql_store import SqlServiceStore
from easel.settings import FleetSettings, TaskSettings
from easel.tasks.bus import LocalBus
from easel.tasks.opening import open_task_store
from easel.tasks.tasks import Tasks, now_ms
from tests.fleet.stage import spec
from tests.waiting import until

SETTINGS = FleetSettings(check_interval=0.2, backoff_seconds=0.1)


class Fleet:
    """What a platform has, without its gateway."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.database = open_database(None, home)
        self.bus = LocalBus()
        self.store = SqlServiceStore(self.database, clock=now_ms)
        task_store = open_task_store(self.database, clock=now_ms)
        self.tasks = Tasks(task_store, self.bus, TaskSettings())
        self.services = Services(self.store, self.tasks, self.bus)
        self.members = Members(self.bus)
        self.dispatcher = Dispatcher(self.tasks, self.members)
        self.link = AgentLink(self.members, self.tasks, self.store, publish=self.bus.publish)
        self.url = ""

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "websocket"
        await self.link(scope, receive, send)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        await self.database.open()
        await self.tasks.open()
        config = uvicorn.Config(
            self.app,
            port=0,
            log_level="warning",
            lifespan="off",
            interface="asgi3",
            ws="websockets-sansio",
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        try:

            async def listening() -> bool:
                return server.started

            await until(listening, timeout=10, pause=0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
            yield
        finally:
            server.should_exit = True
            await serving
            for left in await asyncio.to_thread(self.processes):
                with contextlib.suppress(psutil.Error):
                    psutil.Process(left).kill()
            self.dispatcher.close()
            await self.tasks.close()
            await self.database.close()

    @contextlib.asynccontextmanager
    async def controlled(self, *, stop_instances: bool = False) -> AsyncIterator[None]:
        ties = Ties(self.members, self.bus)
        runtime = LocalRuntime(self.home, SETTINGS)
        controller = Controller(
            self.store,
            runtime,
            self.bus,
            self.services,
            SETTINGS,
            self.url,
            drain=ties.drain,
            load=ties.load,
            engine_ready=ties.engine_ready,
        )
        await controller.open()
        try:
            yield
        finally:
            await controller.close(stop_instances=stop_instances)

    async def running(self, restarts: int = 0) -> Description:
        async def look() -> Description | None:
            found = await self.services.describe("draw")
            return found if found.status == "Running" and found.restarts == restarts else None

        return await until(look, timeout=40)

    def processes(self) -> list[int]:
        """Everything that runs for an instance of this platform."""
        return [
            one.pid
            for one in psutil.process_iter(["cmdline"])
            if any(str(self.home) in word for word in one.info["cmdline"] or [])
        ]


async def test_started_killed_adopted_deleted(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    async with fleet.opened():
        async with fleet.controlled():
            await fleet.services.deploy(spec(), "{}", [])
            before = (await fleet.running()).instances[0]
            psutil.Process(before.handle["pid"]).kill()
            after = (await fleet.running(restarts=1)).instances[0]
            assert after.id == before.id
            assert after.handle["pid"] != before.handle["pid"]
        async with fleet.controlled(stop_instances=True):
            adopted = (await fleet.running(restarts=1)).instances[0]
            assert adopted.handle == after.handle
        assert not await asyncio.to_thread(fleet.processes)
        async with fleet.controlled():
            await fleet.running(restarts=1)  # it was still wanted
            await fleet.services.delete("draw")

            async def gone() -> bool:
                return not await fleet.store.all()

            await until(gone, timeout=40)
        assert not await asyncio.to_thread(fleet.processes)
        assert not list((tmp_path / "instances").iterdir())
