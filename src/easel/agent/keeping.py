"""What the store gets to know of tasks: each record's writes one after another, its end the last and never lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from easel.agent.record import FINISHED, ProgressStore, TaskRecord
from easel.agent.task import Task, snapshot
from easel.errors import EaselError

log = logging.getLogger(__name__)

RETRY_PAUSE = 1.0
"""Seconds until the ends that could not be stored are tried again."""
MOST_FAILURES = 3
"""Failures in a row after which the store is left alone until the next time."""
MOST_UNSAVED = 10_000
"""Ends kept in memory at most, while the store fails; the oldest go first."""


class Keeping:
    """Writes records to the store, and answers for those that it did not take."""

    def __init__(self, store: ProgressStore, interval: float) -> None:
        self._store = store
        self._interval = interval
        self._unsaved: dict[str, TaskRecord] = {}
        self._seen: set[str] = set()

    async def load(self, task_id: str) -> TaskRecord | None:
        """Return a task's record; one that could not be stored yet is known all the same. Raises StoreFailed."""
        return self._unsaved.get(task_id) or await self._store.load(task_id)

    async def unfinished(self, owner: str) -> list[TaskRecord]:
        """Return what an agent of this name left. Raises StoreFailed."""
        return await self._store.unfinished(owner)

    async def create(self, task: Task) -> TaskRecord | None:
        """Store an accepted task; return the record that has its id already, if one has. Raises StoreFailed."""
        async with task.writing:
            known = await self._store.create(task.record)
            task.stored = known is None
        return known

    async def progress(self, task: Task) -> None:
        """Store how far a task is, unless its end is on its way. Raises StoreFailed; it is tried again then."""
        async with task.writing:
            if task.record.state in FINISHED:
                return
            task.dirty = False
            try:
                if task.stored:
                    await self._store.save(snapshot(task.record))
                else:
                    # Ids that callers choose were created when they were accepted: this one was drawn, and is free.
                    await self._store.create(snapshot(task.record))
                    task.stored = True
            except EaselError:
                task.dirty = True
                raise

    async def end(self, task: Task) -> None:
        """Store a task's end. Where that fails it is kept in memory and tried again: the caller has an answer anyway.

        Of a task whose id nobody but its waiting caller knows, the end is kept in memory and stored with others in a moment.
        """
        async with task.writing:
            task.dirty = False
            if not (task.stored or task.detached):
                self._remember(task.record)
                return
            try:
                await self._store.save(task.record)
            except EaselError as error:
                log.error("task %s: its end could not be stored yet: %s", task.id, error)
                self._remember(task.record)

    async def settle(self, record: TaskRecord) -> None:
        """Store the end of a task that is not in memory."""
        try:
            await self._store.save(record)
        except EaselError as error:
            log.error("task %s: its end could not be stored yet: %s", record.id, error)
            self._remember(record)

    async def run(self, tasks: dict[str, Task]) -> None:
        """Store ends and progress of these tasks, a few times a second at most, for ever."""
        loop = asyncio.get_running_loop()
        not_before = 0.0
        while True:
            await asyncio.sleep(self._interval)
            await self._store_dirty(list(tasks.values()))
            if self._unsaved and loop.time() >= not_before and not await self.flush():
                not_before = loop.time() + RETRY_PAUSE

    async def flush(self) -> bool:
        """Store the ends that are in memory; False when some could not be."""
        waiting = list(self._unsaved.values())
        try:
            await self._store.save_all(waiting)
        except EaselError:
            await self._flush_singly(waiting)
        else:
            self._forget(waiting)
        return not any(self._unsaved.get(record.id) is record for record in waiting)

    async def _flush_singly(self, waiting: Collection[TaskRecord]) -> None:
        """One record that cannot be stored does not keep the others from it."""
        failed = 0
        for record in waiting:
            try:
                await self._store.save(record)
            except EaselError as error:
                failed += 1
                log.warning("task %s: its end is not stored yet: %s", record.id, error)
                if failed == MOST_FAILURES:
                    return
            else:
                self._forget([record])

    def _forget(self, stored: Collection[TaskRecord]) -> None:
        for record in stored:
            if self._unsaved.get(record.id) is record:
                del self._unsaved[record.id]

    async def _store_dirty(self, tasks: Collection[Task]) -> None:
        """Store what changed; of a task the store need not know yet only from the second look on: most are over by then."""
        seen, self._seen = self._seen, {task.id for task in tasks}
        for task in tasks:
            known = task.stored or task.id in seen
            if known and task.dirty and task.accepted and not task.over:
                try:
                    await self.progress(task)
                except EaselError as error:
                    log.warning("task %s: progress could not be stored: %s", task.id, error)

    def _remember(self, record: TaskRecord) -> None:
        while len(self._unsaved) >= MOST_UNSAVED:
            self._unsaved.pop(next(iter(self._unsaved)))
        self._unsaved[record.id] = record
