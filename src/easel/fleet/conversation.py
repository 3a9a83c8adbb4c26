"""What a connected agent says, and what comes of it.

An agent is believed only about what it holds: a message about anything else is answered like a repeated one, and does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from starlette.websockets import WebSocket

from easel.errors import EaselError, LeaseLost, StoreFailed
from easel.fleet.members import Holding, Member, Members
from easel.link import messages
from easel.link.messages import FromAgent, Held
from easel.tasks.model import Ending, Lease, Progress
from easel.tasks.tasks import Tasks

log = logging.getLogger(__name__)

MOST_UNCOUNTED = 10
"""How often a task may come back without its attempt being counted: an agent that never begins it shall not get it for ever."""
MOST_REMEMBERED = 10_000


class Conversations:
    """Hears what agents say. ``note`` writes into an instance's row how it does; ``discard`` removes an attempt's outputs."""

    def __init__(
        self,
        members: Members,
        tasks: Tasks,
        *,
        publish: Callable[[str], None],
        note: Callable[[str], Awaitable[None]],
        discard: Callable[[str, str], Awaitable[None]],
        clock: Callable[[], int],
    ) -> None:
        self._members = members
        self._tasks = tasks
        self._publish = publish
        self._note = note
        self._discard = discard
        self._clock = clock
        self._uncounted: dict[str, int] = {}

    async def read(self, socket: WebSocket, member: Member) -> None:
        """Read until the agent leaves or is silent for as long as a lease lasts. Raises what its messages came to."""
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
                await self.hear(member, said)

    async def hear(self, member: Member, said: FromAgent) -> None:
        """Act on one message. Raises StoreFailed; then it was not acknowledged, and is to be repeated."""
        match said:
            case messages.Report():
                if said.engine != member.engine:
                    member.engine = said.engine
                    self._members.changed(member)
                    with _later("how an engine does was not noted"):
                        await self._note(member.instance)
            case messages.Renew():
                with _later("leases were not renewed"):
                    await self._renew(member, said)
            case messages.Progressed():
                await self._progressed(member, said)
            case messages.Started():
                holding = member.holding(said.uid, said.lease)
                if holding is not None:
                    holding.began = True
                    await self._stored(
                        self._tasks.start(holding.lease, self._moment(said.at)), said.uid
                    )
                member.send(messages.Acknowledge(n=said.n))
            case messages.Finished():
                holding = member.holding(said.uid, said.lease)
                if holding is not None:
                    await self._finished(member, holding, said)
                member.send(messages.Acknowledge(n=said.n))
            case messages.Returned():
                holding = member.holding(said.uid, said.lease)
                if holding is not None:
                    await self._returned(member, holding, said)
                member.send(messages.Acknowledge(n=said.n))

    async def _progressed(self, member: Member, said: messages.Progressed) -> None:
        holding = member.holding(said.uid, said.lease)
        if holding is None:
            return
        if not holding.began:  # as after a restart of ours that forgot it
            holding.began = True
            begun = [node.start for node in said.nodes.values() if node.start > 0]
            at = self._moment(min(begun, default=self._clock()))
            await self._stored(self._tasks.start(holding.lease, at), said.uid)
        progress = Progress(
            percent=min(max(said.percent, 0.0), 100.0),
            current_node=said.current_node,
            nodes=said.nodes,
        )
        with contextlib.suppress(LeaseLost):
            await self._tasks.progress(holding.lease, progress, border=said.border)

    async def _finished(self, member: Member, holding: Holding, said: messages.Finished) -> None:
        self._release(member, holding)  # the next task goes out while this one's end is written
        started = None if said.started is None else self._moment(said.started)
        error = None if said.state == "succeeded" else _readable(said.error)
        ending = Ending(
            state=said.state,
            ended=self._moment(said.ended),
            started=started,
            nodes=said.nodes,
            node_errors=said.node_errors,
            error=error,
        )
        if not await self._stored(self._tasks.finish(holding.lease, ending), said.uid):
            unreadable = EaselError("the end that its agent reported cannot be stored")
            fields = {**unreadable.to_json(), "http_status": unreadable.http_status}
            ending = Ending(state="failed", ended=self._clock(), started=started, error=fields)
            await self._stored(self._tasks.finish(holding.lease, ending), said.uid)
        self._uncounted.pop(said.uid, None)
        if ending.state != "succeeded" and not member.hello.shares_storage:
            await self._discard(member.service, holding.folder)
        member.leave_if_done()

    async def _returned(self, member: Member, holding: Holding, said: messages.Returned) -> None:
        self._release(member, holding)
        counted = said.counted
        if not counted:
            times = self._uncounted.pop(said.uid, 0) + 1
            self._uncounted[said.uid] = times
            if len(self._uncounted) > MOST_REMEMBERED:
                del self._uncounted[next(iter(self._uncounted))]
            counted = times > MOST_UNCOUNTED
        back = self._tasks.give_back(holding.lease, said.reason[:500], counted=counted)
        await self._stored(back, said.uid)
        if not member.hello.shares_storage:
            await self._discard(member.service, holding.folder)
        member.leave_if_done()

    def _release(self, member: Member, holding: Holding) -> None:
        if member.holds.get(holding.lease.uid) is holding:
            del member.holds[holding.lease.uid]
            self._publish(f"queue:{member.service}")

    async def _stored(self, write: Awaitable[Any], uid: str) -> bool:
        """Do a write; False when no repetition of it will ever succeed. Raises StoreFailed: it is to be repeated.

        A lost lease is as good as done: the task is somebody else's business.
        """
        try:
            await write
        except LeaseLost as error:
            log.info("an outdated message was dropped: %s", error, extra={"task": uid})
        except StoreFailed:
            raise
        except Exception:
            log.exception("a message cannot be stored", extra={"task": uid})
            return False
        return True

    async def _renew(self, member: Member, said: messages.Renew) -> None:
        now = time.monotonic()
        listed: dict[str, Holding] = {}
        lost: list[Held] = []
        for held in said.held:
            holding = member.holding(held.uid, held.lease)
            if holding is None:
                lost.append(held)
            else:
                listed[held.uid] = holding
        leases = [one.lease for one in listed.values()]
        gone, cancelling = await self._tasks.renew(leases) if leases else ([], [])
        for lease in gone:
            lost.append(Held(uid=lease.uid, lease=lease.token))
            self._release(member, listed.pop(lease.uid))
        for holding in listed.values():
            holding.renewed = now
        # What it was given and never speaks of has ended by the clock: its place is free again.
        longest = self._tasks.settings.lease_seconds
        for holding in list(member.holds.values()):
            if now - holding.renewed > longest:
                self._release(member, holding)
        member.send(messages.Renewed(lost=lost))
        for uid in cancelling:
            if (holding := member.holds.get(uid)) is not None:
                member.send(messages.Cancel(uid=uid, lease=holding.lease.token))
        member.leave_if_done()

    def _moment(self, at: int) -> int:
        """Return a time of an agent's clock, which may be wrong, as one that cannot be in the future."""
        return min(max(at, 0), self._clock())

    async def left(self, member: Member) -> None:
        """Its connection is gone: what it holds is not live here any more, but it may come back with it."""
        for holding in list(member.holds.values()):
            with contextlib.suppress(EaselError):
                await self._tasks.detach(holding.lease)


@contextlib.contextmanager
def _later(what: str) -> Iterator[None]:
    """Go on though the store failed: it is done again in a moment anyway."""
    try:
        yield
    except StoreFailed as error:
        log.warning("%s: %s", what, error)


def _readable(error: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return an agent's error with a status that doors can answer with."""
    if error is None:
        return None
    status = error.get("http_status")
    if not isinstance(status, int) or not 400 <= status < 600:
        error = {**error, "http_status": 500}
    return error


def lease_of(held: Held) -> Lease:
    """Return a task's lease as the store knows it."""
    return Lease(uid=held.uid, token=held.lease)
