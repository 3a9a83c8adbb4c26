"""What is stored of a task, and the protocol of the stores that keep it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from easel.workflow.progress import NodeProgress
from easel.workflow.types import NodeId, Prompt

State: TypeAlias = Literal["queued", "running", "succeeded", "failed", "cancelled"]

FINISHED: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})


class TaskRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to run the task again after the agent died: kept for tasks answered with 202."""

    prompt: Prompt
    output_base64: bool = False
    extra_data: dict[str, Any] = {}


class TaskRecord(msgspec.Struct, kw_only=True):
    """One task as stored and as `GET /api/status?id=…&detail=true` shows it. Times are ms since the epoch."""

    id: str
    signature: str
    """Hash of the body as it came: the same id with another signature is a conflict."""
    owner: str
    """Name of the agent that runs it; stores are shared between agents (NAS, database)."""
    state: State = "queued"
    created: int
    started: int | None = None
    ended: int | None = None
    attempt: int = 0
    prompt_id: str | None = None
    """The engine's id of the latest attempt."""
    percent: float = 0.0
    """Whole-task progress, 0-100."""
    current_node: NodeId | None = None
    nodes: dict[NodeId, NodeProgress] = {}
    seeds: dict[str, int] = {}
    """``"node.input"`` → the random number drawn for a seed of -1."""
    node_errors: dict[str, Any] = {}
    """ComfyUI's node_errors for outputs that were left out while others ran."""
    error: dict[str, Any] | None = None
    """`EaselError.to_json` of the failure, with ``http_status``."""
    request: TaskRequest | None = None


class ProgressStore(Protocol):
    """Keeps task records. Safe to share between agents; any string is a safe id; readers never see half a record.

    Every method raises `StoreFailed` when the storage does not answer; no method blocks the event loop.
    """

    async def open(self) -> None:
        """Prepare the storage (folder, table). Called once, before anything else; safe to call on existing storage."""

    async def close(self) -> None:
        """Finish what is being written and release everything. Safe to call twice."""

    async def create(self, record: TaskRecord) -> TaskRecord | None:
        """Store a new record if its id is free. Return None when stored, else the record that holds the id (atomic)."""

    async def save(self, record: TaskRecord) -> None:
        """Replace the record of this id. Callers see to it that only a record's owner saves it."""

    async def save_all(self, records: Sequence[TaskRecord]) -> None:
        """Save many records in one go; no other write of theirs is under way. When it fails, any of them may be saved."""

    async def load(self, task_id: str) -> TaskRecord | None:
        """Return the record, or None when the id is unknown."""

    async def unfinished(self, owner: str) -> list[TaskRecord]:
        """Return this owner's queued and running records, oldest first: what a restarted agent must settle."""
