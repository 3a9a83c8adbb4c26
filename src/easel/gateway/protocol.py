"""uvicorn's HTTP protocol with what the gateway needs besides: patience that ends, heads that end, connections that can be cut."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEAD_TIMEOUT = 30.0
"""Seconds from the connection, or from a request's first byte, to the end of its head."""
MAX_HEAD = 256 * 1024
"""Bytes of a request's head."""
WRITE_BUFFER = 512 * 1024
"""Bytes for a client that may wait in the server before whoever sends them must wait."""


class GatewayProtocol(HttpToolsProtocol):
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, unless a head has no end."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD and len(data) < self._head_bytes:
                self.send_400_response("The request's head is too large.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        if self._head_timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """A request's head is there: its application starts with the next turn of the loop."""
        self._in_head = False
        self._head_came()
        super().on_headers_complete()
        self.scope["easel.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]

    def handle_websocket_upgrade(self) -> None:
        """The connection goes over to WebSocket."""
        self._head_came()
        super().handle_websocket_upgrade()

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._give_up)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        self.transport.abort()


class GatewaySocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket."""

    def handle_connect(self, event: Any) -> None:
        """The handshake came: its application starts with the next turn of the loop."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self.scope["easel.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]
            self.scope["easel.limit"] = self._limit  # type: ignore[typeddict-unknown-key]

    def _limit(self, size: int) -> None:
        """Take no larger messages; to be called before the connection is accepted."""
        self.conn.max_message_size = size
