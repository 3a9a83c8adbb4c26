"""What every task store does."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from easel.errors import LeaseLost, QueueFull, TaskConflict, TaskNotFound
from easel.tasks.model import (
    FINISHED,
    Assignment,
    Ending,
    Progress,
    State,
    Task,
    TaskBody,
)
from easel.tasks.store import TaskStore
from easel.workflow.progress import NodeProgress
from tests.contract.task_stores import PROMPT, Clock, TaskPlace, new

LEASE = 30_000
"""Milliseconds."""


async def claimed(tasks: TaskStore, service: str = "service", instance: str = "i1") -> Assignment:
    """Claim the next task, which is there."""
    found = await tasks.claim(service, instance, lease_ms=LEASE)
    assert found is not None
    return found


async def order(tasks: TaskStore, service: str = "service") -> list[str]:
    """Claim until nothing waits; return the ids in the order in which they came."""
    ids = []
    while (found := await tasks.claim(service, "i1", lease_ms=LEASE)) is not None:
        ids.append(found.task.id)
    return ids


async def kinds(tasks: TaskStore, uid: str) -> list[str]:
    """Return the kinds of a task's events, having looked at their numbers."""
    events = await tasks.events(uid)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert (await tasks.get_uid(uid)).last_event == len(events)
    return [event.kind for event in events]


def ending(state: Any = "succeeded", **values: Any) -> Ending:
    """Return an ending."""
    return Ending(**{"state": state, "ended": 1_700_000_009_000, **values})


# Accepting


async def test_a_task_is_kept_as_it_came(tasks: TaskStore, clock: Clock) -> None:
    asked = new(
        priority=-3,
        tags={"a": "ä\x00", "": "x"},
        deadline=clock.now + 5000,
        seeds={"3.seed": 2**64 - 1},
    )
    task, created = await tasks.put(asked)
    assert created
    assert task == Task(
        uid=task.uid,
        service="service",
        owner="owner",
        id="task",
        signature="sig",
        priority=-3,
        tags={"a": "ä\x00", "": "x"},
        created=clock.now,
        deadline=clock.now + 5000,
        seeds={"3.seed": 2**64 - 1},
        last_event=1,
    )
    assert re.fullmatch(r"[0-9a-f]{32}", task.uid)
    assert await tasks.get("service", "owner", "task") == task
    assert await tasks.get_uid(task.uid) == task
    (event,) = await tasks.events(task.uid)
    assert (event.number, event.at, event.kind, event.data) == (1, clock.now, "queued", {})
    found = await claimed(tasks)
    assert found.body == asked.body


async def test_uids_sort_by_time(tasks: TaskStore, clock: Clock) -> None:
    uids = []
    for n in range(5):
        clock.now += 1
        uids.append((await tasks.put(new(f"task-{n}")))[0].uid)
    assert uids == sorted(uids)
    assert len(set(uids)) == 5


async def test_the_same_id_and_body_is_the_same_task(tasks: TaskStore) -> None:
    first, _ = await tasks.put(new(seeds={"3.seed": 7}))
    again, created = await tasks.put(new(seeds={"3.seed": 8}))
    assert not created
    assert again == first
    assert again.seeds == {"3.seed": 7}
    assert await order(tasks) == ["task"]
    again, created = await tasks.put(new())
    assert not created
    assert again.state == "assigned"


async def test_the_same_id_and_another_body_is_a_conflict(tasks: TaskStore) -> None:
    await tasks.put(new())
    with pytest.raises(TaskConflict):
        await tasks.put(new(signature="other"))
    with pytest.raises(TaskConflict):
        await tasks.put_within(new(signature="other"), 0)
    assert await order(tasks) == ["task"]


async def test_ids_are_of_a_service_and_an_owner(tasks: TaskStore) -> None:
    uids = set()
    for service in ("service", "other"):
        for owner in ("owner", "OWNER", ""):
            task, created = await tasks.put(new(service=service, owner=owner))
            assert created
            uids.add(task.uid)
            assert (await tasks.get(service, owner, "task")).uid == task.uid
    assert len(uids) == 6


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        '"quoted"',
        "nul\x00",
        "half \ud800",
        "ä€🎨",
        "'; DROP TABLE tasks; --",
        "%",
        "a" * 400,
    ],
)
async def test_any_string_is_an_owner_an_id_and_a_node(tasks: TaskStore, name: str) -> None:
    task, _ = await tasks.put(new(name, owner=name))
    found = await claimed(tasks)
    assert (found.task.owner, found.task.id) == (name, name)
    nodes = {name: NodeProgress(value=1, max=2, images=[{"filename": name}])}
    await tasks.progress(
        found.lease, Progress(percent=1.0, current_node=name, nodes=nodes), event=True
    )
    stored = await tasks.get("service", name, name)
    assert stored.current_node == name
    assert stored.nodes == nodes
    assert (await tasks.events(task.uid, 2))[0].data == {"node": name, "percent": 1.0}
    error = {"message": name, name: name}
    done = await tasks.finish(
        found.lease, ending("failed", error=error, nodes={"9": NodeProgress()})
    )
    assert done.error == error
    assert await tasks.get_uid(task.uid) == done
    assert await tasks.page("service", owner=name)


