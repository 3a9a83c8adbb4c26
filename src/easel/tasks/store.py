"""The port behind which tasks are kept. One contract suite (`tests/contract/test_task_store.py`) runs over every store."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from easel.tasks.model import (
    Assignment,
    Ending,
    Lease,
    NewTask,
    Progress,
    State,
    Swept,
    Task,
    TaskEvent,
)


class TaskStore(Protocol):
    """Keeps tasks. Safe to share between processes; what a method did is durable when it returns.

    Every method raises `StoreFailed` when the storage does not answer, and none blocks the event loop. The clock is the
    store's constructor argument. Methods that take a lease raise `LeaseLost` when the task has ended, was redelivered, or
    its lease token is another; then nothing was written.
    """

    async def put(self, new: NewTask) -> tuple[Task, bool]:
        """Accept a task; True when it is new, False when the id is known with the same signature (that one is returned).

        Raises `TaskConflict` when the id belongs to a task with another signature. Within one priority the queue is fair
        over owners (start-time fair queueing): an owner's first waiting task lines up with the head of the queue, each
        further one a turn later.
        """

    async def put_within(self, new: NewTask, most_waiting: int) -> tuple[Task, bool]:
        """Like `put`, but raises `QueueFull` when it would be new and ``most_waiting`` are queued already (atomic)."""

    async def claim(self, service: str, instance: str, *, lease_ms: int) -> Assignment | None:
        """Give the next task to an instance: highest priority, then turn, then age. None when nothing is claimable now.

        The attempt is counted, the state becomes assigned, an event is written. Of concurrent claimers each gets another
        task. None does not prove an empty queue (SKIP LOCKED): ask again after a while.
        """

    async def start(self, lease: Lease, at: int) -> None:
        """Note that the engine has begun: assigned → running. Harmless when it runs already."""

    async def renew(
        self, leases: Sequence[Lease], *, lease_ms: int
    ) -> tuple[list[Lease], list[str]]:
        """Extend leases from now on. Returns those that are lost, and the uids of those kept whose task is to be cancelled."""

    async def progress(self, lease: Lease, progress: Progress, *, event: bool) -> None:
        """Merge a snapshot into the task; with ``event`` also write a numbered event (node borders)."""

    async def finish(self, lease: Lease, ending: Ending) -> Task:
        """Write the end, once. Calling it again with the same lease returns the task unchanged (a lost acknowledgement)."""

    async def give_back(
        self, lease: Lease, reason: str, *, counted: bool, max_delivery: int
    ) -> Task:
        """Put a held task back in line, before others of its priority; ``counted`` False takes the attempt back.

        It begins anew: without progress, nodes and start, with its seeds. A counted one that has had ``max_delivery``
        attempts fails into the rear queue instead (`TaskLost`); one that is to be cancelled is cancelled.
        """

    async def cancel(self, service: str, owner: str, task_id: str) -> Task:
        """Cancel: a queued task ends at once, a held one is marked `cancelling`. Harmless when it is over. TaskNotFound."""

    async def get(self, service: str, owner: str, task_id: str) -> Task:
        """Return a task of this owner. Raises `TaskNotFound`, also for tasks of others."""

    async def get_uid(self, uid: str) -> Task:
        """Return a task by Easel's own id. Raises `TaskNotFound`."""

    async def page(
        self,
        service: str,
        *,
        owner: str | None = None,
        states: Collection[State] = (),
        rear: bool | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[Task]:
        """Return tasks, newest first, without `nodes` but with errors; ``before`` is the uid of the last one of the page before."""

    async def events(self, uid: str, after: int = 0, limit: int = 1000) -> list[TaskEvent]:
        """Return a task's events with numbers above ``after``, in order."""

    async def position(self, uid: str) -> int | None:
        """Return how many tasks are claimed before this one, None when it does not wait."""

    async def counts(self, service: str) -> dict[State, int]:
        """Return how many tasks are in each state (states without any may be missing)."""

    async def held(self, service: str | None = None) -> list[Task]:
        """Return the tasks that instances hold, without `nodes`."""

    async def sweep(self, *, max_delivery: int, limit: int = 1000) -> Swept:
        """Act on the clock: ended leases → back in line (or rear, or cancelled), passed deadlines → expired (`TaskExpired`).

        At most ``limit`` of each. Those that come back in line together keep their order.
        """

    async def forget(self, service: str, *, ended_before: int, limit: int = 1000) -> list[str]:
        """Delete finished tasks that ended before a time, with bodies and events; returns their uids."""

    async def forget_service(self, service: str) -> None:
        """Delete every task of a service."""
