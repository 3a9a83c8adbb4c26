"""One submitted prompt: its events and its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from easel.comfy import outcome as outcomes
from easel.comfy.backlog import Backlog
from easel.comfy.events import (
    Event,
    Executed,
    ExecutionCached,
    ExecutionFailure,
    ExecutionInterrupted,
    ExecutionStart,
    ExecutionSuccess,
    Preview,
    ProgressState,
    Unknown,
)
from easel.comfy.outcome import Outcome
from easel.workflow.types import NodeId


class Run:
    """One submitted prompt: an async iterator of its events until its end, and its outcome.

    Events wait in order for one reader. A reader that is slow, or none, costs bounded memory: older previews and
    superseded steps go, ends and outputs stay. `ProgressState` comes at most a few times a second: only the latest.
    """

    def __init__(
        self, prompt_id: str, client_id: str, now: float, cancel: Callable[[Run], Awaitable[bool]]
    ) -> None:
        self.prompt_id = prompt_id
        self.client_id = client_id
        """The socket its messages go to."""
        self.node_errors: dict[NodeId, Any] = {}
        """What validation found in outputs that are left out (the prompt runs because another output is valid)."""
        self.posted = False
        """Whether the engine has taken it."""
        self.started = False
        """Whether the engine is known to have begun it."""
        self.moved_at = now
        """When it was last heard of, on the loop's clock."""
        self.polled_at = now
        self.ending_since: float | None = None
        """When its end was first heard of; the history is asked then."""
        self.settling = False
        self.cancelling = False
        self.cancel_sure = False
        """Whether the interrupt was sent after execution had begun, so that the engine cannot have forgotten it."""
        self.cancel_sent_at = now
        self._cancel = cancel
        self._backlog = Backlog()
        self._state: ProgressState | None = None
        self._landmarks: list[Event] = []
        self._outputs: dict[NodeId, dict[str, Any]] = {}
        self._reader: asyncio.Future[None] | None = None
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    @property
    def over(self) -> bool:
        """Whether the outcome is known."""
        return self._outcome.done()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            while len(self._backlog):
                yield self._backlog.popleft()
            if self._outcome.done():
                return
            if self._reader is not None:
                raise RuntimeError("a run has one reader at a time")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    async def outcome(self) -> Outcome:
        """Wait for the end and return it. Never raises for what happened to the prompt: see `Outcome.error`."""
        return await asyncio.shield(self._outcome)

    async def wait(self, timeout: float) -> bool:
        """Wait at most so many seconds for the end; tell whether it has come."""
        await asyncio.wait((self._outcome,), timeout=timeout)
        return self.over

    async def cancel(self) -> bool:
        """Stop the prompt, waiting or running; returns when the engine has been told.

        False when it had ended before. True does not promise that it stopped: a node that never looks runs to its end,
        and if it was the last one the prompt succeeds. `outcome` tells. Raises EngineError when the engine does
        not answer; the wish is kept and repeated as long as the prompt is alive.
        """
        return await self._cancel(self)

    def heard(self, event: Event, now: float) -> None:
        """Take an event of this prompt from the socket."""
        if not isinstance(event, Unknown):  # a node pack's monitor chatters on while a prompt hangs
            self.moved_at = now
            self.started = True
        if isinstance(event, ProgressState):
            self._state = event
            return
        if isinstance(event, Executed):
            if event.node is not None and event.output is not None:
                self._outputs[event.node] = event.output
        elif isinstance(
            event,
            ExecutionStart
            | ExecutionCached
            | ExecutionSuccess
            | ExecutionFailure
            | ExecutionInterrupted,
        ):
            if len(self._landmarks) < 8:  # duplicates of a confused engine must not pile up
                self._landmarks.append(event)
            if self.ending_since is None and not isinstance(
                event, ExecutionStart | ExecutionCached
            ):
                self.ending_since = now
                self.flush_state()
        self._deliver(event)

    def flush_state(self) -> None:
        """Hand on the latest `ProgressState`, if there is a new one."""
        state, self._state = self._state, None
        if state is not None:
            self._deliver(state)

    def told_outcome(self) -> Outcome | None:
        """Return the outcome as the socket told it, if it told an end."""
        return outcomes.from_events(self.prompt_id, self._landmarks, self._outputs)

    def finish(self, outcome: Outcome) -> None:
        """Settle the outcome; the first one counts."""
        if not self._outcome.done():
            self.flush_state()
            self._outcome.set_result(outcome)
            self._wake()

    def _deliver(self, event: Event) -> None:
        if type(event) is Preview and not event.data:
            return
        self._backlog.append(event)
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