async def test_a_body_of_megabytes(tasks: TaskStore) -> None:
    node: Any = {"class_type": "X", "inputs": {"image": "base64" * 500_000}}
    await tasks.put(new(body=TaskBody(prompt={"1": node})))
    assert (await claimed(tasks)).body.prompt == {"1": node}


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**40, 1e308, -0.0])
async def test_any_number_is_kept(tasks: TaskStore, number: float) -> None:
    node: Any = {"class_type": "X", "inputs": {"n": number}}
    await tasks.put(new(body=TaskBody(prompt={"1": node})))
    assert (await claimed(tasks)).body.prompt["1"]["inputs"]["n"] == number


async def test_the_line_is_full(tasks: TaskStore) -> None:
    for n in range(3):
        await tasks.put_within(new(f"task-{n}", owner=f"owner-{n}"), 3)
    with pytest.raises(QueueFull):
        await tasks.put_within(new("more"), 3)
    with pytest.raises(TaskNotFound):
        await tasks.get("service", "owner", "more")
    again, created = await tasks.put_within(new("task-1", owner="owner-1"), 3)
    assert not created
    assert again.id == "task-1"
    await tasks.put_within(new("elsewhere", service="other"), 1)
    await claimed(tasks)
    _, created = await tasks.put_within(new("more"), 3)
    assert created
    with pytest.raises(QueueFull):
        await tasks.put_within(new("nothing at all", service="third"), 0)


async def test_the_line_is_never_fuller_than_allowed(task_place: TaskPlace) -> None:
    async with task_place.opened() as one, task_place.opened() as two:
        outcomes = await asyncio.gather(
            *(
                store.put_within(new(f"task-{n}", owner=f"owner-{n % 3}"), 7)
                for n, store in enumerate([one, two] * 20)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, tuple) for outcome in outcomes) == 7
        assert sum(isinstance(outcome, QueueFull) for outcome in outcomes) == 33
        assert await one.counts("service") == {"queued": 7}
        # Every way out of the line makes room, and every way back takes it, whoever does it.
        lease = (await claimed(two)).lease
        await one.put_within(new("a"), 7)
        await two.give_back(lease, "why", counted=True, max_delivery=5)
        with pytest.raises(QueueFull):
            await one.put_within(new("b"), 8)
        await two.cancel("service", "owner", "a")
        await one.put_within(new("b"), 8)
        with pytest.raises(QueueFull):
            await one.put_within(new("c"), 8)
        await two.forget_service("service")
        await one.put_within(new("c"), 1)


async def change_waiting(tasks: TaskStore, clock: Clock, how: str) -> None:
    """Change how many wait by one, of two that wait and one that is held."""
    lease = (await tasks.held("service"))[0].uid
    if how == "put":
        await tasks.put(new("another"))
    elif how == "claim":
        await claimed(tasks)
    elif how == "cancel":
        await tasks.cancel("service", "owner", "late")
    elif how == "expire":
        clock.now += 10
        assert (await tasks.sweep(max_delivery=5)).expired
    else:
        assert how == "redeliver"
        clock.now += LEASE
        assert (await tasks.sweep(max_delivery=5)).redelivered == [lease]


@pytest.mark.parametrize(
    ("how", "waiting"),
    [("put", 3), ("claim", 1), ("cancel", 1), ("expire", 1), ("redeliver", 3), ("give back", 3)],
)
@pytest.mark.parametrize("full", [True, False])
async def test_every_way_in_and_out_of_the_line_counts(
    tasks: TaskStore, clock: Clock, how: str, waiting: int, full: bool
) -> None:
    await tasks.put(new("held"))
    lease = (await claimed(tasks)).lease
    deadline = clock.now + (10 if how == "expire" else LEASE + 10)
    await tasks.put_within(new("late", deadline=deadline), 5)
    await tasks.put_within(new("waits"), 5)
    if how == "give back":
        await tasks.give_back(lease, "why", counted=False, max_delivery=5)
    else:
        await change_waiting(tasks, clock, how)
    if full:
        with pytest.raises(QueueFull):
            await tasks.put_within(new("more"), waiting)
    else:
        await tasks.put_within(new("more"), waiting + 1)


