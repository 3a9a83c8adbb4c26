"""HTTP through the gateway: to an instance and back, streamed both ways, never held as a whole.

Back-pressure goes through: a slow client slows the instance down, a slow instance the client. Limits on time are kept by one
timer a request, which cancels the work and says why; it also begins to listen for a client that leaves, so that quick
requests do not pay for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final, Literal, NamedTuple, TypeAlias

import aiohttp
from starlette.types import Message, Receive, Send
from yarl import URL

from easel.errors import EaselError, NoHealthyUpstream, Unauthorized
from easel.gateway import errors, origins
from easel.gateway.links import COOKIE
from easel.gateway.request import HOP_BY_HOP, Head
from easel.gateway.signature import BodyCheck
from easel.settings import GatewaySettings

log = logging.getLogger(__name__)

WHOLE = 64 * 1024
"""Bytes of a request's body up to which it is sent on in one piece."""
FIRST_LOOK: Final = 0.05
"""Seconds after which a request is watched: most are over by then."""
READ_BUFFER = 256 * 1024
DROPPED: Final = HOP_BY_HOP | {b"date"}
"""Headers of an answer that are not passed on (the server writes its own Date)."""
WITHOUT_LENGTH: Final = frozenset({204, 304})
SET_COOKIE: Final = COOKIE.encode()

ABORT: Final = "easel.abort"
"""Where `protocol` puts into the ASGI scope how the connection is broken."""

Cut: TypeAlias = Literal["", "left", "keepalive", "answer", "idle"]


class Target(NamedTuple):
    """Where a request goes."""

    base: str
    """Base URL of the engine."""
    path: str
    """Path and query below the service, as the client wrote them."""
    prefix: str
    """Path under which the client reaches the service."""

    def url(self) -> URL:
        """Return the address."""
        return URL(self.base + self.path, encoded=True)


