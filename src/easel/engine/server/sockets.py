"""The sockets hub: takes events from the worker thread, gives each socket its own in order, and waits for nobody.

Every event is serialised once, in the calling thread. Calls that come while the event loop has not yet woken share one
wake-up. Each socket has its own queue and its own sender; a reader that stalls is dropped when its queue is over the limit
and delays nobody else. Several sockets may have one client id (a duplicated tab, a half-open connection): all of them
receive, and closing one leaves the others alone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from aiohttp import WSCloseCode, WSMsgType, web

from easel.engine.events import Preview
from easel.engine.server import frames
from easel.engine.server.bodies import encode
from easel.workflow.types import NodeId

log = logging.getLogger(__name__)

MAX_QUEUED_BYTES = 64 * 1024 * 1024
"""A socket that already has this much waiting when the next frame comes is dropped."""
MAX_QUEUED_FRAMES = 20_000
"""The same by number: small frames cost memory, too."""
STALL_SECONDS = 60.0
"""Longest time one frame may take to leave."""


class Audience(Enum):
    """Which sockets of a client an outgoing frame is for."""

    ALL = "all"
    PLAIN = "plain"
    """Those that did not announce ``supports_preview_metadata``."""
    DESCRIBED = "described"
    """Those that did."""


class Outgoing(NamedTuple):
    """One frame on its way from the worker thread to the event loop."""

    client_id: str | None
    audience: Audience
    payload: bytes
    opcode: WSMsgType


class Connection:
    """One open socket, its queue and what its client announced."""

    def __init__(
        self,
        client_id: str,
        socket: web.WebSocketResponse,
        transport: asyncio.BaseTransport | None,
        max_queued_bytes: int,
    ) -> None:
        self.client_id = client_id
        self.wants_metadata = False
        """The client said ``supports_preview_metadata``: its previews are frames of type 4."""
        self.dropped = False
        self._socket = socket
        self._transport = transport
        self._max_queued_bytes = max_queued_bytes
        self._queue: deque[tuple[bytes, WSMsgType]] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._closing: asyncio.Event | None = None

    def put(self, payload: bytes, opcode: WSMsgType = WSMsgType.TEXT) -> None:
        """Queue a frame; drop the socket instead when too much is waiting already."""
        if self.dropped:
            return
        if self._queued_bytes > self._max_queued_bytes or len(self._queue) > MAX_QUEUED_FRAMES:
            self.drop("does not read")
            return
        self._queue.append((payload, opcode))
        self._queued_bytes += len(payload)
        self._wake.set()

    def drop(self, why: str) -> None:
        """End the connection at once, without a close frame: nobody would read it."""
        if not self.dropped:
            self.dropped = True
            self._queue.clear()
            log.warning("socket of client %s dropped: %s", self.client_id, why)
            if isinstance(self._transport, asyncio.WriteTransport):
                self._transport.abort()

    async def pump(self) -> None:
        """Send what is queued until cancelled or the socket is gone."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    payload, opcode = self._queue.popleft()
                    async with asyncio.timeout(STALL_SECONDS):
                        await self._socket.send_frame(payload, opcode)
                    self._queued_bytes -= len(payload)
        except TimeoutError:
            self.drop(f"one frame took more than {STALL_SECONDS:.0f} s")
        except (ConnectionError, RuntimeError):
            self.dropped = True  # closed meanwhile; its reader ends by itself

    async def close(self) -> None:
        """Close politely: the server is going away."""
        self._closing = asyncio.Event()
        try:
            await self._socket.close(code=WSCloseCode.GOING_AWAY, message=b"engine stopped")
        finally:
            self._closing.set()

    async def closed(self) -> None:
        """Wait for a `close` that has begun: its handler must not return, and end the transport, before it."""
        if self._closing is not None:
            await self._closing.wait()


