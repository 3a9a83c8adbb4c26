"""The tasks of an agent: accepted once, put in line, given to the engine, watched, finished, stored.

The one road of every door. A task that can be refused is refused before it is accepted; its end is stored before anybody is
told, or, where only the caller who waits for it knows its id, a moment later.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable

from easel.agent.admission import Admission
from easel.agent.background import Background
from easel.agent.keeping import Keeping
from easel.agent.line import MOVES, Line
from easel.agent.record import FINISHED, TaskRecord, TaskRequest
from easel.agent.runner import Runner
from easel.agent.task import Listener, Task, settle
from easel.errors import (
    EaselError,
    EngineUnavailable,
    TaskCancelled,
    TaskConflict,
    TaskNotFound,
    TooManyTasks,
)
from easel.fc import check_task_id
from easel.settings import AgentSettings
from easel.workflow.parse import ParsedBody
from easel.workflow.signature import signature


def now_ms() -> int:
    """Return the time in ms since the epoch."""
    return time.time_ns() // 1_000_000


class Tasks:
    """Every task this agent knows in memory; what is over is in the store alone."""

    def __init__(
        self,
        settings: AgentSettings,
        keeping: Keeping,
        admission: Admission,
        runner: Runner,
        *,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._settings = settings
        self._keeping = keeping
        self._admission = admission
        self._runner = runner
        self._clock = clock
        # Where a joined agent's task runs again, and how often, is the platform's to say.
        joined = settings.join is not None
        attempts, moves = (1, 0) if joined else (settings.max_attempts, MOVES)
        self._line = Line(runner, attempts, self.finish, moves=moves)
        self._tasks: dict[str, Task] = {}
        self._recovered = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self._background = Background()
        self._closing = False

    async def open(self) -> None:
        """Settle what an agent of this name left unfinished, then start to work. Raises StoreFailed."""
        for record in await self._keeping.unfinished(self._settings.name):
            await self._recover(record)
        self._recovered.set()
        work = [self._line.work() for _ in range(self._settings.in_engine)]
        work.append(self._keeping.run(self._tasks))
        self._workers = [asyncio.create_task(one) for one in work]

    async def close(self) -> None:
        """Let running tasks end for ``drain_timeout``, then give up what is left; asynchronous tasks stay in the store."""
        self._closing = True
        self._line.close()
        running = [task.finished for task in self._line.taken]
        if running:
            await asyncio.wait(running, timeout=self._settings.supervision.drain_timeout)
        interrupted = set(self._line.taken)
        for worker in self._workers:
            worker.cancel()
        if self._workers:
            await asyncio.wait(self._workers)
        for task in list(self._tasks.values()):
            if not task.accepted:
                if task.preparation is not None:
                    task.preparation.cancel()
            elif task.record.request is None:
                await self.finish(task, _stopped())
            elif task.ending is None:
                task.record.state = "queued"
                if task in interrupted:
                    task.record.attempt -= 1  # it was ended by us, not by what it does
                with contextlib.suppress(EaselError):
                    await self._keeping.progress(task)
        await self._background.wait()
        await self._keeping.flush()

    @property
    def waiting(self) -> int:
        """Tasks in line."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Tasks that have a place in the engine."""
        return len(self._line.taken)

    def position(self, task_id: str) -> int | None:
        """Return a task's place in line, 0 for the next one; None when it is not in line."""
        return self._line.position(task_id)

    # Accepting.

    async def submit(self, task_id: str | None, body: ParsedBody) -> Task:
        """Accept a task that runs on without listeners and survives the agent, or join the one that has this id and body.

        ``task_id`` None draws a new one. Raises InvalidTaskId, TaskConflict, TooManyTasks, InvalidPrompt, InputRejected,
        StoreFailed and EngineError; then nothing is left behind.
        """
        await self._recovered.wait()
        task = self._admit(task_id, body, detached=True)
        joined = not task.detached
        task.detached = True
        await asyncio.shield(task.prepared)
        if joined and not task.over and task.record.request is None:
            task.record.request = _request(task)
            try:
                await self._keeping.progress(task)
            except EaselError:
                task.detached = False
                self._left(task)
                raise
        return task

    @contextlib.asynccontextmanager
    async def attend(
        self,
        task_id: str | None,
        body: ParsedBody,
        *,
        base64: bool = False,
        previews: bool = False,
    ) -> AsyncIterator[Listener]:
        """Accept a task, or join the one that has this id and body, and listen to it.

        When the last listener of a task leaves before its end, it is cancelled. ``base64`` keeps the content of small
        outputs at hand. Raises what `submit` raises.
        """
        if not self._recovered.is_set():
            await self._recovered.wait()
        task = self._admit(task_id, body, detached=False, base64=base64)
        listener = Listener(task, previews=previews)
        task.listeners.add(listener)
        try:
            await asyncio.shield(task.prepared)
            yield listener
        finally:
            task.listeners.discard(listener)
            self._left(task)

    def _admit(
        self, task_id: str | None, body: ParsedBody, *, detached: bool, base64: bool = False
    ) -> Task:
        """Find the task of this id, or begin to prepare a new one."""
        if task_id is not None:
            check_task_id(task_id)
        mark = signature(body.prompt, body.options)
        if task_id is not None and task_id in self._tasks:
            task = self._tasks[task_id]
            _same_body(task.record, mark)
            return task
        if self._closing:
            raise _stopped()
        if len(self._tasks) >= self._settings.max_waiting + self._settings.in_engine:
            raise TooManyTasks(
                f"{len(self._tasks)} tasks are waiting or running already", hint="try again later"
            )
        record = TaskRecord(
            id=task_id or str(uuid.uuid4()),
            signature=mark,
            owner=self._settings.name,
            created=self._clock(),
        )
        task = self._tasks[record.id] = Task(record, detached=detached)
        task.contents = {} if base64 else None
        task.preparation = self._background.spawn(
            self._prepare(task, body, chosen=task_id is not None)
        )
        return task

    async def _prepare(self, task: Task, body: ParsedBody, *, chosen: bool) -> None:
        """Accept or refuse a task. ``chosen`` ids may be known already, also to others who share the store."""
        try:
            known = await self._keeping.load(task.id) if chosen else None
            if known is None:
                await self._admission.prepare(task, body)
                task.preparation = None  # from here on it is cancelled like an accepted task
                known = await asyncio.shield(self._write_down(task, chosen=chosen))
            if known is not None:
                self._adopt(task, known)
                return
        except BaseException as error:
            self._tasks.pop(task.id, None)
            if isinstance(error, asyncio.CancelledError):
                task.refuse(_stopped() if self._closing else TaskCancelled("the caller left"))
                return
            task.refuse(error)
            if not isinstance(error, EaselError):
                raise
            return
        task.accept()
        if not self._closing:
            self._line.add(task)
            self._left(task)
        elif task.record.request is None:
            await self.finish(task, _stopped())

    async def _write_down(self, task: Task, *, chosen: bool) -> TaskRecord | None:
        """Store an accepted task where that matters now: to survive us, or because others may use its id."""
        if task.detached:
            task.record.request = _request(task)
        if not (task.detached or chosen):
            return None
        task.preparation = (
            None  # from here on it can be cancelled like any accepted task, but not be forgotten
        )
        return await self._keeping.create(task)

    def _adopt(self, task: Task, known: TaskRecord) -> None:
        """The store knows the id: its result is the answer."""
        _same_body(known, task.record.signature)
        if known.state not in FINISHED:
            raise TaskConflict(
                f"task {known.id} is running on the agent {known.owner!r}",
                hint="ask /api/status for it",
            )
        self._tasks.pop(task.id, None)
        task.record = known
        task.accept()
        task.end()

    def _left(self, task: Task) -> None:
        """Somebody left, or nobody has come yet: a task that nobody waits for is cancelled."""
        if task.over or task.listeners or task.detached or task.prepared.cancelled():
            return
        if task.accepted:
            self._background.spawn(self.cancel(task.id))
        elif not task.prepared.done() and task.preparation is not None:
            task.preparation.cancel()

    async def _recover(self, record: TaskRecord) -> None:
        """A task that an agent of this name left: run it again, or say what happened."""
        tries = max(2, self._settings.max_attempts)
        if record.request is not None and record.attempt < tries:
            task = self._tasks[record.id] = Task(record, detached=True)
            task.prompt, task.extra_data = record.request.prompt, record.request.extra_data
            task.stored = True
            record.state = "queued"
            task.accept()
            self._line.add(task)
            return
        settle(record, _stopped(), self._clock())
        await self._keeping.settle(record)

    # Ending.

    async def finish(self, task: Task, error: EaselError | None) -> None:
        """Write a task's end; the first one counts. Goes on when its caller is cancelled."""
        if task.ending is None:
            task.ending = self._background.spawn(self._end(task, error))
        await asyncio.shield(task.ending)

    async def _end(self, task: Task, error: EaselError | None) -> None:
        if error is not None and task.cancelling and not isinstance(error, TaskCancelled):
            error = TaskCancelled("the task was cancelled")
        if task.tracker is not None:
            ended = task.tracker.succeeded if error is None else task.tracker.failed
            ended(self._clock())
            task.changed()
        settle(task.record, error, self._clock())
        await self._keeping.end(task)
        self._tasks.pop(task.id, None)
        task.end()

    async def cancel(self, task_id: str) -> TaskRecord:
        """Cancel a task wherever it is; harmless when it is over. Returns its record. Raises TaskNotFound and StoreFailed.

        A task whose node does not look for interrupts is cancelled for its callers after a short grace; its place in the
        engine is free when the prompt really ends, or the engine was restarted for it.
        """
        if not self._recovered.is_set():
            await self._recovered.wait()
        task = self.get(task_id)
        if task is None:
            return await self.record(task_id)
        task.cancelling = True
        if not self._line.remove(task):
            await self._runner.stop(task)
        await self.finish(task, TaskCancelled("the task was cancelled"))
        return task.record

    # Watching.

    def get(self, task_id: str) -> Task | None:
        """Return a task that is in memory and accepted."""
        task = self._tasks.get(task_id)
        return task if task is not None and task.accepted else None

    async def record(self, task_id: str) -> TaskRecord:
        """Return what is known of a task. Raises TaskNotFound and StoreFailed."""
        if not self._recovered.is_set():
            await self._recovered.wait()
        task = self.get(task_id)
        found = task.record if task is not None else await self._keeping.load(task_id)
        if found is None:
            raise TaskNotFound("no task with this id is known")
        return found


def _stopped() -> EngineUnavailable:
    return EngineUnavailable("the agent was stopped", hint="submit the task again")


def _request(task: Task) -> TaskRequest:
    return TaskRequest(prompt=task.prompt, extra_data=task.extra_data)


def _same_body(record: TaskRecord, mark: str) -> None:
    if record.signature != mark:
        raise TaskConflict(
            f"the id {record.id} belongs to a task with another body",
            hint="use a new task id for another prompt",
        )