async def test_one_id_put_by_fifty(task_place: TaskPlace) -> None:
    async with task_place.opened() as one, task_place.opened() as two:
        outcomes = await asyncio.gather(
            *(store.put(new(seeds={"3.seed": n})) for n, store in enumerate([one, two] * 25))
        )
        assert sum(created for _, created in outcomes) == 1
        assert len({task.uid for task, _ in outcomes}) == 1
        assert len({task.seeds["3.seed"] for task, _ in outcomes}) == 1
        assert await one.counts("service") == {"queued": 1}


# The order of the line


async def test_first_come_first_served(tasks: TaskStore) -> None:
    ids = [f"task-{n}" for n in range(10)]
    for task_id in ids:
        await tasks.put(new(task_id))
    await tasks.put(new("elsewhere", service="other"))
    assert await order(tasks) == ids
    assert await order(tasks, "nothing") == []


async def test_higher_priorities_go_first(tasks: TaskStore) -> None:
    for n, priority in enumerate([0, 5, -5, 5, 0]):
        await tasks.put(new(f"{priority}/{n}", priority=priority))
    assert await order(tasks) == ["5/1", "5/3", "0/0", "0/4", "-5/2"]


async def test_owners_take_turns(tasks: TaskStore) -> None:
    for n in range(4):
        await tasks.put(new(f"a{n}", owner="a"))
    for n in range(2):
        await tasks.put(new(f"b{n}", owner="b"))
    await tasks.put(new("c0", owner="c"))
    assert await order(tasks) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


async def test_a_newcomer_lines_up_with_the_head(tasks: TaskStore) -> None:
    for n in range(6):
        await tasks.put(new(f"a{n}", owner="a"))
    for _ in range(3):
        await claimed(tasks)
    for n in range(2):
        await tasks.put(new(f"b{n}", owner="b"))
    assert await order(tasks) == ["a3", "b0", "a4", "b1", "a5"]
    # Who has nothing waiting any more has no debt either.
    await tasks.put(new("b2", owner="b"))
    await tasks.put(new("a6", owner="a"))
    assert await order(tasks) == ["b2", "a6"]


async def test_turns_are_of_a_service_and_a_priority(tasks: TaskStore) -> None:
    for n in range(3):
        await tasks.put(new(f"a{n}", owner="a"))
    await tasks.put(new("high", owner="a", priority=1))
    await tasks.put(new("b0", owner="b"))
    await tasks.put(new("elsewhere", owner="b", service="other"))
    assert await order(tasks) == ["high", "a0", "b0", "a1", "a2"]


async def test_the_position_counts_those_before(tasks: TaskStore) -> None:
    uids: dict[str, str] = {}
    for owner, priority in [("a", 0), ("a", 0), ("b", 0), ("c", 1), ("a", -1)]:
        task, _ = await tasks.put(new(f"t{len(uids)}", owner=owner, priority=priority))
        uids[task.id] = task.uid
    assert {i: await tasks.position(uid) for i, uid in uids.items()} == {
        "t3": 0,
        "t0": 1,
        "t2": 2,
        "t1": 3,
        "t4": 4,
    }
    assert await order(tasks) == ["t3", "t0", "t2", "t1", "t4"]
    assert await tasks.position(uids["t3"]) is None
    assert await tasks.position("0" * 32) is None


# Claiming


async def test_a_claim_is_an_attempt(tasks: TaskStore, clock: Clock) -> None:
    task, _ = await tasks.put(new(tags={"a": "b"}, seeds={"3.seed": 5}))
    clock.now += 100
    found = await claimed(tasks)
    assert found.until == clock.now + LEASE
    assert found.lease.uid == task.uid
    assert re.fullmatch(r"[0-9a-f]{32,}", found.lease.token)
    assert found.body.prompt == PROMPT
    task.state, task.attempt, task.instance, task.last_event = "assigned", 1, "i1", 2
    assert found.task == task
    assert await tasks.get_uid(task.uid) == task
    event = (await tasks.events(task.uid))[-1]
    assert (event.at, event.kind, event.data) == (
        clock.now,
        "assigned",
        {"instance": "i1", "attempt": 1},
    )
    assert await tasks.claim("service", "i2", lease_ms=LEASE) is None


