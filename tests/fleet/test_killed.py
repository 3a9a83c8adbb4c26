"""The controller is killed before and after each thing it does; the next one leaks nothing, loses nothing, stops nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from typing import Any

import pytest

from easel.fleet.recovery import recover
from easel.fleet.runtime import Device, Handle, Launch, Vitals
from tests.fleet.faulty_runtimes import FailsAtStage, FailsRevision, InProcess, Machine, slots
from tests.fleet.stage import Stage
from tests.services.memory import MemoryStore


class Killed(BaseException):
    """The process is gone: nothing it does has any effect from now on."""


class Fate:
    """Counts what a controller does to the world, and ends it at the given count."""

    def __init__(self, at: int, *, before: bool) -> None:
        self.at = at
        self.before = before
        self.count = 0
        self.dead = False

    async def do(self, call: Callable[[], Awaitable[Any]]) -> Any:
        self.meet(before=True)
        result = await call()
        self.meet(before=False)
        return result

    def meet(self, *, before: bool) -> None:
        self.count += before
        if self.count == self.at and before == self.before:
            self.dead = True
        if self.dead:
            raise Killed


class MortalStore:
    """A store whose user may be killed between any two writes."""

    WRITES = (
        "create",
        "change",
        "revise",
        "mark_failed",
        "delete",
        "add_instance",
        "change_instance",
        "remove_instance",
        "add_event",
    )

    def __init__(self, store: MemoryStore, fate: Fate) -> None:
        self._store = store
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in self.WRITES:
            return method

        async def write(*args: Any, **fields: Any) -> Any:
            return await self._fate.do(lambda: method(*args, **fields))

        return write


class MortalRuntime(InProcess):
    """A runtime whose user may be killed between any two of its steps."""

    def __init__(self, inner: InProcess, fate: Fate) -> None:
        super().__init__(inner.machine)
        self.inner = inner
        self.fate = fate

    async def devices(self) -> list[Device]:
        return self.machine.devices

    async def start(self, launch: Launch) -> AsyncGenerator[Handle, None]:
        self.fate.meet(before=True)
        async for handle in self.inner.start(launch):
            self.fate.meet(before=False)
            yield handle
            self.fate.meet(before=True)

    async def stop(self, handle: Handle, *, grace: float) -> None:
        await self.fate.do(lambda: self.inner.stop(handle, grace=grace))

    async def check(self, handles: dict[str, Handle]) -> dict[str, Vitals]:
        return await self.inner.check(handles)

    async def strays(self, known: Collection[str]) -> list[Handle]:
        return await self.inner.strays(known)

    async def discard(self, handle: Handle) -> None:
        await self.fate.do(lambda: self.inner.discard(handle))


Play = Callable[[Stage], Awaitable[None]]


async def deploy(stage: Stage) -> None:
    await stage.settle()


async def crash(stage: Stage) -> None:
    await stage.settle()
    stage.machine.running.pop(min(stage.machine.running))
    await stage.settle()
    await stage.later(2)


async def update(stage: Stage) -> None:
    await stage.settle()
    await stage.update(instances=2, env={"a": "1"})
    await stage.settle()


async def update_in_vain(stage: Stage) -> None:
    await stage.settle()
    await stage.update(instances=2, env={"broken": "1"})
    await stage.settle()
    await stage.services.rollback("draw")
    await stage.settle()


async def stop_and_start(stage: Stage) -> None:
    await stage.settle()
    await stage.services.stop("draw")
    await stage.settle()
    await stage.services.start("draw")
    await stage.settle()


async def delete(stage: Stage) -> None:
    await stage.settle()
    await stage.services.delete("draw")
    await stage.settle()


async def perform(play: Play, at: int, *, before: bool) -> tuple[Stage, Fate]:
    """Play until the controller is killed, then let another one bring it to an end."""
    stage = Stage(Machine(*slots(3)), FailsRevision, store=MemoryStore())
    await stage.deploy(instances=2)
    fate = Fate(at, before=before)
    assert isinstance(stage.store, MemoryStore)
    mortal: Any = MortalStore(stage.store, fate)
    stage.controller = stage.another(MortalRuntime(stage.runtime, fate), mortal)
    with contextlib.suppress(Killed):
        await play(stage)
    if fate.dead:
        for job in list(stage.controller._jobs._jobs.values()):
            job.task.cancel()
            await asyncio.wait([job.task])
        ready = {
            pid
            for one in await stage.instances()
            if one.status == "ready" and one.target == "running"
            for pid in stage.machine.of(one.id)
        }
        stage.controller = stage.another()
        journal = stage.controller._journal
        await recover(stage.store, stage.runtime, journal, stage.clock)
        assert ready <= set(stage.machine.running), "a running instance was stopped by a restart"
    return stage, fate


async def settled(stage: Stage) -> None:
    """What must hold when everything has come to rest, whoever was killed when."""
    for _ in range(3):
        await stage.later(30)
    rows = await stage.instances()
    assert stage.machine.folders == {one.id for one in rows}
    for one in rows:
        runs = 1 if one.status == "ready" else 0
        assert len(stage.machine.of(one.id)) == runs, one
    assert len(stage.machine.running) == sum(one.status == "ready" for one in rows)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    "play",
    [deploy, crash, update, update_in_vain, stop_and_start, delete],
    ids=lambda p: p.__name__,
)
async def test_killed_between_every_two_steps(play: Play, before: bool) -> None:
    at = 0
    while True:
        at += 1
        stage, fate = await perform(play, at, before=before)
        await settled(stage)
        if not await stage.store.all():
            assert play is delete
            assert not stage.machine.running
        else:
            found = await stage.describe()
            if found.status == "Stopped":
                assert not stage.machine.running
                await stage.services.start("draw")
                await settled(stage)
                found = await stage.describe()
            assert found.running == 2, (at, found)
            if found.reason == "UpdatePaused":
                await stage.services.rollback("draw")
                await settled(stage)
                found = await stage.describe()
            assert (found.status, found.total) == ("Running", 2), (at, found)
        if not fate.dead:
            break
    assert at > 10


async def test_a_start_cut_off_by_close_is_finished_by_the_next() -> None:
    stage = Stage(runtime=lambda machine: FailsAtStage(machine, 0))
    await stage.deploy()
    await stage.settle()
    pid = min(stage.machine.running)
    await stage.controller.close()
    assert pid in stage.machine.running
    stage.controller = stage.another()
    await stage.controller.open()
    try:
        await stage.settle()
    finally:
        await stage.controller.close(stop_instances=True)
    assert "Adopted" in await stage.reasons()
    assert not stage.machine.running
    assert stage.machine.boots == 1
    assert stage.drained == [one.id for one in await stage.instances()]
    stage.controller = stage.another()
    await stage.controller.open()
    try:
        assert (await stage.until(lambda one: one.status == "Running")).restarts == 0
    finally:
        await stage.controller.close()
    assert stage.machine.boots == 2
