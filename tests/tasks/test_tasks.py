"""The façade: live progress before stored progress, wake-ups, ends told once."""

from __future__ import annotations

import asyncio

import pytest

from easel.errors import LeaseLost, QueueFull
from easel.link.messages import Preview
from easel.tasks.model import Assignment, Ending, Lease, Progress, Task
from easel.tasks.tasks import Tasks
from easel.workflow.progress import NodeProgress
from tests.tasks.conftest import Bench, new
from tests.waiting import until

DONE = Ending(state="succeeded", ended=1, nodes={"1": NodeProgress(max=1, value=1)})
HALF = Progress(percent=50, current_node="1", nodes={"1": NodeProgress(max=2, value=1)})


async def claimed(tasks: Tasks, task_id: str = "a") -> Assignment:
    await tasks.submit(new(task_id), 10)
    found = await tasks.claim("paint", "i-1")
    assert found is not None
    return found


async def test_a_watcher_sees_progress_before_it_is_stored_and_the_end(bench: Bench) -> None:
    tasks = bench.tasks
    task, created = await tasks.submit(new("a"), 10)
    assert created
    async with tasks.watch(task.uid) as watch:
        held = await tasks.claim("paint", "i-1")
        assert held is not None
        assert await watch.wait(5)
        assert watch.task.state == "assigned"
        await tasks.start(held.lease, 7)
        await tasks.progress(held.lease, HALF, border=False)
        assert await watch.wait(5)
        assert (watch.task.state, watch.task.percent) == ("running", 50)
        await tasks.finish(held.lease, DONE)
        assert await watch.wait(5)
        assert watch.over
        assert watch.task.nodes["1"].value == 1


async def test_progress_reaches_the_store(bench: Bench) -> None:
    held = await claimed(bench.tasks)
    await bench.tasks.start(held.lease, 7)
    await bench.tasks.progress(held.lease, HALF, border=True)

    async def stored() -> bool:
        return (await bench.tasks.store.get_uid(held.task.uid)).percent == 50

    await until(stored)
    events = await bench.tasks.store.events(held.task.uid)
    assert [event.kind for event in events] == ["queued", "assigned", "started", "progress"]


async def test_an_end_is_told_once_however_often_it_is_delivered(bench: Bench) -> None:
    told: list[Task] = []
    bench.tasks.on_ended = told.append
    held = await claimed(bench.tasks)
    await bench.tasks.finish(held.lease, DONE)
    await bench.tasks.finish(held.lease, DONE)
    assert [task.state for task in told] == ["succeeded"]


async def test_a_stale_lease_writes_nothing(bench: Bench) -> None:
    held = await claimed(bench.tasks)
    stale = Lease(uid=held.lease.uid, token="another")
    with pytest.raises(LeaseLost):
        await bench.tasks.progress(stale, HALF, border=True)
    with pytest.raises(LeaseLost):
        await bench.tasks.finish(stale, DONE)
    assert (await bench.tasks.get("paint", "", "a")).state == "assigned"


async def test_an_ended_lease_gives_the_task_to_the_next_and_then_to_the_rear(bench: Bench) -> None:
    tasks = bench.tasks
    first = await claimed(tasks)
    await tasks.progress(first.lease, HALF, border=False)
    bench.clock.now += 31_000
    await tasks.sweep()
    assert (await tasks.get("paint", "", "a")).state == "queued"
    with pytest.raises(LeaseLost):
        await tasks.progress(first.lease, HALF, border=False)
    second = await tasks.claim("paint", "i-2")
    assert second is not None
    assert second.task.attempt == 2
    told: list[Task] = []
    tasks.on_ended = told.append
    async with tasks.watch(second.task.uid) as watch:
        bench.clock.now += 31_000
        await tasks.sweep()
        while not watch.over:
            assert await watch.wait(5)
        assert (watch.task.state, watch.task.rear) == ("failed", True)
        assert watch.task.error is not None
        assert watch.task.error["code"] == "task_lost"
    assert [task.uid for task in told] == [second.task.uid]


async def test_cancelling_a_queued_task_ends_it_a_held_one_is_asked_for(bench: Bench) -> None:
    tasks = bench.tasks
    asked: list[Task] = []
    tasks.on_cancel = asked.append
    await tasks.submit(new("waits"), 10)
    assert (await tasks.cancel("paint", "", "waits")).state == "cancelled"
    held = await claimed(tasks, "runs")
    assert (await tasks.cancel("paint", "", "runs")).cancelling
    assert [task.id for task in asked] == ["runs"]
    lost, cancelling = await tasks.renew([held.lease])
    assert (lost, cancelling) == ([], [held.task.uid])
    await tasks.finish(held.lease, Ending(state="cancelled", ended=2))
    assert (await tasks.get("paint", "", "runs")).state == "cancelled"


async def test_a_full_line_refuses(bench: Bench) -> None:
    await bench.tasks.submit(new("a"), 1)
    with pytest.raises(QueueFull):
        await bench.tasks.submit(new("b"), 1)
    again, created = await bench.tasks.submit(new("a"), 1)
    assert (again.id, created) == ("a", False)


async def test_previews_go_to_those_who_want_them(bench: Bench) -> None:
    tasks = bench.tasks
    wanted: list[tuple[str, bool]] = []
    tasks.on_previews_wanted = lambda uid, on: wanted.append((uid, on))
    held = await claimed(tasks)
    uid = held.task.uid
    head = Preview(uid=uid, node="1", image_type="image/jpeg")
    async with tasks.watch(uid) as plain:
        assert not tasks.wants_previews(uid)
        async with tasks.watch(uid, previews=True) as curious:
            assert tasks.wants_previews(uid)
            tasks.preview(uid, head, b"old")
            tasks.preview(uid, head, b"new")
            assert curious.take_preview() == (head, b"new")
            assert curious.take_preview() is None
            assert plain.take_preview() is None
    assert wanted == [(uid, True), (uid, False)]


async def test_what_is_not_stored_at_the_end_of_the_process_is_stored_then(bench: Bench) -> None:
    held = await claimed(bench.tasks)
    await bench.tasks.progress(held.lease, HALF, border=False)
    await bench.tasks.close()
    assert (await bench.tasks.store.get_uid(held.task.uid)).percent == 50


async def test_giving_back_wakes_those_who_have_room(bench: Bench) -> None:
    held = await claimed(bench.tasks)
    with bench.tasks.bus.subscribe("queue:paint") as work:
        task = await bench.tasks.give_back(held.lease, "draining", counted=False)
        async with asyncio.timeout(5):
            await work.wait()
    assert (task.state, task.attempt) == ("queued", 0)
