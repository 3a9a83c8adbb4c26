"""What task stores do for those who hold tasks, and when time passes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from easel.errors import LeaseLost, TaskNotFound
from easel.tasks.model import Ending, Lease, Progress, Swept, Task
from easel.tasks.store import TaskStore
from easel.workflow.progress import NodeProgress
from tests.contract.task_stores import Clock, TaskPlace, new
from tests.contract.test_task_store import LEASE, claimed, ending, kinds, order

SNAPSHOT = Progress(percent=40, current_node="3", nodes={"3": NodeProgress(value=2, max=5)})


async def held(tasks: TaskStore, task_id: str = "task", **values: Any) -> Lease:
    """Put a task and claim it: nothing else waits."""
    await tasks.put(new(task_id, **values))
    return (await claimed(tasks)).lease


# Running


async def test_a_life(tasks: TaskStore, clock: Clock) -> None:
    lease = await held(tasks, seeds={"3.seed": 5})
    await tasks.start(lease, 1_700_000_001_000)
    await tasks.progress(lease, SNAPSHOT, event=True)
    running = await tasks.get_uid(lease.uid)
    assert (running.state, running.started) == ("running", 1_700_000_001_000)
    assert (running.percent, running.current_node) == (40, "3")
    nodes = {"9": NodeProgress(max=1, value=1, images=[{"filename": "a.png", "kind": "image"}])}
    clock.now += 1
    done = await tasks.finish(
        lease, ending(nodes=nodes, started=1_700_000_001_001, node_errors={"7": {"errors": []}})
    )
    assert done == Task(
        uid=lease.uid,
        service="service",
        owner="owner",
        id="task",
        signature="sig",
        state="succeeded",
        created=clock.now - 1,
        started=1_700_000_001_001,
        ended=1_700_000_009_000,
        attempt=1,
        instance="i1",
        percent=100,
        nodes={**SNAPSHOT.nodes, **nodes},
        seeds={"3.seed": 5},
        node_errors={"7": {"errors": []}},
        last_event=5,
    )
    assert await tasks.get_uid(lease.uid) == done
    assert await kinds(tasks, lease.uid) == [
        "queued",
        "assigned",
        "started",
        "progress",
        "succeeded",
    ]
    started, progress, succeeded = await tasks.events(lease.uid, 2)
    assert (started.at, started.data) == (1_700_000_001_000, {})
    assert (progress.at, progress.data) == (clock.now - 1, {"node": "3", "percent": 40.0})
    assert (succeeded.at, succeeded.data) == (1_700_000_009_000, {})


async def test_start_is_harmless_again(tasks: TaskStore) -> None:
    lease = await held(tasks)
    await tasks.start(lease, 5)
    await tasks.start(lease, 6)
    assert (await tasks.get_uid(lease.uid)).started == 5
    assert await kinds(tasks, lease.uid) == ["queued", "assigned", "started"]


async def test_snapshots_merge_by_node(tasks: TaskStore) -> None:
    lease = await held(tasks)
    one, two = NodeProgress(value=1, max=2), NodeProgress(value=2, max=2, results=["x"])
    await tasks.progress(lease, SNAPSHOT, event=False)
    await tasks.progress(
        lease, Progress(percent=50, current_node="4", nodes={"4": one}), event=False
    )
    await tasks.progress(
        lease, Progress(percent=60.5, current_node=None, nodes={"4": two}), event=False
    )
    await tasks.progress(lease, Progress(percent=61, current_node=None, nodes={}), event=False)
    task = await tasks.get_uid(lease.uid)
    assert task.nodes == {"3": SNAPSHOT.nodes["3"], "4": two}
    assert (task.state, task.percent, task.current_node) == ("assigned", 61, None)
    assert task.last_event == 2


async def test_odd_numbers_do_no_harm(tasks: TaskStore) -> None:
    lease = await held(tasks)
    nodes = {"3": NodeProgress(value=float("nan"), max=float("inf"))}
    said = Progress(percent=float("nan"), current_node=None, nodes=nodes)
    await tasks.progress(lease, said, event=True)
    task = await tasks.finish(lease, ending("failed", nodes=nodes))
    assert (task.percent, task.nodes["3"].value, task.nodes["3"].max) == (0, 0, 0)


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
async def test_an_end_is_written_once(tasks: TaskStore, state: Any) -> None:
    error = {"code": "x", "message": "no", "http_status": 500} if state == "failed" else None
    lease = await held(tasks)
    done = await tasks.finish(lease, ending(state, error=error))
    assert (done.state, done.error, done.ended) == (state, error, 1_700_000_009_000)
    assert done.percent == (100 if state == "succeeded" else 0)
    # The acknowledgement was lost: the agent tells it again, be it in other words.
    assert await tasks.finish(lease, ending(state, error=error)) == done
    assert await tasks.finish(lease, ending("succeeded", ended=7)) == done
    (*_, event) = await tasks.events(lease.uid)
    assert event.kind == state
    assert event.data == ({} if error is None else {"error": error})
    assert await kinds(tasks, lease.uid) == ["queued", "assigned", state]
    assert await tasks.held() == []


CALLS: list[Callable[[TaskStore, Lease], Awaitable[Any]]] = [
    lambda tasks, lease: tasks.start(lease, 5),
    lambda tasks, lease: tasks.progress(lease, SNAPSHOT, event=True),
    lambda tasks, lease: tasks.finish(lease, Ending(state="succeeded", ended=5)),
    lambda tasks, lease: tasks.give_back(lease, "why", counted=True, max_delivery=5),
    lambda tasks, lease: tasks.give_back(lease, "why", counted=False, max_delivery=5),
]


async def refused(tasks: TaskStore, lease: Lease, *, finish: bool = True) -> None:
    """A lease does not hold: no call with it is obeyed, and nothing is written."""
    try:
        before = await tasks.get_uid(lease.uid), await tasks.events(lease.uid)
    except TaskNotFound:
        before = None
    for number, call in enumerate(CALLS):
        if number != 2 or finish:
            with pytest.raises(LeaseLost):
                await call(tasks, lease)
    assert await tasks.renew([lease], lease_ms=LEASE) == ([lease], [])
    if before is not None:
        assert before == (await tasks.get_uid(lease.uid), await tasks.events(lease.uid))


async def test_a_lease_that_never_was(tasks: TaskStore) -> None:
    lease = await held(tasks)
    await refused(tasks, Lease(uid=lease.uid, token="0" * 32))
    await refused(tasks, Lease(uid=lease.uid, token=""))
    await refused(tasks, Lease(uid="0" * 32, token=lease.token))
    task, _ = await tasks.put(new("waiting"))
    await refused(tasks, Lease(uid=task.uid, token=""))


async def test_a_lease_ends_with_its_task(tasks: TaskStore) -> None:
    lease = await held(tasks)
    await tasks.finish(lease, ending("failed"))
    await refused(tasks, lease, finish=False)


async def test_a_lease_ends_when_its_task_is_given_back(tasks: TaskStore) -> None:
    old = await held(tasks)
    await tasks.give_back(old, "why", counted=True, max_delivery=5)
    await refused(tasks, old)
    lease = (await claimed(tasks, instance="i2")).lease
    assert lease.token != old.token
    await refused(tasks, old)
    await tasks.finish(lease, ending())
    await refused(tasks, old)


async def test_a_lease_is_not_lost_before_somebody_looked(tasks: TaskStore, clock: Clock) -> None:
    lease = await held(tasks)
    clock.now += 10 * LEASE
    assert await tasks.renew([lease], lease_ms=LEASE) == ([], [])
    assert await tasks.sweep(max_delivery=5) == Swept()
    clock.now += LEASE + 1
    await tasks.finish(lease, ending())


async def test_leases_are_renewed_together(tasks: TaskStore, clock: Clock) -> None:
    leases = [await held(tasks, f"task-{n}") for n in range(4)]
    await tasks.finish(leases[1], ending())
    await tasks.cancel("service", "owner", "task-2")
    clock.now += LEASE - 1
    lost, cancelling = await tasks.renew(leases[:3], lease_ms=LEASE)
    assert lost == [leases[1]]
    assert cancelling == [leases[2].uid]
    assert await tasks.renew([], lease_ms=LEASE) == ([], [])
    clock.now += 1
    assert (await tasks.sweep(max_delivery=5)).redelivered == [leases[3].uid]
    clock.now += LEASE - 2
    assert await tasks.sweep(max_delivery=5) == Swept()


# Going back in line


async def test_given_back_it_goes_first(tasks: TaskStore) -> None:
    leases = {}
    for n in range(3):
        leases[f"a{n}"] = await held(tasks, f"a{n}", owner="a")
    for owner in ("a", "b"):
        await tasks.put(new(f"{owner} waits", owner=owner))
    await tasks.put(new("high", priority=1))
    await tasks.put(new("low", priority=-1))
    task = await tasks.give_back(leases["a2"], "drained", counted=False, max_delivery=1)
    assert (task.state, task.attempt, task.instance) == ("queued", 0, "i1")
    assert await tasks.position(task.uid) == 1
    await tasks.give_back(leases["a0"], "died", counted=True, max_delivery=5)
    assert await order(tasks) == ["high", "a0", "a2", "a waits", "b waits", "low"]


async def test_given_back_it_goes_before_later_turns_too(tasks: TaskStore) -> None:
    for n in range(3):
        await tasks.put(new(f"a{n}", owner="a"))
    await claimed(tasks)
    await claimed(tasks)
    lease = (await claimed(tasks)).lease  # a2: the third turn
    for n in range(3):
        await tasks.put(new(f"b{n}", owner="b"))  # turns from the first
    await tasks.give_back(lease, "why", counted=True, max_delivery=5)
    await tasks.put(new("c0", owner="c"))
    assert (await order(tasks))[0] == "a2"


async def test_the_first_in_line_is_not_always_the_oldest(tasks: TaskStore) -> None:
    leases = [await held(tasks, f"a{n}", owner="a") for n in range(1)]
    for n in range(1, 3):
        await tasks.put(new(f"a{n}", owner="a"))
    await tasks.put(new("a3", owner="a"))
    leases += [(await claimed(tasks)).lease for _ in range(3)]  # of turns 0, 0, 1, 2
    for name in ("b0", "b1", "c0"):
        await tasks.put(new(name, owner=name[0]))
    assert (await claimed(tasks)).task.id == "b0"
    await tasks.give_back(leases[2], "why", counted=True, max_delivery=5)
    assert await order(tasks) == ["a2", "c0", "b1"]


async def test_given_back_it_begins_anew(tasks: TaskStore, clock: Clock) -> None:
    lease = await held(tasks, seeds={"3.seed": 5}, tags={"a": "b"})
    await tasks.start(lease, 5)
    await tasks.progress(lease, SNAPSHOT, event=False)
    clock.now += 1
    task = await tasks.give_back(lease, "it died", counted=True, max_delivery=2)
    assert task == await tasks.get_uid(lease.uid)
    assert (task.state, task.started, task.percent, task.current_node, task.nodes) == (
        "queued",
        None,
        0,
        None,
        {},
    )
    assert (task.seeds, task.tags, task.attempt) == ({"3.seed": 5}, {"a": "b"}, 1)
    (*_, event) = await tasks.events(lease.uid)
    assert (event.at, event.kind, event.data) == (clock.now, "redelivered", {"reason": "it died"})
    again = await claimed(tasks, instance="i2")
    assert (again.task.attempt, again.task.instance) == (2, "i2")
    assert again.task.seeds == {"3.seed": 5}


async def test_given_back_without_seeds(tasks: TaskStore) -> None:
    lease = await held(tasks)
    await tasks.progress(lease, SNAPSHOT, event=False)
    task = await tasks.give_back(lease, "why", counted=True, max_delivery=2)
    assert (task.nodes, task.seeds) == ({}, {})
    assert await tasks.get_uid(lease.uid) == task


async def test_an_attempt_that_does_not_count(tasks: TaskStore) -> None:
    await tasks.put(new())
    for _ in range(4):
        found = await claimed(tasks)
        assert found.task.attempt == 1
        task = await tasks.give_back(found.lease, "drained", counted=False, max_delivery=1)
        assert (task.state, task.attempt) == ("queued", 0)


async def test_too_many_attempts_lead_to_the_rear_queue(tasks: TaskStore, clock: Clock) -> None:
    await tasks.put(new(seeds={"3.seed": 5}))
    for attempt in range(3):
        found = await claimed(tasks)
        assert found.task.attempt == attempt + 1
        task = await tasks.give_back(found.lease, "it died", counted=True, max_delivery=3)
    assert (task.state, task.rear, task.attempt, task.ended) == ("failed", True, 3, clock.now)
    assert task.error is not None
    assert (task.error["code"], task.error["http_status"]) == ("task_lost", 502)
    assert "it died" in task.error["message"]
    assert task.seeds == {"3.seed": 5}
    assert await tasks.get_uid(task.uid) == task
    (*_, event) = await tasks.events(task.uid)
    assert (event.kind, event.data) == ("failed", {"error": task.error})
    await refused(tasks, found.lease)
    assert await order(tasks) == []
    assert [found.id for found in await tasks.page("service", rear=True)] == ["task"]


# Cancelling


async def test_a_waiting_task_is_cancelled_at_once(tasks: TaskStore, clock: Clock) -> None:
    await tasks.put(new("other"))
    put, _ = await tasks.put(new(seeds={"3.seed": 5}))
    clock.now += 5
    task = await tasks.cancel("service", "owner", "task")
    assert (task.state, task.ended, task.cancelling) == ("cancelled", clock.now, False)
    assert task.seeds == {"3.seed": 5}
    assert await tasks.cancel("service", "owner", "task") == task
    assert await kinds(tasks, put.uid) == ["queued", "cancelled"]
    assert await order(tasks) == ["other"]


async def test_a_held_task_is_marked(tasks: TaskStore) -> None:
    lease = await held(tasks)
    for _ in range(2):
        task = await tasks.cancel("service", "owner", "task")
        assert (task.state, task.cancelling) == ("assigned", True)
    assert task == await tasks.get_uid(lease.uid)
    assert await tasks.renew([lease], lease_ms=LEASE) == ([], [lease.uid])
    done = await tasks.finish(lease, ending("cancelled"))
    assert (done.state, done.cancelling) == ("cancelled", False)
    assert await kinds(tasks, lease.uid) == ["queued", "assigned", "cancelling", "cancelled"]


async def test_a_cancel_that_came_too_late(tasks: TaskStore) -> None:
    lease = await held(tasks)
    await tasks.cancel("service", "owner", "task")
    done = await tasks.finish(lease, ending("succeeded"))
    assert (done.state, done.cancelling) == ("succeeded", False)
    assert await tasks.cancel("service", "owner", "task") == done


@pytest.mark.parametrize("counted", [True, False])
async def test_given_back_what_is_to_be_cancelled(tasks: TaskStore, counted: bool) -> None:
    lease = await held(tasks)
    await tasks.cancel("service", "owner", "task")
    task = await tasks.give_back(lease, "why", counted=counted, max_delivery=1)
    assert (task.state, task.rear, task.cancelling, task.error) == ("cancelled", False, False, None)
    await refused(tasks, lease)
    assert await order(tasks) == []


# The clock


async def test_a_lease_that_ended_redelivers(tasks: TaskStore, clock: Clock) -> None:
    lease = await held(tasks)
    await tasks.put(new("waits"))
    clock.now += LEASE - 1
    assert await tasks.sweep(max_delivery=5) == Swept()
    clock.now += 1
    assert await tasks.sweep(max_delivery=5) == Swept(redelivered=[lease.uid], services=["service"])
    assert await tasks.sweep(max_delivery=5) == Swept()
    await refused(tasks, lease)
    assert await kinds(tasks, lease.uid) == ["queued", "assigned", "redelivered"]
    assert (await tasks.events(lease.uid))[-1].data["reason"]
    assert await order(tasks) == ["task", "waits"]
    assert (await tasks.get_uid(lease.uid)).attempt == 2


async def test_what_was_lost_together_keeps_its_order(tasks: TaskStore, clock: Clock) -> None:
    ids = [f"task-{n}" for n in range(4)]
    for task_id in ids:
        await tasks.put(new(task_id))
    for _ in ids:
        await claimed(tasks)
    await tasks.put(new("newcomer", owner="another"))
    clock.now += LEASE
    swept = await tasks.sweep(max_delivery=5)
    assert len(swept.redelivered) == 4
    assert swept.services == ["service"]
    assert await order(tasks) == [*ids, "newcomer"]


async def test_the_sweep_ends_what_must_end(tasks: TaskStore, clock: Clock) -> None:
    cancelled = await held(tasks, "cancelled")
    await tasks.cancel("service", "owner", "cancelled")
    rear = await held(tasks, "rear", service="service")
    await tasks.give_back(rear, "why", counted=True, max_delivery=9)
    rear = (await claimed(tasks)).lease
    clock.now += LEASE
    swept = await tasks.sweep(max_delivery=2)
    assert swept == Swept(rear=[rear.uid], cancelled=[cancelled.uid])
    failed = await tasks.get_uid(rear.uid)
    assert (failed.state, failed.rear, failed.attempt) == ("failed", True, 2)
    assert failed.error is not None
    assert failed.error["code"] == "task_lost"
    assert (await tasks.get_uid(cancelled.uid)).state == "cancelled"
    await refused(tasks, rear)
    await refused(tasks, cancelled)


async def test_deadlines_end_only_what_waits(tasks: TaskStore, clock: Clock) -> None:
    deadline = clock.now + 1000
    lease = await held(tasks, "held", deadline=deadline)
    late, _ = await tasks.put(new("late", deadline=deadline, seeds={"3.seed": 5}))
    await tasks.put(new("never"))
    clock.now += 999
    assert await tasks.sweep(max_delivery=5) == Swept()
    clock.now += 1
    assert await tasks.sweep(max_delivery=5) == Swept(expired=[late.uid])
    assert await tasks.sweep(max_delivery=5) == Swept()
    task = await tasks.get_uid(late.uid)
    assert (task.state, task.ended, task.seeds) == ("expired", clock.now, {"3.seed": 5})
    assert task.error is not None
    assert (task.error["code"], task.error["http_status"]) == ("task_expired", 504)
    assert await kinds(tasks, late.uid) == ["queued", "expired"]
    assert (await tasks.cancel("service", "owner", "late")) == task
    assert (await tasks.finish(lease, ending())).state == "succeeded"
    assert await order(tasks) == ["never"]


async def test_a_sweep_has_a_limit(tasks: TaskStore, clock: Clock) -> None:
    for n in range(5):
        await held(tasks, f"task-{n}")
        clock.now += 1
    clock.now += LEASE
    sizes = []
    while (swept := await tasks.sweep(max_delivery=5, limit=2)) != Swept():
        sizes.append(len(swept.redelivered))
    assert sizes == [2, 2, 1]
    assert await tasks.counts("service") == {"queued": 5}


async def test_several_sweep_at_once(task_place: TaskPlace, clock: Clock) -> None:
    async with task_place.opened() as one, task_place.opened() as two:
        for n in range(20):
            await one.put(new(f"held-{n}"))
        for n in range(20):
            await claimed(one)
            await one.put(new(f"late-{n}", deadline=clock.now + 1))
        clock.now += LEASE
        swept = await asyncio.gather(*(s.sweep(max_delivery=5) for s in [one, two] * 4))
        redelivered = [uid for each in swept for uid in each.redelivered]
        expired = [uid for each in swept for uid in each.expired]
        assert (len(redelivered), len(set(redelivered))) == (20, 20)
        assert (len(expired), len(set(expired))) == (20, 20)
        for uid in redelivered:
            assert await kinds(one, uid) == ["queued", "assigned", "redelivered"]


async def test_of_an_end_and_a_sweep_one_wins(task_place: TaskPlace, clock: Clock) -> None:
    async with task_place.opened() as one, task_place.opened() as two:
        leases = [await held(one, f"task-{n}") for n in range(20)]
        clock.now += LEASE
        finishes = [one.finish(lease, ending()) for lease in leases]
        *ended, swept = await asyncio.gather(
            *finishes, two.sweep(max_delivery=5), return_exceptions=True
        )
        assert isinstance(swept, Swept)
        for lease, outcome in zip(leases, ended, strict=True):
            assert isinstance(outcome, Task | LeaseLost)
            assert (lease.uid in swept.redelivered) == isinstance(outcome, LeaseLost)
            state = "queued" if isinstance(outcome, LeaseLost) else "succeeded"
            assert (await two.get_uid(lease.uid)).state == state
