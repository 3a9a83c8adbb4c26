"""``POST /api/run``: run a prompt and wait (JSON or server-sent events), or be told later (``X-Fc-Invocation-Type: Async``).

A caller that leaves does not end its task: it is accepted, and the same id and body join it again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from easel import fc
from easel.errors import BadRequest, BodyTooLarge, EaselError
from easel.gateway.agent_api.answers import error_of, last_message, nodes_of, with_base64
from easel.gateway.agent_api.door import Door, caller_of, flag, prefix_of
from easel.gateway.agent_api.reply import error_reply, json_reply
from easel.gateway.agent_api.submission import Wishes
from easel.storage.outputs import OutputFiles
from easel.tasks.model import Task
from easel.tasks.watching import Watch

BODY_TIMEOUT = 120.0
"""Seconds a caller may take to send the body."""
SEND_TIMEOUT = 60.0
"""Seconds a reader may take for one event."""
KEEPALIVE = 15.0
"""Seconds of silence after which a comment is sent on an event stream, and a lost wake-up is made good."""


async def read_body(request: Request, limit: int) -> bytes:
    """Read a request's body.

    Raises BodyTooLarge without reading on, BadRequest when it does not come in time or its sender leaves.
    """
    too_large = BodyTooLarge(
        f"the body is larger than {limit} bytes",
        hint="the limit is the setting gateway.max_body_bytes; large files can be given as URLs",
    )
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise BadRequest("the body ended too early")
                body += message.get("body", b"")
                if len(body) > limit:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise BadRequest(f"the body did not come within {BODY_TIMEOUT:g} s") from None


class RunEndpoint:
    """The door, as an ASGI application."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        try:
            response = await self._run(request)
        except EaselError as error:
            response = error_reply(error)
        if response is not None:
            await response(scope, receive, send)

    async def _run(self, request: Request) -> Response | _EventStream | None:
        door, caller = self._door, caller_of(request)
        wishes = Wishes.of(request.headers, request.query_params)
        invocation = request.headers.get("X-Fc-Invocation-Type", "Sync").lower()
        if invocation not in ("sync", "async"):
            raise BadRequest("X-Fc-Invocation-Type must be Sync or Async")
        body = await read_body(request, door.settings.max_body_bytes)
        parsed = await door.submission.parse(body)
        base64 = flag(request.query_params, "output_base64") or parsed.options.output_base64
        task = await door.submission.submit(
            caller.service, caller.owner, wishes, parsed, door.most_waiting(caller.service)
        )
        if invocation == "async":
            return Response(status_code=202, headers=fc.task_headers(task))
        files = door.files(caller.service) if base64 else None
        prefix = prefix_of(request)
        if "text/event-stream" in request.headers.get("Accept", ""):
            return _EventStream(door, task, prefix, files)
        async with door.tasks.watch(task.uid) as watch:
            if not await _ended_before_caller_left(request, watch):
                return None
            return await answer(watch.task, prefix, files)


async def answer(task: Task, prefix: str, files: OutputFiles | None) -> Response:
    """Return the answer to a blocking run: the node map, or the error with its status."""
    headers = fc.task_headers(task)
    error = error_of(task)
    if error is not None:
        return error_reply(error, headers)
    nodes = nodes_of(task, prefix)
    try:
        found = await with_base64(task, nodes, files) if files is not None else nodes
    except EaselError as failed:
        return error_reply(failed, headers)
    return json_reply(found, headers=headers)


async def _ended_before_caller_left(request: Request, watch: Watch) -> bool:
    """Wait for the task's end; False when the caller left before. Raises StoreFailed."""
    left = asyncio.create_task(_left(request))
    try:
        while not watch.over:
            news = asyncio.create_task(watch.wait(KEEPALIVE))
            await asyncio.wait({news, left}, return_when=asyncio.FIRST_COMPLETED)
            if not news.done():
                news.cancel()
                await asyncio.wait({news})
                return False
            news.result()
        return True
    finally:
        left.cancel()
        await asyncio.wait({left})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream:
    """Server-sent events: progress as it comes, then the result or the error."""

    def __init__(self, door: Door, task: Task, prefix: str, files: OutputFiles | None) -> None:
        self._door = door
        self._task = task
        self._prefix = prefix
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {
            **fc.task_headers(self._task),
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
        }
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        left = asyncio.create_task(_left(Request(scope, receive)))
        events = asyncio.create_task(self._send_events(send, raw))
        try:
            await asyncio.wait({left, events}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (left, events):
                one.cancel()
            await asyncio.wait({left, events})
        if not events.cancelled():
            # Too slow, or gone: there is nobody left to tell; the connection is dropped, the task kept.
            with contextlib.suppress(OSError):
                events.result()

    async def _send_events(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for event in self._events():
            await _sent(send, {"type": "http.response.body", "body": event, "more_body": True})
        await _sent(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        async with self._door.tasks.watch(self._task.uid) as watch:
            while not watch.over:
                task = watch.task
                position = await self._door.position(task)
                nodes = nodes_of(task, self._prefix)
                yield _event("progress", fc.message("progress", nodes, task, position))
                while not await watch.wait(KEEPALIVE):
                    yield b": waiting\n\n"
            kind, data = await last_message(watch.task, self._prefix, self._files)
            yield _event(kind, fc.message(kind, data, watch.task, None))


def _event(kind: str, data: bytes) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


async def _sent(send: Send, message: Message) -> None:
    """Send; raises OSError when the reader is gone or does not keep up."""
    try:
        async with asyncio.timeout(SEND_TIMEOUT):
            await send(message)
    except TimeoutError:
        raise ConnectionResetError("the reader is too slow") from None
