"""The controller over a machine without processes: starts, ends, adoption, stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from easel.errors import StoreFailed
from easel.fleet.controller import SWEEP
from easel.services.model import HealthCheck, Instance
from easel.services.store import ServiceStore
from easel.services.tokens import token_hash
from tests.fleet.faulty_runtimes import (
    FailsAtStage,
    LiesAboutHealth,
    Machine,
    SlowToStart,
    StopFails,
    StopHangs,
    gpus,
    slots,
)
from tests.fleet.stage import Stage
from tests.services.memory import MemoryStore
from tests.waiting import until


async def test_a_deployed_service_runs() -> None:
    stage = Stage()
    await stage.deploy(instances=2)
    assert (await stage.describe()).status == "Creating"
    await stage.settle()
    found = await stage.describe()
    assert (found.status, found.running, found.total, found.pending) == ("Running", 2, 2, 0)
    assert {one.device for one in found.instances} == {"cpu-0", "cpu-1"}
    assert found.stable_revision == 1
    assert (await stage.store.get("draw")).status == "Running"
    assert await stage.reasons() == ["Deployed", *["InstanceStarting"] * 2, *["InstanceReady"] * 2]


async def test_the_agent_gets_a_token_of_which_only_the_hash_is_stored() -> None:
    stage = Stage()
    await stage.deploy()
    await stage.settle()
    (launch,) = stage.machine.launches
    (instance,) = await stage.instances()
    assert instance.token_hash == token_hash(launch.token)
    assert launch.device is None
    assert launch.gateway_url == "http://gateway"


async def test_without_a_free_device_it_says_who_has_them() -> None:
    stage = Stage(Machine(*gpus(2)))
    for name in ("b", "a", "waits"):
        await stage.deploy(name)
        await stage.settle()
        stage.now += 1
    found = await stage.describe("waits")
    assert (found.status, found.reason) == ("Pending", "NoDevice")
    assert found.message == "no GPU is free: 2 of 2 in use by a, b"
    assert [one.status for one in found.instances] == ["pending"]
    await stage.services.delete("a")
    assert (await stage.until(lambda one: one.status == "Running", "waits")).running == 1
    assert (await stage.reasons("waits")).count("NoDevice") == 1


async def test_whoever_waits_longest_gets_the_device() -> None:
    stage = Stage(Machine(*slots(1)))
    for name in ("first", "zzz", "aaa"):
        await stage.deploy(name)
        await stage.settle()
        stage.now += 1
    await stage.services.stop("first")
    await stage.settle()
    assert (await stage.describe("zzz")).status == "Running"
    assert (await stage.describe("aaa")).status == "Pending"


async def test_another_kind_of_device_is_not_kept_from_others() -> None:
    stage = Stage(Machine(*gpus(1), *slots(1)))
    await stage.deploy("one", gpus=1)
    await stage.settle()
    await stage.deploy("two", gpus=1)
    await stage.settle()
    stage.now += 1
    await stage.deploy("slot")
    await stage.settle()
    assert (await stage.describe("two")).status == "Pending"
    assert (await stage.describe("slot")).status == "Running"


async def test_an_end_is_followed_by_a_start_after_a_pause_that_doubles() -> None:
    stage = Stage()
    await stage.deploy()
    await stage.settle()
    pauses = []
    for _ in range(4):
        stage.machine.running.clear()
        await stage.settle()
        (instance,) = await stage.instances()
        assert (instance.status, instance.last_state) == ("backoff", "Killed")
        pauses.append(instance.not_before - stage.now)
        stage.now = instance.not_before - 1
        await stage.settle()
        assert not stage.machine.running
        await stage.later(0.001)
        assert (await stage.describe()).status == "Running"
    assert pauses == [1000, 2000, 4000, 8000]
    (instance,) = await stage.instances()
    assert instance.restarts == 4
    await stage.later(61)  # ready for longer than the longest pause
    stage.machine.running.clear()
    await stage.settle()
    (instance,) = await stage.instances()
    assert instance.not_before - stage.now == 1000


async def test_a_late_word_of_an_ended_agent_does_not_shorten_the_pause() -> None:
    stage = Stage()
    await stage.deploy()
    await stage.settle()
    stage.machine.running.clear()
    await stage.settle()
    (instance,) = await stage.instances()
    await stage.store.change_instance(instance.id, status="unready", message="link cut")
    await stage.settle()
    (after,) = await stage.instances()
    assert (after.status, after.not_before) == ("backoff", instance.not_before)
    assert len(stage.machine.launches) == 1


async def test_a_crash_loop_is_shown_with_the_last_words_and_advice() -> None:
    def advise(reason: str, message: str, log: object) -> str:
        return f"look at {reason}"

    stage = Stage(advise=advise)
    await stage.deploy()
    for _ in range(3):
        await stage.settle()
        stage.machine.running.clear()
        await stage.settle()
        stage.now += 10_000
    stage.now -= 10_000
    found = await stage.describe()
    assert (found.status, found.reason) == ("Waiting", "CrashLoopBackOff")
    assert "killed by signal 9" in found.message
    event = (await stage.store.events("draw"))[-1]
    assert (event.reason, event.type) == ("CrashLoopBackOff", "Warning")
    assert event.advice == "look at Killed"
    assert event.log == ["last words of 3"]
    assert (await stage.until(lambda one: one.status == "Running")).reason == ""


async def test_without_restart_after_a_crash_it_fails() -> None:
    stage = Stage()
    await stage.deploy(restart_after_crash=False)
    await stage.settle()
    stage.machine.running.clear()
    await stage.later(1000)
    found = await stage.describe()
    assert (found.status, found.reason) == ("Failed", "Killed")
    await stage.services.start("draw")
    assert (await stage.until(lambda one: one.status == "Running")).restarts == 0


async def test_too_much_memory_ends_it_with_the_reason_kept() -> None:
    stage = Stage()
    await stage.deploy(memory_bytes=2**30)
    await stage.settle()
    (before,) = await stage.instances()
    stage.machine.memory[before.id] = 3 * 2**30
    await stage.settle(agents=False)
    (instance,) = await stage.instances()
    assert (instance.status, instance.last_state) == ("backoff", "OOMKilled")
    assert not stage.machine.running
    stage.machine.memory.clear()
    await stage.later(2)
    (instance,) = await stage.instances()
    assert (instance.status, instance.last_state) == ("ready", "OOMKilled")
    (event,) = [one for one in await stage.store.events("draw") if one.reason == "OOMKilled"]
    assert "host memory exhausted: 3072 MiB in use, 1024 MiB allowed" in event.message


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_start_that_fails_is_stopped_by_its_last_handle_and_tried_again(at: int) -> None:
    stage = Stage(runtime=lambda machine: FailsAtStage(machine, at))
    await stage.deploy()
    await stage.settle()
    (instance,) = await stage.instances()
    assert (instance.status, instance.last_state) == ("backoff", "StartFailed")
    assert [handle["stage"] for handle in stage.machine.stopped] == [at]
    assert not stage.machine.running
    stage.runtime = FailsAtStage(stage.machine, 0)
    stage.controller = stage.another()
    assert (await stage.until(lambda one: one.status == "Running")).restarts == 1


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_start_that_cannot_work_fails_until_it_is_asked_for_again(at: int) -> None:
    stage = Stage(runtime=lambda machine: FailsAtStage(machine, at, for_good=True))
    await stage.deploy()
    await stage.later(10_000)
    found = await stage.describe()
    assert (found.status, found.reason) == ("Failed", "MissingComfyUI")
    assert [handle["stage"] for handle in stage.machine.stopped] == [at]
    assert len(stage.machine.launches) == 1
    assert (await stage.store.revision("draw", 1)).failed
    (event,) = [one for one in await stage.store.events("draw") if one.reason == "MissingComfyUI"]
    assert event.advice == "install one"
    stage.runtime = FailsAtStage(stage.machine, 0)
    stage.controller = stage.another()
    await stage.later(10_000)
    assert len(stage.machine.launches) == 1
    await stage.services.start("draw")
    await stage.until(lambda one: one.status == "Running")
    assert len(await stage.instances()) == 1
    assert stage.machine.folders == {one.id for one in await stage.instances()}


async def test_a_failed_service_gives_its_device_to_others() -> None:
    stage = Stage(Machine(*slots(1)), lambda machine: FailsAtStage(machine, 2, for_good=True))
    await stage.deploy("bad")
    await stage.settle()
    stage.runtime = FailsAtStage(stage.machine, 0)
    stage.controller = stage.another()
    await stage.deploy("good")
    await stage.settle()
    assert (await stage.describe("good")).status == "Running"


async def test_one_that_never_gets_ready_is_ended_after_its_startup_check() -> None:
    stage = Stage()
    stage.never_ready.add("draw")
    check = HealthCheck(initial_delay_seconds=5, period_seconds=5, failure_threshold=4)
    await stage.deploy(startup_check=check)
    await stage.settle()
    assert (await stage.describe()).status == "Waiting"
    await stage.later(25.9)
    assert (await stage.instances())[0].status == "starting"
    await stage.later(0.2)
    (instance,) = await stage.instances()
    assert (instance.status, instance.last_state) == ("backoff", "StartTimeout")


async def test_a_start_that_hangs_is_ended_with_its_last_handle() -> None:
    stage = Stage(runtime=SlowToStart)
    await stage.deploy()
    await stage.settle()
    await stage.later(99)
    assert (await stage.describe()).instances[0].status == "starting"
    await stage.later(2)
    (instance,) = await stage.instances()
    assert (instance.status, instance.last_state) == ("backoff", "StartTimeout")
    assert [handle["stage"] for handle in stage.machine.stopped] == [2]
    assert not stage.machine.running


async def test_an_unready_one_is_given_time_and_then_ended() -> None:
    stage = Stage()
    await stage.deploy()
    await stage.settle()
    (instance,) = await stage.instances()
    await stage.store.change_instance(instance.id, status="unready", message="link cut")
    await stage.settle(agents=False)
    assert (await stage.describe()).status == "Waiting"
    stage.now += 99_000
    await stage.settle(agents=False)
    assert (await stage.instances())[0].status == "unready"
    stage.now += 2_000
    await stage.settle(agents=False)
    (instance,) = await stage.instances()
    assert (instance.status, instance.last_state) == ("backoff", "Unresponsive")
    assert "InstanceUnready" in await stage.reasons()


@pytest.mark.parametrize("status", ["failed", "unready", "starting"])
async def test_one_whose_agent_gave_the_engine_up_is_started_anew(status: str) -> None:
    stage = Stage()
    await stage.deploy()
    await stage.settle()
    (instance,) = await stage.instances()
    said = {"reason": "EngineFailed", "message": "ComfyUI ended 5 times: no module named torch"}
    await stage.store.change_instance(instance.id, status=status, **said)
    await stage.settle(agents=False)
    (instance,) = await stage.instances()
    assert (instance.status, instance.last_state) == ("backoff", "EngineFailed")
    assert "no module named torch" in (await stage.describe()).message
    assert not stage.machine.running
    await stage.later(1)
    assert (await stage.describe()).status == "Running"


async def test_one_that_is_called_dead_while_it_lives_is_stopped_before_it_is_started_again() -> (
    None
):
    stage = Stage(runtime=LiesAboutHealth)
    await stage.deploy()
    for _ in range(5):
        await stage.settle()
        assert len(stage.machine.running) <= 1
        stage.now += 100_000


async def test_a_liveness_check_ends_it() -> None:
    async def probe(instance: object, spec: object) -> str | None:
        return "GET /health answered 500 three times"

    stage = Stage(probe=probe)
    await stage.deploy()
    await stage.settle()
    (instance,) = await stage.instances()
    assert (instance.status, instance.last_state) == ("backoff", "LivenessFailed")


async def test_a_stop_drains_first_and_leaves_nothing() -> None:
    stage = Stage()
    await stage.deploy(instances=2)
    await stage.settle()
    ids = {one.id for one in await stage.instances()}
    await stage.services.stop("draw")
    assert (await stage.describe()).status == "Stopping"
    await stage.settle()
    assert (await stage.describe()).status == "Stopped"
    assert set(stage.drained) == ids
    assert not stage.machine.running
    assert not stage.machine.folders
    assert not await stage.instances()
    await stage.services.start("draw")
    await stage.settle()
    assert (await stage.describe()).status == "Running"


async def test_a_stop_cuts_a_start_off() -> None:
    stage = Stage(runtime=SlowToStart)
    await stage.deploy()
    await stage.settle()
    await stage.services.stop("draw")
    await stage.settle()
    assert (await stage.describe()).status == "Stopped"
    assert [handle["stage"] for handle in stage.machine.stopped] == [2]
    assert not stage.machine.running
    assert not stage.drained


@pytest.mark.parametrize("fault", [StopHangs, StopFails])
async def test_a_stop_that_does_not_work_is_tried_until_it_does(
    fault: type[StopHangs] | type[StopFails],
) -> None:
    stage = Stage(runtime=lambda machine: fault(machine, 2))
    await stage.deploy()
    await stage.deploy("other")
    await stage.settle()
    await stage.services.stop("draw")
    await stage.settle()
    assert (await stage.describe()).status == "Stopping"
    assert (await stage.describe("other")).status == "Running"
    await stage.until(lambda one: one.status == "Stopped")
    assert "StopFailed" in await stage.reasons()
    assert len(stage.machine.running) == 1


async def test_delete_removes_instances_and_rows() -> None:
    stage = Stage()
    await stage.deploy()
    await stage.settle()
    await stage.services.delete("draw")
    assert (await stage.describe()).status == "Deleting"
    await stage.settle()
    assert not await stage.store.all()
    assert not stage.machine.running
    assert not stage.machine.folders
    await stage.deploy()  # the name is free again
    await stage.settle()
    assert (await stage.describe()).status == "Running"


async def test_scaling_down_takes_the_least_useful() -> None:
    stage = Stage(Machine(*slots(4)))
    await stage.deploy(instances=3)
    await stage.settle()
    ready = await stage.instances()
    await stage.store.change_instance(ready[0].id, status="unready")
    await stage.services.scale("draw", 2)
    await stage.settle(agents=False)
    assert {one.id for one in await stage.instances()} == {one.id for one in ready[1:]}
    await stage.services.scale("draw", 0)
    await stage.settle()
    assert (await stage.describe()).status == "Running"
    assert not stage.machine.running


async def test_scaling_down_spares_the_busy_ones() -> None:
    busy: dict[str, int] = {}
    stage = Stage(load=lambda instance: busy.get(instance, 0))
    await stage.deploy(instances=2)
    await stage.settle()
    for one in await stage.instances():
        busy = {one.id: 1}
    await stage.services.scale("draw", 1)
    await stage.settle()
    assert {one.id for one in await stage.instances()} == set(busy)


async def test_a_joined_instance_is_left_to_itself_and_let_go_with_its_service() -> None:
    stage = Stage()
    await stage.deploy(instances=0)
    await stage.settle()
    guest = Instance(
        id="guest",
        service="draw",
        revision=1,
        runtime="joined",
        handle={"name": "elsewhere"},
        status="ready",
        created=1,
        updated=1,
    )
    await stage.store.add_instance(guest)
    await stage.settle()
    found = await stage.describe()
    assert (found.status, found.running) == ("Running", 1)
    await stage.update(env={"a": "b"}, instances=0)
    await stage.settle()
    assert (await stage.describe()).running == 1
    await stage.services.stop("draw")
    await stage.settle()
    assert stage.drained == ["guest"]
    assert (await stage.describe()).status == "Stopped"
    assert not stage.machine.stopped


async def test_rows_are_set_right_by_what_the_agents_are() -> None:
    known: dict[str, bool] = {}
    stage = Stage(engine_ready=known.get)
    await stage.deploy()
    await stage.settle(agents=False)
    (instance,) = await stage.instances()
    assert instance.status == "starting"
    known[instance.id] = True  # its word was lost
    await stage.settle(agents=False)
    assert (await stage.describe()).status == "Running"
    known.clear()  # as after a restart
    await stage.settle(agents=False)
    found = await stage.describe()
    assert (found.status, found.reason) == ("Waiting", "LinkLost")
    known[instance.id] = True
    await stage.settle(agents=False)
    assert (await stage.describe()).status == "Running"


async def test_left_to_itself_it_follows_what_is_told_on_the_bus() -> None:
    stage = Stage()

    async def status(wanted: str) -> bool:
        await stage.report()
        stage.bus.publish("fleet")
        return (await stage.describe()).status == wanted

    await stage.controller.open()
    try:
        await stage.deploy(instances=2)
        await until(lambda: status("Running"), timeout=20, pause=0.01)
        await stage.services.stop("draw")
        await until(lambda: status("Stopped"), timeout=20, pause=0.01)
        await stage.services.delete("draw")

        async def gone() -> bool:
            return not await stage.store.all()

        await until(gone, timeout=20, pause=0.01)
    finally:
        await stage.controller.close()
    assert not stage.machine.running


async def test_a_store_that_fails_for_a_while_costs_time_and_nothing_else() -> None:
    stage = Stage(store=MemoryStore())
    failing: Any = FailingStore(stage.store)
    stage.controller = stage.another(store=failing)
    await stage.deploy(instances=2)
    for _ in range(200):
        failing.broken = not failing.broken
        await stage.settle_somehow()
        stage.now += 1000
    failing.broken = False
    assert failing.failed > 20
    await stage.until(lambda one: one.status == "Running")
    rows = await stage.instances()
    assert len(rows) == len(stage.machine.running) == 2
    assert all(len(stage.machine.of(one.id)) == 1 for one in rows)


async def test_a_start_cut_off_while_its_handle_is_being_stored_is_stopped_by_that_handle() -> None:
    stage = Stage()
    slow: Any = SlowStore(stage.store)
    stage.controller = stage.another(store=slow)
    await stage.deploy()
    await stage.controller.resync()
    await until(lambda: step(stage, slow.reached.is_set), timeout=10, pause=0.001)
    assert stage.machine.running
    await stage.services.stop("draw")
    stage.runtime.blocked = 1  # the write that never ends
    await stage.controller.resync()
    await stage.controller.step()
    stage.runtime.blocked = 0
    await stage.settle()
    assert (await stage.describe()).status == "Stopped"
    assert [handle["stage"] for handle in stage.machine.stopped] == [2]
    assert not stage.machine.running


async def test_what_runs_without_a_row_is_found_later() -> None:
    stage = Stage()
    await stage.deploy()
    await stage.settle()
    stage.machine.running[99] = {"instance": "gone", "stage": 3, "pid": 99}
    await stage.settle()
    assert 99 in stage.machine.running
    stage.controller._queue.put(SWEEP)
    await stage.settle()
    assert 99 not in stage.machine.running
    assert (await stage.describe()).status == "Running"


async def step(stage: Stage, met: Callable[[], bool]) -> bool:
    await stage.controller.step()
    return met()


class SlowStore:
    """A store that never comes back from storing the handle of a start's second stage."""

    def __init__(self, store: ServiceStore) -> None:
        self._store = store
        self.reached = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def change_instance(self, instance_id: str, **fields: Any) -> Instance:
        if fields.get("handle", {}).get("stage") == 2 and not self.reached.is_set():
            self.reached.set()
            await asyncio.Event().wait()
        return await self._store.change_instance(instance_id, **fields)


class FailingStore:
    """A store of which every third write fails while it is broken, after it was done or before."""

    def __init__(self, store: ServiceStore) -> None:
        self._store = store
        self.broken = False
        self._count = 0
        self.failed = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **fields: Any) -> Any:
            self._count += self.broken
            fails = self.broken and self._count % 3 == 0
            self.failed += fails
            if fails and self._count % 2:
                raise StoreFailed("the disk is away")
            result = await method(*args, **fields)
            if fails:
                raise StoreFailed("the disk is away")
            return result

        return call
