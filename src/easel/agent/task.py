"""One task in memory: its record, its progress, and who listens."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from easel.agent.record import FINISHED, TaskRecord
from easel.comfy.events import Preview
from easel.comfy.run import Run
from easel.errors import EaselError
from easel.workflow.progress import ProgressTracker
from easel.workflow.types import Prompt


class Listener:
    """Somebody who watches a task. Wakes for every change; sees the latest state, so a slow one misses steps, not the end."""

    def __init__(self, task: Task, *, previews: bool = False) -> None:
        self.task = task
        self._news = asyncio.Event()
        self.wants_previews = previews
        self._preview: Preview | None = None

    def wake(self, preview: Preview | None = None) -> None:
        """Something changed, or a preview came (the latest is kept)."""
        if preview is not None:
            self._preview = preview
        self._news.set()

    async def wait(self, timeout: float) -> bool:
        """Wait for news; False when there was none in `timeout` seconds. True at once when the task is over."""
        if self.task.over and not self._news.is_set():
            return True
        try:
            async with asyncio.timeout(timeout):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True

    def take_preview(self) -> Preview | None:
        """Return the latest preview, once."""
        preview, self._preview = self._preview, None
        return preview


class Task:
    """A task from its submission to its end.

    ``prepared`` settles when it is known whether the task is accepted: callers with the same id wait for it.
    """

    def __init__(self, record: TaskRecord, *, detached: bool) -> None:
        self.record = record
        self.detached = detached
        """Runs on though nobody listens (asynchronous, or found in the store at start)."""
        self.prepared: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.prompt: Prompt = {}
        self.extra_data: dict[str, Any] = {}
        self.outputs: list[str] | None = None
        """The output nodes that will run, where validation could tell."""
        self.contents: dict[str, str] | None = None
        """Base64 of small outputs by stored name, for a caller that wants it; the rest is read again."""
        self.tracker: ProgressTracker | None = None
        self.run: Run | None = None
        """Its prompt in the engine."""
        self.limit: asyncio.Timeout | None = None
        """When the prompt must have left the engine."""
        self.innocent = False
        """Whether the engine error of the latest attempt came before it had begun: another task's, or nobody's."""
        self.preparation: asyncio.Task[None] | None = None
        self.ending: asyncio.Task[None] | None = None
        self.writing = asyncio.Lock()
        """Held while its record is written."""
        self.cancelling = False
        self.dirty = False
        """Has progress that is not stored yet."""
        self.stored = False
        """Whether the store knows the task."""
        self.listeners: set[Listener] = set()

    @property
    def id(self) -> str:
        """The task's id."""
        return self.record.id

    @property
    def accepted(self) -> bool:
        """Whether the task will run, runs or has run."""
        return self.prepared.done() and self.prepared.exception() is None

    @property
    def over(self) -> bool:
        """Whether the task has ended."""
        return self.finished.done()

    def changed(self) -> None:
        """Progress was made: tell those who listen, and store it some time."""
        self.dirty = True
        tracker = self.tracker
        if tracker is not None:
            self.record.percent = tracker.percent
            self.record.current_node = tracker.current_node
        self.wake()

    def wake(self) -> None:
        """Tell those who listen that there is news."""
        for listener in self.listeners:
            listener.wake()

    def preview(self, preview: Preview) -> None:
        """Hand a preview to those who want previews."""
        for listener in self.listeners:
            if listener.wants_previews:
                listener.wake(preview)

    def accept(self) -> None:
        """The task will run (or has run already)."""
        if not self.prepared.done():
            self.prepared.set_result(None)

    def refuse(self, error: BaseException) -> None:
        """The task is not accepted."""
        if not self.prepared.done():
            self.prepared.set_exception(error)
            self.prepared.exception()  # there may be nobody else who waits for it

    def end(self) -> None:
        """The record is final."""
        assert self.record.state in FINISHED
        if not self.finished.done():
            self.finished.set_result(None)
        self.wake()


def settle(record: TaskRecord, error: EaselError | None, now: int) -> None:
    """Write the end of a task into its record: `error` None means success."""
    record.ended = now
    record.request = None
    if error is None:
        record.state = "succeeded"
        record.percent = 100.0
        record.current_node = None
        return
    record.state = "cancelled" if error.code == "task_cancelled" else "failed"
    record.error = {**error.to_json(), "http_status": error.http_status}


def snapshot(record: TaskRecord) -> TaskRecord:
    """Copy a record so that it can be stored while the task goes on."""
    return msgspec.structs.replace(
        record, nodes={k: msgspec.structs.replace(v) for k, v in record.nodes.items()}
    )
