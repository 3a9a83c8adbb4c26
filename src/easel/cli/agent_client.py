"""One agent, or one service of a platform, as `easel run` talks to it: both speak the agent API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from easel.cli.report import UsageError
from easel.cli.wire import Update, error_of
from easel.errors import EaselError, EngineProtocolError, EngineUnavailable
from easel.workflow.types import ObjectInfo

ENGINE_START = 900.0
"""Longest wait, in seconds, for an agent whose engine is still starting."""

_RECONNECTS = 3


def agent_url(text: str) -> URL:
    """Return an agent's URL; ``host:port`` is enough. Raises UsageError."""
    try:
        url = URL(text if "://" in text else f"http://{text}")
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(
            f"{text!r} is not an agent's URL", hint="write it as http://127.0.0.1:9000"
        )
    return url.with_query(None).with_fragment(None) / ""


class AgentClient:
    """Calls of one agent. Raises EaselErrors: the agent's own, or EngineUnavailable when it does not answer."""

    def __init__(self, url: URL, http: aiohttp.ClientSession) -> None:
        self.url = url
        self._http = http

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, url: URL, token: str | None = None) -> AsyncIterator[AgentClient]:
        """Talk to the agent until the block ends. ``token`` is a service's, where the URL is a service's endpoint."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
        headers = {"Authorization": token} if token is not None else {}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as http:
            yield cls(url, http)

    async def object_info(self, waiting: Callable[[str], None]) -> ObjectInfo:
        """Return the engine's node classes; waits, saying so once, while the engine starts."""
        deadline = time.monotonic() + ENGINE_START
        while True:
            try:
                found: ObjectInfo = await self._json("GET", "object_info")
            except EaselError as error:
                # Refused connections end here at once; only an agent that answers is waited for.
                if (
                    not isinstance(error, EngineUnavailable)
                    or isinstance(error.__cause__, aiohttp.ClientError)
                    or time.monotonic() > deadline
                ):
                    raise
                waiting("the engine is starting")
                await asyncio.sleep(0.5)
            else:
                return found

    async def upload(self, name: str, data: bytes, subfolder: str) -> str:
        """Put a file into the engine's input folder and return the name for a loader's input."""
        form = aiohttp.FormData()
        form.add_field("image", data, filename=name)
        form.add_field("subfolder", subfolder)
        form.add_field("overwrite", "true")
        found = await self._json("POST", "upload/image", data=form)
        return "/".join(part for part in (found.get("subfolder"), found["name"]) if part)

    async def run(self, body: dict[str, Any], task_id: str) -> AsyncIterator[Update]:
        """Run a task and yield the agent's messages; the last is a result or an error.

        A lost connection is made again: the same id and body join the running task.
        """
        text = json.dumps(body)
        attempt = 0
        while True:
            attempt += 1
            try:
                async with self._http.ws_connect(
                    self.url / "api/run/ws",
                    headers={"task-id": task_id},
                    heartbeat=30,
                    max_msg_size=0,
                ) as socket:
                    await socket.send_str(text)
                    async for update in _updates(socket):
                        yield update
                        if update.type in ("result", "error"):
                            return
            except aiohttp.WSServerHandshakeError as error:
                raise _handshake_failed(error, self.url) from error
            except aiohttp.ClientConnectorError as error:
                raise self._unreachable(error) from error
            except aiohttp.ClientError as error:
                if attempt >= _RECONNECTS:
                    raise self._unreachable(error) from error
            if attempt >= _RECONNECTS:
                raise EngineUnavailable(
                    f"the agent at {self.url} closed the connection before the task ended",
                    hint=f"look at the agent's log; {self.url}api/status?id={task_id} "
                    "says what became of the task",
                )
            await asyncio.sleep(0.2 * attempt)

    async def status(self, task_id: str) -> dict[str, Any]:
        """Return everything the agent knows of a task."""
        found = await self._json("GET", "api/status", params={"id": task_id, "detail": "true"})
        return found if isinstance(found, dict) else {}

    async def cancel(self, task_id: str) -> None:
        """Cancel a task that waits or runs."""
        await self._json("DELETE", "api/status", params={"id": task_id})

    @contextlib.asynccontextmanager
    async def download(self, url: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open an output by the URL the agent gave."""
        target = self.url.join(URL(url))
        try:
            async with self._http.get(target) as response:
                if response.status != 200:
                    raise error_of(await _body(response), response.status)
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from error

    async def _json(self, method: str, path: str, **request: Any) -> Any:
        try:
            async with self._http.request(method, self.url / path, **request) as response:
                found = await _body(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from error
        if response.status >= 400:
            raise error_of(found, response.status)
        if not isinstance(found, dict) and response.status != 204:
            raise _no_agent(self.url, f"{method} /{path} answered something else than JSON")
        return found

    def _unreachable(self, error: Exception) -> EngineUnavailable:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return EngineUnavailable(
            f"no agent answers at {self.url}: {reason}",
            hint="start one with `easel agent --engine builtin`, or name another with --url",
        )


async def _body(response: aiohttp.ClientResponse) -> Any:
    data = await response.read()
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


async def _updates(socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[Update]:
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT:
            try:
                yield msgspec.json.decode(message.data, type=Update)
            except msgspec.DecodeError as error:
                raise EngineProtocolError(f"the agent sent an odd message: {error}") from error


def _handshake_failed(error: aiohttp.WSServerHandshakeError, url: URL) -> EaselError:
    if error.status in (404, 405, 200):
        return _no_agent(url, f"/api/run/ws answered {error.status}")
    return error_of(None, error.status)


def _no_agent(url: URL, reason: str) -> EngineProtocolError:
    return EngineProtocolError(
        f"what answers at {url} is not an Easel agent: {reason}",
        hint=f"put an agent in front of a ComfyUI with `easel agent --comfyui {url}`, then use the agent's URL",
    )
