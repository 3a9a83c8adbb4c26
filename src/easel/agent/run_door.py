"""``POST /api/run``: run a prompt and wait (JSON or server-sent events), or be told later (``X-Fc-Invocation-Type: Async``)."""

from __future__ import annotations

import asyncio

from aiohttp import web

from easel.agent import wire
from easel.agent.state import STATE, AgentState
from easel.agent.task import Listener, Task
from easel.errors import BadRequest, BodyTooLarge, EaselError
from easel.workflow.parse import ParsedBody, parse_prompt

LARGE = 256 * 1024
"""Bytes of a body from which on it is parsed in a thread."""
BODY_TIMEOUT = 120.0
"""Seconds a caller may take to send the body."""
SEND_TIMEOUT = 60.0
"""Seconds a reader may take for one event."""
KEEPALIVE = 15.0
"""Seconds of silence after which a comment is sent on an event stream."""


async def expect(request: web.Request) -> web.StreamResponse | None:
    """Answer ``Expect: 100-continue``: a body that would be refused need not be sent."""
    if request.headers["Expect"].lower() != "100-continue":
        raise web.HTTPExpectationFailed
    limit = request.app[STATE].settings.max_body_bytes
    if request.content_length is not None and request.content_length > limit:
        answer = wire.error_answer(_too_large(limit))
        answer.force_close()
        return answer
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return None


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is larger than {limit} bytes",
        hint="the limit is the setting agent.max_body_bytes; large files can be given as URLs",
    )


async def read_body(request: web.Request, limit: int) -> bytes:
    """Read a request's body.

    Raises BodyTooLarge without reading on, BadRequest when it does not come in time.
    """
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise BadRequest(f"the body did not come within {BODY_TIMEOUT:g} s") from None
    return bytes(body)


async def parse(state: AgentState, body: bytes) -> ParsedBody:
    """Parse a body without holding up others. Raises NotJson and InvalidPrompt."""
    if len(body) < LARGE:
        return parse_prompt(body, max_nodes=state.settings.max_nodes)
    return await asyncio.to_thread(parse_prompt, body, max_nodes=state.settings.max_nodes)


async def run(request: web.Request) -> web.StreamResponse:
    """Serve the door."""
    state = request.app[STATE]
    task_id = wire.task_id_of(request)
    invocation = request.headers.get("X-Fc-Invocation-Type", "Sync").lower()
    if invocation not in ("sync", "async"):
        raise BadRequest("X-Fc-Invocation-Type must be Sync or Async")
    parsed = await parse(state, await read_body(request, state.settings.max_body_bytes))
    base64 = wire.flag(request, "output_base64") or parsed.options.output_base64
    if invocation == "async":
        task = await state.tasks.submit(task_id, parsed)
        return web.Response(status=202, headers=wire.task_headers(task.record))
    async with state.tasks.attend(task_id, parsed, base64=base64) as listener:
        if "text/event-stream" in request.headers.get("Accept", ""):
            return await _stream(request, state, listener, base64)
        await asyncio.shield(listener.task.finished)
    return await answer(state, listener.task, base64)


async def answer(state: AgentState, task: Task, base64: bool) -> web.Response:
    """Return the answer to a blocking run: the node map, or the error with its status."""
    record = task.record
    headers = wire.task_headers(record)
    if record.error is not None:
        return wire.error_answer(record.error, headers)
    try:
        nodes = await state.with_base64(record, task.contents) if base64 else record.nodes
    except EaselError as error:
        return wire.error_answer(error, headers)
    return wire.json_answer(nodes, headers=headers)


async def last_message(
    state: AgentState, task: Task, base64: bool
) -> tuple[str, dict[str, object] | object]:
    """Return type and data of the message that ends a stream."""
    record = task.record
    if record.error is not None:
        return "error", wire.error_body(record.error)
    try:
        if not base64:
            return "result", record.nodes
        return "result", await state.with_base64(record, task.contents)
    except EaselError as error:
        return "error", wire.error_body(error)


async def _stream(
    request: web.Request, state: AgentState, listener: Listener, base64: bool
) -> web.StreamResponse:
    """Answer with server-sent events: progress as it comes, then the result or the error."""
    response = web.StreamResponse(
        headers={
            **wire.task_headers(listener.task.record),
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
        }
    )
    await response.prepare(request)
    try:
        await _events(response, state, listener, base64)
    except ConnectionError:
        # Gone, or too slow: there is nobody left to tell.
        if request.transport is not None:
            request.transport.abort()
    return response


async def _events(
    response: web.StreamResponse, state: AgentState, listener: Listener, base64: bool
) -> None:
    """Write the events. Raises ConnectionError when the reader leaves or does not keep up."""
    task = listener.task
    while not task.over:
        position = state.tasks.position(task.id)
        progress = wire.message("progress", task.record.nodes, task.record, position)
        await _write(response, b"event: progress\ndata: " + progress + b"\n\n")
        while not await listener.wait(KEEPALIVE):
            await _write(response, b": waiting\n\n")
    kind, data = await last_message(state, task, base64)
    final = wire.message(kind, data, task.record, None)
    await _write(response, b"event: " + kind.encode() + b"\ndata: " + final + b"\n\n")
    await response.write_eof()


async def _write(response: web.StreamResponse, data: bytes) -> None:
    """Write to a reader. Raises ConnectionResetError for one that does not take it in time."""
    try:
        async with asyncio.timeout(SEND_TIMEOUT):
            await response.write(data)
    except TimeoutError:
        raise ConnectionResetError("the reader is too slow") from None
