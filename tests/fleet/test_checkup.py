"""Who is asked, when a run of checks begins, and who hears of it: over members of the link without their processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from easel.errors import StoreFailed
from easel.fleet.checkup import Checkups
from easel.fleet.members import Member, Members
from easel.fleet.probes import Subject
from easel.link.messages import EngineReport, Hello
from easel.services.model import HealthCheck, Instance, ServiceSpec
from easel.tasks.bus import LocalBus
from tests.fleet.stage import spec
from tests.waiting import until

SECOND = 1000


class Scene:
    """Checks that fail while a word of theirs is in ``bad``, and a clock that stands."""

    def __init__(self) -> None:
        self.bus = LocalBus()
        self.members = Members(self.bus)
        self.now = 1_000_000
        self.bad: set[str] = set()
        self.asked: list[tuple[str, Subject]] = []
        self.checkups = self.another()
        self.changes: list[str] = []
        self.store_fails = False

    def another(self) -> Checkups:
        """As after a restart of this process."""
        return Checkups(self.members, self.bus, self.ask, clock=lambda: self.now)

    async def ask(self, check: HealthCheck, subject: Subject) -> str | None:
        path = check.path or ""
        self.asked.append((path, subject))
        return f"{path} is bad" if path in self.bad else None

    def member(self, boot: str = "b", *, starts: int = 1, ready: bool = True) -> Member:
        socket: Any = None
        report = EngineReport(state="ready" if ready else "starting", ready=ready, starts=starts)
        hello = Hello(name="a", boot=boot, easel="0", capacity=2, engine=report)
        url = "http://127.0.0.1:7"
        return Member("i", "draw", hello, socket, engine_url=url)

    @contextlib.asynccontextmanager
    async def connected(
        self, member: Member, wanted: ServiceSpec, status: str = "starting"
    ) -> AsyncIterator[None]:
        instance = Instance(
            id="i",
            service="draw",
            revision=1,
            status=status,  # type: ignore[arg-type]
            created=0,
            updated=0,
        )

        async def changed() -> None:
            if self.store_fails:
                raise StoreFailed("no disk")
            self.changes.append(member.unfit())

        self.members.add(member)
        async with self.checkups.of(member, instance, wanted, changed):
            yield
        self.members.remove(member)

    async def later(self, seconds: float) -> None:
        """Let time pass."""
        self.now += int(seconds * SECOND)
        self.bus.publish("fleet")

    async def probed(self, wanted: ServiceSpec) -> str | None:
        instance = Instance(id="i", service="draw", revision=1, created=0, updated=0)
        return await self.checkups.probe(instance, wanted)

    def report(self, member: Member, *, starts: int, ready: bool = True) -> None:
        member.engine = msgspec.structs.replace(member.engine, starts=starts, ready=ready)
        self.members.changed(member)


def path(name: str, **fields: Any) -> HealthCheck:
    return HealthCheck(path=name, failure_threshold=1, **fields)


async def ready(member: Member, *, wanted: bool = True) -> None:
    async def look() -> bool:
        return member.ready is wanted

    await until(look, timeout=10, pause=0.001)


async def test_without_checks_nothing_is_asked() -> None:
    scene = Scene()
    member = scene.member()
    async with scene.connected(member, spec()):
        assert member.ready
        assert await scene.probed(spec()) is None
    assert not scene.asked


async def test_a_new_instance_takes_no_work_before_it_passed() -> None:
    scene = Scene()
    scene.bad = {"/up"}
    wanted = spec(startup_check=path("/up"), readiness_check=path("/ok"))
    member = scene.member()
    async with scene.connected(member, wanted):
        assert not member.ready

        async def told() -> bool:
            return bool(scene.changes)

        await until(told, timeout=10, pause=0.001)
        assert scene.changes == ["its startup check has not passed yet: /up is bad"]
        assert member.free == 0
        scene.bad = set()
        await scene.later(10)
        await ready(member)
        assert member.free == 2
        assert scene.changes[-1] == ""


async def test_an_engine_that_is_not_up_is_not_asked() -> None:
    scene = Scene()
    wanted = spec(readiness_check=path("/ok"))
    member = scene.member(ready=False)
    async with scene.connected(member, wanted):
        await scene.later(100)
        await asyncio.sleep(0)
        assert not scene.asked
        scene.report(member, starts=1)
        await ready(member)


async def test_another_start_of_the_engine_begins_anew() -> None:
    scene = Scene()
    wanted = spec(readiness_check=path("/ok"), liveness_check=path("/live"))
    member = scene.member()
    async with scene.connected(member, wanted):
        await ready(member)
        scene.bad = {"/live"}
        await scene.later(10)

        async def ill() -> str | None:
            return await scene.probed(wanted)

        assert "/live is bad" in await until(ill, timeout=10, pause=0.001)
        scene.bad = {"/ok"}
        scene.report(member, starts=2)
        assert not member.ready, "at once, before anything was asked"
        assert await scene.probed(wanted) is None
        scene.bad = set()
        await scene.later(10)
        await ready(member)


async def test_a_cut_of_the_link_changes_nothing_and_a_new_agent_begins_anew() -> None:
    scene = Scene()
    wanted = spec(readiness_check=path("/ok"))
    async with scene.connected(member := scene.member(), wanted):
        await ready(member)
    scene.bad = {"/ok"}
    async with scene.connected(member := scene.member(), wanted, "unready"):
        assert member.ready
    async with scene.connected(member := scene.member("another"), wanted, "unready"):
        assert not member.ready


async def test_what_served_is_believed_after_a_restart_of_the_platform() -> None:
    scene = Scene()
    wanted = spec(startup_check=path("/up"), readiness_check=path("/ok"))
    async with scene.connected(scene.member(), wanted):
        pass
    scene.bad = {"/up", "/ok"}
    scene.checkups = scene.another()
    async with scene.connected(member := scene.member(), wanted, "ready"):
        assert member.ready
        await ready(member, wanted=False)
        assert "readiness" in member.unfit(), "its start had passed long ago"
    scene.checkups = scene.another()
    async with scene.connected(member := scene.member(), wanted, "unready"):
        assert not member.ready


async def test_a_store_that_fails_has_the_agent_come_again() -> None:
    scene = Scene()
    scene.store_fails = True
    async with scene.connected(member := scene.member(), spec(readiness_check=path("/ok"))):
        await asyncio.wait_for(member.closed.wait(), 10)
        assert member.closing is not None
        assert member.closing[0] == 1001


async def test_comfyui_has_one_port_whatever_a_check_calls_it() -> None:
    scene = Scene()
    wanted = spec(readiness_check=path("/ok", port=8188))
    async with scene.connected(member := scene.member(), wanted):
        await ready(member)
    ((_, subject),) = scene.asked
    assert subject.port == 8188
    assert subject.url == "http://127.0.0.1:7"
