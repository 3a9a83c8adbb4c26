"""Which browser pages may call the agent: its own, and the origins the operator names (CORS)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from yarl import URL

from easel.agent.state import STATE
from easel.agent.wire import json_answer

ALLOWED_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
EXPOSED_HEADERS = "task-id, task-status, task-progress, task-current-node, task-warnings"
PREFLIGHT_SECONDS = "600"

_CORS: web.RequestKey[dict[str, str]] = web.RequestKey("cors")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def own_origin(request: web.Request, origin: str) -> bool:
    """Tell whether an Origin header names the host the request was sent to."""
    try:
        url = URL(origin)
        return bool(url.host) and url.authority.lower() == _authority(request.host, url.scheme)
    except ValueError:
        return False


def _authority(host: str, scheme: str) -> str:
    return URL(f"{scheme}://{host}").authority.lower()


@web.middleware
async def check_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer preflights, refuse pages of other origins (also WebSockets), and mark answers for those that are allowed."""
    origin = request.headers.get("Origin")
    if origin is None:
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={"Allow": ALLOWED_METHODS})
        return await handler(request)
    if own_origin(request, origin):
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={"Allow": ALLOWED_METHODS})
        return await handler(request)
    allowed = request.app[STATE].settings.cors_origins
    if origin not in allowed and "*" not in allowed:
        return _refused(origin)
    headers = {
        "Access-Control-Allow-Origin": origin if origin in allowed else "*",
        "Vary": "Origin",
        "Access-Control-Expose-Headers": EXPOSED_HEADERS,
    }
    if request.method == "OPTIONS":
        headers["Access-Control-Allow-Methods"] = ALLOWED_METHODS
        headers["Access-Control-Max-Age"] = PREFLIGHT_SECONDS
        wanted = request.headers.get("Access-Control-Request-Headers")
        if wanted:
            headers["Access-Control-Allow-Headers"] = wanted
        return web.Response(status=204, headers=headers)
    request[_CORS] = headers
    return await handler(request)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Mark an answer for an allowed origin (a signal: streamed answers are marked before they begin)."""
    headers = request.get(_CORS)
    if headers:
        for name in list(response.headers):
            if name.lower().startswith("access-control-"):
                del response.headers[name]
        response.headers.update(headers)


def _refused(origin: str) -> web.Response:
    words = f"pages of {origin} may not call this agent"
    return json_answer(
        {
            "message": "RequestParamsError",
            "error": words,
            "code": "origin_refused",
            "hint": "the setting agent.cors_origins names other origins",
            "node_errors": {},
        },
        403,
    )
