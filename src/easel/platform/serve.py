"""`easel up`: everything of a platform in one process and one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import sqlalchemy as sa

from easel.database import Database, open_database
from easel.fleet.advice import advise
from easel.fleet.checkup import Checkups
from easel.fleet.controller import Controller
from easel.fleet.dispatcher import Dispatcher
from easel.fleet.knowledge import Knowledge
from easel.fleet.link_server import AgentLink
from easel.fleet.members import Members
from easel.fleet.probes import Asker
from easel.fleet.ties import Ties
from easel.gateway import proxy
from easel.gateway.agent_api.app import agent_api
from easel.gateway.agent_api.door import Door
from easel.gateway.agent_api.submission import Submission
from easel.gateway.control.app import control_app
from easel.gateway.control.context import Control
from easel.gateway.control.specs import SpecReader
from easel.gateway.directory import Directory
from easel.gateway.links import Links, query
from easel.gateway.logs import AccessLog, structured_logs
from easel.gateway.metrics import Metrics, gauges
from easel.gateway.serve import RunningGateway, running_gateway
from easel.gateway.state import GatewayState
from easel.listening import is_free
from easel.platform import home as folder
from easel.platform.parts import make_bus, make_runtime
from easel.platform.retention import Retention
from easel.platform.storage import Storage
from easel.services.services import Services
from easel.services.sql_store import SqlServiceStore
from easel.settings import GatewaySettings, Settings
from easel.tasks.opening import open_task_store
from easel.tasks.tasks import Tasks, now_ms

log = logging.getLogger(__name__)

SWITCH_INTERVAL = 0.001
"""Seconds after which a thread that wants the interpreter gets it: the database's writer shall not wait 5 ms for its turn."""


@dataclass(frozen=True, slots=True)
class RunningPlatform:
    """A platform that listens."""

    url: str
    port: int


@contextlib.asynccontextmanager
async def running_platform(
    settings: Settings, *, keep_instances: bool = False, access: AccessLog | None = None
) -> AsyncIterator[RunningPlatform]:
    """Serve a platform on this event loop until the block ends.

    ``keep_instances`` leaves its instances running then, for the next one to adopt. Raises ConfigurationError when the home
    is taken or cannot be used, the port is taken, or the database cannot be opened; StoreFailed when it does not answer.
    """
    home = settings.home
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(folder.opened(home))
        admin_token = folder.admin_token(home)
        database = open_database(settings.database, home)
        await database.open()
        stack.push_async_callback(database.close)
        bus = await stack.enter_async_context(make_bus(database))
        tasks = Tasks(open_task_store(database, clock=now_ms), bus, settings.tasks)
        store = SqlServiceStore(database, clock=now_ms)
        services = Services(store, tasks, bus)
        members = Members(bus)
        asker = Asker()
        stack.push_async_callback(asker.close)
        checkups = Checkups(members, bus, asker)
        dispatcher = Dispatcher(tasks, members)
        stack.callback(dispatcher.close)
        knowledge = Knowledge(members)
        directory = await stack.enter_async_context(Directory(store, bus).opened())
        storage = Storage(home, directory)
        stack.push_async_callback(storage.close)
        metrics = Metrics()
        tasks.on_ended = metrics.task_ended
        http = proxy.session(settings.gateway)
        stack.push_async_callback(http.close)
        links = Links(admin_token)
        state = GatewayState(
            settings=_with_known_port(settings),
            directory=directory,
            members=members,
            links=links,
            metrics=metrics,
            http=http,
            admin_token=admin_token,
            ping=_ping(database),
            refresh_gauges=gauges(metrics, store, tasks.store),
        )
        runtime = make_runtime(settings)
        listening: list[RunningGateway] = []

        def sign(name: str, seconds: int) -> str:
            entry = directory.known(name)
            return query(links.sign(name, entry.token if entry is not None else b"", seconds))

        control = Control(
            services=services,
            tasks=tasks,
            runtime=runtime,
            members=members,
            knowledge=knowledge,
            specs=SpecReader(settings.oss_root, settings.gateway.host),
            base_url=lambda: (settings.gateway.public_url or listening[0].url).rstrip("/"),
            local_url=lambda: listening[0].url,
            link_seconds=settings.gateway.link_seconds,
            sign_link=sign,
        )
        door = Door(
            settings=settings.gateway,
            tasks=tasks,
            submission=Submission(settings.gateway, tasks, knowledge),
            files=storage.files,
            most_waiting=storage.most_waiting,
        )
        await tasks.open()
        stack.push_async_callback(tasks.close)
        gateway = await stack.enter_async_context(
            running_gateway(
                state,
                control=control_app(control, admin_token),
                agent_api=agent_api(door),
                link=AgentLink(
                    members,
                    tasks,
                    store,
                    publish=bus.publish,
                    outputs=storage.files,
                    checkups=checkups,
                    max_output_bytes=settings.gateway.max_output_bytes,
                ),
                access=access,
            )
        )
        listening.append(gateway)
        ties = Ties(members, bus)
        controller = Controller(
            store,
            runtime,
            bus,
            services,
            settings.fleet,
            gateway.url,
            drain=ties.drain,
            load=ties.load,
            engine_ready=ties.engine_ready,
            advise=advise,
            probe=checkups.probe,
        )
        await controller.open()
        stack.push_async_callback(controller.close, stop_instances=not keep_instances)
        removing = asyncio.create_task(
            Retention(tasks, store, storage.files).run(), name="easel retention"
        )
        stack.callback(removing.cancel)
        await asyncio.to_thread(folder.write_state, home, url=gateway.url, port=gateway.port)
        yield RunningPlatform(gateway.url, gateway.port)


def _with_known_port(settings: Settings) -> GatewaySettings:
    """Agents that outlived the last platform dial its port: with port 0 it is taken again if it is free."""
    gateway = settings.gateway
    last = folder.read_state(settings.home).get("port")
    if gateway.port == 0 and isinstance(last, int) and is_free(gateway.host, last):
        return gateway.model_copy(update={"port": last})
    return gateway


def _ping(database: Database) -> Callable[[], Awaitable[None]]:
    async def ping() -> None:
        """Ask the database. Raises StoreFailed."""
        await database.run(lambda connection: connection.execute(sa.text("SELECT 1")).scalar())

    return ping


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def serve(
    settings: Settings, *, keep_instances: bool = False, announce: Callable[[str], None] = _say
) -> None:
    """Serve until SIGTERM or SIGINT; then end in order. Raises ConfigurationError and StoreFailed."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sys.setswitchinterval(SWITCH_INTERVAL)
    with structured_logs() as access:
        async with running_platform(
            settings, keep_instances=keep_instances, access=access
        ) as platform:
            # What is there now stays: the collector need not look through it again.
            gc.collect()
            gc.freeze()
            gc.set_threshold(20_000, 20, 20)
            announce(f"Easel platform on {platform.url}, home {settings.home}")
            await stop.wait()
            announce(
                "stopping: instances stay"
                if keep_instances
                else "stopping: running tasks may end first"
            )