async def test_many_claimers_get_distinct_tasks(task_place: TaskPlace) -> None:
    async with task_place.opened() as one, task_place.opened() as two:
        for n in range(40):
            await one.put(new(f"task-{n}", owner=f"owner-{n % 7}"))
        got: list[str] = []
        tokens: set[str] = set()

        async def claimer(store: TaskStore, name: str) -> None:
            while len(got) < 40:  # None does not prove an empty queue
                found = await store.claim("service", name, lease_ms=LEASE)
                if found is not None:
                    got.append(found.task.id)
                    tokens.add(found.lease.token)

        async with asyncio.timeout(30):
            await asyncio.gather(*(claimer(s, f"i{n}") for n, s in enumerate([one, two] * 6)))
        assert sorted(got) == sorted(f"task-{n}" for n in range(40))
        assert len(tokens) == 40
        assert await one.counts("service") == {"assigned": 40}


async def test_what_is_past_its_deadline_is_not_claimed(tasks: TaskStore, clock: Clock) -> None:
    await tasks.put(new("late", deadline=clock.now + 10))
    await tasks.put(new("later", deadline=clock.now + 11))
    clock.now += 10
    assert await order(tasks) == ["later"]
    clock.now += 10
    swept = await tasks.sweep(max_delivery=5)
    assert [(await tasks.get_uid(uid)).id for uid in swept.expired] == ["late"]


# Looking


async def test_another_owners_task_does_not_exist(tasks: TaskStore) -> None:
    task, _ = await tasks.put(new())
    for service, owner, task_id in [
        ("service", "other", "task"),
        ("other", "owner", "task"),
        ("service", "owner", "other"),
        ("service", "owner", task.uid),
    ]:
        with pytest.raises(TaskNotFound):
            await tasks.get(service, owner, task_id)
        with pytest.raises(TaskNotFound):
            await tasks.cancel(service, owner, task_id)
    with pytest.raises(TaskNotFound):
        await tasks.get_uid("task")
    assert await tasks.events("task") == []


async def test_pages_are_newest_first(tasks: TaskStore) -> None:
    for n in range(7):
        await tasks.put(new(f"task-{n}", owner=f"owner-{n % 2}"))
    await tasks.put(new("elsewhere", service="other"))
    seen: list[str] = []
    before = None
    while page := await tasks.page("service", before=before, limit=3):
        seen += [task.id for task in page]
        before = page[-1].uid
    assert seen == [f"task-{n}" for n in reversed(range(7))]
    assert [task.id for task in await tasks.page("service", owner="owner-1")] == [
        "task-5",
        "task-3",
        "task-1",
    ]
    assert await tasks.page("nothing") == []


async def test_pages_are_filtered(tasks: TaskStore, clock: Clock) -> None:
    for n in range(6):
        await tasks.put(new(f"task-{n}", seeds={"3.seed": n}))
    for n in range(4):
        found = await claimed(tasks)
        if n < 3:
            state: Any = ("succeeded", "failed", "cancelled")[n]
            error = {"code": "execution_failed", "message": "no"} if state == "failed" else None
            nodes = {"9": NodeProgress(value=1, max=1)}
            await tasks.finish(found.lease, ending(state, nodes=nodes, error=error))
    clock.now += LEASE
    await tasks.sweep(max_delivery=1)

    async def ids(**filters: Any) -> list[str]:
        return [task.id for task in await tasks.page("service", **filters)]

    assert await ids(states=["queued"]) == ["task-5", "task-4"]
    assert await ids(states=["succeeded", "cancelled"]) == ["task-2", "task-0"]
    assert await ids(states=FINISHED, limit=2) == ["task-3", "task-2"]
    assert await ids(rear=True) == ["task-3"]
    assert await ids(states={"failed"}, rear=False) == ["task-1"]
    assert await ids(owner="owner", states=("failed",), rear=True) == ["task-3"]
    assert await ids(owner="other") == []
    (failed,) = await tasks.page("service", states=["failed"], rear=False)
    assert failed.nodes == {}
    assert failed.seeds == {"3.seed": 1}
    assert failed.error == {"code": "execution_failed", "message": "no"}
    whole = await tasks.get_uid(failed.uid)
    assert list(whole.nodes) == ["9"]
    whole.nodes = {}
    assert whole == failed


