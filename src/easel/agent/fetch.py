"""Fetching a URL that a caller gave: bounded in time and size, and never inside the operator's network."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from easel.agent.address import (
    AddressPolicy,
    CheckedResolver,
    ForbiddenAddress,
    check_url,
    forbidden,
)
from easel.errors import InputRejected
from easel.settings import InputSettings

Sink: TypeAlias = Callable[[bytes], Awaitable[None]]

_REDIRECTS = {301, 302, 303, 307, 308}
_CHUNK = 128 * 1024


class Fetcher:
    """An HTTP client for URLs from outside: no cookies, no proxies, no credentials, redirects followed by hand."""

    def __init__(self, settings: InputSettings, lookup: AbstractResolver | None = None) -> None:
        self._settings = settings
        self._policy = AddressPolicy(settings.allow_private)
        self._lookup = lookup
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the client. Safe to call twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def fetch(self, text: str, sink: Sink) -> URL:
        """Stream the content of a URL into ``sink`` and return the URL it came from in the end.

        Raises `InputRejected` when the URL or a redirect's target is forbidden, when there is no answer of status 200, and
        when the answer takes longer than ``fetch_timeout``, is larger than ``max_bytes``, empty, compressed or cut off.
        What the sink raises passes.
        """
        limit = self._settings.fetch_timeout
        try:
            async with asyncio.timeout(limit) as deadline:
                return await self._follow(text, sink)
        except TimeoutError:
            if deadline.expired():
                raise InputRejected(f"the URL was not fetched within {limit:g} s") from None
            raise InputRejected("the host did not answer in time") from None

    async def _follow(self, text: str, sink: Sink) -> URL:
        session = self._open_session()
        url = check_url(text, self._policy)
        for _ in range(self._settings.max_redirects + 1):
            try:
                response = await session.get(url, allow_redirects=False)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                if isinstance(error, TimeoutError):
                    raise
                raise _explain(url, error) from None
            try:
                if response.status not in _REDIRECTS:
                    await self._read(url, response, sink)
                    return url
                url = self._target(url, response)
            finally:
                response.close()
        raise InputRejected(f"the URL redirects more than {self._settings.max_redirects} times")

    def _target(self, url: URL, response: aiohttp.ClientResponse) -> URL:
        location = response.headers.get("Location") or response.headers.get("URI")
        if not location:
            raise InputRejected(f"the server answered {response.status} without a target")
        try:
            target = str(url.join(URL(location)))
        except ValueError:
            raise InputRejected("the server redirects to something that is no URL") from None
        try:
            return check_url(target, self._policy)
        except InputRejected as error:
            raise InputRejected(f"the URL redirects: {error.message}", hint=error.hint) from None

    async def _read(self, url: URL, response: aiohttp.ClientResponse, sink: Sink) -> None:
        largest = self._settings.max_bytes
        if response.status != 200:
            raise InputRejected(f"the server answered {response.status} instead of the file")
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in {"", "identity"}:
            raise InputRejected(f"the server compressed the file ({encoding[:20]!r}) unasked")
        if response.content_length is not None and response.content_length > largest:
            raise too_large(largest)
        size = 0
        chunks = response.content.iter_chunked(_CHUNK)
        while True:
            try:
                chunk = await anext(chunks, None)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                if isinstance(error, TimeoutError):
                    raise
                raise _explain(url, error) from None
            if chunk is None:
                break
            size += len(chunk)
            if size > largest:
                raise too_large(largest)
            await sink(chunk)
        if size == 0:
            raise InputRejected("the file at the URL is empty")

    def _connectable(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Make a socket for an address: the last gate, whatever way the address came."""
        family, kind, protocol, _, target = address
        if not self._policy.allows(str(target[0])):
            raise ForbiddenAddress(f"{target[0]} is not public")
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=CheckedResolver(self._policy, self._lookup),
                use_dns_cache=False,
                force_close=True,
                socket_factory=self._connectable,
                limit=0,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                requote_redirect_url=False,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._settings.connect_timeout
                ),
                headers={"Accept-Encoding": "identity", "Accept": "*/*", "User-Agent": "Easel"},
            )
        return self._session


def too_large(limit: int) -> InputRejected:
    """Return the error for a file over the size limit."""
    return InputRejected(
        f"the file is larger than {limit} bytes",
        hint="the limit is the setting agent.inputs.max_bytes",
    )


def _explain(url: URL, error: Exception) -> InputRejected:
    cause = getattr(error, "os_error", None) or error.__cause__ or error
    if isinstance(cause, ForbiddenAddress) or isinstance(error, ForbiddenAddress):
        return forbidden(url.host or "")
    host = f"{url.host}:{url.port}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return InputRejected(f"the host {url.host!r} is not known")
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return InputRejected(f"{host} has no valid TLS certificate, or speaks no TLS")
    if isinstance(error, aiohttp.ClientConnectorError):
        return InputRejected(f"{host} cannot be reached")
    if isinstance(error, aiohttp.ClientPayloadError):
        return InputRejected(f"{host} ended the file early")
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionError):
        return InputRejected(f"{host} closed the connection")
    return InputRejected(f"{host} does not answer as HTTP servers do")