class SocketHub:
    """All sockets of a server, and the `easel.engine.events.EventSink` of its engine."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, max_queued_bytes: int = MAX_QUEUED_BYTES
    ) -> None:
        self._loop = loop
        self._max_queued_bytes = max_queued_bytes
        self._connections: dict[str, list[Connection]] = {}
        self._lock = threading.Lock()
        self._pending: list[Outgoing] = []
        self._held: list[Outgoing] = []

    # -- the event loop's side ------------------------------------------------------------------

    def attach(
        self,
        client_id: str,
        socket: web.WebSocketResponse,
        transport: asyncio.BaseTransport | None,
    ) -> Connection:
        """Register an open socket; from here on it receives its client's events."""
        connection = Connection(client_id, socket, transport, self._max_queued_bytes)
        known = self._connections.get(client_id, [])
        self._connections[client_id] = [*known, connection]
        return connection

    def detach(self, connection: Connection) -> None:
        """Forget this socket and no other."""
        rest = [c for c in self._connections.get(connection.client_id, []) if c is not connection]
        if rest:
            self._connections[connection.client_id] = rest
        else:
            self._connections.pop(connection.client_id, None)

    async def close(self) -> None:
        """Close every socket."""
        everyone = [c for some in self._connections.values() for c in some]
        await asyncio.gather(*(c.close() for c in everyone), return_exceptions=True)

    def __len__(self) -> int:
        return sum(len(some) for some in self._connections.values())

    def connected(self, client_id: str) -> bool:
        """Tell whether a socket with this client id is open."""
        return client_id in self._connections

    # -- EventSink: the worker thread's side ----------------------------------------------------

    def send(self, event: str, data: Mapping[str, Any], client_id: str | None) -> None:
        """Send ``{"type": event, "data": data}`` to a client, or to every socket."""
        payload = encode({"type": event, "data": data})
        message = Outgoing(client_id, Audience.ALL, payload, WSMsgType.TEXT)
        # A plain preview follows its `progress` message; one with metadata precedes it (comfyui.md §3).
        with self._lock:
            held, self._held = self._held, []
            batch = [message, *held] if event == "progress" else [*held, message]
            self._hand_over(batch)

    def send_preview(self, preview: Preview, client_id: str | None) -> None:
        """Send a preview frame, encoded once, and only when somebody is there to see it.

        Without a client id every socket gets the plain frame, whatever it announced.
        """
        if client_id is None:
            listeners = [c for some in list(self._connections.values()) for c in some]
        else:
            listeners = self._connections.get(client_id, [])
        if not listeners:
            return
        described = client_id is not None and any(c.wants_metadata for c in listeners)
        plain = client_id is None or any(not c.wants_metadata for c in listeners)
        image = frames.encode_image(preview)
        with self._lock:
            if described:
                payload = frames.described_preview(preview, image)
                self._hand_over(
                    [Outgoing(client_id, Audience.DESCRIBED, payload, WSMsgType.BINARY)]
                )
            if plain:
                payload = frames.plain_preview(preview, image)
                audience = Audience.ALL if client_id is None else Audience.PLAIN
                self._held.append(Outgoing(client_id, audience, payload, WSMsgType.BINARY))

    def send_text(self, node_id: NodeId, text: str, client_id: str | None) -> None:
        """Send a text frame."""
        frame = Outgoing(client_id, Audience.ALL, frames.text(node_id, text), WSMsgType.BINARY)
        with self._lock:
            self._hand_over([frame])

    def queue_changed(self, remaining: int) -> None:
        """Send ``status`` to every socket."""
        self.send("status", status(remaining), None)

    # -- between the two --------------------------------------------------------------------------

    def _hand_over(self, batch: Iterable[Outgoing]) -> None:
        """Append to the pending frames (lock held); the first of a batch wakes the loop."""
        idle = not self._pending
        self._pending.extend(batch)
        if idle:
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                self._pending.clear()  # the loop is closed: nobody listens any more

    def _deliver(self) -> None:
        """Give every pending frame to the queues of those it is for."""
        with self._lock:
            batch, self._pending = self._pending, []
        for client_id, audience, payload, opcode in batch:
            groups = (
                self._connections.values()
                if client_id is None
                else (self._connections.get(client_id, ()),)
            )
            for group in groups:
                for connection in group:
                    if audience is Audience.ALL or connection.wants_metadata == (
                        audience is Audience.DESCRIBED
                    ):
                        connection.put(payload, opcode)


def status(remaining: int) -> dict[str, Any]:
    """Return the data of a ``status`` message."""
    return {"status": {"exec_info": {"queue_remaining": remaining}}}
