"""The gateway's front: one raw ASGI application that sends each request to its door by the beginning of its path.

======================================  =====================================================
``/api/predict/{service}[/path]``       `predict`: the agent API's paths, else the instance
``/easel/link…``                        agents that dial in
``/healthz``, ``/readyz``, ``/metrics``  `health`
``/assets/favicon.ico``, ``/assets/images/…``  what ComfyUI's front end asks of the root
everything else                         the control API
======================================  =====================================================

A service with a port or host name of its own has all paths there. Routers cost more than the work of a proxied request, so
there is none on that way.
"""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from easel.errors import EaselError, Unauthorized
from easel.gateway import errors, health, webui
from easel.gateway.auth import check_admin
from easel.gateway.control.problems import problem
from easel.gateway.logs import AccessLog
from easel.gateway.predict import PREFIX, Call, Done, PredictDoor, Seen
from easel.gateway.request import Head
from easel.gateway.state import GatewayState

log = logging.getLogger(__name__)

LINK = "/easel/link"
CONTROL = "/easel/v1"
OPEN = frozenset({"/easel/v1/openapi.json"})
"""What of the control API needs no token."""


class Front:
    """The application."""

    def __init__(
        self,
        state: GatewayState,
        *,
        control: ASGIApp,
        agent_api: ASGIApp,
        link: ASGIApp,
        access: AccessLog | None = None,
    ) -> None:
        self.state = state
        self.ports: dict[int, str] = {}
        """Port of our own → the service that has it to itself."""
        self._predict = PredictDoor(state, agent_api)
        self._control = control
        self._link = link
        self._access = access or AccessLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            return
        begin = time.perf_counter()
        try:
            done = await self._serve(scope, receive, send)
        except Exception:
            log.exception("%s %s", scope.get("method", "WS"), scope["path"])
            done = await _failed(scope, receive, send)
        seconds = time.perf_counter() - begin
        self.state.metrics.request_ended(
            done.door, done.service, done.status, seconds, up=done.bytes_up, down=done.bytes_down
        )
        client = scope.get("client")
        self._access.request(
            door=done.door,
            method=scope.get("method", "WS"),
            path=scope["raw_path"],
            status=done.status,
            seconds=seconds,
            client=client[0] if client else "",
            service=done.service,
            instance=done.instance,
            bytes_up=done.bytes_up,
            bytes_down=done.bytes_down,
            reason=done.reason,
        )

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> Done:
        own = await self._own_address(scope)
        if own is not None:
            call = Call(Head(scope), receive, send, own, "", scope["raw_path"])
            return await self._predict.serve(call)
        if scope["raw_path"].startswith(PREFIX):
            return await self._predict.by_path(scope, receive, send)
        path: str = scope["path"]
        if path.startswith(LINK):
            return await _through(self._link, "link", scope, receive, send)
        if path in health.PATHS and scope["type"] == "http":
            return Done(await health.serve(self.state, Head(scope), send, path), "health")
        if path.startswith(webui.ROOT_FILES) and scope["type"] == "http":
            return Done(await webui.root_file(scope, receive, send), "webui")
        return await self._to_control(scope, receive, send, path)

    async def _own_address(self, scope: Scope) -> str | None:
        """Return the service that has this port or host name to itself."""
        if self.ports:
            server = scope.get("server")
            service = self.ports.get(server[1]) if server else None
            if service is not None:
                return service
        if self.state.directory.has_hosts:
            for name, value in scope["headers"]:
                if name == b"host":
                    host = value.decode("latin-1").lower()
                    entry = await self.state.directory.at_host(host.partition(":")[0])
                    return entry.name if entry is not None else None
        return None

    async def _to_control(self, scope: Scope, receive: Receive, send: Send, path: str) -> Done:
        """Nothing of the control API is even looked at without the admin token, no body read that is too large."""
        if scope["type"] == "websocket":
            head = Head(scope)
            return Done(await errors.answer(send, head, 404, b"", errors.TEXT), "control")
        if path.startswith(CONTROL) and path not in OPEN:
            head = Head(scope)
            limit = self.state.settings.max_body_bytes
            try:
                check_admin(head.authorization, self.state.admin_token)
                if (head.content_length or 0) > limit:
                    raise errors.too_large(limit)
            except EaselError as error:
                await problem(error)(scope, receive, send)
                reason = "no admin" if isinstance(error, Unauthorized) else ""
                return Done(error.http_status, "control", reason=reason)
            receive = _bounded(receive, limit)
        return await _through(self._control, "control", scope, receive, send)


async def _through(app: ASGIApp, door: str, scope: Scope, receive: Receive, send: Send) -> Done:
    seen = Seen(send)
    await app(scope, receive, seen)
    return Done(seen.status, door)


def _bounded(receive: Receive, limit: int) -> Receive:
    """Return a `receive` that gives at most so many bytes; raises BodyTooLarge."""
    got = 0

    async def bounded() -> Message:
        nonlocal got
        message = await receive()
        if message["type"] == "http.request":
            got += len(message.get("body", b""))
            if got > limit:
                raise errors.too_large(limit)
        return message

    return bounded


async def _failed(scope: Scope, receive: Receive, send: Send) -> Done:
    """Something nobody foresaw: it is logged, and says nothing of us."""
    head = Head(scope)
    error = EaselError("internal error; the gateway's log has more")
    try:
        return Done(await errors.refuse(send, head, error, []), "failed")
    except (RuntimeError, OSError):
        # The answer had begun: only a broken connection can say that this is not all.
        scope["easel.abort"]()
        return Done(500, "failed")
