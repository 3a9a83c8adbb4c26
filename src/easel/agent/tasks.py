"""The tasks of an agent: accepted once, put in line, given to the engine, watched, finished, stored.

The one road of every door. ``submit`` accepts or refuses; ``in_engine`` workers take tasks out of the line; a saver stores
progress a few times a second; the end of a task is stored before anybody is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from easel.agent.input_files import InputFiles
from easel.agent.link import EngineLink
from easel.agent.output_files import OutputFiles
from easel.agent.record import FINISHED, ProgressStore, TaskRecord, TaskRequest
from easel.agent.runner import Runner
from easel.agent.task import Listener, Task, settle, snapshot
from easel.errors import (
    BadRequest,
    EaselError,
    EngineError,
    EngineUnavailable,
    InvalidPrompt,
    InvalidTaskId,
    TaskCancelled,
    TaskConflict,
    TaskNotFound,
    TooManyTasks,
)
from easel.settings import AgentSettings
from easel.workflow.parse import ParsedBody
from easel.workflow.seeds import randomise
from easel.workflow.signature import signature
from easel.workflow.types import ObjectInfo, Prompt
from easel.workflow.validate import validate_prompt

log = logging.getLogger(__name__)

TASK_ID = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]{0,127}")
QUICK_INFO = 1.0
"""Seconds an asynchronous submission waits for ``/object_info`` while the engine starts; without it, the engine validates."""


def now_ms() -> int:
    """Return the time in ms since the epoch."""
    return time.time_ns() // 1_000_000


class Tasks:
    """Every task this agent knows in memory; what is over is in the store alone."""

    def __init__(
        self,
        settings: AgentSettings,
        link: EngineLink,
        store: ProgressStore,
        inputs: InputFiles,
        outputs: OutputFiles,
        *,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._settings = settings
        self._link = link
        self._store = store
        self._inputs = inputs
        self._clock = clock
        self._rng = random.SystemRandom()
        self._runner = Runner(settings, link, outputs, clock)
        self._tasks: dict[str, Task] = {}
        self._line: deque[Task] = deque()
        self._filled = asyncio.Condition()
        self._background: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def open(self) -> None:
        """Settle what an agent of this name left unfinished, then start to work."""
        for record in await self._store.unfinished(self._settings.name):
            await self._recover(record)
        for number in range(self._settings.in_engine):
            self._spawn(self._work(), f"easel worker {number}")
        self._spawn(self._save_progress(), "easel progress saver")

    async def close(self) -> None:
        """Let running tasks end for ``drain_timeout``, then give up what is left; asynchronous tasks stay in the store."""
        self._closing = True
        running = [task.finished for task in self._tasks.values() if task.prepared.done()]
        if running:
            await asyncio.wait(running, timeout=self._settings.supervision.drain_timeout)
        for task in list(self._tasks.values()):
            if task.detached and not task.over:
                task.record.state = "queued"
                with contextlib.suppress(EaselError):
                    await self._store.save(task.record)
            elif not task.over:
                await self.finish(task, EngineUnavailable("the agent was stopped"))
        for background in self._background:
            background.cancel()
        if self._background:
            await asyncio.wait(self._background)

    @property
    def waiting(self) -> int:
        """Tasks in line."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Tasks accepted that are neither over nor in line."""
        return sum(not task.over for task in self._tasks.values()) - len(self._line)

    def position(self, task_id: str) -> int | None:
        """Return a task's place in line, 0 for the next one; None when it is not in line."""
        for place, task in enumerate(self._line):
            if task.id == task_id:
                return place
        return None

    # Accepting.

    async def submit(
        self, task_id: str | None, body: ParsedBody, *, detached: bool, base64: bool = False
    ) -> Task:
        """Accept a task, or join the one that has this id and body already.

        ``task_id`` None draws a new one. ``detached`` tasks run on without listeners and survive the agent; ``base64``
        keeps the content of small outputs at hand. Raises
        InvalidTaskId, TaskConflict, TooManyTasks, InvalidPrompt, InputRejected, StoreFailed and EngineError; then
        nothing is left behind.
        """
        if task_id is not None and not TASK_ID.fullmatch(task_id):
            raise InvalidTaskId(
                "the task id is not usable",
                hint="1-128 letters, digits, '_', '-' or '.', not starting with a dot",
            )
        mark = signature(body.prompt, body.options)
        if task_id is not None and task_id in self._tasks:
            return await self._join(self._tasks[task_id], mark, detached)
        if self._closing:
            raise EngineUnavailable("the agent is stopping")
        if len(self._line) >= self._settings.max_waiting:
            raise TooManyTasks(
                f"{len(self._line)} tasks are waiting already", hint="try again later"
            )
        record = TaskRecord(
            id=task_id or str(uuid.uuid4()),
            signature=mark,
            owner=self._settings.name,
            created=self._clock(),
        )
        task = self._tasks[record.id] = Task(record, detached=detached)
        task.contents = {} if base64 else None
        try:
            known = await self._store.load(record.id) if task_id is not None else None
            if known is None:
                await self._prepare(task, body)
                known = await self._write_down(task, shared=task_id is not None)
            if known is not None:
                return self._adopt(task, known, mark)
        except BaseException as error:
            del self._tasks[record.id]
            cancelled = isinstance(error, asyncio.CancelledError)
            task.refuse(TaskCancelled("the caller left") if cancelled else error)
            raise
        task.accept()
        await self._enqueue(task)
        return task

    async def _join(self, task: Task, mark: str, detached: bool) -> Task:
        """Another call with the id of a task in memory."""
        _same_body(task.record, mark)
        await asyncio.shield(task.prepared)
        task.detached = task.detached or detached
        return task

    def _adopt(self, task: Task, known: TaskRecord, mark: str) -> Task:
        """The store knows the id: its result is the answer."""
        _same_body(known, mark)
        if known.state not in FINISHED:
            raise TaskConflict(
                f"task {known.id} is running on the agent {known.owner!r}",
                hint="ask /api/status for it",
            )
        del self._tasks[task.id]
        task.record = known
        task.accept()
        task.end()
        return task

    async def _prepare(self, task: Task, body: ParsedBody) -> None:
        """Everything that can refuse a task, before it is accepted."""
        patience = QUICK_INFO if task.detached else self._settings.supervision.start_timeout
        info = await self._link.object_info(patience)
        if info is not None:
            info = await self._validate(task, body.prompt, info)
        prompt, task.record.seeds = randomise(body.prompt, self._rng, info)
        task.prompt = await self._inputs.materialise(prompt, info)
        task.extra_data = body.options.extra_data

    async def _validate(self, task: Task, prompt: Prompt, info: ObjectInfo) -> ObjectInfo:
        """Refuse what no engine would run; what depends on values is left to the engine."""
        verdict = validate_prompt(prompt, info, values=False)
        if verdict.error is not None and verdict.error["type"] == "invalid_prompt":
            # Perhaps the engine knows the class by now.
            self._link.forget_info()
            info = await self._link.object_info(QUICK_INFO) or info
            verdict = validate_prompt(prompt, info, values=False)
        if verdict.error is not None:
            raise _refusal(verdict.error, verdict.node_errors)
        task.outputs = verdict.outputs
        return info

    async def _write_down(self, task: Task, *, shared: bool) -> TaskRecord | None:
        """Store an accepted task where that matters now: to survive us, or because others may use its id."""
        if task.detached:
            task.record.request = TaskRequest(prompt=task.prompt)
        if not (task.detached or shared):
            return None
        known = await self._store.create(task.record)
        task.stored = known is None
        return known

    async def _enqueue(self, task: Task) -> None:
        self._line.append(task)
        async with self._filled:
            self._filled.notify()

    # Working.

    async def _work(self) -> None:
        """One place in the engine: take the next task, run it, again."""
        while True:
            async with self._filled:
                await self._filled.wait_for(lambda: self._line)
                task = self._line.popleft()
            for other in self._line:
                other.changed()  # they moved up
            try:
                await self._run(task)
            except Exception as error:  # a fault of ours ends this task, not the worker
                log.exception("task %s", task.id)
                await self.finish(task, EaselError(f"internal error: {error}"))

    async def _run(self, task: Task) -> None:
        """Run a task, again where its engine died under it."""
        while not task.over:
            task.record.attempt += 1
            try:
                await self._runner.run(task)
            except EngineError as error:
                again = task.record.attempt < self._settings.max_attempts and not task.cancelling
                if again and isinstance(error, EngineError):
                    log.warning("task %s, attempt %d: %s", task.id, task.record.attempt, error)
                    continue
                await self.finish(task, error)
            except EaselError as error:
                await self.finish(task, error)
            else:
                await self.finish(task, None)

    async def finish(self, task: Task, error: EaselError | None) -> None:
        """Write a task's end; the first one counts. It is stored before anybody is told."""
        if task.over or task.record.state in FINISHED:
            return
        if error is not None and task.cancelling and not isinstance(error, TaskCancelled):
            error = TaskCancelled("the task was cancelled")
        if task.tracker is not None:
            ended = task.tracker.succeeded if error is None else task.tracker.failed
            ended(self._clock())
            task.changed()
        settle(task.record, error, self._clock())
        task.dirty = False
        try:
            if task.stored:
                await self._store.save(task.record)
            else:
                await self._store.create(task.record)
        except EaselError as failure:
            log.error("task %s: its end could not be stored: %s", task.id, failure)
        self._tasks.pop(task.id, None)
        task.end()

    # Watching.

    def get(self, task_id: str) -> Task | None:
        """Return a task that is in memory and accepted."""
        task = self._tasks.get(task_id)
        return task if task is not None and task.prepared.done() else None

    async def record(self, task_id: str) -> TaskRecord:
        """Return what is known of a task. Raises TaskNotFound and StoreFailed."""
        task = self.get(task_id)
        found = task.record if task is not None else await self._store.load(task_id)
        if found is None:
            raise TaskNotFound("no task with this id is known")
        return found

    @contextlib.contextmanager
    def listening(self, task: Task, *, previews: bool = False) -> Iterator[Listener]:
        """Listen to a task; when the last listener of a task leaves before its end, the task is cancelled."""
        listener = Listener(task, previews=previews)
        task.listeners.add(listener)
        try:
            yield listener
        finally:
            task.listeners.discard(listener)
            if not (task.over or task.listeners or task.detached):
                self._spawn(self.cancel(task.id), "easel cancel")

    # Cancelling.

    async def cancel(self, task_id: str) -> TaskRecord:
        """Cancel a task wherever it is; harmless when it is over. Returns its record. Raises TaskNotFound and StoreFailed.

        A task whose node does not look for interrupts is cancelled for its callers after a short grace; its place in the
        engine is free when the prompt really ends, or the engine was restarted for it.
        """
        task = self.get(task_id)
        if task is None:
            return await self.record(task_id)
        if task.over:
            return task.record
        task.cancelling = True
        error = TaskCancelled("the task was cancelled")
        try:
            self._line.remove(task)
        except ValueError:
            if await self._runner.stop(task):
                return task.record
            self._spawn(self._runner.free_place(task), "easel engine place")
        await self.finish(task, error)
        return task.record

    # In the background.

    async def _save_progress(self) -> None:
        """Store the progress of stored tasks, a few times a second at most."""
        while True:
            await asyncio.sleep(self._settings.progress_interval)
            for task in list(self._tasks.values()):
                if task.dirty and task.prepared.done() and not task.over:
                    task.dirty = False
                    try:
                        await self._store_progress(task)
                    except EaselError as error:
                        log.warning("task %s: progress could not be stored: %s", task.id, error)

    async def _store_progress(self, task: Task) -> None:
        copy = snapshot(task.record)
        if task.stored:
            await self._store.save(copy)
        elif await self._store.create(copy) is None:
            task.stored = True
        if task.over:
            await self._store.save(task.record)  # it ended while the snapshot was on its way

    async def _recover(self, record: TaskRecord) -> None:
        """A task that an agent of this name left: run it again, or say what happened."""
        tries = max(2, self._settings.max_attempts)
        if record.request is not None and record.attempt < tries:
            task = self._tasks[record.id] = Task(record, detached=True)
            task.prompt = record.request.prompt
            task.stored = True
            record.state = "queued"
            task.accept()
            await self._enqueue(task)
            return
        error = EngineUnavailable(
            "the agent was stopped while the task ran", hint="submit it again"
        )
        settle(record, error, self._clock())
        await self._store.save(record)

    def _spawn(self, work: Any, name: str) -> None:
        background = asyncio.create_task(work, name=name)
        self._background.add(background)
        background.add_done_callback(self._done)

    def _done(self, background: asyncio.Task[Any]) -> None:
        self._background.discard(background)
        if not background.cancelled() and (error := background.exception()) is not None:
            log.error("%s failed", background.get_name(), exc_info=error)


def _same_body(record: TaskRecord, mark: str) -> None:
    if record.signature != mark:
        raise TaskConflict(
            f"the id {record.id} belongs to a task with another body",
            hint="use a new task id for another prompt",
        )


def _refusal(error: dict[str, Any], node_errors: dict[str, Any]) -> BadRequest:
    """Make validation's verdict an error that names the first faulty node and input."""
    message = ": ".join(part for part in (error["message"], error["details"]) if part)
    for node_id, entry in node_errors.items():
        first = entry["errors"][0]
        return InvalidPrompt(
            f"node {node_id} ({entry['class_type']}): {first['message']}: {first['details']}",
            error=error,
            node_errors=node_errors,
            node_id=node_id,
            node_type=entry["class_type"],
            input_name=first["extra_info"].get("input_name"),
        )
    found = re.fullmatch(r"Node ID '#(.*)'", error["details"])
    return InvalidPrompt(
        message,
        error=error,
        node_id=found.group(1) if found else None,
        hint="a prompt needs a node that shows or saves something, such as SaveImage"
        if error["type"] == "prompt_no_outputs"
        else None,
    )
