"""The connection to the gateway: dialled, kept, dialled again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import WSMsgType

from easel import __version__
from easel.agent.background import Background
from easel.agent.joining.outbox import Outbox
from easel.agent.joining.tunnel import carry
from easel.agent.joining.work import Desk
from easel.agent.link import EngineLink
from easel.agent.tasks import Tasks
from easel.errors import EaselError
from easel.link import messages
from easel.link.messages import EngineReport, FromGateway, Hello

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between two attempts to reach the gateway."""
HEARTBEAT = 20.0
CLOSE_FOR_GOOD = {4401, 4403, 4409, 4426}


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """Which gateway an agent joins, and as what."""

    url: str
    token: str
    instance: str | None
    name: str
    storage: Path | None
    capacity: int
    engine_url: str | None
    device: str | None
    orphan_timeout: float | None


class LinkClient:
    """The agent's end of the link."""

    def __init__(self, joining: Joining, tasks: Tasks, link: EngineLink) -> None:
        self._joining = joining
        self._link = link
        self._outbox = Outbox()
        self._desk = Desk(tasks, self._outbox)
        self._boot = uuid.uuid4().hex
        self._renew = 5.0
        self._alone_since = time.monotonic()
        self._background = Background()
        self._stopping = False
        self._left = asyncio.Event()
        """Set when a drained agent has nothing left to do."""

    async def run(self, stop: Callable[[str], None]) -> None:
        """Stay connected until the gateway wants us no more; then call ``stop`` with the reason."""
        pause = 0.0
        headers = {"Authorization": f"Bearer {self._joining.token}"}
        async with aiohttp.ClientSession(headers=headers) as http:
            while True:
                connected = False
                try:
                    connected, code = await self._connection(http)
                    if code in CLOSE_FOR_GOOD:
                        stop(messages.CLOSES[code])
                        return
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    log.info("the gateway does not answer: %s", error)
                if self._stopping and self._desk.idle:
                    stop("the gateway wants it to stop")
                    return
                if connected:
                    self._alone_since, pause = time.monotonic(), 0.0
                if self._orphaned():
                    stop("its gateway did not come back")
                    return
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
                pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, pause * 2))

    def _orphaned(self) -> bool:
        limit = self._joining.orphan_timeout
        alone = time.monotonic() - self._alone_since
        return limit is not None and alone > limit and not self._desk.held

    async def _connection(self, http: aiohttp.ClientSession) -> tuple[bool, int | None]:
        """One connection, from its beginning to its end: whether it was welcome, and its close code."""
        url = self._joining.url.rstrip("/") + messages.PATH
        async with http.ws_connect(
            url,
            heartbeat=HEARTBEAT,
            max_msg_size=messages.MAX_MESSAGE,
            timeout=aiohttp.ClientWSTimeout(ws_close=2),
        ) as socket:
            await socket.send_str(messages.encode(self._hello()).decode())
            first = await socket.receive(timeout=30)
            if first.type is not WSMsgType.TEXT:
                return False, socket.close_code
            welcome = messages.from_gateway(first.data)
            if not isinstance(welcome, messages.Welcome):
                return False, None
            self._renew = welcome.renew_seconds
            self._outbox.reconnected()
            self._desk.reconnected()
            self._left = asyncio.Event()
            self._maybe_leave()
            parts = [
                asyncio.create_task(self._left.wait()),
                asyncio.create_task(self._read(http, socket)),
                asyncio.create_task(self._write(socket)),
                asyncio.create_task(self._renew_often()),
                asyncio.create_task(self._report()),
            ]
            self._desk.on_idle = self._maybe_leave
            try:
                done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                for part in done:
                    with contextlib.suppress(aiohttp.ClientError, OSError, EaselError):
                        part.result()
            finally:
                for part in parts:
                    part.cancel()
                await asyncio.gather(*parts, return_exceptions=True)
            return True, socket.close_code

    def _hello(self) -> Hello:
        joining = self._joining
        return Hello(
            instance=joining.instance,
            name=joining.name,
            boot=self._boot,
            easel=__version__,
            capacity=joining.capacity,
            engine=self._engine(),
            engine_url=joining.engine_url,
            shares_storage=joining.storage is not None,
            device=joining.device,
            held=self._desk.held,
        )

    def _engine(self) -> EngineReport:
        process = self._link.process
        error = process.last_error if process is not None else None
        return EngineReport(
            state=self._link.state,
            ready=self._link.ready,
            starts=process.starts if process is not None else None,
            error=error.to_json() if error is not None else None,
        )

    # The four things a connection does.

    async def _read(
        self, http: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse
    ) -> None:
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                said = messages.from_gateway(message.data)
                if said is not None:
                    self._take(http, said)

    async def _write(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            self._outbox.news.clear()
            for one in self._outbox.take():
                if isinstance(one, str):
                    await socket.send_str(one)
                else:
                    await socket.send_bytes(one)
            await self._outbox.news.wait()

    async def _renew_often(self) -> None:
        while True:
            self._outbox.say(messages.Renew(held=self._desk.held))
            await asyncio.sleep(self._renew)

    async def _report(self) -> None:
        """Say how the engine does whenever that changes."""
        last = self._engine()
        while True:
            await self._link.wait_changed()
            now = self._engine()
            if now != last:
                last = now
                self._outbox.say(messages.Report(engine=now))

    # What the gateway says.

    def _take(self, http: aiohttp.ClientSession, said: FromGateway) -> None:
        match said:
            case messages.Assign():
                self._desk.assign(said)
            case messages.Acknowledge():
                self._outbox.acknowledged(said.n)
                self._maybe_leave()
            case messages.Renewed():
                for uid in said.lost:
                    self._desk.lose(uid)
            case messages.Cancel():
                if work := self._desk.get(said.uid, said.lease):
                    self._desk.cancel(work)
            case messages.Recall():
                if work := self._desk.get(said.uid, said.lease):
                    self._desk.recall(work)
            case messages.Watch():
                if work := self._desk.get(said.uid):
                    work.previews = said.previews
            case messages.Drain():
                self._desk.drain()
                self._stopping = said.stop
                self._maybe_leave()
            case messages.Refresh():
                self._background.spawn(self._refresh(said))
            case messages.OpenTunnel():
                url = self._joining.url.rstrip("/") + f"{messages.TUNNEL_PATH}/{said.id}"
                self._background.spawn(carry(http, url, self._link.client.base_url))

    async def _refresh(self, said: messages.Refresh) -> None:
        if said.restart:
            await self._link.restart(said.reason or "was restarted on demand")
        else:
            self._link.forget_info()

    def _maybe_leave(self) -> None:
        if self._stopping and self._desk.idle:
            self._left.set()
