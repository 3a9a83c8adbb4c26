"""``GET /api/run/ws``: the first message is the prompt; progress, previews and the result come back."""

from __future__ import annotations

import asyncio
import base64 as b64
import contextlib

import msgspec
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from easel import fc
from easel.errors import BadRequest, EaselError
from easel.gateway.agent_api.answers import last_message, nodes_of
from easel.gateway.agent_api.door import Door, caller_of, flag, prefix_of
from easel.gateway.agent_api.submission import Wishes
from easel.tasks.watching import Watch

FIRST_MESSAGE = 60.0
"""Seconds a caller may take to send the prompt."""
SEND_TIMEOUT = 60.0
"""Seconds a reader may take for one message."""
LOOK = 15.0
"""Seconds after which a lost wake-up is made good."""
TOO_SLOW = 1013

_encode = msgspec.json.Encoder().encode


class SocketEndpoint:
    """The door, as an ASGI application."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket. A caller that leaves does not end its task."""
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect, OSError, RuntimeError):
            try:
                await self._serve(socket)
            except EaselError as error:
                await _send(socket, _encode({"type": "error", "data": fc.error_body(error)}))
            await socket.close()

    async def _serve(self, socket: WebSocket) -> None:
        door, caller = self._door, caller_of(socket)
        wishes = Wishes.of(socket.headers, socket.query_params)
        previews = flag(socket.query_params, "preview")
        base64 = flag(socket.query_params, "output_base64")
        body = await _first_message(socket)
        if len(body) > door.settings.max_body_bytes:
            raise BadRequest(f"the prompt is larger than {door.settings.max_body_bytes} bytes")
        parsed = await door.submission.parse(body)
        base64 = base64 or parsed.options.output_base64
        task = await door.submission.submit(
            caller.service, caller.owner, wishes, parsed, door.most_waiting(caller.service)
        )
        files = door.files(caller.service) if base64 else None
        prefix = prefix_of(socket)
        async with door.tasks.watch(task.uid, previews=previews) as watch:
            left = asyncio.create_task(_until_left(socket))
            told = asyncio.create_task(self._tell(socket, watch, prefix))
            try:
                await asyncio.wait({left, told}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in (left, told):
                    one.cancel()
                await asyncio.wait({left, told})
            if told.cancelled():
                return
            told.result()
            kind, data = await last_message(watch.task, prefix, files)
            await _send(socket, fc.message(kind, data, watch.task, None))

    async def _tell(self, socket: WebSocket, watch: Watch, prefix: str) -> None:
        """Send progress and previews until the task is over."""
        while not watch.over:
            task = watch.task
            position = await self._door.position(task)
            nodes = nodes_of(task, prefix)
            await _send(socket, fc.message("progress", nodes, task, position))
            while not await watch.wait(LOOK):
                pass
            shown = watch.take_preview()
            if shown is not None:
                head, image = shown
                data = {
                    "node": head.node,
                    "image_type": head.image_type,
                    "image": b64.b64encode(image).decode("ascii"),
                }
                await _send(socket, fc.message("preview", data, watch.task, None))


async def _first_message(socket: WebSocket) -> bytes:
    """Receive the prompt. Raises BadRequest, and WebSocketDisconnect when the caller closed instead."""
    try:
        async with asyncio.timeout(FIRST_MESSAGE):
            message = await socket.receive()
    except TimeoutError:
        raise BadRequest(f"no prompt came within {FIRST_MESSAGE:g} s") from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text: str | None = message.get("text")
    if text is not None:
        return text.encode("utf-8", "surrogatepass")
    return bytes(message["bytes"])


async def _until_left(socket: WebSocket) -> None:
    """Read until the caller closes, or says ``{"type": "close"}``."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        with contextlib.suppress(ValueError, RecursionError):
            said = msgspec.json.decode(message.get("text") or b"null")
            if isinstance(said, dict) and said.get("type") == "close":
                return


async def _send(socket: WebSocket, payload: bytes) -> None:
    """Send a text message; raises OSError when the reader does not take it in time."""
    try:
        async with asyncio.timeout(SEND_TIMEOUT):
            await socket.send_text(payload.decode())
    except TimeoutError:
        with contextlib.suppress(TimeoutError, RuntimeError):
            async with asyncio.timeout(1):
                await socket.close(TOO_SLOW)
        raise ConnectionResetError("the reader is too slow") from None
