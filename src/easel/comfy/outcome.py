"""How a prompt ended, as the engine's history tells it."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from easel.comfy.events import ExecutionFailure, ExecutionInterrupted
from easel.errors import EaselError
from easel.workflow.types import NodeId

OutcomeStatus: TypeAlias = Literal["success", "failed", "interrupted", "cancelled", "lost"]


class Outcome(msgspec.Struct, frozen=True, gc=False):
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
    ended: float | None = None
    """Milliseconds since the epoch on the engine's clock, where the history tells."""
    error: EaselError | None = None
    """None on success, else the error to hand to the caller: ExecutionFailed, TaskCancelled, PromptLost, EngineDied …"""

    def raise_for_status(self) -> None:
        """Raise `error` unless the prompt succeeded."""
        if self.error is not None:
            raise self.error
