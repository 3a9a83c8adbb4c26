"""How a prompt ended, as the engine's history tells it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import msgspec

from easel.comfy.answers import HistoryEntry
from easel.comfy.events import (
    Event,
    ExecutionCached,
    ExecutionFailure,
    ExecutionInterrupted,
    ExecutionStart,
    ExecutionSuccess,
)
from easel.errors import EaselError, EngineError, ExecutionFailed, TaskCancelled
from easel.workflow.types import NodeId

OutcomeStatus: TypeAlias = Literal["success", "failed", "interrupted", "cancelled", "lost"]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one prompt."""

    prompt_id: str
    status: OutcomeStatus
    """``success``; ``failed``: a node raised; ``interrupted``: stopped while it ran; ``cancelled``: taken out of the
    waiting line; ``lost``: the engine died, went silent or does not know the prompt any more."""
    outputs: dict[NodeId, dict[str, Any]] = {}
    """What each output node showed: ``{node: {"images": [{filename, subfolder, type}], …}}``; partial on failure."""
    meta: dict[NodeId, dict[str, Any]] = {}
    """Where an output's node stands: ``{node_id, display_node, parent_node, real_node_id}``."""
    cached: tuple[NodeId, ...] = ()
    """Nodes that did not have to run."""
    failure: ExecutionFailure | None = None
    """With ``failed``: node, exception and traceback."""
    interruption: ExecutionInterrupted | None = None
    """With ``interrupted``: where it stopped."""
    started: float | None = None
    """When execution began: milliseconds since the epoch on the engine's clock, where it tells."""
    ended: float | None = None
    error: EaselError | None = None
    """None on success, else what to tell the caller: ExecutionFailed, TaskCancelled, PromptLost, EngineDied …"""

    def raise_for_status(self) -> None:
        """Raise `error` unless the prompt succeeded."""
        if self.error is not None:
            raise self.error


def from_history(prompt_id: str, entry: HistoryEntry) -> Outcome:
    """Read the outcome off a history entry. Interrupted prompts have status ``error`` there, like failed ones."""
    return _from_messages(
        prompt_id, entry.messages, entry.outputs, entry.meta, success=entry.status != "error"
    )


def from_events(
    prompt_id: str, events: Iterable[Event], outputs: dict[NodeId, dict[str, Any]]
) -> Outcome | None:
    """Build the outcome out of the end the socket told, for a history that was cleared meanwhile.

    None when the events do not include an end.
    """
    events = tuple(events)
    if not any(
        isinstance(event, ExecutionSuccess | ExecutionFailure | ExecutionInterrupted)
        for event in events
    ):
        return None
    return _from_messages(prompt_id, events, outputs, {}, success=True)


def cancelled(prompt_id: str) -> Outcome:
    """The prompt was taken out of the waiting line."""
    error = TaskCancelled("the prompt was cancelled before it ran")
    return Outcome(prompt_id=prompt_id, status="cancelled", error=error)


def lost(prompt_id: str, error: EngineError) -> Outcome:
    """The engine will not tell the end of this prompt."""
    return Outcome(prompt_id=prompt_id, status="lost", error=error)


def _from_messages(
    prompt_id: str,
    messages: tuple[Event, ...],
    outputs: dict[NodeId, dict[str, Any]],
    meta: dict[NodeId, dict[str, Any]],
    *,
    success: bool,
) -> Outcome:
    failure: ExecutionFailure | None = None
    interruption: ExecutionInterrupted | None = None
    cached: tuple[NodeId, ...] = ()
    started = ended = None
    for message in messages:
        match message:
            case ExecutionStart():
                started = message.timestamp
            case ExecutionCached():
                cached = message.nodes
            case ExecutionSuccess():
                ended = message.timestamp
            case ExecutionFailure():
                failure, ended = message, message.timestamp
            case ExecutionInterrupted():
                interruption, ended = message, message.timestamp
            case _:
                pass
    status: OutcomeStatus = "success"
    error: EaselError | None = None
    if interruption is not None:
        status, error = "interrupted", TaskCancelled("the prompt was interrupted while it ran")
    elif failure is not None or not success:
        status, error = "failed", _execution_failed(failure or ExecutionFailure(prompt_id))
    return Outcome(
        prompt_id=prompt_id,
        status=status,
        outputs=outputs,
        meta=meta,
        cached=cached,
        failure=failure,
        interruption=interruption,
        started=started,
        ended=ended,
        error=error,
    )


def _execution_failed(failure: ExecutionFailure) -> ExecutionFailed:
    where = f"node {failure.node_id} ({failure.node_type})" if failure.node_id else "the prompt"
    what = (failure.exception_message or "").strip() or failure.exception_type or "no reason given"
    return ExecutionFailed(
        f"{where} failed: {what}",
        node_id=failure.node_id,
        node_type=failure.node_type,
        exception_type=failure.exception_type,
        traceback=list(failure.traceback),
    )
