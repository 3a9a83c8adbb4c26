"""``GET /ws``: one client's socket (comfyui.md §3)."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

from aiohttp import WSMsgType, web

from easel.engine.server.bodies import decode, encode
from easel.engine.server.sockets import Connection, status
from easel.engine.server.state import STATE
from easel.engine.server.system import features
from easel.errors import NotJson

routes = web.RouteTableDef()


@routes.get("/ws")
async def open_socket(request: web.Request) -> web.WebSocketResponse:
    """Serve a socket: first ``status`` with ``sid``, the running node on a reconnect, then events as they come."""
    state = request.app[STATE]
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    client_id = request.query.get("clientId") or uuid.uuid4().hex
    connection = state.sockets.attach(client_id, socket, request.transport)
    connection.put(
        encode({"type": "status", "data": {**status(state.engine.remaining), "sid": client_id}})
    )
    running = state.engine.running_node(client_id)
    if running is not None:
        connection.put(encode({"type": "executing", "data": {"node": running}}))
    sender = asyncio.create_task(connection.pump())
    try:
        await listen(socket, connection, features(state.settings.max_upload_bytes))
    finally:
        state.sockets.detach(connection)
        sender.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sender
        await connection.closed()
    return socket


async def listen(
    socket: web.WebSocketResponse, connection: Connection, announced: dict[str, object]
) -> None:
    """Read until the socket closes. Only ``feature_flags`` as the first JSON message means anything."""
    first = True
    async for message in socket:
        if message.type is not WSMsgType.TEXT or not first:
            continue
        try:
            data = decode(message.data.encode("utf-8", "replace"))
        except NotJson:
            continue
        first = False
        if isinstance(data, dict) and data.get("type") == "feature_flags":
            flags = data.get("data")
            if isinstance(flags, dict):
                connection.wants_metadata = flags.get("supports_preview_metadata") is True
            connection.put(encode({"type": "feature_flags", "data": announced}))
