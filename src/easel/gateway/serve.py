"""The gateway as a server inside a running event loop: its own port, and the ports that services have to themselves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from easel.errors import ConfigurationError
from easel.gateway.front import Front
from easel.gateway.logs import AccessLog
from easel.gateway.protocol import GatewayProtocol, GatewaySocketProtocol
from easel.gateway.sockets import MAX_MESSAGE
from easel.gateway.state import GatewayState
from easel.listening import BACKLOG, local_url

log = logging.getLogger(__name__)

KEEP_ALIVE = 75
"""Seconds an idle connection is kept."""
LAST_ANSWERS = 5
"""Seconds that answers under way have when the gateway stops."""
PING_INTERVAL = 30.0
PING_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """A gateway that listens."""

    url: str
    """Where this machine reaches it."""
    port: int
    front: Front


@contextlib.asynccontextmanager
async def running_gateway(
    state: GatewayState,
    *,
    control: ASGIApp,
    agent_api: ASGIApp,
    link: ASGIApp,
    access: AccessLog | None = None,
) -> AsyncIterator[RunningGateway]:
    """Serve on this event loop until the block ends. ``state.directory`` must be open.

    Raises ConfigurationError when the port is taken.
    """
    settings = state.settings
    front = Front(state, control=control, agent_api=agent_api, link=link, access=access)
    listener = await asyncio.to_thread(listen, settings.host, settings.port)
    server = _Server(front)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="easel gateway")
    ports = asyncio.create_task(_own_ports(server, front), name="easel gateway ports")
    try:
        starting = asyncio.create_task(server.up.wait())
        await asyncio.wait({starting, serving}, return_when=asyncio.FIRST_COMPLETED)
        if not server.up.is_set():
            starting.cancel()
            await serving
        port: int = listener.getsockname()[1]
        yield RunningGateway(local_url(settings.host, port), port, front)
    finally:
        state.draining = True
        ports.cancel()
        await asyncio.wait({ports})
        server.should_exit = True
        await asyncio.wait({serving})
    serving.result()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Resolves names: call it in a thread. Raises ConfigurationError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and host in ("", "::"):
                found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            found.bind(address)
            found.listen(BACKLOG)
            found.setblocking(False)
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="another program has the port; choose one with --port, 0 takes a free one",
        ) from error
    return found


class _Server(uvicorn.Server):
    """uvicorn as a guest: signals are its host's business, and listeners may come and go."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=GatewayProtocol,
                ws=GatewaySocketProtocol,
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=LAST_ANSWERS,
                ws_max_size=MAX_MESSAGE,
                ws_per_message_deflate=False,
                ws_ping_interval=PING_INTERVAL,
                ws_ping_timeout=PING_TIMEOUT,
            )
        )
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self.up.set()

    async def add(self, listener: socket.socket) -> asyncio.Server:
        """Listen on one more socket."""

        def connected() -> asyncio.Protocol:
            return GatewayProtocol(
                config=self.config, server_state=self.server_state, app_state={}, _loop=loop
            )

        loop = asyncio.get_running_loop()
        return await loop.create_server(connected, sock=listener, backlog=BACKLOG)


async def _own_ports(server: _Server, front: Front) -> None:
    """Listen on the ports that services ask for, as services come and go."""
    directory = front.state.directory
    host = front.state.settings.host
    open_ports: dict[int, asyncio.Server] = {}
    refused: set[tuple[int, str]] = set()
    await server.up.wait()
    try:
        while True:
            directory.changed.clear()
            wanted = {
                one.spec.web_port: one.name for one in directory if one.spec.web_port is not None
            }
            for port in set(open_ports) - set(wanted):
                open_ports.pop(port).close()
            # A port that was given up leads nowhere: connections that were kept must not come to other doors.
            front.ports = {
                **dict.fromkeys(front.ports, ""),
                **{port: name for port, name in wanted.items() if port in open_ports},
            }
            for port, name in wanted.items():
                if port in open_ports:
                    continue
                try:
                    listener = await asyncio.to_thread(listen, host, port)
                except ConfigurationError as error:
                    if (port, name) not in refused:
                        refused.add((port, name))
                        log.error("its own port: %s", error, extra={"service": name})
                    continue
                front.ports[port] = name
                open_ports[port] = await server.add(listener)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(30):
                    await directory.changed.wait()
    finally:
        for one in open_ports.values():
            one.close()
