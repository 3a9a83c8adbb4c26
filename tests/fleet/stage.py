"""A controller with a clock of its own, driven step by step, over a machine without processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from easel.errors import StoreFailed
from easel.fleet.controller import Controller
from easel.services.description import Description
from easel.services.model import EngineSpec, Instance, ServiceSpec
from easel.services.services import Services
from easel.services.store import ServiceStore
from easel.settings import FleetSettings
from easel.tasks.bus import LocalBus
from tests.fleet.faulty_runtimes import InProcess, Machine, slots
from tests.services.memory import MemoryStore

SETTINGS = FleetSettings(
    start_timeout=100, backoff_seconds=1, backoff_max_seconds=60, crash_loop=3, orphan_timeout=50
)


def spec(name: str = "draw", **fields: Any) -> ServiceSpec:
    whole: dict[str, Any] = {
        "name": name,
        "edition": "api",
        "engine": EngineSpec(kind="builtin"),
        "termination_grace_seconds": 0.05,
        **fields,
    }
    return ServiceSpec(**whole)


class Stage:
    """Everything a controller needs, and the agents' part of it."""

    def __init__(
        self,
        machine: Machine | None = None,
        runtime: Callable[[Machine], InProcess] = InProcess,
        store: ServiceStore | None = None,
        settings: FleetSettings = SETTINGS,
        **extra: Any,
    ) -> None:
        self.machine = machine or Machine(*slots(2))
        self.runtime = runtime(self.machine)
        self.now = 1_000_000
        self.store = store or self.new_store()
        self.bus = LocalBus()
        self.drained: list[str] = []
        self.never_ready: set[str] = set()
        """Services whose agents never report a ready engine."""
        self.settings = settings
        self.extra = extra
        self.services = Services(self.store, None, self.bus, clock=self.clock)
        self.controller = self.another()

    def new_store(self) -> ServiceStore:
        """Where rows are kept, unless a fixture says otherwise."""
        return MemoryStore()

    def clock(self) -> int:
        return self.now

    def another(
        self, runtime: InProcess | None = None, store: ServiceStore | None = None
    ) -> Controller:
        """Return a controller that knows nothing, as after a restart."""
        kept = store or self.store
        return Controller(
            kept,
            runtime or self.runtime,
            self.bus,
            Services(kept, None, self.bus, clock=self.clock),
            self.settings,
            "http://gateway",
            **{"clock": self.clock, "drain": self.drain, **self.extra},
        )

    async def drain(self, instance: str) -> None:
        self.drained.append(instance)

    async def deploy(self, name: str = "draw", **fields: Any) -> None:
        await self.services.deploy(spec(name, **fields), "{}", [])

    async def update(self, name: str = "draw", **fields: Any) -> None:
        await self.services.update(name, spec(name, **fields), "{}", [])

    async def instances(self, name: str | None = None) -> list[Instance]:
        return await self.store.instances(name)

    async def describe(self, name: str = "draw") -> Description:
        return await self.services.describe(name)

    async def reasons(self, name: str = "draw") -> list[str]:
        return [event.reason for event in await self.store.events(name)]

    async def report(self) -> None:
        """Do the agents' part: what runs to the end of its start reports a ready engine."""
        for one in await self.store.instances():
            runs = any(self.machine.running[pid]["stage"] == 3 for pid in self.machine.of(one.id))
            started = one.status in {"starting", "unready"} and one.started is not None
            if runs and started and one.target == "running" and one.service not in self.never_ready:
                await self.store.change_instance(one.id, status="ready", reason="", message="")

    async def settle(self, *, agents: bool = True) -> None:
        """Step until nothing moves any more at this time of the clock."""
        quiet = 0
        async with asyncio.timeout(20):
            while quiet < 3:
                before = await self._picture()
                await self.controller.resync()
                await self.controller.check()
                await self.controller.step()
                if agents:
                    await self.report()
                for _ in range(5):
                    await asyncio.sleep(0)
                while self._moving() > self.runtime.blocked:  # noqa: ASYNC110 - it is asked again
                    await asyncio.sleep(0.001)
                quiet = quiet + 1 if await self._picture() == before else 0

    async def settle_somehow(self) -> None:
        """A few steps, whether or not something moves, with a store that may fail."""
        for _ in range(5):
            with contextlib.suppress(StoreFailed):
                await self.controller.resync()
                await self.controller.check()
            await self.controller.step()
            await self.report()
            for _ in range(5):
                await asyncio.sleep(0)

    async def later(self, seconds: float) -> None:
        """Move the clock and let everything happen."""
        self.now += int(seconds * 1000)
        await self.settle()

    async def until(self, met: Callable[[Description], bool], name: str = "draw") -> Description:
        """Step, and move the clock where nothing moves, until a description meets a condition."""
        for _ in range(300):
            await self.settle()
            found = await self.describe(name)
            if met(found):
                return found
            self.now += 1000
        raise AssertionError(f"still {found}")

    def _moving(self) -> int:
        """Jobs under way, those included that wait for what only the test can do."""
        return sum(not job.task.done() for job in self.controller._jobs._jobs.values())

    async def _picture(self) -> object:
        rows = [msgspec.to_builtins(one) for one in await self.store.instances()]
        services = [msgspec.to_builtins(one) for one in await self.store.all()]
        return (rows, services, len(self.machine.stopped), sorted(self.machine.running))
