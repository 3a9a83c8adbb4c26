"""The agent API as one ASGI application.

As ASGI has it, ``path`` is the whole path and ``root_path`` the part of it under which the caller reaches the service.
"""

from __future__ import annotations

from starlette.routing import Route, Router, WebSocketRoute
from starlette.types import Receive, Scope, Send

from easel import fc
from easel.errors import BadRequest
from easel.gateway.agent_api.door import Door
from easel.gateway.agent_api.reply import json_reply
from easel.gateway.agent_api.run import RunEndpoint
from easel.gateway.agent_api.socket import SocketEndpoint
from easel.gateway.agent_api.status import OutputEndpoint, StatusEndpoint

PATHS = ("/api/run", "/api/run/ws", "/api/status")
PREFIXES = ("/api/outputs/",)
"""The paths below a service that are this door's; everything else is the instance's own."""


def is_agent_api(path: str) -> bool:
    """Tell whether a path below a service belongs to the agent API."""
    return path in PATHS or path.startswith(PREFIXES)


def agent_api(door: Door) -> Router:
    """Return the application."""
    return Router(
        [
            Route("/api/run", RunEndpoint(door), methods=["POST"]),
            WebSocketRoute("/api/run/ws", SocketEndpoint(door)),
            Route("/api/status", StatusEndpoint(door), methods=["GET", "HEAD", "DELETE"]),
            Route("/api/outputs/{folder}/{name}", OutputEndpoint(door), methods=["GET", "HEAD"]),
        ],
        redirect_slashes=False,
        default=_no_such_way,
    )


async def _no_such_way(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse what has a path of ours but is not served: ``GET /api/run/ws`` without an upgrade, other methods."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    refused = BadRequest(f"{scope['method']} {scope['path']} is not served")
    word = "WebsocketUpgradeError" if scope["path"].endswith("/api/run/ws") else None
    await json_reply(fc.error_body(refused, word), 400 if word else 404)(scope, receive, send)
