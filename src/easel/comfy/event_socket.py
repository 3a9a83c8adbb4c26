"""The one socket to an engine: opened, greeted, read all the time, opened again when lost.

A prompt's messages go to the socket that holds the client id the prompt was posted with, and nowhere else. ComfyUI keeps
one socket per id, and when an *earlier* socket of that id ends late its clean-up removes the later one's entry: that one
stays open and hears nothing any more, not even ``status``. Hence:

- Every socket has a fresh id, unless prompts are in flight when one is lost: only the same id hears the rest of them.
- Such a socket is in doubt, because the engine may notice the end of the old one later than the start of the new one.
  While in doubt and silent it is closed properly (the engine then has nothing left to clean up) and opened again, with
  growing pauses, and as soon as no prompt is in flight it is given up for one with a fresh id.
- Progress is all that can be missed. The end of a prompt is read from the history (`ending`), whatever the socket does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable

import aiohttp

from easel.comfy.client import ComfyClient
from easel.comfy.events import Event, Status, parse_binary, parse_text
from easel.errors import EngineError, EngineProtocolError, EngineSilent, EngineUnavailable

log = logging.getLogger(__name__)

FEATURE_FLAGS = '{"type": "feature_flags", "data": {"supports_preview_metadata": true}}'
"""Our first message: previews come with their node and prompt (frame 4 in place of 1)."""
MAX_MESSAGE = 256 * 1024 * 1024
GREETING_TIMEOUT = 10.0
CLOSE_TIMEOUT = 2.0
PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Pauses between attempts to open the socket."""
HEARTBEAT = 30.0
"""Seconds between pings; an engine busy with Python may be slow to answer one."""


class EventSocket:
    """A socket to the engine that stays open: `on_event` gets every message, parsed once, in order."""

    def __init__(
        self,
        client: ComfyClient,
        *,
        on_event: Callable[[Event], None],
        on_open: Callable[[], None],
        in_flight: Callable[[], bool],
    ) -> None:
        self._client = client
        self._on_event = on_event
        self._on_open = on_open
        self._in_flight = in_flight
        self._keeper: asyncio.Task[None] | None = None
        self._open: asyncio.Future[None] | None = None
        self._socket: aiohttp.ClientWebSocketResponse[bool] | None = None
        self._lost = False
        self.client_id = uuid.uuid4().hex
        self.doubtful = False
        """Whether an earlier socket of the same id may still take this one's entry away."""
        self.error: EngineError | None = None
        """Why it is not open."""

    @property
    def connected(self) -> bool:
        """Whether the engine has greeted us and the socket has not been lost since."""
        return self._socket is not None

    def start(self) -> None:
        """Begin to keep the socket open. Harmless when begun."""
        if self._keeper is None:
            self._open = asyncio.get_running_loop().create_future()
            self._keeper = asyncio.create_task(self._keep(), name="easel engine socket")

    async def wait_connected(self, timeout: float) -> None:
        """Wait until the socket is open. Raises the last error, or EngineSilent, when the time is over."""
        if self.connected:
            return
        if self._open is None:
            raise EngineUnavailable("the connection to the engine is closed")
        try:
            async with asyncio.timeout(timeout):
                while not self.connected:
                    await asyncio.shield(self._open)
        except TimeoutError:
            raise self.error or EngineSilent(
                f"the engine did not greet a new socket within {timeout:g} s"
            ) from None

    async def reopen(self) -> None:
        """Close the socket properly; it is opened again at once."""
        if self._socket is not None:
            await _shut(self._socket)

    async def close(self) -> None:
        """Close the socket for good (until the next `start`)."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        if self._open is not None and not self._open.done():
            self._open.set_exception(EngineUnavailable("the connection to the engine was closed"))
            self._open.exception()  # nobody may be waiting
        self._open = None

    async def _keep(self) -> None:
        """Open, read until lost, and again."""
        pause = 0.0
        while True:
            try:
                await self._session()
                pause = 0.0
            except EngineError as error:
                self.error = error
                pause = min(max(2 * pause, PAUSE), LONGEST_PAUSE)
            except Exception:  # a fault of ours must not leave the engine unread for ever
                log.exception("reading the engine's socket failed")
                pause = LONGEST_PAUSE
            await asyncio.sleep(pause)

    async def _session(self) -> None:
        """One socket, from its opening to its loss. Raises EngineError when it cannot be opened."""
        self.doubtful = self._lost and self._in_flight()
        if not self.doubtful:
            self.client_id = uuid.uuid4().hex
        socket = await self._connect()
        try:
            await self._greeted(socket)
            self._socket, self._lost, self.error = socket, False, None
            assert self._open is not None
            if not self._open.done():
                self._open.set_result(None)
            self._on_open()
            await self._read(socket)
        finally:
            if self._socket is not None:
                self._socket, self._lost = None, True
                self._open = asyncio.get_running_loop().create_future()
            await _shut(socket)

    async def _connect(self) -> aiohttp.ClientWebSocketResponse[bool]:
        url = self._client.url(f"/ws?clientId={self.client_id}")
        try:
            async with asyncio.timeout(self._client.timeout):
                return await self._client.session.ws_connect(
                    url,
                    headers=self._client.headers,
                    max_msg_size=MAX_MESSAGE,
                    heartbeat=HEARTBEAT,
                    decode_text=False,
                )
        except aiohttp.WSServerHandshakeError as error:
            raise EngineProtocolError(
                f"the engine refuses a WebSocket at /ws: {error.status} {error.message}"
            ) from error
        except TimeoutError as error:
            raise EngineSilent("the engine did not open a WebSocket in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineUnavailable(
                f"the engine cannot be reached at {self._client.base_url}: {error}",
                hint="is ComfyUI running, and is its address right?",
            ) from error

    async def _greeted(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        """Announce what we understand and wait for the first ``status``, which carries our id."""
        try:
            async with asyncio.timeout(GREETING_TIMEOUT):
                await socket.send_str(FEATURE_FLAGS)
                while True:
                    event = await _next(socket)
                    if event is None:
                        raise EngineUnavailable("the engine closed a new socket")
                    if isinstance(event, Status):
                        self.client_id = event.sid or self.client_id
                    self._on_event(event)
                    if isinstance(event, Status):
                        return
        except TimeoutError:
            raise EngineSilent("the engine opened a socket and did not greet it") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise EngineUnavailable(f"the engine closed a new socket: {error}") from error

    async def _read(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        """Read without a pause: an engine that cannot get rid of a message delays all its clients."""
        while (event := await _next(socket)) is not None:
            self._on_event(event)


async def _next(socket: aiohttp.ClientWebSocketResponse[bool]) -> Event | None:
    """Receive and parse a message; None when the socket has ended."""
    message = await socket.receive()
    kind = message.type
    if kind is aiohttp.WSMsgType.TEXT:
        return parse_text(message.data)
    if kind is aiohttp.WSMsgType.BINARY:
        return parse_binary(message.data)
    return None


async def _shut(socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
    """Close with the closing handshake, so that the engine forgets the socket now, or by force if it takes too long."""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, ConnectionError):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await socket.close()
