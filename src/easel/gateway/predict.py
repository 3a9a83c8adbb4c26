"""The predict door: ``/api/predict/{service}[/path]``, and a service's own port or host at the root path (eas-and-fc.md C).

Judges who calls, keeps the service's limits, and either hands over to the agent API or passes on to an instance's engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from easel.errors import EaselError, NoHealthyUpstream, Unauthorized
from easel.gateway import auth, errors, origins, webui
from easel.gateway.agent_api.app import is_agent_api
from easel.gateway.agent_api.door import CALLER
from easel.gateway.auth import Caller, Denied
from easel.gateway.directory import Entry
from easel.gateway.links import PARAMETER, split_query
from easel.gateway.proxy import ClientLeft, Exchange, Target
from easel.gateway.request import Head
from easel.gateway.signature import BodyCheck
from easel.gateway.sockets import SocketExchange
from easel.gateway.state import GatewayState, Member
from easel.workflow.native import check_native_body

log = logging.getLogger(__name__)

PREFIX = b"/api/predict/"
PROMPT_PATHS = frozenset({"/prompt", "/api/prompt"})
LARGE = 32 * 1024
"""Bytes of a prompt from which on it is looked at in a thread."""


DOOR = "predict"


class PageRefused(EaselError):
    """Another origin's page asks."""

    code = "origin_refused"
    http_status = 403


class Done(NamedTuple):
    """How a request ended, for logs and metrics."""

    status: int
    door: str
    service: str = ""
    """Empty for a caller that was not let in: what it asked for is no name of ours."""
    instance: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    reason: str = ""


@dataclass(slots=True)
class Call:
    """One request to a service."""

    head: Head
    receive: Receive
    send: Send
    service: str
    prefix: str
    """Path under which the caller reaches the service, without a slash at its end."""
    rest: bytes
    """The path below it, as the caller wrote it."""
    extra: origins.Headers = field(default_factory=list)
    """Headers that every answer gets."""


class PredictDoor:
    """The door. ``agent_api`` serves the paths of `agent_api.app.is_agent_api`."""

    def __init__(self, state: GatewayState, agent_api: ASGIApp) -> None:
        self._state = state
        self._agent_api = agent_api

    async def by_path(self, scope: Scope, receive: Receive, send: Send) -> Done:
        """Serve a request whose raw path begins with `PREFIX`."""
        head = Head(scope)
        name, slash, rest = head.raw_path[len(PREFIX) :].partition(b"/")
        service = name.decode("ascii")
        if not slash and webui.is_navigation(head):
            # Pages name what they need beside themselves: they must be opened with a slash. Said before anything is looked up.
            return Done(await webui.add_slash(send, head, service), DOOR)
        prefix = f"/api/predict/{service}"
        return await self.serve(Call(head, receive, send, service, prefix, slash + rest or b"/"))

    async def serve(self, call: Call) -> Done:
        """Serve a request to a service."""
        head, send = call.head, call.send
        origin = head.origin
        if origin is not None:
            allowed = self._state.settings.cors_origins
            if head.method == "OPTIONS" and head.header("access-control-request-method"):
                return Done(await _preflight(call, origin, allowed), DOOR)
            call.extra = origins.allowed_headers(origin, allowed) or []
        query = webui.take_link(head)
        entry = await self._state.directory.find(call.service)
        try:
            caller = auth.authenticate(head, call.service, entry, self._state.links)
            if isinstance(caller, Denied) or entry is None:
                reason = caller.reason if isinstance(caller, Denied) else ""
                return Done(await errors.unauthorized(send, head, call.extra), DOOR, reason=reason)
            if caller.seconds_left is not None:
                secure = (self._state.scheme or head.scope["scheme"]) == "https"
                status = await webui.enter(send, head, caller, call.prefix, query, secure=secure)
                return Done(status, DOOR, entry.name)
            return await self._limited(call, entry, caller)
        except Unauthorized as error:
            status = await errors.unauthorized(send, head, call.extra)
            return Done(status, DOOR, reason=error.message)
        except EaselError as error:
            return Done(await errors.refuse(send, head, error, call.extra), DOOR, call.service)

    async def _limited(self, call: Call, entry: Entry, caller: Caller) -> Done:
        """Keep the service's limits. A page is not an application: what it loads is not counted, nor are WebSockets."""
        path = unquote(call.rest.decode("ascii"))
        if is_agent_api(path):
            if caller.browser:
                raise Unauthorized("a link does not open the agent API")
            serve = self._to_agent_api(call, entry, caller)
        elif call.head.scope["type"] == "websocket":
            return await self._to_socket(call, entry, caller)
        else:
            serve = self._to_instance(call, entry, caller, path)
        if caller.browser:
            return await serve
        wait = entry.limits.enter()
        if wait:
            serve.close()
            refused = errors.too_many_requests(entry.limits.rate)
            status = await errors.refuse(
                call.send, call.head, refused, call.extra, retry_after=wait
            )
            return Done(status, DOOR, entry.name)
        try:
            return await serve
        finally:
            entry.limits.leave()

    async def _to_instance(self, call: Call, entry: Entry, caller: Caller, path: str) -> Done:
        state, head = self._state, call.head
        exchange = Exchange(
            state.http,
            state.settings,
            head,
            call.receive,
            call.send,
            keepalive_ms=entry.spec.keepalive_ms,
            md5=caller.md5,
            extra=call.extra,
        )
        instance = ""
        try:
            body: bytes | None = None
            if head.method == "POST" and path in PROMPT_PATHS:
                # Some bodies end the engine's worker, for everybody.
                body = await exchange.read(state.settings.max_body_bytes)
                await _check_prompt(body)
            status = 0
            for member in self._members(entry, caller, head):
                instance = member.instance
                with contextlib.suppress(NoHealthyUpstream):
                    status = await exchange.pass_on(_target(call, member), body)
                if status or (exchange.bytes_up and body is None):
                    # Answered; or what was read of the body is gone.
                    break
            if not status:
                raise errors.no_healthy_upstream(entry.target)
        except ClientLeft:
            status = errors.CLIENT_LEFT
        finally:
            exchange.done()
        return Done(status, DOOR, entry.name, instance, exchange.bytes_up, exchange.bytes_down)

    async def _to_socket(self, call: Call, entry: Entry, caller: Caller) -> Done:
        state, head = self._state, call.head
        socket = SocketExchange(state.http, state.settings, head, call.receive, call.send)
        for member in self._members(entry, caller, head):
            try:
                status = await socket.pass_on(_target(call, member))
            except NoHealthyUpstream:
                continue
            up, down = socket.bytes_up, socket.bytes_down
            return Done(status, DOOR, entry.name, member.instance, up, down)
        raise errors.no_healthy_upstream(entry.target)

    async def _to_agent_api(self, call: Call, entry: Entry, caller: Caller) -> Done:
        seen = Seen(call.send, call.extra)
        receive = call.receive if caller.md5 is None else _checked(call.receive, caller.md5)
        scope = {**call.head.scope, "root_path": call.prefix, CALLER: caller}
        await self._agent_api(scope, receive, seen)
        return Done(seen.status, "agent_api", entry.name, bytes_down=seen.bytes)

    def _members(self, entry: Entry, caller: Caller, head: Head) -> Sequence[Member]:
        members = self._state.members.ready(entry.name)
        return members if len(members) < 2 else _in_turn(members, caller.owner or head.client)


