"""Outputs of agents that do not have the service's storage at hand: ``PUT {FILES_PATH}/{folder}/{name}``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import msgspec
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from easel.errors import (
    BadRequest,
    BodyTooLarge,
    EaselError,
    FileNotFound,
    LeaseLost,
    OutputFailed,
    Unauthorized,
)
from easel.fleet.credentials import bearer, identify
from easel.fleet.members import Members
from easel.link import messages
from easel.services.model import Service
from easel.services.store import ServiceStore
from easel.storage.outputs import OutputFiles

log = logging.getLogger(__name__)

LINGERING = 3.0
"""Seconds a refused file is thrown away as it comes."""
STALLED = 60.0
"""Seconds an agent may take for the next bytes of a file."""


class Uploads:
    """Takes files of tasks that their sender holds."""

    def __init__(
        self,
        members: Members,
        store: ServiceStore,
        outputs: Callable[[str], OutputFiles] | None,
        limit: int,
    ) -> None:
        self._members = members
        self._store = store
        self._outputs = outputs
        self._limit = limit

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        body = _Body(receive)
        try:
            await self._take(scope, body)
        except _Left:
            return
        except EaselError as error:
            # That the disk does not take it is not to be mistaken for a gateway that is away (502).
            status = 507 if isinstance(error, OutputFailed) else error.http_status
            await _refuse(body, send, status, error)
            return
        await JSONResponse({}, 201)(scope, receive, send)

    async def discard(self, service: str, folder: str) -> None:
        """Remove what an attempt sent before it failed."""
        if self._outputs is not None:
            await self._outputs(service).delete(folder)

    async def _take(self, scope: Scope, body: _Body) -> None:
        folder, _, name = scope["path"].removeprefix(messages.FILES_PATH + "/").partition("/")
        if scope["method"] != "PUT" or self._outputs is None:
            raise FileNotFound("files are stored here with PUT")
        headers = dict(scope["headers"])
        found = await identify(self._store, bearer(scope["headers"]))
        if found is None:
            raise Unauthorized("the token is wrong")
        uid, lease = folder.partition(".")[0], headers.get(messages.LEASE_HEADER.lower().encode())
        member = self._members.holder(uid)
        holding = member.holding(uid, (lease or b"").decode("latin-1")) if member else None
        if member is None or holding is None or holding.folder != folder:
            raise LeaseLost("the task is not held by this agent")
        own = member.service if isinstance(found, Service) else member.instance
        if own != (found.name if isinstance(found, Service) else found.id):
            raise LeaseLost("the task is not held by this agent")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limit:
            raise BodyTooLarge(f"the file is larger than {self._limit} bytes")
        files = self._outputs(member.service)
        await files.receive(folder, name, body, self._limit)


class _Left(Exception):
    """The sender is gone."""


class _Body:
    """A request's body as it comes."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._more:
            try:
                async with asyncio.timeout(STALLED):
                    message = await self._receive()
            except TimeoutError:
                raise BadRequest(f"nothing came for {STALLED:g} s") from None
            if message["type"] == "http.disconnect":
                raise _Left
            self._more = message.get("more_body", False)
            yield message.get("body", b"")

    async def throw_away(self) -> None:
        """Read what is left, for a moment: a connection that is reset at once takes its answer along."""
        with contextlib.suppress(TimeoutError, BadRequest, _Left):
            async with asyncio.timeout(LINGERING):
                async for _ in self:
                    pass


async def _refuse(body: _Body, send: Send, status: int, error: EaselError) -> None:
    said = msgspec.json.encode({"error": error.to_json()})
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": said, "more_body": True})
    await body.throw_away()
    await send({"type": "http.response.body", "body": b"", "more_body": False})
