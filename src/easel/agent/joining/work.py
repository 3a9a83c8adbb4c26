"""Tasks from the gateway: one more door of the agent."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from easel.agent.background import Background
from easel.agent.joining.outbox import Outbox
from easel.agent.record import TaskRecord
from easel.agent.task import Listener
from easel.agent.tasks import Tasks, now_ms
from easel.errors import EaselError, EngineError
from easel.link import messages
from easel.link.messages import Assign, Held
from easel.workflow.parse import Options, ParsedBody
from easel.workflow.progress import NodeProgress

log = logging.getLogger(__name__)

PROGRESS_PAUSE = 0.05
"""Seconds between two progress messages of a task."""
LOOK = 60.0


class Work:
    """One assigned task, from its message to its end."""

    def __init__(self, assign: Assign, tasks: Tasks, outbox: Outbox) -> None:
        self.assign = assign
        self.previews = assign.previews
        self.void = False
        """It is somebody else's by now: nothing more is said of it."""
        self.recalled = False
        self.listener: Listener | None = None
        self._tasks = tasks
        self._outbox = outbox
        self._sent: dict[str, bytes] = {}
        self._node: str | None = None
        self._started = False

    @property
    def held(self) -> Held:
        """Its lease."""
        return Held(uid=self.assign.uid, lease=self.assign.lease)

    @property
    def began(self) -> bool:
        """Whether the engine has begun to execute it."""
        return self._started

    async def run(self) -> None:
        """Run it and report how it ends."""
        if self.recalled:
            self._back("draining", counted=False, error=None)
            return
        body = ParsedBody(
            prompt=self.assign.prompt, options=Options(extra_data=self.assign.extra_data)
        )
        try:
            async with self._tasks.attend(self.assign.folder, body, previews=True) as listener:
                self.listener = listener
                while not listener.task.over:
                    self._report(listener)
                    await listener.wait(LOOK)
                    if not listener.task.over:
                        await asyncio.wait([listener.task.finished], timeout=PROGRESS_PAUSE)
                self._report(listener)
                self._ended(listener.task.record, innocent=listener.task.innocent)
        except EngineError as error:
            self._returned(error, counted=False)
        except EaselError as error:
            self._failed(error)

    async def stop(self) -> None:
        """End it: cancelled, recalled or void."""
        if self.listener is not None:
            await self._tasks.cancel(self.assign.folder)

    # Reports.

    def _report(self, listener: Listener) -> None:
        if self.void:
            return
        record, uid, lease = listener.task.record, self.assign.uid, self.assign.lease
        if record.started is not None and not self._started:
            self._started = True
            at = record.started
            self._outbox.keep(uid, lambda n: messages.Started(n=n, uid=uid, lease=lease, at=at))
        preview = listener.take_preview()
        if preview is not None and self.previews:
            head = messages.Preview(uid=uid, node=preview.node_id, image_type=preview.image_type)
            self._outbox.preview(uid, messages.preview_frame(head, preview.data))
        changed = self._changed(record.nodes)
        if changed and not listener.task.over:
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
            now = msgspec.msgpack.encode(node)
            if self._sent.get(node_id) != now:
                self._sent[node_id] = now
                changed[node_id] = node
        return changed

    def reconnected(self) -> None:
        """The gateway may have missed progress: the next message has all nodes."""
        self._sent.clear()

    def _ended(self, record: TaskRecord, *, innocent: bool) -> None:
        code = (record.error or {}).get("code")
        if record.state == "cancelled" and self.recalled:
            self._back("recalled", counted=False, error=None)
            return
        if record.state == "failed" and code in ENGINE_CODES:
            self._back(record.error["message"], counted=not innocent, error=record.error)  # type: ignore[index]
            return
        self._finished(record)

    def _finished(self, record: TaskRecord) -> None:
        if self.void:
            return
        uid, lease = self.assign.uid, self.assign.lease
        state = record.state
        assert state in ("succeeded", "failed", "cancelled")
        ended = record.ended or now_ms()
        self._outbox.keep(
            uid,
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
            ),
        )

    def _failed(self, error: EaselError) -> None:
        """It was refused before it ran."""
        record = TaskRecord(
            id=self.assign.folder, signature="", owner="", state="failed", created=now_ms()
        )
        record.error = {**error.to_json(), "http_status": error.http_status}
        if error.code == "task_cancelled":
            record.state = "cancelled"
        self._ended(record, innocent=False)

    def _returned(self, error: EaselError, *, counted: bool) -> None:
        fields = {**error.to_json(), "http_status": error.http_status}
        self._back(error.message, counted=counted, error=fields)

    def _back(self, reason: str, *, counted: bool, error: dict[str, object] | None) -> None:
        if self.void:
            return
        uid, lease = self.assign.uid, self.assign.lease
        self._outbox.keep(
            uid,
            lambda n: messages.Returned(
                n=n, uid=uid, lease=lease, reason=reason, counted=counted, error=error
            ),
        )


def _engine_codes() -> set[str]:
    found, waiting = set(), [EngineError]
    while waiting:
        kind = waiting.pop()
        found.add(kind.code)
        waiting += kind.__subclasses__()
    return found


ENGINE_CODES = _engine_codes()
"""Errors that are the engine's, not the task's: another instance may do better."""


class Desk:
    """The tasks this agent has from the gateway."""

    def __init__(self, tasks: Tasks, outbox: Outbox) -> None:
        self._tasks = tasks
        self._outbox = outbox
        self._work: dict[str, Work] = {}
        self._background = Background()
        self.draining = False
        self.on_idle: Callable[[], None] = lambda: None
        self.idle_since = time.monotonic()

    @property
    def held(self) -> list[Held]:
        """What it has."""
        return [one.held for one in self._work.values() if not one.void]

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done or reported."""
        return not self._work and not self._outbox.unacknowledged

    def assign(self, assign: Assign) -> None:
        """Begin to run a task. One that is here already under another lease goes on under the new one."""
        before = self._work.get(assign.uid)
        if before is not None and before.assign.lease == assign.lease:
            return
        if before is not None:
            before.void = True
        work = Work(assign, self._tasks, self._outbox)
        self._work[assign.uid] = work
        if self.draining:
            work.recalled = True
        self._background.spawn(self._run(work))

    async def _run(self, work: Work) -> None:
        try:
            await work.run()
            # Its lease is renewed until the gateway has stored the end: nobody shall run it once more.
            await self._outbox.stored(work.assign.uid)
        finally:
            if self._work.get(work.assign.uid) is work:
                del self._work[work.assign.uid]
            if not self._work:
                self.idle_since = time.monotonic()
            self.on_idle()

    def get(self, uid: str, lease: str | None = None) -> Work | None:
        """Return a task that is here, under this lease where one is named."""
        work = self._work.get(uid)
        return work if work is not None and lease in (None, work.assign.lease) else None

    def cancel(self, work: Work) -> None:
        """End a task that its callers do not want any more."""
        self._background.spawn(work.stop())

    def recall(self, work: Work) -> None:
        """Give a task back unless it has begun."""
        if not work.began:
            work.recalled = True
            self._background.spawn(work.stop())

    def lose(self, uid: str) -> None:
        """A task is somebody else's by now: stop it, say nothing."""
        work = self._work.get(uid)
        self._outbox.forget(uid)
        if work is not None:
            work.void = True
            self._background.spawn(work.stop())

    def drain(self) -> None:
        """Take nothing more; give back what has not begun."""
        self.draining = True
        for work in self._work.values():
            self.recall(work)

    def reconnected(self) -> None:
        """A new connection is there."""
        for work in self._work.values():
            work.reconnected()
