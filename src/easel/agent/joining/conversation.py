"""One connection to the gateway, from its welcome to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
from aiohttp import WSMsgType

from easel.agent.joining.outbox import Outbox
from easel.errors import BadRequest
from easel.link import messages
from easel.link.messages import FromGateway, Held, Renew, Renewed

log = logging.getLogger(__name__)


class Conversation:
    """Reads, writes, and renews the leases of what is held.

    ``obey`` gets what the gateway says, and ``lost`` each lease that is lost; both return at once. ``reports``
    runs as long as the connection does.
    """

    def __init__(
        self,
        socket: aiohttp.ClientWebSocketResponse[bool],
        outbox: Outbox,
        *,
        renew_seconds: float,
        held: Callable[[], list[Held]],
        lost: Callable[[Held], None],
        obey: Callable[[FromGateway], None],
        reports: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._socket = socket
        self._outbox = outbox
        self._renew_seconds = renew_seconds
        self._held = held
        self._lost = lost
        self._obey = obey
        self._reports = reports
        self.reason = ""
        """What the gateway said when it closed."""

    async def run(self, leave: asyncio.Event) -> None:
        """Converse until the connection ends, or ``leave`` is set and everything was said."""
        parts = [
            asyncio.create_task(self._read()),
            asyncio.create_task(self._write()),
            asyncio.create_task(self._renew()),
            asyncio.create_task(self._reports()),
            asyncio.create_task(_set(leave)),
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message.type is WSMsgType.TEXT:
                self._take(message.data)
            elif message.type is not WSMsgType.BINARY:
                if message.type is WSMsgType.CLOSE:
                    self.reason = str(message.extra or "")
                return

    def _take(self, data: str | bytes) -> None:
        try:
            said = messages.from_gateway(data)
        except BadRequest as error:
            log.error("the gateway said what is not understood: %s", error)
            return
        if isinstance(said, Renewed):
            for held in said.lost:
                self._lost(held)
        elif said is not None:
            try:
                self._obey(said)
            except Exception:  # a fault of ours does not end the connection
                log.exception("obeying %s failed", type(said).__name__)

    async def _write(self) -> None:
        while True:
            for frame in self._outbox.take():
                kind = WSMsgType.BINARY if frame.binary else WSMsgType.TEXT
                await self._socket.send_frame(frame.data, kind)
            await self._outbox.news.wait()

    async def _renew(self) -> None:
        while True:
            self._outbox.say(Renew(held=self._held()))
            await asyncio.sleep(self._renew_seconds)


async def _set(event: asyncio.Event) -> None:
    await event.wait()
