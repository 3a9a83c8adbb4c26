"""The connected agents: who they are, how their engines do, what they hold."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from starlette.websockets import WebSocket

from easel.link import messages
from easel.link.messages import EngineReport, FromGateway, Hello
from easel.tasks.bus import EventBus
from easel.tasks.model import Assignment, Lease

log = logging.getLogger(__name__)

MOST_UNSENT = 1000
"""Messages that may wait for a slow agent before it is cut off."""


class Holding:
    """A task that a member has."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.began = False
        self.recalled = False


class Member:
    """One connected agent."""

    def __init__(self, instance: str, service: str, hello: Hello, socket: WebSocket) -> None:
        self.instance = instance
        self.service = service
        self.hello = hello
        self.engine: EngineReport = hello.engine
        self.draining = False
        self.holds: dict[str, Holding] = {}
        self.tunnel_url: str | None = None
        """Where connections that the agent carries to its engine are taken, for engines that cannot be reached from here."""
        self.closing: tuple[int, str] | None = None
        """Code and reason with which the connection is to be closed."""
        self._socket = socket
        self._unsent: deque[bytes] = deque()
        self._wake = asyncio.Event()

    @property
    def upstream(self) -> str:
        """Base URL of the engine, as this process reaches it."""
        return self.hello.engine_url or self.tunnel_url or ""

    @property
    def starts(self) -> int | None:
        """How often the engine was started."""
        return self.engine.starts

    @property
    def ready(self) -> bool:
        """Whether the engine takes prompts and the member takes tasks."""
        return self.engine.ready and not self.draining and self.closing is None

    @property
    def free(self) -> int:
        """Tasks it can take now."""
        return self.hello.capacity - len(self.holds) if self.ready else 0

    def send(self, message: FromGateway) -> None:
        """Queue a message; returns at once. A member that takes none for long is cut off."""
        if self.closing is not None:
            return
        self._unsent.append(messages.encode(message))
        if len(self._unsent) > MOST_UNSENT:
            self.close(1013, "too slow")
        self._wake.set()

    def close(self, code: int, reason: str = "") -> None:
        """Close the connection after what was queued."""
        if self.closing is None:
            self.closing = (code, reason)
        self._wake.set()

    async def write(self) -> None:
        """Send what is queued, until the connection is to be closed."""
        while True:
            while self._unsent:
                await self._socket.send_text(self._unsent.popleft().decode())
            if self.closing is not None:
                return
            self._wake.clear()
            await self._wake.wait()

    async def refresh(self, *, restart: bool, reason: str) -> None:
        """Have the engine's process restarted, or what is known of its nodes and models forgotten."""
        self.send(messages.Refresh(restart=restart, reason=reason))

    def drain(self, *, stop: bool = False) -> None:
        """Take nothing more; give back what has not begun."""
        self.draining = True
        self.send(messages.Drain(stop=stop))

    def assign(self, assignment: Assignment, *, previews: bool) -> None:
        """Hand a claimed task over."""
        task, body = assignment.task, assignment.body
        self.holds[task.uid] = Holding(assignment.lease)
        self.send(
            messages.Assign(
                uid=task.uid,
                lease=assignment.lease.token,
                attempt=task.attempt,
                prompt=body.prompt,
                extra_data=body.extra_data,
                outputs=body.outputs,
                folder=f"{task.uid}.{task.attempt}",
                previews=previews,
            )
        )


class Members:
    """Every agent connected to this process, by instance."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._members: dict[str, Member] = {}
        self.on_service: Callable[[str], None] = lambda service: None
        """Called when a service's first member connects."""

    def get(self, instance: str) -> Member | None:
        """Return the member that is this instance."""
        return self._members.get(instance)

    def of(self, service: str) -> list[Member]:
        """Return a service's connected members."""
        return [one for one in self._members.values() if one.service == service]

    def ready(self, service: str) -> list[Member]:
        """Return a service's members that take work."""
        return [one for one in self.of(service) if one.ready]

    def services(self) -> set[str]:
        """Return the services that have members."""
        return {one.service for one in self._members.values()}

    def holder(self, uid: str) -> Member | None:
        """Return the member that has a task."""
        return next((one for one in self._members.values() if uid in one.holds), None)

    def add(self, member: Member) -> Member | None:
        """Take a member in; returns the connection that it replaces."""
        before = self._members.get(member.instance)
        self._members[member.instance] = member
        self.changed(member)
        self.on_service(member.service)
        return before

    def remove(self, member: Member) -> bool:
        """Let a member go; False when another connection has replaced it already."""
        if self._members.get(member.instance) is not member:
            return False
        del self._members[member.instance]
        self._bus.publish("fleet")
        return True

    def changed(self, member: Member) -> None:
        """Wake those who wait for a ready or free member."""
        self._bus.publish("fleet")
        self._bus.publish(f"queue:{member.service}")
