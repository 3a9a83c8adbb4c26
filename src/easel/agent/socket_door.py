"""``GET /api/run/ws``: the first message is the prompt; progress, previews and the result come back."""

from __future__ import annotations

import asyncio
import base64 as b64
import contextlib
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from easel.agent import wire
from easel.agent.run_door import last_message, parse
from easel.agent.state import STATE, AgentState
from easel.agent.task import Listener, Task
from easel.errors import BadRequest, EaselError

FIRST_MESSAGE = 60.0
"""Seconds a caller may take to send the prompt."""
HEARTBEAT = 20.0
"""Seconds between pings; a caller that does not answer one is gone."""
SEND_TIMEOUT = 60.0
"""Seconds a reader may take for one message."""

_encode = msgspec.json.Encoder().encode


async def run_socket(request: web.Request) -> web.StreamResponse:
    """Serve the door."""
    state = request.app[STATE]
    base64, previews = wire.flag(request, "output_base64"), wire.flag(request, "preview")
    task_id = wire.task_id_of(request)
    socket = web.WebSocketResponse(
        heartbeat=HEARTBEAT, max_msg_size=state.settings.max_body_bytes, compress=False
    )
    if not socket.can_prepare(request).ok:
        refused = BadRequest("this is a WebSocket; POST /api/run takes the prompt by HTTP")
        said = wire.error_body(refused, "WebsocketUpgradeError")
        return wire.json_answer(said, refused.http_status)
    await socket.prepare(request)
    try:
        body = await _first_message(socket)
        if body is None:
            return socket
        parsed = await parse(state, body)
        base64 = base64 or parsed.options.output_base64
        attending = state.tasks.attend(task_id, parsed, base64=base64, previews=previews)
        await _while_there(socket, _run(state, socket, attending, base64))
    except EaselError as error:
        await _send(socket, _encode({"type": "error", "data": wire.error_body(error)}))
    await socket.close()
    return socket


async def _first_message(socket: web.WebSocketResponse) -> bytes | None:
    """Receive the prompt; None when the caller closed instead. Raises BadRequest."""
    try:
        async with asyncio.timeout(FIRST_MESSAGE):
            message = await socket.receive()
    except TimeoutError:
        raise BadRequest(f"no prompt came within {FIRST_MESSAGE:g} s") from None
    if message.type is WSMsgType.TEXT:
        return str(message.data).encode("utf-8", "surrogatepass")
    if message.type is WSMsgType.BINARY:
        return bytes(message.data)
    return None


async def _while_there(socket: web.WebSocketResponse, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, but not beyond the moment when the caller leaves or says ``{"type": "close"}``. Raises what it raises.

    The socket is read from the beginning, also while the engine starts or files are fetched: pings are answered then, too.
    """
    reader = asyncio.create_task(_until_left(socket))
    worker = asyncio.create_task(work)
    try:
        await asyncio.wait({reader, worker}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in (reader, worker):
            one.cancel()
        await asyncio.wait({reader, worker})
    if not worker.cancelled():
        worker.result()


async def _run(
    state: AgentState,
    socket: web.WebSocketResponse,
    attending: AbstractAsyncContextManager[Listener],
    base64: bool,
) -> None:
    """Attend the task to its end: progress as it comes, then the result or the error."""
    async with attending as listener:
        await _progress(state, socket, listener.task, listener)
    kind, data = await last_message(state, listener.task, base64)
    await _send(socket, wire.message(kind, data, listener.task.record, None))


async def _progress(
    state: AgentState, socket: web.WebSocketResponse, task: Task, listener: Listener
) -> None:
    while not task.over:
        position = state.tasks.position(task.id)
        await _send(socket, wire.message("progress", task.record.nodes, task.record, position))
        while not await listener.wait(HEARTBEAT):
            pass
        preview = listener.take_preview()
        if preview is not None:
            data = {
                "node": preview.node_id,
                "image_type": preview.image_type,
                "image": b64.b64encode(preview.data).decode("ascii"),
            }
            await _send(socket, wire.message("preview", data, task.record, None))


async def _until_left(socket: web.WebSocketResponse) -> None:
    """Read until the caller closes."""
    async for message in socket:
        if _says_close(message):
            return


def _says_close(message: WSMessage) -> bool:
    if message.type is not WSMsgType.TEXT:
        return False
    with contextlib.suppress(ValueError, RecursionError):
        said = msgspec.json.decode(message.data)
        return isinstance(said, dict) and said.get("type") == "close"
    return False


async def _send(socket: web.WebSocketResponse, payload: bytes) -> None:
    """Send a text message; a reader that does not take it in time is cut off."""
    try:
        async with asyncio.timeout(SEND_TIMEOUT):
            await socket.send_frame(payload, WSMsgType.TEXT)
    except TimeoutError:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"too slow")
    except ConnectionError:
        pass  # the reader side notices and ends
