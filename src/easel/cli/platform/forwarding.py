"""`easel forward`: a service at a port of this machine, for programs that know no tokens.

ComfyUI's own clients and plug-ins expect ComfyUI at an address, usually 127.0.0.1:8188. What comes to the port goes to the
service with its token; nothing else is changed. Whoever reaches the port may use the service, so it is loopback's unless another
address is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Mapping

import aiohttp
from aiohttp import WSMsgType, web
from multidict import CIMultiDict
from yarl import URL

from easel.cli.platform.control import call, service_path
from easel.cli.platform.where import Where
from easel.listening import listen, local_url

HOP_BY_HOP = {
    "connection",
    "host",
    "keep-alive",
    "origin",
    "proxy-authenticate",
    "proxy-authorization",
    "referer",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
"""Headers between two neighbours (RFC 9110, 7.6.1), and those that name the address of the port."""
MAX_MESSAGE = 256 * 1024 * 1024

Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


class Forward:
    """One service behind one port."""

    def __init__(self, endpoint: str, token: str, http: aiohttp.ClientSession) -> None:
        self._endpoint = endpoint
        self._token = token
        self._http = http

    def _headers(self, headers: Mapping[str, str]) -> CIMultiDict[str]:
        kept: CIMultiDict[str] = CIMultiDict()
        for name, value in headers.items():
            if name.lower() not in HOP_BY_HOP and not name.lower().startswith("sec-websocket-"):
                kept.add(name, value)
        kept["Authorization"] = self._token
        return kept

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on."""
        target = URL(self._endpoint + request.raw_path, encoded=True)
        try:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._socket(request, target)
            return await self._request(request, target)
        except aiohttp.ClientError as error:
            return web.json_response(
                {"error": {"type": "gateway_unreachable", "message": str(error)}}, status=502
            )

    async def _request(self, request: web.Request, target: URL) -> web.StreamResponse:
        body = request.content if request.body_exists else None
        headers = self._headers(request.headers)
        async with self._http.request(
            request.method, target, headers=headers, data=body, allow_redirects=False
        ) as upstream:
            kept = {k: v for k, v in upstream.headers.items() if k.lower() not in HOP_BY_HOP}
            answer = web.StreamResponse(status=upstream.status, headers=kept)
            await answer.prepare(request)
            async for chunk in upstream.content.iter_any():
                await answer.write(chunk)
            await answer.write_eof()
            return answer

    async def _socket(self, request: web.Request, target: URL) -> web.StreamResponse:
        async with self._http.ws_connect(
            target, headers=self._headers(request.headers), max_msg_size=MAX_MESSAGE
        ) as upstream:
            caller = web.WebSocketResponse(max_msg_size=MAX_MESSAGE, compress=False)
            await caller.prepare(request)
            ways = {
                asyncio.create_task(_pump(upstream, caller)),
                asyncio.create_task(_pump(caller, upstream)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
            await caller.close()
            return caller


async def _pump(source: Socket, sink: Socket) -> None:
    with contextlib.suppress(ConnectionError, aiohttp.ClientError):
        async for message in source:
            if message.type is WSMsgType.TEXT:
                await sink.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await sink.send_bytes(message.data)


def forward(where: Where, name: str, *, host: str, port: int) -> int:
    """Serve the port until Ctrl-C. Raises ConfigurationError when it is taken."""
    found = call(where, "GET", service_path(name, "endpoint"))
    endpoint = f"{where.url}/api/predict/{name}"
    asyncio.run(_serve(endpoint, found["token"], host, port, name))
    return 0


async def _serve(endpoint: str, token: str, host: str, port: int, name: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(
        timeout=timeout,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=0),
    ) as http:
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{path:.*}", Forward(endpoint, token, http))
        runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=1)
        await runner.setup()
        try:
            bound = await listen(runner, host, port)
            print(f"{name} at {local_url(host, bound)} (Ctrl-C ends)", flush=True)
            await stop.wait()
        finally:
            await runner.cleanup()
    print("ended", file=sys.stderr)
