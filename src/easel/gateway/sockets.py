"""WebSockets through the gateway: the instance's side first, then both directions until one side closes.

ComfyUI sends to its sockets one after the other: one that is not read holds up everybody's. So the instance is always read, at
once, and what a client has not taken yet is kept up to a limit; a client that falls behind that far is dropped (the front end
connects again by itself). In the other direction back-pressure does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import Any

import aiohttp
from aiohttp import WSCloseCode, WSMsgType
from starlette.types import Receive, Send

from easel.errors import NoHealthyUpstream
from easel.gateway import errors
from easel.gateway.proxy import ABORT, Target
from easel.gateway.request import Head
from easel.settings import GatewaySettings

log = logging.getLogger(__name__)

MAX_MESSAGE = 256 * 1024 * 1024
"""Largest message, as the agent link's and uvicorn's ``ws_max_size``."""
MAX_BEHIND = 32 * 1024 * 1024
"""Bytes a client may be behind; one message more is taken."""
STALLED = 30.0
"""Seconds a client may take for one message."""
CLOSING = 2.0
"""Seconds for a side to take a close."""


class SocketExchange:
    """One WebSocket on its way through."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        settings: GatewaySettings,
        head: Head,
        receive: Receive,
        send: Send,
    ) -> None:
        self._http = http
        self._settings = settings
        self._head = head
        self._receive = receive
        self._send = send
        self.bytes_up = 0
        self.bytes_down = 0
        self._behind: deque[tuple[str, Any]] = deque()
        self._behind_bytes = 0
        self._more = asyncio.Event()
        self._dropped = False

    async def pass_on(self, target: Target) -> int:
        """Connect to the instance, accept the client, and pass messages on until the end; returns the status for the log.

        Raises NoHealthyUpstream when the instance cannot be reached; a refusal of the instance's is passed on.
        """
        await self._receive()  # websocket.connect
        headers = self._head.upward(target.prefix, self._head.scope["scheme"])
        for name in [name for name in headers if name.startswith("sec-websocket-")]:
            headers.popall(name, None)
        try:
            async with asyncio.timeout(self._settings.answer_timeout):
                upstream = await self._http.ws_connect(
                    target.url(),
                    headers=headers,
                    protocols=self._head.scope.get("subprotocols", ()),
                    max_msg_size=MAX_MESSAGE,
                    autoclose=False,
                )
        except aiohttp.WSServerHandshakeError as refused:
            body = b'{"error":{"type":"refused","message":"the instance refused"},"node_errors":{}}'
            status = refused.status if 400 <= refused.status < 600 else 502
            return await errors.answer(self._send, self._head, status, body, errors.JSON)
        except TimeoutError as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise NoHealthyUpstream(errors.NO_HEALTHY_UPSTREAM) from error
            raise errors.no_answer(self._settings.answer_timeout) from error
        except aiohttp.ClientConnectorError as error:
            raise NoHealthyUpstream(errors.NO_HEALTHY_UPSTREAM) from error
        except (aiohttp.ClientError, OSError) as error:
            raise errors.broke_off() from error
        try:
            await self._send({"type": "websocket.accept", "subprotocol": upstream.protocol})
            await self._pump(upstream)
        except OSError:
            pass  # the client is gone
        finally:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with asyncio.timeout(CLOSING):
                    await upstream.close()
        return 101

    async def _pump(self, upstream: aiohttp.ClientWebSocketResponse) -> None:
        works = [
            asyncio.create_task(work)
            for work in (self._up(upstream), self._take(upstream), self._down())
        ]
        try:
            await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            if works[1].done() and not self._dropped:
                # The instance closed: what came before is for the client still.
                await asyncio.wait(works[::2], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for work in works:
                work.cancel()
            await asyncio.wait(works)
        for work in works:
            if not work.cancelled() and (error := work.exception()) is not None:
                raise error

    async def _up(self, upstream: aiohttp.ClientWebSocketResponse) -> None:
        """Client → instance, and the client's close."""
        while True:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                code = _code(message.get("code"), WSCloseCode.OK)
                reason = (message.get("reason") or "").encode()
                await _close(upstream, code, reason)
                return
            text = message.get("text")
            try:
                if text is not None:
                    self.bytes_up += len(text)
                    await upstream.send_str(text)
                else:
                    self.bytes_up += len(message["bytes"])
                    await upstream.send_bytes(message["bytes"])
            except (aiohttp.ClientError, ConnectionError):
                # It is closed on that side: `_take` has its code.
                continue

    async def _take(self, upstream: aiohttp.ClientWebSocketResponse) -> None:
        """Instance → what the client is to be sent, without ever waiting for the client."""
        while True:
            message = await upstream.receive()
            if message.type is WSMsgType.TEXT:
                self._keep("text", message.data)
            elif message.type is WSMsgType.BINARY:
                self._keep("bytes", message.data)
            elif message.type not in (WSMsgType.PING, WSMsgType.PONG):
                code = message.data if message.type is WSMsgType.CLOSE else upstream.close_code
                reason = message.extra if message.type is WSMsgType.CLOSE else ""
                self._keep("close", (_code(code, WSCloseCode.GOING_AWAY), reason or ""))
                return
            if self._dropped:
                return

    def _keep(self, kind: str, data: Any) -> None:
        size = len(data)
        if self._behind_bytes > MAX_BEHIND:
            self._drop(f"{self._behind_bytes} bytes behind")
            return
        self._behind.append((kind, data))
        self._behind_bytes += size
        self._more.set()

    async def _down(self) -> None:
        """What is kept → client."""
        while True:
            while not self._behind:
                self._more.clear()
                await self._more.wait()
            kind, data = self._behind[0]
            timer = asyncio.get_running_loop().call_later(STALLED, self._drop, "takes nothing")
            try:
                if kind == "close":
                    code, reason = data
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})
                    return
                await self._send({"type": "websocket.send", kind: data})
            finally:
                timer.cancel()
            self._behind.popleft()
            self._behind_bytes -= len(data)
            self.bytes_down += len(data)

    def _drop(self, why: str) -> None:
        """Break with a client that does not read; its front end connects again."""
        if not self._dropped:
            self._dropped = True
            log.warning("a client was dropped: it %s", why)
            self._head.scope[ABORT]()


def _code(code: int | None, otherwise: int) -> int:
    """A close code that may be sent: 1005, 1006 and 1015 stand for 'none' and 'broken'."""
    return otherwise if code is None or code in (1005, 1006, 1015) else code


async def _close(upstream: aiohttp.ClientWebSocketResponse, code: int, reason: bytes) -> None:
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSING):
            await upstream.close(code=code, message=reason)
