"""The connected agents: who they are, how their engines do, what they hold."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
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
MOST_DEPARTED = 1000
"""Members that are remembered for what they held when they left."""
DRAINING = 4403


def folder_of(uid: str, attempt: int, lease: str) -> str:
    """Return the folder of an attempt's outputs: another one for each lease, so that no two agents ever share one."""
    return f"{uid}.{attempt}.{hashlib.sha256(lease.encode()).hexdigest()[:8]}"


class Holding:
    """A task that a member has."""

    def __init__(self, lease: Lease, attempt: int = 1) -> None:
        self.lease = lease
        self.folder = folder_of(lease.uid, attempt, lease.token)
        self.began = False
        self.recalled = False
        self.sent = False
        """Whether the agent was told of it."""
        self.renewed = time.monotonic()
        """When it was assigned, or its agent last said that it has it."""


class Member:
    """One connected agent."""

    def __init__(
        self,
        instance: str,
        service: str,
        hello: Hello,
        socket: WebSocket,
        *,
        engine_url: str | None = None,
    ) -> None:
        self.instance = instance
        self.service = service
        self.hello = hello
        self.engine: EngineReport = hello.engine
        self.draining = False
        self.unwanted = False
        """It was let in only for what it holds: it leaves with the last of it."""
        self.unfit: Callable[[], str] = str
        """Returns why its service's checks keep it from work, empty while they do not."""
        self.holds: dict[str, Holding] = {}
        self.engine_url = engine_url
        """Where the engine answers, if this process may call it there."""
        self.tunnel_url: str | None = None
        """Where connections that the agent carries to its engine are taken, for engines that cannot be reached from here."""
        self.closing: tuple[int, str] | None = None
        """Code and reason with which the connection is to be closed."""
        self.closed = asyncio.Event()
        """Set with `closing`."""
        self.gone = asyncio.Event()
        """Set when nothing more is done for this connection."""
        self._socket = socket
        self._unsent: deque[tuple[bytes, Holding | None]] = deque()
        self._wake = asyncio.Event()

    @property
    def upstream(self) -> str:
        """Base URL of the engine, as this process reaches it."""
        return self.engine_url or self.tunnel_url or ""

    @property
    def starts(self) -> int | None:
        """How often the engine was started."""
        return self.engine.starts

    @property
    def ready(self) -> bool:
        """Whether the engine takes prompts and the member takes tasks."""
        up = self.engine.ready and not self.draining and self.closing is None
        return up and not self.unfit()

    @property
    def free(self) -> int:
        """Tasks it can take now."""
        capacity = min(self.hello.capacity, messages.MOST_TASKS)
        return capacity - len(self.holds) if self.ready else 0

    def send(self, message: FromGateway, holding: Holding | None = None) -> None:
        """Queue a message; returns at once. A member that takes none for long is cut off."""
        if self.closing is not None:
            return
        self._unsent.append((messages.encode(message), holding))
        if len(self._unsent) > MOST_UNSENT:
            self.close(1013, "too slow")
        self._wake.set()

    def close(self, code: int, reason: str = "") -> None:
        """Close the connection after what was queued."""
        if self.closing is None:
            self.closing = (code, reason)
        self.closed.set()
        self._wake.set()

    async def write(self) -> None:
        """Send what is queued, until the connection is to be closed."""
        while True:
            while self._unsent:
                data, holding = self._unsent.popleft()
                await self._socket.send_text(data.decode())
                if holding is not None:
                    holding.sent = True
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
        holding = self.holds[task.uid] = Holding(assignment.lease, task.attempt)
        message = messages.Assign(
            uid=task.uid,
            lease=assignment.lease.token,
            attempt=task.attempt,
            prompt=body.prompt,
            extra_data=body.extra_data,
            outputs=body.outputs,
            folder=holding.folder,
            previews=previews,
        )
        self.send(message, holding)

    def holding(self, uid: str, lease: str) -> Holding | None:
        """Return what it has of a task under this very lease."""
        found = self.holds.get(uid)
        return found if found is not None and found.lease.token == lease else None

    def leave_if_done(self) -> None:
        """Let an unwanted one go when it has nothing left."""
        if self.unwanted and not self.holds:
            self.close(DRAINING, "the instance is not wanted any more")


class Members:
    """Every agent connected to this process, by instance."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._members: dict[str, Member] = {}
        self._departed: dict[str, Member] = {}
        """Those that left while they held tasks: they may come back without them."""
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
        self.on_service(member.service)
        self.changed(member)
        return before

    def remove(self, member: Member) -> bool:
        """Let a member go; False when another connection has replaced it already."""
        if self._members.get(member.instance) is not member:
            return False
        del self._members[member.instance]
        if member.holds:
            self._departed.pop(member.instance, None)
            self._departed[member.instance] = member
            if len(self._departed) > MOST_DEPARTED:
                del self._departed[next(iter(self._departed))]
        self._bus.publish("fleet")
        return True

    def take_departed(self, instance: str) -> Member | None:
        """Return the latest connection of an instance that left while it held tasks, once."""
        return self._departed.pop(instance, None)

    def changed(self, member: Member) -> None:
        """Wake those who wait for a ready or free member."""
        self._bus.publish("fleet")
        self._bus.publish(f"queue:{member.service}")
