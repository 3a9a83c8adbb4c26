"""Gives waiting tasks to members that are free: idle ones first, then one more to each, so that no device waits for us."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from easel.errors import EaselError, LeaseLost
from easel.fleet.members import Member, Members
from easel.link import messages
from easel.tasks.model import Task
from easel.tasks.tasks import Tasks

log = logging.getLogger(__name__)

RETRY_PAUSE = 1.0


class Dispatcher:
    """One loop for each service that has members."""

    def __init__(self, tasks: Tasks, members: Members) -> None:
        self._tasks = tasks
        self._members = members
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._claiming = 0
        self._cancelled: set[str] = set()
        """Held tasks that were cancelled while claims are under way: one of them may be among what is claimed."""
        members.on_service = self._serve
        tasks.on_cancel = self._cancel
        tasks.on_previews_wanted = self._previews

    def close(self) -> None:
        """Give nothing more."""
        self._members.on_service = lambda service: None
        for loop in self._loops.values():
            loop.cancel()

    def _serve(self, service: str) -> None:
        if service not in self._loops:
            self._loops[service] = asyncio.create_task(
                self._dispatch(service), name=f"easel dispatch {service}"
            )

    async def _dispatch(self, service: str) -> None:
        poll = self._tasks.settings.poll_interval
        with self._tasks.bus.subscribe(f"queue:{service}") as work:
            while True:
                work.clear()
                try:
                    await self._give(service)
                except EaselError as error:
                    log.warning("no task could be claimed: %s", error, extra={"service": service})
                    await asyncio.sleep(RETRY_PAUSE)
                    continue
                except Exception:  # nobody else would give this service's tasks
                    log.exception("the dispatcher failed", extra={"service": service})
                    await asyncio.sleep(RETRY_PAUSE)
                    continue
                try:
                    async with asyncio.timeout(poll):
                        await work.wait()
                except TimeoutError:
                    if not self._members.of(service):
                        del self._loops[service]  # at once: the next member is to find no loop
                        return

    async def _give(self, service: str) -> None:
        """Give tasks until nobody is free or nothing waits. Raises StoreFailed."""
        while (member := self._freest(service)) is not None:
            self._claiming += 1
            try:
                found = await self._tasks.claim(service, member.instance)
                cancelled = found is not None and found.task.uid in self._cancelled
            finally:
                self._claiming -= 1
                if not self._claiming:
                    self._cancelled.clear()
            if found is None:
                self._rebalance(service)
                return
            if not member.ready or self._members.get(member.instance) is not member:
                with contextlib.suppress(LeaseLost):  # it may have been taken back already
                    await self._tasks.give_back(found.lease, "the instance left", counted=False)
                continue
            member.assign(found, previews=self._tasks.wants_previews(found.task.uid))
            if cancelled:
                self._cancel(found.task)

    def _freest(self, service: str) -> Member | None:
        free = [one for one in self._members.ready(service) if one.free > 0]
        return max(free, key=lambda one: one.free, default=None)

    def _rebalance(self, service: str) -> None:
        """A task prefetched behind a running one is called back when another member has nothing to do."""
        ready = self._members.ready(service)
        idle = sum(not one.holds for one in ready)
        holdings = [holding for one in ready for holding in one.holds.values()]
        idle -= sum(one.recalled and not one.began for one in holdings)  # on their way back
        for member in ready:
            if idle <= 0:
                return
            if len(member.holds) < 2:
                continue
            uid, last = list(member.holds.items())[-1]
            if not last.began and not last.recalled:
                last.recalled = True
                member.send(messages.Recall(uid=uid, lease=last.lease.token))
                idle -= 1

    def _cancel(self, task: Task) -> None:
        member = self._members.holder(task.uid)
        if member is not None:
            lease = member.holds[task.uid].lease
            member.send(messages.Cancel(uid=task.uid, lease=lease.token))
        elif self._claiming:
            self._cancelled.add(task.uid)

    def _previews(self, uid: str, wanted: bool) -> None:
        member = self._members.holder(uid)
        if member is not None:
            member.send(messages.Watch(uid=uid, previews=wanted))
