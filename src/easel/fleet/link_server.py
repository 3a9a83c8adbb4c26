"""The gateway's end of the agent link (`easel.link.messages`), as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from easel.errors import BadRequest, EaselError, InstanceNotFound, LeaseLost, StoreFailed
from easel.fleet.members import Holding, Member, Members
from easel.link import messages
from easel.link.messages import FromAgent, Hello
from easel.services.model import Instance
from easel.services.status import ENGINE_FAILED, LINK_LOST
from easel.services.store import ServiceStore
from easel.services.tokens import same_token, token_hash
from easel.tasks.model import Ending, Lease, Progress
from easel.tasks.tasks import Tasks, now_ms

log = logging.getLogger(__name__)

HELLO_TIMEOUT = 30.0


class Refused(Exception):
    """The connection is closed with a code of `messages.CLOSES`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class AgentLink:
    """Takes agents in."""

    def __init__(
        self,
        members: Members,
        tasks: Tasks,
        store: ServiceStore,
        *,
        publish: Callable[[str], None],
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._members = members
        self._tasks = tasks
        self._store = store
        self._publish = publish
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        try:
            member = await self._welcome(socket)
        except Refused as refused:
            with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect):
                await socket.close(refused.code, str(refused))
            return
        except (WebSocketDisconnect, KeyError):
            return
        except EaselError as error:
            log.warning("an agent was not taken in: %s", error)
            with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect):
                await socket.close(1001 if isinstance(error, StoreFailed) else 1008, error.message)
            return
        await self._serve(socket, member)

    # The beginning.

    async def _welcome(self, socket: WebSocket) -> Member:
        token = socket.headers.get("authorization", "").removeprefix("Bearer ").strip()
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                hello = messages.from_agent(await socket.receive_text())
        except TimeoutError:
            raise Refused(1008, "no hello") from None
        if not isinstance(hello, Hello):
            raise BadRequest("the first message must be a hello")
        instance = await self._instance(hello, token)
        if hello.version != messages.VERSION:
            raise Refused(4426, f"this gateway speaks version {messages.VERSION}")
        if instance.target != "running":
            raise Refused(4403, "the instance is not wanted any more")
        member = Member(instance.id, instance.service, hello, socket)
        revision = await self._store.revision(instance.service, instance.revision)
        before = self._members.get(instance.id)
        if before is not None:
            before.close(4409, "replaced by another connection")
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
        self._members.add(member)
        await self._note(member)
        return member

    async def _instance(self, hello: Hello, token: str) -> Instance:
        """Find whose token it is. Raises Refused."""
        if hello.instance is not None:
            try:
                instance = await self._store.instance(hello.instance)
            except InstanceNotFound:
                raise Refused(4401, "the token is wrong") from None
            if not same_token(token_hash(token), instance.token_hash):
                raise Refused(4401, "the token is wrong")
            return instance
        for service in await self._store.all():
            if same_token(token, service.join_token):
                return await self._joined(service.name, service.revision, hello)
        raise Refused(4401, "the token is wrong")

    async def _joined(self, service: str, revision: int, hello: Hello) -> Instance:
        """The row of an agent that came by itself; a name has one row."""
        digest = hashlib.sha256(f"{service}\0{hello.name}".encode()).hexdigest()[:12]
        instance_id = f"joined-{digest}"
        now = self._clock()
        try:
            return await self._store.instance(instance_id)
        except InstanceNotFound:
            instance = Instance(
                id=instance_id,
                service=service,
                revision=revision,
                runtime="joined",
                status="starting",
                device=hello.device,
                created=now,
                started=now,
                updated=now,
                handle={"name": hello.name},
            )
            await self._store.add_instance(instance)
            return instance

    async def _hold(self, member: Member, before: Member | None) -> None:
        """Take over what the agent says it has; what an earlier boot had and this one has not goes back at once."""
        for held in member.hello.held:
            lease = Lease(uid=held.uid, token=held.lease)
            with contextlib.suppress(LeaseLost):
                await self._tasks.hold(lease)
                member.holds[held.uid] = Holding(lease)
        for task in await self._tasks.store.held(member.service):
            if task.instance != member.instance or task.uid in member.holds:
                continue
            forgotten = before.holds.get(task.uid) if before is not None else None
            if (
                forgotten is not None
                and before is not None
                and before.hello.boot != member.hello.boot
            ):
                with contextlib.suppress(LeaseLost):
                    await self._tasks.give_back(
                        forgotten.lease, "its agent was started anew", counted=forgotten.began
                    )

    # The conversation.

    async def _serve(self, socket: WebSocket, member: Member) -> None:
        extra = {"service": member.service, "instance": member.instance}
        log.info("agent %s connected", member.hello.name, extra=extra)
        reader = asyncio.create_task(self._read(socket, member))
        writer = asyncio.create_task(member.write())
        code, reason = 1001, ""
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done() and not reader.cancelled() and reader.exception() is not None:
                error = reader.exception()
                log.warning("agent dropped: %s", error, extra=extra)
                code, reason = 1001 if isinstance(error, StoreFailed) else 1008, str(error)[:100]
            if member.closing is not None:
                code, reason = member.closing
        finally:
            for one in (reader, writer):
                one.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            member.close(code, reason)
            if self._members.remove(member):
                with contextlib.suppress(EaselError):
                    await self._note(member, gone=True)
        with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect):
            await socket.close(code, reason)

    async def _read(self, socket: WebSocket, member: Member) -> None:
        """Read until the agent leaves. Raises what its messages came to."""
        while True:
            async with asyncio.timeout(self._tasks.settings.lease_seconds):
                message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("bytes")
            if data is not None:
                head, image = messages.read_preview(data)
                if head.uid in member.holds:
                    self._tasks.preview(head.uid, head, image)
                continue
            said = messages.from_agent(message["text"])
            if said is not None:
                await self._take(member, said)

    async def _take(self, member: Member, said: FromAgent) -> None:
        match said:
            case messages.Report():
                member.engine = said.engine
                self._members.changed(member)
                await self._note(member)
            case messages.Renew():
                await self._renew(member, said)
            case messages.Started():
                lease = Lease(uid=said.uid, token=said.lease)
                if said.uid in member.holds:
                    member.holds[said.uid].began = True
                await self._written(member, said.n, self._tasks.start(lease, said.at))
            case messages.Progressed():
                lease = Lease(uid=said.uid, token=said.lease)
                progress = Progress(
                    percent=said.percent, current_node=said.current_node, nodes=said.nodes
                )
                with contextlib.suppress(LeaseLost):
                    await self._tasks.progress(lease, progress, border=said.border)
            case messages.Finished():
                self._release(member, said.uid, said.lease)
                ending = Ending(
                    state=said.state,
                    ended=said.ended,
                    started=said.started,
                    nodes=said.nodes,
                    node_errors=said.node_errors,
                    error=said.error,
                )
                lease = Lease(uid=said.uid, token=said.lease)
                await self._written(member, said.n, self._tasks.finish(lease, ending))
            case messages.Returned():
                self._release(member, said.uid, said.lease)
                lease = Lease(uid=said.uid, token=said.lease)
                back = self._tasks.give_back(lease, said.reason, counted=said.counted)
                await self._written(member, said.n, back)

    def _release(self, member: Member, uid: str, lease: str) -> None:
        holding = member.holds.get(uid)
        if holding is not None and holding.lease.token == lease:
            del member.holds[uid]
            self._publish(f"queue:{member.service}")

    async def _written(self, member: Member, n: int, write: Any) -> None:
        """Do a write and acknowledge it; one whose lease is lost is somebody else's business, and done with as well."""
        try:
            await write
        except LeaseLost as error:
            log.info("an outdated message was dropped: %s", error)
        member.send(messages.Acknowledge(n=n))

    async def _renew(self, member: Member, said: messages.Renew) -> None:
        leases = [Lease(uid=held.uid, token=held.lease) for held in said.held]
        lost, cancelling = await self._tasks.renew(leases) if leases else ([], [])
        for lease in lost:
            self._release(member, lease.uid, lease.token)
        member.send(messages.Renewed(lost=[lease.uid for lease in lost]))
        for uid in cancelling:
            if uid in member.holds:
                lease = member.holds[uid].lease
                member.send(messages.Cancel(uid=uid, lease=lease.token))

    # What the controller and operators see.

    async def _note(self, member: Member, *, gone: bool = False) -> None:
        """Write into the instance's row how it does. Raises StoreFailed."""
        now = self._clock()
        try:
            row = await self._store.instance(member.instance)
        except InstanceNotFound:
            return
        if gone and member.closing is not None and member.closing[0] == 4403:
            return
        ready = member.engine.ready and not gone
        status = "ready" if ready else "unready" if row.ready_at is not None else "starting"
        error: dict[str, Any] = {} if ready else member.engine.error or {}
        given_up = member.engine.state == "failed"
        reason = ENGINE_FAILED if given_up else str(error.get("code", ""))
        fields = {
            "status": status,
            "reason": "" if ready else LINK_LOST if gone else reason,
            "message": "the link to its agent is cut" if gone else str(error.get("message", "")),
        }
        if row.status in ("starting", "ready", "unready") and any(
            getattr(row, name) != value for name, value in fields.items()
        ):
            if ready and row.ready_at is None:
                fields["ready_at"] = now  # type: ignore[assignment]
            await self._store.change_instance(member.instance, **fields)
            self._publish("fleet")