async def test_a_page_goes_on_after_a_task_that_was_forgotten(
    tasks: TaskStore, clock: Clock
) -> None:
    for n in range(4):
        clock.now += 1
        await tasks.put(new(f"task-{n}"))
    page = await tasks.page("service", limit=2)
    await tasks.cancel("service", "owner", page[-1].id)
    assert await tasks.forget("service", ended_before=clock.now + 1) == [page[-1].uid]
    rest = await tasks.page("service", before=page[-1].uid, limit=2)
    assert [task.id for task in rest] == ["task-1", "task-0"]
    await tasks.cancel("service", "owner", page[0].id)
    await tasks.forget("service", ended_before=clock.now + 1)
    assert len(await tasks.page("service", before=page[0].uid)) == 2


async def test_events_after_a_number(tasks: TaskStore) -> None:
    task, _ = await tasks.put(new())
    lease = (await claimed(tasks)).lease
    for n in range(5):
        said = Progress(percent=n, current_node=str(n), nodes={})
        await tasks.progress(lease, said, event=True)
    assert [event.number for event in await tasks.events(task.uid, 3)] == [4, 5, 6, 7]
    assert [event.number for event in await tasks.events(task.uid, 3, limit=2)] == [4, 5]
    assert await tasks.events(task.uid, 7) == []


async def test_counts_and_held(tasks: TaskStore) -> None:
    assert await tasks.counts("service") == {}
    assert await tasks.held() == []
    for n in range(5):
        await tasks.put(new(f"task-{n}", seeds={"3.seed": n}))
    await tasks.put(new("elsewhere", service="other"))
    first, second, third = [await claimed(tasks) for _ in range(3)]
    await claimed(tasks, "other")
    await tasks.start(second.lease, 5)
    nodes = {"3": NodeProgress(value=1, max=2)}
    await tasks.progress(
        second.lease, Progress(percent=2.5, current_node="3", nodes=nodes), event=False
    )
    await tasks.finish(third.lease, ending())
    expected: dict[State, int] = {"queued": 2, "assigned": 1, "running": 1, "succeeded": 1}
    counts = await tasks.counts("service")
    assert {state: count for state, count in counts.items() if count} == expected
    held = await tasks.held("service")
    assert {task.id for task in held} == {first.task.id, second.task.id}
    running = next(task for task in held if task.state == "running")
    assert (running.percent, running.current_node, running.instance) == (2.5, "3", "i1")
    assert running.nodes == {}
    assert {task.id for task in await tasks.held()} == {"task-0", "task-1", "elsewhere"}


# Forgetting


async def test_finished_tasks_are_forgotten(tasks: TaskStore) -> None:
    for n in range(4):
        await tasks.put(new(f"task-{n}", seeds={"3.seed": n}))
        if n < 3:
            await tasks.finish((await claimed(tasks)).lease, ending(ended=100 * n))
    await tasks.put(new("elsewhere", service="other"))
    await tasks.cancel("other", "owner", "elsewhere")
    gone = await tasks.get("service", "owner", "task-0")
    assert await tasks.forget("service", ended_before=100) == [gone.uid]
    with pytest.raises(TaskNotFound):
        await tasks.get_uid(gone.uid)
    assert await tasks.events(gone.uid) == []
    assert len(await tasks.forget("service", ended_before=10**15, limit=1)) == 1
    assert len(await tasks.forget("service", ended_before=10**15)) == 1
    assert await tasks.forget("service", ended_before=10**15) == []
    assert await tasks.counts("service") == {"queued": 1}
    assert await tasks.counts("other") == {"cancelled": 1}
    again, created = await tasks.put(new("task-0"))
    assert created
    assert again.uid != gone.uid
    assert again.seeds == {}


async def test_a_service_is_forgotten(tasks: TaskStore) -> None:
    for n in range(3):
        await tasks.put(new(f"task-{n}"))
    await tasks.put(new("elsewhere", service="other"))
    found = await claimed(tasks)
    await tasks.forget_service("service")
    await tasks.forget_service("service")
    assert await tasks.counts("service") == {}
    assert await tasks.page("service") == []
    assert await tasks.events(found.task.uid) == []
    with pytest.raises(LeaseLost):
        await tasks.finish(found.lease, ending())
    assert await tasks.renew([found.lease], lease_ms=LEASE) == ([found.lease], [])
    assert await order(tasks, "other") == ["elsewhere"]
