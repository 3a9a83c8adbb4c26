"""The task as it is stored, and what is said of it. Times are ms since the epoch."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from easel.workflow.progress import NodeProgress
from easel.workflow.types import NodeId, Prompt

State: TypeAlias = Literal[
    "queued", "assigned", "running", "succeeded", "failed", "cancelled", "expired"
]

FINISHED: frozenset[str] = frozenset({"succeeded", "failed", "cancelled", "expired"})
HELD: frozenset[str] = frozenset({"assigned", "running"})
"""States in which an instance holds a lease."""


class TaskBody(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent needs to run a task. Kept apart from the row: it is large and read once an attempt."""

    prompt: Prompt
    """Seeds are drawn already, so that every attempt makes the same picture."""
    extra_data: dict[str, Any] = {}
    outputs: list[NodeId] | None = None
    """Output nodes that will run, where validation could tell."""


class NewTask(msgspec.Struct, frozen=True, kw_only=True):
    """What a door submits."""

    service: str
    owner: str
    """Whose task it is within the service; tasks of other owners do not exist for an owner."""
    id: str
    """The caller's id, unique per service and owner; drawn by the door when the caller gave none."""
    signature: str
    """`workflow.signature` of the body as it came: the same id with another signature is a conflict."""
    body: TaskBody
    priority: int = 0
    """Higher ones are claimed first."""
    tags: dict[str, str] = {}
    deadline: int | None = None
    """A task that is still queued then expires."""
    seeds: dict[str, int] = {}
    """``"node.input"`` → the random number drawn for it."""


class Task(msgspec.Struct, kw_only=True):
    """One task as stored."""

    uid: str
    """Easel's own id: 32 hexadecimal digits, unique everywhere, part of no caller's input."""
    service: str
    owner: str
    id: str
    signature: str
    state: State = "queued"
    priority: int = 0
    tags: dict[str, str] = {}
    created: int
    started: int | None = None
    ended: int | None = None
    deadline: int | None = None
    attempt: int = 0
    """Attempts begun; one that was given back untouched is not counted."""
    instance: str | None = None
    """The instance that holds it, or held it last."""
    cancelling: bool = False
    """Somebody asked to cancel it while an instance holds it."""
    rear: bool = False
    """It failed because ``max_delivery`` attempts were lost, and is kept in the rear queue."""
    percent: float = 0.0
    current_node: NodeId | None = None
    nodes: dict[NodeId, NodeProgress] = {}
    """Progress and outputs by node: the stored snapshot."""
    seeds: dict[str, int] = {}
    node_errors: dict[str, Any] = {}
    """ComfyUI's node_errors for outputs that were left out while others ran."""
    error: dict[str, Any] | None = None
    """`EaselError.to_json` of the failure, with ``http_status``."""
    last_event: int = 0
    """Number of the latest event."""


class TaskEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a task. Numbers begin at 1 and have no gaps."""

    number: int
    at: int
    kind: Literal[
        "queued",
        "assigned",
        "started",
        "progress",
        "redelivered",
        "cancelling",
        "succeeded",
        "failed",
        "cancelled",
        "expired",
    ]
    data: dict[str, Any] = {}
    """``instance`` and ``attempt`` with assigned; ``reason`` with redelivered; ``node``, ``percent`` with progress (stored at
    node borders only); ``error`` with failed."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The right to write to a task: every write of an instance carries it, and an outdated one is refused."""

    uid: str
    token: str


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """A claimed task with what is needed to run it."""

    task: Task
    lease: Lease
    until: int
    """When the lease ends unless it is renewed."""
    body: TaskBody


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of how far an attempt is."""

    percent: float
    current_node: NodeId | None
    nodes: dict[NodeId, NodeProgress]
    """All nodes, or those that changed: merged by node."""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended."""

    state: Literal["succeeded", "failed", "cancelled"]
    ended: int
    started: int | None = None
    nodes: dict[NodeId, NodeProgress] = {}
    node_errors: dict[str, Any] = {}
    error: dict[str, Any] | None = None


class Swept(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at the clock changed: uids."""

    redelivered: list[str] = []
    rear: list[str] = []
    expired: list[str] = []
    cancelled: list[str] = []
    """Held tasks that were to be cancelled when their lease ended."""
    services: list[str] = []
    """Services that have work to claim again."""
