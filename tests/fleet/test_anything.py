"""Whatever is asked for in whatever order, and whatever ends meanwhile: in the end what is wanted is what there is."""

from __future__ import annotations

import asyncio
import contextlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easel.errors import EaselError
from tests.fleet.faulty_runtimes import FailsRevision, Machine, slots
from tests.fleet.stage import Stage
from tests.services.memory import MemoryStore

actions = st.one_of(
    st.tuples(st.just("update"), st.integers(1, 3)),
    st.tuples(st.just("break"), st.integers(1, 3)),
    st.tuples(st.just("scale"), st.integers(0, 3)),
    st.tuples(st.sampled_from(["stop", "start", "restart", "rollback"]), st.just(0)),
    st.tuples(st.just("end"), st.integers(0, 3)),
    st.tuples(st.just("unready"), st.integers(0, 3)),
    st.tuples(st.just("forget"), st.just(0)),
    st.tuples(st.just("pass"), st.sampled_from([0, 1, 5, 60])),
    st.tuples(st.just("step"), st.integers(1, 3)),
)


async def act(stage: Stage, action: str, number: int) -> None:
    """Do one thing to the service, its processes or the controller."""
    match action:
        case "update":
            await stage.update(instances=number, env={"at": str(stage.now)})
        case "break":
            await stage.update(instances=number, env={"broken": str(stage.now)})
        case "scale":
            await stage.services.scale("draw", number)
        case "stop" | "start" | "restart" | "rollback":
            await getattr(stage.services, action)("draw")
        case "end":
            for pid in sorted(stage.machine.running)[number : number + 1]:
                del stage.machine.running[pid]
        case "unready":
            for one in (await stage.instances())[number : number + 1]:
                if one.status == "ready":
                    await stage.store.change_instance(one.id, status="unready")
        case "forget":
            await forget(stage)
        case "pass":
            await stage.later(number)
        case _:
            for _ in range(number):
                await stage.controller.resync()
                await stage.controller.step()
                await asyncio.sleep(0)


async def forget(stage: Stage) -> None:
    """Kill the controller and start another one."""
    for job in list(stage.controller._jobs._jobs.values()):
        job.task.cancel()
        await asyncio.wait([job.task])
    stage.controller = stage.another()
    await stage.controller.open()
    await stage.controller.close()


async def perform(slots_free: int, surge: int, plan: list[tuple[str, int]]) -> None:
    stage = Stage(Machine(*slots(slots_free)), FailsRevision, store=MemoryStore())
    await stage.deploy(max_surge=surge)
    for action, number in plan:
        with contextlib.suppress(EaselError):
            await act(stage, action, number)
    await stage.update(instances=2, max_surge=surge, max_unavailable=1, env={"last": "one"})
    await stage.services.start("draw")
    for _ in range(5):
        await stage.later(61)
    found = await stage.describe()
    assert (found.status, found.running, found.total) == ("Running", 2, 2), found
    rows = await stage.instances()
    for one in rows:
        assert stage.machine.of(one.id), one
    assert len(stage.machine.running) == 2
    assert stage.machine.folders == {one.id for one in rows}
    assert found.stable_revision == found.revision == found.latest_revision
    latest = {launch.instance: launch for launch in stage.machine.launches}
    assert all(latest[one.id].spec.env == {"last": "one"} for one in rows)
    await stage.services.delete("draw")
    await stage.settle()
    assert not await stage.store.all()
    assert not stage.machine.running
    assert not stage.machine.folders


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(2, 4), st.integers(0, 2), st.lists(actions, max_size=12))
def test_in_the_end_there_is_what_is_wanted(
    slots_free: int, surge: int, plan: list[tuple[str, int]]
) -> None:
    asyncio.run(perform(slots_free, surge, plan))
