"""Asks the health checks of every connected instance, and says who takes no work and who is to be ended.

A run begins with each start of an engine, and its checks with it. They are asked while the agent says that the engine answers;
that its work moves is the agent's own supervision (`comfy/liveness.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable

from easel.errors import EaselError
from easel.fleet.health import Checks
from easel.fleet.members import Member, Members
from easel.fleet.probes import Ask, Subject
from easel.services.model import HealthCheck, Instance, ServiceSpec
from easel.tasks.bus import EventBus
from easel.tasks.tasks import now_ms

log = logging.getLogger(__name__)

TOPIC = "fleet"
MOST_KNOWN = 10_000
"""Instances of which is kept what their checks said while their agents are away."""


class Checkup:
    """One instance's checks, over the starts of its engine within one boot of its agent."""

    def __init__(self, spec: ServiceSpec, boot: str, *, adopted: bool) -> None:
        """``adopted``: it took work before this process came; that is believed until its checks say otherwise."""
        self.boot = boot
        self._spec = spec
        self._adopted = adopted
        self._starts: int | None = None
        self._checks: Checks | None = None

    def run(self, starts: int | None, now: int) -> Checks:
        """Return the checks of the run that began with the engine's start of this number."""
        if self._checks is None or starts != self._starts:
            self._checks = Checks(self._spec, since=now, adopted=self._adopted)
            self._starts, self._adopted = starts, False
        return self._checks


class Checkups:
    """The checks of all members that are connected to this process."""

    def __init__(
        self, members: Members, bus: EventBus, ask: Ask, *, clock: Callable[[], int] = now_ms
    ) -> None:
        self._members = members
        self._bus = bus
        self._ask = ask
        self._clock = clock
        self._known: OrderedDict[str, Checkup] = OrderedDict()

    @contextlib.asynccontextmanager
    async def of(
        self,
        member: Member,
        instance: Instance,
        spec: ServiceSpec,
        changed: Callable[[], Awaitable[None]],
    ) -> AsyncIterator[None]:
        """Look after a member within the block; from its beginning on `Member.unfit` tells.

        ``changed`` is called when that changes; if it raises EaselError, the member is closed: its agent comes again.
        """
        if not Checks(spec, since=0).any:
            yield
            return
        checkup = self._checkup(member, instance, spec)
        member.unfit = lambda: checkup.run(member.starts, self._clock()).waiting or ""
        asking = asyncio.create_task(
            self._look_after(member, checkup, instance, spec, changed),
            name=f"easel checks {member.instance}",
        )
        try:
            yield
        finally:
            asking.cancel()
            await asyncio.wait([asking])

    async def probe(self, instance: Instance, spec: ServiceSpec) -> str | None:
        """Return why an instance is to be ended, None while nothing says so: the controller's question."""
        member = self._members.get(instance.id)
        checkup = self._known.get(instance.id)
        if member is None or checkup is None or not member.engine.ready:
            return None
        if checkup.boot != member.hello.boot:
            return None
        return checkup.run(member.starts, self._clock()).ill

    def _checkup(self, member: Member, instance: Instance, spec: ServiceSpec) -> Checkup:
        """Return what is known of an instance unless its agent was started anew: a cut of the link changes nothing."""
        known = self._known.pop(member.instance, None)
        if known is None or known.boot != member.hello.boot:
            adopted = known is None and instance.status == "ready"
            known = Checkup(spec, member.hello.boot, adopted=adopted)
        self._known[member.instance] = known
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return known

    async def _look_after(
        self,
        member: Member,
        checkup: Checkup,
        instance: Instance,
        spec: ServiceSpec,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        with self._bus.subscribe(TOPIC) as news:
            while True:
                news.clear()
                now = self._clock()
                checks = checkup.run(member.starts, now)
                due = list(checks.due(now)) if member.engine.ready else []
                if not due:
                    next_due = checks.next_due() if member.engine.ready else None
                    pause = None if next_due is None else (next_due - now) / 1000
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await news.wait()
                    continue
                before = checks.waiting
                answers = await asyncio.gather(
                    *(self._ask(check, _subject(member, instance, spec, check)) for _, check in due)
                )
                if not member.engine.ready or checkup.run(member.starts, now) is not checks:
                    continue  # it is another engine's by now
                for (kind, _), problem in zip(due, answers, strict=True):
                    checks.answered(kind, now, problem)
                if before == checks.waiting:
                    continue
                about = {"service": member.service, "instance": member.instance}
                log.info("%s", checks.waiting or "its checks pass", extra=about)
                try:
                    await changed()
                except EaselError as error:
                    member.close(1001, error.message)
                    return
                self._members.changed(member)


def _subject(member: Member, instance: Instance, spec: ServiceSpec, check: HealthCheck) -> Subject:
    # ComfyUI has one port, by whatever number a check calls it; a program of one's own may have others.
    named = check.port if spec.engine.kind != "command" else None
    return Subject(
        url=member.upstream,
        here=instance.runtime == "local",
        port=named or spec.port,
        mounts=spec.mounts,
        env=spec.env,
    )