def _target(call: Call, member: Member) -> Target:
    query = call.head.query
    if PARAMETER.encode() in query:
        # A proof of access is nothing for an engine, wherever it came to stand.
        query = split_query(query)[1].encode()
    line = call.rest + b"?" + query if query else call.rest
    return Target(member.upstream, line.decode("ascii"), call.prefix)


class Seen:
    """A `send` that notes what goes through it."""

    __slots__ = ("_extra", "_send", "bytes", "status")

    def __init__(self, send: Send, extra: origins.Headers | None = None) -> None:
        self._send = send
        self._extra = extra
        self.status = 0
        self.bytes = 0

    async def __call__(self, message: Message) -> None:
        """Pass a message on."""
        kind = message["type"]
        if kind == "http.response.body":
            self.bytes += len(message.get("body", b""))
        elif kind == "http.response.start":
            self.status = message["status"]
            if self._extra:
                message = {**message, "headers": [*message.get("headers", ()), *self._extra]}
        elif kind == "websocket.accept":
            self.status = 101
        elif kind == "websocket.http.response.start":
            self.status = message["status"]
        await self._send(message)


def _checked(receive: Receive, md5: str) -> Receive:
    """Return a `receive` whose body must be the one that was signed; raises Unauthorized otherwise."""
    check = BodyCheck(md5)

    async def checked() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            check.add(message.get("body", b""))
            if not message.get("more_body", False) and not check.matches():
                raise Unauthorized("the body is not the one that was signed")
        return message

    return checked


async def _check_prompt(body: bytes) -> None:
    """Raise BadRequest for a prompt that would break the engine."""
    if len(body) < LARGE:
        check_native_body(body)
    else:
        await asyncio.to_thread(check_native_body, body)


def _in_turn(members: Sequence[Member], key: str) -> list[Member]:
    """Order instances so that one caller always begins with the same one, as long as it is ready (rendezvous hashing).

    What a caller asked of an instance, such as a prompt in its history, only that instance knows.
    """

    def weight(member: Member) -> bytes:
        return hashlib.sha256(f"{member.instance} {key}".encode()).digest()

    return sorted(members, key=weight)


async def _preflight(call: Call, origin: str, allowed: Sequence[str]) -> int:
    """Answer a browser that asks whether a page may call; the same for every service, existing or not."""
    head = call.head
    asked = head.header("access-control-request-headers")
    headers = origins.preflight_headers(origin, asked.encode() if asked else None, allowed)
    if headers is None and not origins.is_own(origin, head.host):
        refused = PageRefused(
            f"pages of {origin} may not call this gateway",
            hint="the setting gateway.cors_origins names other origins",
        )
        return await errors.refuse(call.send, head, refused, [])
    return await errors.answer(call.send, head, 204, b"", errors.TEXT, headers or [])
