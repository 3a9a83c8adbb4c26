"""Connections to engines that cannot be reached from here: each is carried by a WebSocket that the engine's agent dials.

A member has a port of the loopback interface. Whoever connects to it talks to the engine: the proxy, and everything else that
knows engines by their URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator

from starlette.websockets import WebSocket, WebSocketDisconnect

from easel.fleet.members import Member
from easel.link import messages

log = logging.getLogger(__name__)

DIAL_TIMEOUT = 10.0
"""Seconds an agent has to dial a tunnel."""
MOST_TUNNELS = 256
"""Connections to one engine at a time."""
PIECE = 64 * 1024
WRITE_BUFFER = 256 * 1024
"""Bytes that may wait for one side before the other is not read any more."""


class _Connection:
    """One accepted TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.dialled = asyncio.Event()
        self.over = asyncio.Event()


class Tunnels:
    """The tunnels of all members."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Connection] = {}
        """By id, which nobody but the agent is told: what an agent is to dial."""

    @contextlib.asynccontextmanager
    async def to(self, member: Member) -> AsyncIterator[None]:
        """Carry connections to a member's engine until the block ends, if it cannot be called directly."""
        if member.engine_url is not None:
            yield
            return
        running: set[asyncio.Task[None]] = set()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(running) >= MOST_TUNNELS:
                writer.transport.abort()
                return
            task = asyncio.create_task(self._open(member, _Connection(reader, writer)))
            running.add(task)
            task.add_done_callback(running.discard)

        server = await asyncio.start_server(accepted, "127.0.0.1", 0, limit=PIECE)
        member.tunnel_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            server.close()
            for task in list(running):
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _open(self, member: Member, connection: _Connection) -> None:
        """Have a connection dialled, and wait for its end."""
        tunnel = secrets.token_hex(16)
        self._waiting[tunnel] = connection
        try:
            member.send(messages.OpenTunnel(id=tunnel))
            async with asyncio.timeout(DIAL_TIMEOUT):
                await connection.dialled.wait()
            await connection.over.wait()
        except TimeoutError:
            about = {"service": member.service, "instance": member.instance}
            log.info("an agent did not dial a tunnel", extra=about)
        finally:
            self._waiting.pop(tunnel, None)
            connection.over.set()
            connection.writer.transport.abort()

    async def serve(self, socket: WebSocket, tunnel: str) -> None:
        """Be the WebSocket that an agent dialled. Its id is a secret of 128 bits, good for once."""
        connection = self._waiting.pop(tunnel, None)
        if connection is None:
            await socket.close()
            return
        connection.dialled.set()
        parts: list[asyncio.Task[object]] = []
        try:
            await socket.accept()
            connection.writer.transport.set_write_buffer_limits(high=WRITE_BUFFER)
            parts = [
                asyncio.create_task(_to_agent(connection.reader, socket)),
                asyncio.create_task(_from_agent(socket, connection.writer)),
                asyncio.create_task(connection.over.wait()),
            ]
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await _finish(connection)
        with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect):
            await socket.close()


async def _finish(connection: _Connection) -> None:
    """Close a connection when what it was sent has gone out."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(DIAL_TIMEOUT):
            connection.writer.close()
            await connection.writer.wait_closed()
    connection.over.set()


async def _to_agent(reader: asyncio.StreamReader, socket: WebSocket) -> None:
    with contextlib.suppress(OSError, WebSocketDisconnect, RuntimeError):
        while data := await reader.read(PIECE):
            await socket.send_bytes(data)


async def _from_agent(socket: WebSocket, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, WebSocketDisconnect, RuntimeError):
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            writer.write(message.get("bytes") or b"")
            await writer.drain()
