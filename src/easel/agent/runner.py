"""One attempt at a task: into the engine, its events into progress, its outputs into storage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import aiohttp

from easel.agent.engine_files import store_output
from easel.agent.link import EngineLink
from easel.agent.task import Task
from easel.comfy.events import (
    Event,
    Executing,
    ExecutionCached,
    ExecutionStart,
    Preview,
    Progress,
    ProgressState,
)
from easel.comfy.outcome import Outcome
from easel.comfy.run import Run
from easel.errors import (
    EaselError,
    EngineError,
    TaskCancelled,
    TaskTimeout,
)
from easel.settings import AgentSettings
from easel.storage.outputs import OutputFiles, value_entry
from easel.workflow.outputs import OutputItem, collect
from easel.workflow.progress import ProgressTracker

log = logging.getLogger(__name__)

CANCEL_GRACE = 3.0
"""Seconds a cancelled prompt may take to end before its callers are told that it is cancelled."""


Deliver: TypeAlias = Callable[[Task, OutputItem, dict[str, Any]], Awaitable[None]]


class Runner:
    """Runs tasks on the engine, as many at a time as there are callers."""

    def __init__(
        self,
        settings: AgentSettings,
        link: EngineLink,
        outputs: OutputFiles,
        clock: Callable[[], int],
    ) -> None:
        self._settings = settings
        self.deliver: Deliver | None = None
        """Called with each output that was stored, and its entry; raises OutputFailed."""
        self._timeout = settings.task_timeout
        self._timeout_set_by = "the setting agent.task_timeout"
        self._link = link
        self._outputs = outputs
        self._clock = clock
        self._in_engine: set[Attempt] = set()

    def limit(self, seconds: float | None, set_by: str) -> None:
        """Let tasks that begin from now on run so long, unless the agent's own setting is shorter; None: that alone counts."""
        self._timeout, self._timeout_set_by = (
            self._settings.task_timeout,
            "the setting agent.task_timeout",
        )
        if seconds is not None and (self._timeout is None or seconds < self._timeout):
            self._timeout, self._timeout_set_by = seconds, set_by

    async def run(self, task: Task) -> None:
        """Run a task to its good end. Raises what it ended with otherwise; EngineError when it may be tried again."""
        task.innocent = False
        await self._link.wait_ready(self._settings.supervision.start_timeout)
        if task.cancelling:
            raise TaskCancelled("the task was cancelled")
        tracker = task.tracker = ProgressTracker(task.prompt, task.outputs)
        task.record.nodes = tracker.nodes
        before = set(self._in_engine)
        try:
            run = await self._link.connection.submit(task.prompt, extra_data=task.extra_data)
        except EngineError as error:
            never_sent = isinstance(error.__cause__, aiohttp.ClientConnectorError)
            task.innocent = never_sent or await any_lost(before)
            raise
        attempt = Attempt(run, self._in_engine)
        task.run = run
        if task.ending is None:
            task.record.prompt_id = run.prompt_id
            task.record.node_errors = run.node_errors
        try:
            outcome = await self._watch(task, run, tracker)
        finally:
            task.run = task.limit = None
            self._in_engine.discard(attempt)
        if isinstance(outcome.error, EngineError):
            task.innocent = await attempt.innocent()
        if task.ending is not None:
            raise TaskCancelled("the task was cancelled")
        tracker.cached(outcome.cached, self._clock())
        outcome.raise_for_status()
        await self._keep_outputs(task, tracker, outcome)

    async def _watch(self, task: Task, run: Run, tracker: ProgressTracker) -> Outcome:
        """Follow a run to its end, but not beyond its time."""
        try:
            async with asyncio.timeout(None) as limit:
                task.limit = limit
                if task.cancelling:
                    await self._interrupt(task, run)
                async for event in run:
                    self._note(task, tracker, event)
                return await run.outcome()
        except TimeoutError:
            if task.cancelling:
                await self._free_place(task)
                raise TaskCancelled("the task was cancelled") from None
            node = tracker.current_node
            await self._interrupt(task, run)
            if not await run.wait(self._settings.supervision.stop_grace):
                await self._free_place(task)
            raise TaskTimeout(
                f"the task ran longer than {self._timeout or 0:g} s",
                hint=f"the limit is {self._timeout_set_by}",
                node_id=node,
            ) from None
        except asyncio.CancelledError:
            # The agent stops: an engine that is not ours shall not work on for nobody.
            if not run.over:
                await asyncio.shield(self._interrupt(task, run))
            raise

    def _note(self, task: Task, tracker: ProgressTracker, event: Event) -> None:
        """Take an event into the task's progress. Once its end is being written, nothing more is: the record is final."""
        if task.ending is not None:
            return
        now = self._clock()
        match event:
            case Progress(node=node) if node is not None:
                tracker.progress(node, event.value, event.max, now)
            case Executing():
                tracker.executing(event.node, now, event.display_node)
            case ExecutionStart():
                tracker.started(now)
                task.record.state = "running"
                task.record.started = task.record.started or now
                if self._timeout and task.limit and not task.cancelling:
                    task.limit.reschedule(self._later(self._timeout))
            case ExecutionCached():
                tracker.cached(event.nodes, now)
            case ProgressState():
                for node_id, state in event.nodes.items():
                    if state.state == "running":
                        tracker.progress(
                            node_id, state.value, state.max, now, state.display_node_id
                        )
                    elif state.state == "finished":
                        tracker.completed(node_id, now)
            case Preview():
                task.preview(event)
                return
            case _:
                return
        task.changed()

    async def _keep_outputs(self, task: Task, tracker: ProgressTracker, outcome: Outcome) -> None:
        """Copy every output out of the engine, in order; what is no file goes into the record as it is."""
        entries: dict[str, list[dict[str, object]]] = {}
        try:
            for item in collect(outcome.outputs, task.prompt):
                if item.is_file:
                    entry = await store_output(
                        self._link.client, self._outputs, task.id, item, task.contents
                    )
                    if self.deliver is not None:
                        await self.deliver(task, item, entry)
                else:
                    entry = value_entry(item)
                entries.setdefault(item.node_id, []).append(entry)
            if task.ending is not None:
                raise TaskCancelled("the task was cancelled")
        except BaseException:
            await asyncio.shield(self._outputs.delete(task.id))  # a failed task leaves no files
            raise
        now = self._clock()
        for node_id, images in entries.items():
            tracker.executed(node_id, images, now)

    # Stopping.

    async def stop(self, task: Task) -> None:
        """Ask the engine to stop a task and wait a moment for its end.

        A prompt that is being posted is stopped when it has arrived; one that does not stop in time is ended with its
        engine, where that is ours.
        """
        run = task.run
        if run is None or task.ending is not None:
            return
        await self._interrupt(task, run)
        await asyncio.wait([task.finished], timeout=CANCEL_GRACE)

    async def _interrupt(self, task: Task, run: Run) -> None:
        """Tell the engine to stop a prompt, and give it ``stop_grace`` from now on."""
        if task.limit is not None and not task.limit.expired() and task.cancelling:
            task.limit.reschedule(self._later(self._settings.supervision.stop_grace))
        try:
            async with asyncio.timeout(CANCEL_GRACE):
                await run.cancel()
        except (EaselError, TimeoutError) as error:
            log.warning("task %s: the engine could not be told to stop: %s", task.id, error)

    async def _free_place(self, task: Task) -> None:
        """A prompt does not stop: restart its engine."""
        if not await self._link.restart("was restarted: a node did not stop when cancelled"):
            log.warning("task %s: cancelled, but its node runs on in the engine", task.id)

    def _later(self, seconds: float) -> float:
        return asyncio.get_running_loop().time() + seconds


class Attempt:
    """One prompt in the engine among others."""

    def __init__(self, run: Run, in_engine: set[Attempt]) -> None:
        self.run = run
        self.after: set[Attempt] = set()
        self._before = set(in_engine)
        for other in in_engine:
            other.after.add(self)
        in_engine.add(self)

    async def innocent(self) -> bool:
        """Tell whether this lost prompt had not begun when its engine died: another, lost with it, had its turn."""
        if self.run.started:
            return False
        return await any_lost(self._before | {one for one in self.after if one.run.started})


async def any_lost(attempts: Iterable[Attempt]) -> bool:
    """Tell whether one of these prompts was lost with its engine."""
    return any([one.run.over and (await one.run.outcome()).status == "lost" for one in attempts])
