"""One task from the gateway, from its assignment to the last word about it: one more door of the agent."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable
from typing import Any

from easel.agent.joining.outbox import Outbox
from easel.agent.record import TaskRecord
from easel.agent.task import Listener, Task
from easel.agent.tasks import Tasks, now_ms
from easel.errors import (
    BodyTooLarge,
    EaselError,
    EngineError,
    OutputFailed,
    StoreFailed,
    TaskCancelled,
    TaskNotFound,
    TooManyTasks,
)
from easel.link import messages
from easel.link.messages import Assign, Held
from easel.workflow.parse import Options, ParsedBody
from easel.workflow.progress import NodeProgress

PROGRESS_PAUSE = 0.05
"""Seconds between two reports of a task's progress."""
LOOK = 60.0
"""Longest wait for news of a task; being woken is the rule."""


class Wish(enum.IntEnum):
    """What the gateway wants of a task. The strongest wish counts."""

    RUN = 0
    RECALL = 1
    """Give it back, if it has not begun."""
    CANCEL = 2
    FORGET = 3
    """It is somebody else's by now: stop it, say nothing more of it."""


class Work:
    """An assigned task.

    ``engine_ready`` tells whether the engine is ready, and has the gateway told first if that has changed: it shall not give
    a task that comes back for an engine's death to the same engine.
    """

    def __init__(
        self, assign: Assign, tasks: Tasks, outbox: Outbox, *, engine_ready: Callable[[], bool]
    ) -> None:
        self.assign = assign
        self.previews = assign.previews
        """Whether anybody wants its previews."""
        self.wish = Wish.RUN
        self.excused = False
        """Whether its end in the engine, should it come, is our doing: the attempt does not count then."""
        self.over = False
        """Whether it has ended here; the gateway may not know yet."""
        self._tasks = tasks
        self._outbox = outbox
        self._engine_ready = engine_ready
        self._entering: asyncio.Task[Any] | None = None
        self._stopped = False
        """Whether it was stopped while it was prepared."""
        self._listener: Listener | None = None
        self._started = False
        """Whether it was said that it began."""
        self._told: dict[str, tuple[Any, ...]] = {}
        self._node: str | None = None

    @property
    def held(self) -> Held:
        """Its lease."""
        return Held(uid=self.assign.uid, lease=self.assign.lease)

    @property
    def began(self) -> bool:
        """Whether the engine has begun to execute it."""
        return self._listener is not None and self._listener.task.record.started is not None

    async def run(self) -> None:
        """Run it and report how it ends."""
        if self.wish is not Wish.RUN:
            self._unbegun()
            return
        prompt, extra_data = self.assign.prompt, self.assign.extra_data
        body = ParsedBody(prompt=prompt, options=Options(extra_data=extra_data))
        self._entering = asyncio.current_task()
        try:
            async with self._tasks.attend(self.assign.folder, body, previews=True) as listener:
                self._entering, self._listener = None, listener
                await self._follow(listener)
                self._ended(listener.task)
        except asyncio.CancelledError:
            if self._entering is None or not self._stopped:
                raise
            self._entering.uncancel()
            self._unbegun()
        except (EngineError, StoreFailed, TooManyTasks) as error:
            # Not accepted, for reasons of this agent. With an engine that is well it counts, or it would go round for ever.
            counted = self._engine_ready() and not self.excused
            self._back(error.message, counted=counted, error=_fields(error))
        except EaselError as error:
            self.fail(error)
        finally:
            self._entering = None

    async def stop(self, wish: Wish) -> None:
        """End it, wherever it is."""
        if wish is Wish.RECALL and self.began:
            return
        self.wish = max(self.wish, wish)
        if self._listener is not None:
            with contextlib.suppress(TaskNotFound):
                await self._tasks.cancel(self.assign.folder)
        elif self._entering is not None and not self._stopped:
            self._stopped = True
            self._entering.cancel()

    def reconnected(self) -> None:
        """The gateway may have missed progress: the next message has all nodes, and comes at once."""
        self._told.clear()
        if self._listener is not None:
            self._listener.wake()

    # How far it is.

    async def _follow(self, listener: Listener) -> None:
        """Report its progress until it has ended."""
        task = listener.task
        while not task.over:
            await listener.wait(LOOK)
            self._report(listener)
            if not task.over:
                await asyncio.wait([task.finished], timeout=PROGRESS_PAUSE)
        self._report(listener)

    def _report(self, listener: Listener) -> None:
        if self.wish is Wish.FORGET:
            return
        record, uid, lease = listener.task.record, self.assign.uid, self.assign.lease
        if record.started is not None and not self._started:
            self._started, at = True, record.started
            self._keep(lambda n: messages.Started(n=n, uid=uid, lease=lease, at=at))
        preview = listener.take_preview()
        if preview is not None and self.previews:
            head = messages.Preview(uid=uid, node=preview.node_id, image_type=preview.image_type)
            self._outbox.preview(lease, messages.preview_frame(head, preview.data))
        if not self._started or listener.task.over:
            return
        changed = self._changed(record.nodes)
        if changed:
            border, self._node = self._node != record.current_node, record.current_node
            self._outbox.progress(
                messages.Progressed(
                    uid=uid,
                    lease=lease,
                    percent=record.percent,
                    current_node=record.current_node,
                    nodes=changed,
                    border=border,
                )
            )

    def _changed(self, nodes: dict[str, NodeProgress]) -> dict[str, NodeProgress]:
        changed = {}
        for node_id, node in nodes.items():
            now = (node.value, node.max, node.start, node.last_updated, len(node.images))
            if self._told.get(node_id) != now:
                self._told[node_id] = now
                changed[node_id] = node
        return changed

    # How it ended.

    def _ended(self, task: Task) -> None:
        record, error = task.record, task.record.error or {}
        if record.state == "failed" and error.get("code") in ENGINE_CODES:
            # Without a tracker it never came as far as the engine.
            guilty = task.tracker is not None and not task.innocent
            counted = guilty and not self.excused
            self._back(str(error.get("message", "")), counted=counted, error=error)
        elif record.state == "cancelled" and self.wish is Wish.RECALL:
            self._back("it was called back before it began", counted=False)
        else:
            self._finished(record)

    def _unbegun(self) -> None:
        """It was stopped before it was accepted."""
        if self.wish is Wish.RECALL:
            self._back("it was called back before it began", counted=False)
        else:
            self.fail(TaskCancelled("the task was cancelled"))

    def fail(self, error: EaselError) -> None:
        """Report an end that has no record."""
        self._finished(
            TaskRecord(
                id=self.assign.folder,
                signature="",
                owner="",
                state="cancelled" if isinstance(error, TaskCancelled) else "failed",
                created=now_ms(),
                error=_fields(error),
            )
        )

    def _finished(self, record: TaskRecord) -> None:
        try:
            self._tell(record)
        except BodyTooLarge as error:
            self.fail(OutputFailed(f"the results are too large: {error.message}"))

    def _tell(self, record: TaskRecord) -> None:
        uid, lease, state = self.assign.uid, self.assign.lease, record.state
        assert state in ("succeeded", "failed", "cancelled")
        ended = record.ended or now_ms()
        self._keep(
            lambda n: messages.Finished(
                n=n,
                uid=uid,
                lease=lease,
                state=state,
                started=record.started,
                ended=ended,
                nodes=record.nodes,
                node_errors=record.node_errors,
                error=record.error,
            )
        )

    def _back(self, reason: str, *, counted: bool, error: dict[str, Any] | None = None) -> None:
        uid, lease = self.assign.uid, self.assign.lease
        self._engine_ready()
        self._keep(
            lambda n: messages.Returned(
                n=n, uid=uid, lease=lease, reason=reason, counted=counted, error=error
            )
        )

    def _keep(self, make: Callable[[int], messages.FromAgent]) -> None:
        if self.wish is not Wish.FORGET:
            self._outbox.keep(self.assign.lease, make)


def _fields(error: EaselError) -> dict[str, Any]:
    return {**error.to_json(), "http_status": error.http_status}


def _codes(kind: type[EaselError]) -> set[str]:
    return {kind.code}.union(*(_codes(one) for one in kind.__subclasses__()))


ENGINE_CODES = _codes(EngineError)
"""Errors that are the engine's, not the task's: another instance, or this one later, may do better."""
