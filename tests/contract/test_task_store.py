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
    Lease,
    Progress,
    State,
    Swept,
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
