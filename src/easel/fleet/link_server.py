"""The gateway's end of the agent link (`easel.link.messages`), as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from easel.errors import EaselError, InstanceNotFound, LeaseLost, StoreFailed
from easel.fleet.checkup import Checkups
from easel.fleet.conversation import Conversations, lease_of
from easel.fleet.credentials import bearer, identify
from easel.fleet.members import DRAINING, Holding, Member, Members
from easel.fleet.tunnel import Tunnels
from easel.fleet.uploads import Uploads
from easel.link import messages
from easel.link.messages import Hello
from easel.services.model import Instance, Service, ServiceSpec
from easel.services.status import CHECK_FAILED, ENGINE_FAILED, LINK_LOST
from easel.services.store import ServiceStore
from easel.storage.outputs import OutputFiles
from easel.tasks.tasks import Tasks, now_ms

log = logging.getLogger(__name__)

HELLO_TIMEOUT = 10.0
"""Seconds an agent has for its first message."""
STRANGERS = 1024
"""Bytes of a message that is read from whoever has no token, while the connection is closed."""
LAST_WORDS = 5.0
"""Seconds a closing connection has for what is still to be sent."""
MOST_JOINED = 256
"""Instances of a service that came by themselves."""
MAX_OUTPUT_BYTES = 2 * 1024**3
_GONE = (RuntimeError, OSError, WebSocketDisconnect)


class Refused(Exception):
    """The connection is closed with a code, of `messages.CLOSES` where the agent is to mind it."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class AgentLink:
    """Takes agents in. ``outputs``: a service's stored outputs, for agents that upload theirs."""

    def __init__(
        self,
        members: Members,
        tasks: Tasks,
        store: ServiceStore,
        *,
        publish: Callable[[str], None],
        outputs: Callable[[str], OutputFiles] | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        checkups: Checkups | None = None,
        clock: Callable[[], int] = now_ms,
        hello_timeout: float = HELLO_TIMEOUT,
    ) -> None:
        self._members = members
        self._tasks = tasks
        self._store = store
        self._publish = publish
        self._clock = clock
        self._hello_timeout = hello_timeout
        self._noting = asyncio.Lock()
        self._checkups = checkups
        self._tunnels = Tunnels()
        self._uploads = Uploads(members, store, outputs, max_output_bytes)
        self._conversations = Conversations(
            members,
            tasks,
            publish=publish,
            note=self._note,
            discard=self._uploads.discard,
            clock=clock,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection or upload."""
        path: str = scope["path"]
        if scope["type"] == "http":
            if path.startswith(messages.FILES_PATH + "/"):
                await self._uploads.serve(scope, receive, send)
                return
            here = path == messages.PATH
            said = "agents dial this with a WebSocket" if here else "not found"
            await PlainTextResponse(said, 426 if here else 404)(scope, receive, send)
            return
        socket = WebSocket(scope, receive, send)
        if path.startswith(messages.TUNNEL_PATH + "/"):
            await self._tunnels.serve(socket, path.rpartition("/")[2])
        elif path == messages.PATH:
            await self._serve(socket)
        else:
            await socket.close()

    async def _serve(self, socket: WebSocket) -> None:
        code, reason = 1001, ""
        try:
            member, instance, spec = await self._welcome(socket)
        except Refused as refused:
            code, reason = refused.code, str(refused)
        except WebSocketDisconnect:
            return
        except EaselError as error:
            log.warning("an agent was not taken in: %s", error)
            code = 1001 if isinstance(error, StoreFailed) else 1008
            reason = error.message
        else:
            try:
                async with self._checked(member, instance, spec):
                    code, reason = await self._converse(socket, member)
            finally:
                member.gone.set()
        with contextlib.suppress(*_GONE):
            # A close frame has room for 123 bytes.
            await socket.close(code, reason.encode()[:120].decode(errors="ignore"))

    # The beginning.

    async def _welcome(self, socket: WebSocket) -> tuple[Member, Instance, ServiceSpec]:
        """Hear who it is, and what it holds. Raises Refused, StoreFailed, BadRequest."""
        found = await identify(self._store, bearer(socket.scope["headers"]))
        if found is None and "easel.limit" in socket.scope:
            socket.scope["easel.limit"](STRANGERS)
        await socket.accept()
        if found is None:
            raise Refused(4401, "the token is wrong")
        hello = await self._hello(socket)
        if hello.version != messages.VERSION:
            raise Refused(4426, f"this gateway speaks version {messages.VERSION} of the link")
        if isinstance(found, Service):
            if hello.instance is not None:
                raise Refused(4401, "the token is not this instance's")
            service = found
            instance = await self._joined(service, hello)
        else:
            if hello.instance != found.id:
                raise Refused(4401, "the token is another instance's")
            instance = found
            service = await self._store.get(instance.service)
        unwanted = instance.target != "running"
        if unwanted and not hello.held:
            raise Refused(DRAINING, "the instance is not wanted any more")
        revision = await self._store.revision(service.name, instance.revision)
        before = await self._displace(instance.id)
        url = _callable_url(hello.engine_url, socket.scope)
        member = Member(instance.id, instance.service, hello, socket, engine_url=url)
        await self._hold(member, before)
        settings = self._tasks.settings
        member.send(
            messages.Welcome(
                instance=instance.id,
                service=instance.service,
                renew_seconds=settings.renew_seconds,
                lease_seconds=settings.lease_seconds,
                task_timeout=revision.spec.task_timeout_seconds,
            )
        )
        for uid in member.holds:
            wanted = self._tasks.wants_previews(uid)
            member.send(messages.Watch(uid=uid, previews=wanted))
        if unwanted:
            member.unwanted = True
            member.drain()
            member.leave_if_done()
        return member, instance, revision.spec

    async def _hello(self, socket: WebSocket) -> Hello:
        try:
            async with asyncio.timeout(self._hello_timeout):
                message = await socket.receive()
        except TimeoutError:
            raise Refused(1008, "no hello") from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        hello = messages.from_agent(message.get("text") or "")
        if not isinstance(hello, Hello):
            raise Refused(1008, "the first message must be a hello")
        return hello

    async def _displace(self, instance: str) -> Member | None:
        """End an earlier connection of the same instance, all that it does; return it, or one that left before."""
        before = None
        while (current := self._members.get(instance)) is not None:
            before = current
            current.close(4409, "replaced by another connection")
            try:
                async with asyncio.timeout(LAST_WORDS):
                    await current.gone.wait()
            except TimeoutError:
                raise Refused(1001, "its earlier connection is not over yet") from None
        return self._members.take_departed(instance) or before

    async def _joined(self, service: Service, hello: Hello) -> Instance:
        """The row of an agent that came by itself; a name has one row. Raises Refused."""
        if service.target != "running":
            raise Refused(DRAINING, f"the service is {service.target}")
        digest = hashlib.sha256(f"{service.name}\0{hello.name}".encode()).hexdigest()[:12]
        instance_id = f"joined-{digest}"
        try:
            instance = await self._store.instance(instance_id)
        except InstanceNotFound:
            return await self._new(service, instance_id, hello)
        if (
            instance.target != "running"
        ):  # it was away for too long: its row goes, and it may come anew
            raise Refused(1001, "the instance is being removed; come again")
        if instance.revision != service.revision:
            return await self._store.change_instance(instance_id, revision=service.revision)
        return instance

    async def _new(self, service: Service, instance_id: str, hello: Hello) -> Instance:
        others = await self._store.instances(service.name)
        if sum(one.runtime == "joined" for one in others) >= MOST_JOINED:
            raise Refused(1013, f"{MOST_JOINED} agents have joined the service already")
        now = self._clock()
        instance = Instance(
            id=instance_id,
            service=service.name,
            revision=service.revision,
            runtime="joined",
            status="starting",
            device=(hello.device or "")[:200] or None,
            created=now,
            started=now,
            updated=now,
            handle={"name": hello.name[:200]},
        )
        await self._store.add_instance(instance)
        return instance

    async def _hold(self, member: Member, before: Member | None) -> None:
        """Take over what the agent says it has, if the store says so too; what it should have and has not goes back."""
        said = {held.uid: held for held in member.hello.held}
        earlier = before.holds if before is not None else {}
        for task in await self._tasks.store.held(member.service):
            if task.instance != member.instance:
                continue
            if task.uid in said:
                lease = lease_of(said[task.uid])
                with contextlib.suppress(LeaseLost):
                    await self._tasks.hold(lease)
                    holding = member.holds[task.uid] = Holding(lease, task.attempt)
                    holding.began, holding.sent = task.state == "running", True
            elif before is not None and task.uid in earlier:
                await self._take_back(earlier[task.uid], before, member)

    async def _take_back(self, lost: Holding, before: Member, now: Member) -> None:
        """A task did not survive a cut, or its agent: another may have it at once."""
        if before.hello.boot == now.hello.boot:
            reason, counted = "it did not reach its agent", lost.sent
        else:
            # The one that ran is to blame; where none did, any of them.
            nobody = not any(one.began for one in before.holds.values())
            reason, counted = "its agent was started anew", lost.began or (nobody and lost.sent)
        with contextlib.suppress(LeaseLost):
            await self._tasks.give_back(lost.lease, reason, counted=counted)

    # The conversation.

    async def _converse(self, socket: WebSocket, member: Member) -> tuple[int, str]:
        """Be connected until either side ends it; returns with what the connection is to be closed."""
        extra = {"service": member.service, "instance": member.instance}
        log.info("agent %s connected", member.hello.name, extra=extra)
        code, reason = 1001, ""
        async with self._tunnels.to(member):
            replaced = self._members.add(member)
            if replaced is not None:
                replaced.close(4409, "replaced by another connection")
            reader = asyncio.create_task(self._heard(socket, member))
            writer = asyncio.create_task(member.write())
            closed = asyncio.create_task(member.closed.wait())
            parts = (reader, writer, closed)
            try:
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                if member.closing is not None:
                    code, reason = member.closing
                    if code != 4409:
                        await asyncio.wait({writer}, timeout=LAST_WORDS)
                elif reader.done() and (error := reader.exception()) is not None:
                    log.warning("agent dropped: %s", error or type(error).__name__, extra=extra)
                    lasting = not isinstance(error, (StoreFailed, TimeoutError))
                    code, reason = 1008 if lasting else 1001, str(error)
            finally:
                for one in parts:
                    one.cancel()
                await asyncio.gather(*parts, return_exceptions=True)
                member.close(code, reason)
                if self._members.remove(member):
                    await self._conversations.left(member)
                    with contextlib.suppress(EaselError):
                        await self._note(member.instance, code)
        log.info("agent %s left", member.hello.name, extra=extra)
        return code, reason

    async def _heard(self, socket: WebSocket, member: Member) -> None:
        await self._note(member.instance)
        await self._conversations.read(socket, member)

    # What the controller and operators see.

    def _checked(
        self, member: Member, instance: Instance, spec: ServiceSpec
    ) -> AbstractAsyncContextManager[None]:
        if self._checkups is None:
            return contextlib.nullcontext()
        return self._checkups.of(member, instance, spec, lambda: self._note(member.instance))

    async def _note(self, instance: str, left_with: int = 0) -> None:
        """Write into an instance's row how it does now. Raises StoreFailed."""
        async with self._noting:
            try:
                row = await self._store.instance(instance)
            except InstanceNotFound:
                return
            member = self._members.get(instance)
            if member is None and left_with == DRAINING:
                return
            fields = _condition(member, row)
            if row.status not in ("starting", "ready", "unready") or all(
                getattr(row, name) == value for name, value in fields.items()
            ):
                return
            if fields["status"] == "ready" and row.ready_at is None:
                fields["ready_at"] = self._clock()
            with contextlib.suppress(InstanceNotFound):
                await self._store.change_instance(instance, **fields)
        self._publish("fleet")


def _condition(member: Member | None, row: Instance) -> dict[str, Any]:
    """Return how an instance does, in the words of its row."""
    unfit = member.unfit() if member is not None else ""
    if member is not None and member.engine.ready and not unfit:
        return {"status": "ready", "reason": "", "message": ""}
    fields = {"status": "unready" if row.ready_at is not None else "starting"}
    if member is None:
        return {**fields, "reason": LINK_LOST, "message": "the link to its agent is cut"}
    if member.engine.ready:
        return {**fields, "reason": CHECK_FAILED, "message": unfit[:2000]}
    error = member.engine.error or {}
    given_up = member.engine.state == "failed"
    reason = ENGINE_FAILED if given_up else str(error.get("code", ""))[:100]
    return {**fields, "reason": reason, "message": str(error.get("message", ""))[:2000]}


def _callable_url(url: str | None, scope: Scope) -> str | None:
    """Return the engine's URL if it is on the machine the agent dials from: nobody shall make us call others.

    Behind a proxy on this machine every agent seems to be here: then the engine is reached through the link.
    """
    if url is None or scope.get("client") is None:
        return None
    if any(
        name in (b"x-forwarded-for", b"forwarded", b"x-real-ip") for name, _ in scope["headers"]
    ):
        return None
    try:
        parts = urlsplit(url)
        peer = ipaddress.ip_address(scope["client"][0].removeprefix("::ffff:"))
        host = parts.hostname or ""
        engine = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None
    same = engine == peer or (engine.is_loopback and peer.is_loopback)
    return url if parts.scheme == "http" and same else None
