"""Everything that is not the agent's own goes through to ComfyUI: HTTP and WebSockets, streamed both ways."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import Mapping

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, web
from multidict import CIMultiDict
from yarl import URL

from easel.agent.run_door import read_body
from easel.agent.state import STATE, AgentState
from easel.agent.wire import json_answer
from easel.errors import BadRequest, EaselError, EngineUnavailable
from easel.workflow.native import check_native_body

log = logging.getLogger(__name__)

PROMPT_PATHS = ("/prompt", "/api/prompt")
HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
"""Headers between two neighbours (RFC 9110, 7.6.1); those that Connection names besides are left out, too."""
MAX_MESSAGE = 256 * 1024 * 1024
HEARTBEAT = 30.0


def session() -> aiohttp.ClientSession:
    """Return the client the proxy goes through: no limit, no cookies of its own, nothing unpacked, no total time-out."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None, connect=10, sock_read=None),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    )


async def proxy(request: web.Request) -> web.StreamResponse:
    """Pass a request on."""
    state = request.app[STATE]
    if not request.raw_path.startswith("/"):
        # "GET @elsewhere/" or "GET http://elsewhere/" must not choose the host.
        raise BadRequest("the request must name a path that begins with /")
    target = URL(state.link.client.base_url + request.raw_path, encoded=True)
    try:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await _socket(request, state, target)
        if request.method == "POST" and request.path in PROMPT_PATHS:
            return await _prompt(request, state, target)
        return await _http(request, state, target, request.content if request.body_exists else None)
    except (aiohttp.ClientConnectionError, TimeoutError) as error:
        return _unavailable(state, error)


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Copy the headers that go beyond the next hop."""
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    dropped = HOP_BY_HOP | named
    kept: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        if name.lower() not in dropped:
            kept.add(name, value)
    return kept


def _upward(request: web.Request) -> CIMultiDict[str]:
    """The request's headers as ComfyUI gets them: the origin was checked here, and ComfyUI compares it with its own host."""
    headers = _end_to_end(request.headers)
    if "Origin" in headers:
        headers.popall("Sec-Fetch-Site", None)
    # Without an Origin nothing was checked: a ComfyUI that refuses what other sites' pages embed goes on doing so.
    for name in ("Host", "Origin", "Referer"):
        headers.popall(name, None)
    return headers


async def _prompt(request: web.Request, state: AgentState, target: URL) -> web.StreamResponse:
    """Pass a prompt on once it is sure not to break the engine: some bodies end its worker, for everybody."""
    try:
        body = await read_body(request, state.settings.max_body_bytes)
        await asyncio.to_thread(check_native_body, body)
    except BadRequest as error:
        return _as_comfyui(error)
    return await _http(request, state, target, io.BytesIO(body))


async def _http(
    request: web.Request,
    state: AgentState,
    target: URL,
    body: aiohttp.StreamReader | io.BytesIO | None,
) -> web.StreamResponse:
    headers = _upward(request)
    headers.popall("Expect", None)
    async with state.proxy.request(
        request.method, target, headers=headers, data=body, allow_redirects=False
    ) as upstream:
        response = web.StreamResponse(
            status=upstream.status, reason=upstream.reason, headers=_end_to_end(upstream.headers)
        )
        await response.prepare(request)
        try:
            async for chunk in upstream.content.iter_any():
                await response.write(chunk)
        except (aiohttp.ClientError, TimeoutError) as error:
            # The status is out: a broken connection is the only way left to say that this is not all.
            log.warning("%s %s ended early: %s", request.method, request.path, error)
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response


async def _socket(request: web.Request, state: AgentState, target: URL) -> web.StreamResponse:
    """Connect to ComfyUI first: only then is the caller's socket accepted."""
    headers = _upward(request)
    for name in list(headers):
        if name.lower().startswith("sec-websocket-"):
            headers.popall(name, None)
    wanted = request.headers.get("Sec-WebSocket-Protocol", "")
    protocols = [name.strip() for name in wanted.split(",") if name.strip()]
    try:
        upstream = await state.proxy.ws_connect(
            target,
            headers=headers,
            protocols=protocols,
            max_msg_size=MAX_MESSAGE,
            autoclose=False,
        )
    except aiohttp.WSServerHandshakeError as refused:
        return json_answer(
            {"error": {"type": "refused", "message": refused.message}, "node_errors": {}},
            refused.status,
        )
    async with upstream:
        chosen = [upstream.protocol] if upstream.protocol else []
        caller = web.WebSocketResponse(
            protocols=chosen,
            max_msg_size=MAX_MESSAGE,
            heartbeat=HEARTBEAT,
            compress=False,
            autoclose=False,
        )
        await caller.prepare(request)
        down = asyncio.create_task(_pump(upstream, caller))
        up = asyncio.create_task(_pump(caller, upstream))
        try:
            await asyncio.wait({down, up}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for work in (down, up):
                work.cancel()
            await asyncio.wait({down, up})
        # What one side did not say any more, it says now; both know the code it gave.
        code = _code(
            upstream.close_code if down.done() and not down.cancelled() else caller.close_code
        )
        await _close(upstream, code)
        await _close(caller, code)
        return caller


async def _pump(
    source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    sink: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
) -> None:
    """Pass messages on until the source closes, and the close with its code."""
    with contextlib.suppress(ConnectionError, aiohttp.ClientError):
        while True:
            message = await source.receive()
            if message.type is WSMsgType.TEXT:
                await sink.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await sink.send_bytes(message.data)
            elif message.type not in (WSMsgType.PING, WSMsgType.PONG):
                if message.type is WSMsgType.CLOSE:
                    await _close(sink, _code(message.data))
                return


def _code(code: int | None) -> int:
    """A close code that may be sent: 1005 and 1006 stand for 'none' and 'broken'."""
    if code is None or code in (1005, 1006, 1015):
        return WSCloseCode.GOING_AWAY
    return code


async def _close(
    socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse, code: int
) -> None:
    if not socket.closed:
        with contextlib.suppress(ConnectionError, aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(2):
                await socket.close(code=code)


def _unavailable(state: AgentState, cause: BaseException) -> web.Response:
    """The engine is not there: an answer that ComfyUI's front end can read, and people, too."""
    error = EngineUnavailable(
        f"the engine is not there ({state.link.state})",
        hint="it is started again by itself; try again in a moment"
        if state.link.process is not None
        else "is ComfyUI running, and is its address right?",
    )
    log.info("proxy: %s", cause)
    return _as_comfyui(error)


def _as_comfyui(error: EaselError) -> web.Response:
    """Return an error in the shape that ComfyUI's clients read, with our own words beside it."""
    shape = {
        "type": error.code,
        "message": error.message,
        "details": error.hint or "",
        "extra_info": {},
    }
    body = {**error.to_json(), "error": shape, "node_errors": {}}
    return json_answer(body, error.http_status)
