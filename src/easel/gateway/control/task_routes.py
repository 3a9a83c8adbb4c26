"""The tasks of a service, as its operator sees them: of every owner."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from pydantic import BaseModel

from easel.errors import TaskNotFound
from easel.gateway.control.problems import RESPONSES
from easel.services.store import ServiceStore
from easel.tasks.model import State, Task
from easel.tasks.tasks import Tasks


class TaskPage(BaseModel):
    """Some tasks, newest first."""

    tasks: list[dict[str, Any]]
    next: str | None
    """Give it as ``before`` for the next page; null after the last one."""


class TaskEvents(BaseModel):
    """What happened to a task, in order."""

    events: list[dict[str, Any]]


HIDDEN = {"signature"}


def _shown(task: Task, *, nodes: bool) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(task)
    hidden = HIDDEN if nodes else HIDDEN | {"nodes"}
    return {name: value for name, value in fields.items() if name not in hidden}


def task_routes(tasks: Tasks, services: ServiceStore) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/services/{name}/tasks", tags=["tasks"], responses=RESPONSES)

    async def found(name: str, uid: str) -> Task:
        task = await tasks.store.get_uid(uid)
        if task.service != name:
            raise TaskNotFound("no task with this id is known")
        return task

    @router.get("")
    async def list_tasks(
        *,
        name: str,
        state: Annotated[list[State] | None, Query(description="only in these states")] = None,
        owner: Annotated[str | None, Query(description="only of this owner")] = None,
        rear: Annotated[bool | None, Query(description="only in the rear queue, or not")] = None,
        before: Annotated[str | None, Query(description="`next` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> TaskPage:
        """List a service's tasks, newest first, without their nodes."""
        await services.get(name)
        page = await tasks.store.page(
            name, owner=owner, states=state or (), rear=rear, before=before, limit=limit + 1
        )
        more = len(page) > limit
        shown = [_shown(task, nodes=False) for task in page[:limit]]
        return TaskPage(tasks=shown, next=page[limit - 1].uid if more else None)

    @router.get("/{uid}")
    async def get_task(name: str, uid: str) -> dict[str, Any]:
        """Return everything known of a task, by Easel's own id, and its place in line."""
        task = await found(name, uid)
        live = await tasks.get(task.service, task.owner, task.id)
        position = await tasks.store.position(uid)
        return {**_shown(live, nodes=True), "queue_position": position}

    @router.get("/{uid}/events")
    async def task_events(
        name: str,
        uid: str,
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    ) -> TaskEvents:
        """Return a task's numbered events above ``after``."""
        await found(name, uid)
        events = await tasks.store.events(uid, after, limit)
        return TaskEvents(events=[msgspec.to_builtins(event) for event in events])

    @router.delete("/{uid}")
    async def cancel_task(name: str, uid: str) -> dict[str, Any]:
        """Cancel a task wherever it is; harmless when it is over."""
        task = await found(name, uid)
        return _shown(await tasks.cancel(task.service, task.owner, task.id), nodes=True)

    return router
