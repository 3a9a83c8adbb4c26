"""A runtime without processes, and ones with a fault each. What runs is in a `Machine`, which outlives any controller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection

from easel.errors import EngineError, InstanceFailed
from easel.fleet.runtime import Device, Handle, Launch, Vitals


class Machine:
    """What runs, whoever knows of it: ``(instance, boot)`` of each process, and what its folder holds."""

    def __init__(self, *devices: Device) -> None:
        self.devices = list(devices)
        self.running: dict[int, Handle] = {}
        """Process id → the handle that stands for it."""
        self.folders: set[str] = set()
        self.boots = 0
        self.stopped: list[Handle] = []
        """Every handle that `stop` was given."""
        self.launches: list[Launch] = []
        self.memory: dict[str, int] = {}

    def of(self, instance: str) -> list[int]:
        """Return the processes of an instance."""
        return [pid for pid, handle in self.running.items() if handle["instance"] == instance]


def gpus(count: int) -> list[Device]:
    return [Device(id=f"GPU-{n}", kind="gpu", name=f"GPU {n}") for n in range(count)]


def slots(count: int) -> list[Device]:
    return [Device(id=f"cpu-{n}", kind="cpu") for n in range(count)]


class InProcess:
    """Starts in three stages: a folder, a process, the process told its work."""

    name = "local"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.blocked = 0
        """Calls that wait for the test."""

    async def devices(self) -> list[Device]:
        return self.machine.devices

    async def start(self, launch: Launch) -> AsyncGenerator[Handle, None]:
        machine = self.machine
        machine.launches.append(launch)
        machine.folders.add(launch.instance)
        yield {"instance": launch.instance, "stage": 1}
        await self.stage(1)
        machine.boots += 1
        pid = machine.boots
        machine.running[pid] = {"instance": launch.instance, "stage": 2, "pid": pid}
        yield dict(machine.running[pid])
        await self.stage(2)
        machine.running[pid] = {"instance": launch.instance, "stage": 3, "pid": pid}
        yield dict(machine.running[pid])
        await self.stage(3)

    async def stage(self, number: int) -> None:
        """What happens after a stage."""

    async def wait(self, event: asyncio.Event) -> None:
        self.blocked += 1
        try:
            await event.wait()
        finally:
            self.blocked -= 1

    async def stop(self, handle: Handle, *, grace: float) -> None:
        self.machine.stopped.append(handle)
        self.machine.running.pop(handle.get("pid", 0), None)

    async def check(self, handles: dict[str, Handle]) -> dict[str, Vitals]:
        return {key: self.vitals(key, handle) for key, handle in handles.items()}

    def vitals(self, instance: str, handle: Handle) -> Vitals:
        if handle.get("pid") in self.machine.running:
            memory = self.machine.memory.get(instance)
            return Vitals(instance=instance, alive=True, memory_bytes=memory)
        return Vitals(instance=instance, alive=False, exit="Killed", message="killed by signal 9")

    async def logs(self, handle: Handle, *, lines: int, previous: bool = False) -> list[str]:
        return [f"last words of {handle.get('pid')}"]

    async def strays(self, known: Collection[str]) -> list[Handle]:
        return [one for one in self.machine.running.values() if one["instance"] not in known]

    async def discard(self, handle: Handle) -> None:
        self.machine.folders.discard(handle["instance"])


class SlowToStart(InProcess):
    """Starts when it is allowed to."""

    def __init__(self, machine: Machine, at: int = 2) -> None:
        super().__init__(machine)
        self.at = at
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def stage(self, number: int) -> None:
        if number == self.at:
            self.reached.set()
            await self.wait(self.go_on)


class FailsAtStage(InProcess):
    """Cannot start, for now (``EngineError``) or for good (``InstanceFailed``)."""

    def __init__(self, machine: Machine, at: int, *, for_good: bool = False) -> None:
        super().__init__(machine)
        self.at = at
        self.for_good = for_good

    async def stage(self, number: int) -> None:
        if number == self.at and self.for_good:
            raise InstanceFailed("MissingComfyUI", "there is no ComfyUI", hint="install one")
        if number == self.at:
            raise EngineError("the port was taken")


class FailsRevision(InProcess):
    """Cannot start specifications with ``broken`` in their environment."""

    async def start(self, launch: Launch) -> AsyncGenerator[Handle, None]:
        async for handle in super().start(launch):
            yield handle
        if "broken" in launch.spec.env:
            raise InstanceFailed("MissingMount", "/data is not there", hint="make it")


class LiesAboutHealth(InProcess):
    """Says that everything is dead while it lives."""

    def vitals(self, instance: str, handle: Handle) -> Vitals:
        return Vitals(instance=instance, alive=False, exit="Error", message="exit status 1")


class StopHangs(InProcess):
    """Its first stops never return."""

    def __init__(self, machine: Machine, times: int = 1) -> None:
        super().__init__(machine)
        self.times = times

    async def stop(self, handle: Handle, *, grace: float) -> None:
        if self.times:
            self.times -= 1
            await self.wait(asyncio.Event())
        await super().stop(handle, grace=grace)


class StopFails(InProcess):
    """Its first stops fail."""

    def __init__(self, machine: Machine, times: int = 1) -> None:
        super().__init__(machine)
        self.times = times

    async def stop(self, handle: Handle, *, grace: float) -> None:
        if self.times:
            self.times -= 1
            raise EngineError("it would not die")
        await super().stop(handle, grace=grace)
