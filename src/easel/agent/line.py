"""The line of waiting tasks, and the places in the engine that take them out of it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from easel.agent.runner import Runner
from easel.agent.task import Task
from easel.errors import EaselError, EngineError

log = logging.getLogger(__name__)

MOVES = 5
"""How often a task is given to the engine again because its engine died of another one."""


class Line:
    """Tasks wait here in order. ``finish`` is told how each ended.

    ``moves``: how often a task is given to the engine again because its engine died of another one.
    """

    def __init__(
        self,
        runner: Runner,
        max_attempts: int,
        finish: Callable[[Task, EaselError | None], Awaitable[None]],
        *,
        moves: int = MOVES,
    ) -> None:
        self._runner = runner
        self._max_attempts = max_attempts
        self._finish = finish
        self._moves = moves
        self._waiting: deque[Task] = deque()
        self._filled = asyncio.Event()
        self._closed = False
        self.taken: set[Task] = set()
        """Tasks that have a place in the engine."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, task: Task) -> None:
        """Put a task at the end of the line."""
        self._waiting.append(task)
        self._filled.set()

    def remove(self, task: Task) -> bool:
        """Take a task out of the line; False when it is not in it."""
        try:
            self._waiting.remove(task)
        except ValueError:
            return False
        return True

    def position(self, task_id: str) -> int | None:
        """Return a task's place in line, 0 for the next one; None when it is not in line."""
        for place, task in enumerate(self._waiting):
            if task.id == task_id:
                return place
        return None

    def close(self) -> None:
        """Give no more tasks to the engine."""
        self._closed = True

    async def work(self) -> None:
        """Be one place in the engine: take the next task, run it, again."""
        while True:
            while self._closed or not self._waiting:
                self._filled.clear()
                await self._filled.wait()
            task = self._waiting.popleft()
            for other in self._waiting:
                other.wake()  # they moved up
            self.taken.add(task)
            try:
                await self._run(task)
            except Exception as error:  # a fault of ours ends this task, not the worker
                log.exception("task %s", task.id)
                await self._finish(task, EaselError(f"internal error: {error}"))
            finally:
                self.taken.discard(task)

    async def _run(self, task: Task) -> None:
        """Run a task, again where its engine died under it as often as that is allowed."""
        moves = 0
        while not task.over:
            task.record.attempt += 1
            task.dirty = True
            try:
                await self._runner.run(task)
            except EngineError as error:
                if not task.cancelling and task.innocent and moves < self._moves:
                    moves += 1
                    task.record.attempt -= 1
                    log.warning("task %s goes back to the engine: %s", task.id, error)
                    continue
                if not task.cancelling and task.record.attempt < self._max_attempts:
                    log.warning("task %s, attempt %d: %s", task.id, task.record.attempt, error)
                    continue
                await self._finish(task, error)
            except EaselError as error:
                await self._finish(task, error)
            else:
                await self._finish(task, None)