def session(settings: GatewaySettings) -> aiohttp.ClientSession:
    """Return the client that goes to the instances: no limit, no cookies of its own, nothing unpacked, no total time."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=30),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=settings.connect_timeout, sock_read=None
        ),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        read_bufsize=READ_BUFFER,
        max_line_size=64 * 1024,
        max_field_size=64 * 1024,
    )


class ClientLeft(Exception):
    """The client is gone; nobody waits for an answer."""


class Exchange:
    """One request on its way through."""

    __slots__ = (
        "_answered",
        "_body_done",
        "_body_wrong",
        "_check",
        "_cut",
        "_head",
        "_http",
        "_keepalive_ms",
        "_looked",
        "_loop",
        "_moved",
        "_receive",
        "_send",
        "_settings",
        "_started",
        "_task",
        "_timer",
        "_watcher",
        "bytes_down",
        "bytes_up",
        "extra",
    )

    def __init__(
        self,
        http: aiohttp.ClientSession,
        settings: GatewaySettings,
        head: Head,
        receive: Receive,
        send: Send,
        *,
        keepalive_ms: int,
        md5: str | None,
        extra: origins.Headers,
    ) -> None:
        self._http = http
        self._settings = settings
        self._head = head
        self._receive = receive
        self._send = send
        self._keepalive_ms = keepalive_ms
        self._check = BodyCheck(md5) if md5 is not None else None
        self._body_wrong = False
        self.extra = extra
        """Headers to add to the answer, instead of the instance's own of the same kind."""
        self.bytes_up = 0
        self.bytes_down = 0
        self._cut: Cut = ""
        self._answered = False
        self._body_done = not head.has_body
        self._looked = False
        self._watcher: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._started = self._moved = self._loop.time()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = self._loop.call_later(FIRST_LOOK, self._look)

    def done(self) -> None:
        """Stop watching."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    async def read(self, limit: int) -> bytes:
        """Read the whole body. Raises BodyTooLarge, RequestTimeout, Unauthorized, and ClientLeft."""
        try:
            return await self._read(limit)
        except asyncio.CancelledError:
            self._own_cancellation()
            if self._cut == "left":
                raise ClientLeft from None
            raise self._why() from None

    async def _read(self, limit: int) -> bytes:
        length = self._head.content_length
        if length is not None and length > limit:
            raise errors.too_large(limit)
        pieces = []
        async for piece in self._pieces():
            pieces.append(piece)
            if self.bytes_up > limit:
                raise errors.too_large(limit)
        return b"".join(pieces)

    async def pass_on(self, target: Target, body: bytes | None = None) -> int:
        """Send the request to the instance and its answer to the client; returns the status for the log.

        ``body`` is a body that was read already. Raises NoHealthyUpstream when the instance cannot be reached (another one may
        be tried), ClientLeft, and what `errors` answers.
        """
        scheme = self._head.scope["scheme"]
        headers = self._head.upward(target.prefix, scheme)
        try:
            data: bytes | AsyncIterator[bytes] | None = body
            if body is None and self._head.has_body:
                length = self._head.content_length
                small = length is not None and length <= WHOLE
                data = await self._read(WHOLE) if small else self._pieces()
            response = await self._http.request(
                self._head.method, target.url(), headers=headers, data=data, allow_redirects=False
            )
        except asyncio.CancelledError:
            self._own_cancellation()
            if self._cut == "left":
                raise ClientLeft from None
            raise self._why() from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            log.info("no connection to an instance: %s", error)
            raise NoHealthyUpstream(errors.NO_HEALTHY_UPSTREAM) from error
        except (aiohttp.ClientError, OSError) as error:
            if self._cut == "left":
                raise ClientLeft from None
            if self._body_wrong:
                raise Unauthorized("the body is not the one that was signed") from None
            log.info("an instance broke off: %s", error)
            raise errors.broke_off() from error
        try:
            return await self._answer(response, target)
        finally:
            response.close()

    async def _answer(self, response: aiohttp.ClientResponse, target: Target) -> int:
        """Pass an answer on. Once its head is out, a broken connection is the only way to say that this is not all."""
        status = response.status
        if not 200 <= status < 600:
            raise errors.broke_off()
        headers = self._downward(response, target)
        content = response.content
        send = self._send
        try:
            # What is there already goes out with the head: most answers are small.
            piece = await content.readany() if not content.at_eof() else b""
            self._answered = True
            self._moved = self._loop.time()
            await send({"type": "http.response.start", "status": status, "headers": headers})
            while not content.at_eof():
                self.bytes_down += len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                piece = await content.readany()
                self._moved = self._loop.time()
            self.bytes_down += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": False})
        except asyncio.CancelledError:
            self._own_cancellation()
            if self._cut == "left":
                raise ClientLeft from None
            if not self._answered:
                raise self._why() from None
            log.info("an answer was cut: nothing moved for %g s", self._settings.idle_timeout)
            await self._abort()
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            if not self._answered:
                raise errors.broke_off() from error
            log.warning("an answer ended early: %s", error)
            await self._abort()
        return status

    def _downward(self, response: aiohttp.ClientResponse, target: Target) -> origins.Headers:
        """Return the headers of an answer that go to the client."""
        status = response.status
        headers: origins.Headers = []
        named: frozenset[bytes] = frozenset()
        for name, value in response.raw_headers:
            lower = name.lower()
            if lower in DROPPED:
                if lower == b"connection" and value.lower() not in (b"keep-alive", b"close"):
                    named = frozenset(part.strip().lower() for part in value.split(b","))
                continue
            if lower == b"content-length":
                if status in WITHOUT_LENGTH:
                    continue
            elif lower == b"set-cookie":
                if value.lstrip().startswith(SET_COOKIE):
                    continue
            elif lower == b"location":
                value = _located(value, target)  # noqa: PLW2901 - the same header, as the client must see it
            headers.append((lower, value))
        if named:
            headers = [pair for pair in headers if pair[0] not in named]
        if self.extra:
            headers = [pair for pair in headers if not pair[0].startswith(b"access-control-")]
            headers += self.extra
        return headers

    async def _pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. What was signed is checked before its last byte goes on."""
        length = self._head.content_length
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._cut = "left"
                raise ClientLeft
            self._moved = self._loop.time()
            piece: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            self.bytes_up += len(piece)
            if self._check is not None:
                self._check.add(piece)
                if not more or self.bytes_up == length:
                    self._body_wrong = not self._check.matches()
                    if self._body_wrong:
                        raise Unauthorized("the body is not the one that was signed")
            if piece:
                yield piece
        self._body_done = True
        if self._looked:
            self._watch()

    # Time, and clients that leave.

    def _look(self) -> None:
        """See whether somebody takes too long, and when to look again."""
        now = self._loop.time()
        if not self._looked:
            self._looked = True
            if self._body_done:
                self._watch()
        idle = self._moved + self._settings.idle_timeout
        limits: list[tuple[float, Cut]] = []
        if self._answered or not self._body_done:
            limits.append((idle, "idle"))
        if not self._answered:
            limits.append((self._started + self._keepalive_ms / 1000, "keepalive"))
            if self._body_done:
                limits.append((self._moved + self._settings.answer_timeout, "answer"))
        at, cut = min(limits)
        if at <= now:
            self._cancel(cut)
        else:
            self._timer = self._loop.call_later(min(at - now, 1.0), self._look)

    def _watch(self) -> None:
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._until_left())

    async def _until_left(self) -> None:
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await self._receive()
        self._cancel("left")

    def _cancel(self, cut: Cut) -> None:
        if not self._cut:
            self._cut = cut
            self._task.cancel()

    def _own_cancellation(self) -> None:
        """Go on after a cancellation that was ours; let everybody else's through."""
        if not self._cut:
            raise  # noqa: PLE0704 - called while a cancellation is handled
        self._task.uncancel()

    def _why(self) -> EaselError:
        if self._cut == "answer":
            return errors.no_answer(self._settings.answer_timeout)
        if self._cut == "idle":
            return errors.too_slow(self._settings.idle_timeout)
        return errors.too_long(self._keepalive_ms)

    async def _abort(self) -> None:
        """Break the client's connection, and wait until that is known."""
        self._head.scope[ABORT]()
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _located(value: bytes, target: Target) -> bytes:
    """Return a redirect's address as the client reaches it."""
    base = target.base.encode()
    if value.startswith(base):
        value = value[len(base) :] or b"/"
    if value.startswith(b"/") and not value.startswith(b"//"):
        return target.prefix.encode("latin-1") + value
    return value
