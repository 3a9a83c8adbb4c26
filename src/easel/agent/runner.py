"""One attempt at a task: into the engine, its events into progress, its outputs into storage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from easel.agent.engine_files import store_output
from easel.agent.link import EngineLink
from easel.agent.output_files import OutputFiles, value_entry
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
from easel.errors import EaselError, EngineSilent, TaskCancelled
from easel.settings import AgentSettings
from easel.workflow.outputs import collect
from easel.workflow.progress import ProgressTracker

log = logging.getLogger(__name__)

CANCEL_GRACE = 3.0
"""Seconds a cancelled prompt may take to end before its callers are told that it is cancelled."""


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
        self._link = link
        self._outputs = outputs
        self._clock = clock

    async def run(self, task: Task) -> None:
        """Run a task to its good end. Raises what it ended with otherwise; EngineError when it may be tried again."""
        await self._link.wait_ready(self._settings.supervision.start_timeout)
        if task.cancelling:
            raise TaskCancelled("the task was cancelled")
        tracker = task.tracker = ProgressTracker(task.prompt, task.outputs)
        task.record.nodes = tracker.nodes
        run = await self._link.connection.submit(task.prompt, extra_data=task.extra_data)
        task.run = run
        task.record.prompt_id = run.prompt_id
        task.record.node_errors = run.node_errors
        try:
            if task.cancelling:
                await run.cancel()
            outcome = await self._watch(task, run, tracker)
        finally:
            task.run = None
        tracker.cached(outcome.cached, self._clock())
        outcome.raise_for_status()
        await self._keep_outputs(task, tracker, outcome)

    async def _watch(self, task: Task, run: Run, tracker: ProgressTracker) -> Outcome:
        """Follow a run to its end."""
        try:
            async with asyncio.timeout(self._settings.task_timeout):
                async for event in run:
                    self._note(task, tracker, event)
                return await run.outcome()
        except TimeoutError:
            await run.cancel()
            raise EngineSilent(
                f"the task ran longer than {self._settings.task_timeout:g} s",
                hint="the limit is the setting agent.task_timeout",
                node_id=tracker.current_node,
            ) from None
        except asyncio.CancelledError:
            # The agent stops: an engine that is not ours shall not work on for nobody.
            if not run.over:
                await asyncio.shield(run.cancel())
            raise

    def _note(self, task: Task, tracker: ProgressTracker, event: Event) -> None:
        """Take an event into the task's progress."""
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
        for item in collect(outcome.outputs, task.prompt):
            if item.is_file:
                entry = await store_output(
                    self._link.client, self._outputs, task.id, item, task.contents
                )
            else:
                entry = value_entry(item)
            entries.setdefault(item.node_id, []).append(entry)
        now = self._clock()
        for node_id, images in entries.items():
            tracker.executed(node_id, images, now)

    # Stopping.

    async def stop(self, task: Task) -> bool:
        """Ask the engine to stop a task and wait a moment; True when the task is over then."""
        run = task.run
        if run is not None:
            try:
                async with asyncio.timeout(CANCEL_GRACE):
                    await run.cancel()
            except (EaselError, TimeoutError) as error:
                log.warning("task %s: the engine could not be told to stop: %s", task.id, error)
        await asyncio.wait([task.finished], timeout=CANCEL_GRACE)
        return task.over

    async def free_place(self, task: Task) -> None:
        """See that a cancelled prompt ends: a supervised engine that does not stop it in time is restarted."""
        run = task.run
        if run is None:
            return
        try:
            async with asyncio.timeout(self._settings.supervision.stop_grace):
                await run.outcome()
        except TimeoutError:
            if not await self._link.restart("was restarted: a node did not stop when cancelled"):
                log.warning("task %s: cancelled, but its node runs on in the engine", task.id)
