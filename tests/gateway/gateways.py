"""A real gateway over a real store of services; what stands behind it, the test says."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from easel.database.sqlite import SqliteDatabase
from easel.gateway.agent_api.door import CALLER
from easel.gateway.directory import Directory
from easel.gateway.links import Links
from easel.gateway.logs import AccessLog
from easel.gateway.metrics import Metrics
from easel.gateway.proxy import session
from easel.gateway.serve import RunningGateway, running_gateway
from easel.gateway.state import GatewayState
from easel.services.model import EngineSpec, ServiceSpec
from easel.services.services import Services
from easel.services.sql_store import SqlServiceStore
from easel.settings import GatewaySettings
from easel.tasks.bus import LocalBus
from easel.tasks.tasks import now_ms

ADMIN = "the-admin-token"
TOKEN = "a-token-of-the-service"
PAINT = "paint"


@dataclass(frozen=True)
class Instance:
    """A ready instance."""

    instance: str
    upstream: str


@dataclass
class Instances:
    """Who is ready, as the test has it."""

    ready_ones: dict[str, list[Instance]] = field(default_factory=dict)

    def ready(self, service: str) -> list[Instance]:
        return self.ready_ones.get(service, [])


@dataclass
class Gateway:
    """A running gateway with one service, `PAINT`, and no instance yet."""

    running: RunningGateway
    state: GatewayState
    services: Services
    instances: Instances
    http: aiohttp.ClientSession
    now: list[int]
    """The time of signed links, in ms; the test sets it."""

    @property
    def origin(self) -> str:
        return self.running.url

    @property
    def url(self) -> str:
        """The service's endpoint."""
        return f"{self.origin}/api/predict/{PAINT}"

    def stands(self, *urls: str, service: str = PAINT) -> None:
        """Make these the service's ready instances."""
        self.instances.ready_ones[service] = [
            Instance(f"i-{number}", url) for number, url in enumerate(urls)
        ]

    def call(self, method: str, path: str, **fields: Any) -> Any:
        """Call the service with its token."""
        headers = {"Authorization": TOKEN, **fields.pop("headers", {})}
        return self.http.request(method, self.url + path, headers=headers, **fields)

    def get(self, path: str, **fields: Any) -> Any:
        """GET with the token."""
        return self.call("GET", path, **fields)

    async def change(self, **fields: Any) -> None:
        """Give the service another specification."""
        current = await self.services.store.get(PAINT)
        spec = (await self.services.store.revision(PAINT, current.revision)).spec
        await self.services.update(PAINT, msgspec.structs.replace(spec, **fields), "{}", [])


def spec_of(name: str = PAINT, **fields: Any) -> ServiceSpec:
    """A service on the built-in engine."""
    known = {"token": TOKEN, "edition": "api", "engine": EngineSpec(kind="builtin"), **fields}
    return ServiceSpec(name=name, **known)


def echo_app(door: str) -> ASGIApp:
    """An application that tells what reached it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": door})
            await send({"type": "websocket.close", "code": 4000})
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        caller = scope.get(CALLER)
        told = {
            "door": door,
            "path": scope["path"],
            "root_path": scope["root_path"],
            "service": getattr(caller, "service", None),
            "owner": getattr(caller, "owner", None),
            "body": body.decode("latin-1"),
        }
        answer = msgspec.json.encode(told)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


@contextlib.asynccontextmanager
async def gateway(
    folder: Path,
    *,
    ping: Callable[[], Awaitable[None]] | None = None,
    access: AccessLog | None = None,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """Run a gateway until the block ends."""
    async with contextlib.AsyncExitStack() as stack:
        database = SqliteDatabase(folder / "easel.db")
        await database.open()
        stack.push_async_callback(database.close)
        bus = LocalBus()
        services = Services(SqlServiceStore(database, clock=now_ms), None, bus)
        await services.deploy(spec_of(), "{}", [])
        options = GatewaySettings(**{"port": 0, **settings})
        directory = await stack.enter_async_context(Directory(services.store, bus).opened())
        http = await stack.enter_async_context(session(options))
        instances = Instances()
        now = [now_ms()]
        state = GatewayState(
            settings=options,
            directory=directory,
            members=instances,
            links=Links("secret", clock=lambda: now[0]),
            metrics=Metrics(),
            http=http,
            admin_token=ADMIN,
        )
        if ping is not None:
            state.ping = ping
        running = await stack.enter_async_context(
            running_gateway(
                state,
                control=echo_app("control"),
                agent_api=echo_app("agent_api"),
                link=echo_app("link"),
                access=access,
            )
        )
        client = await stack.enter_async_context(
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=30), cookie_jar=aiohttp.DummyCookieJar()
            )
        )
        yield Gateway(running, state, services, instances, client, now)
