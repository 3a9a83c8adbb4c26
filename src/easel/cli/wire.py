"""What the agent sends, made into errors and updates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from easel.errors import EaselError, EngineError, ExecutionFailed, InvalidPrompt
from easel.workflow.progress import NodeProgress
from easel.workflow.types import NodeId


class Update(msgspec.Struct, kw_only=True):
    """One message of ``GET /api/run/ws``."""

    type: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    task_id: str | None = None
    state: str | None = None
    percent: float | None = None
    current_node: NodeId | None = None
    queue_position: int | None = None

    def nodes(self) -> dict[NodeId, NodeProgress]:
        """Return the node map of a progress or result message."""
        return msgspec.json.decode(self.data, type=dict[NodeId, NodeProgress])

    def error(self) -> EaselError:
        """Return the error of an error message."""
        return error_of(msgspec.json.decode(self.data), 500)


def _classes(base: type[EaselError] = EaselError) -> Iterator[type[EaselError]]:
    yield base
    for child in base.__subclasses__():
        yield from _classes(child)


def error_of(data: Any, status: int) -> EaselError:
    """Return the error an agent's JSON describes (docs/agent.md, "Errors"); of its own class where the code is known."""
    fields = data if isinstance(data, dict) else {}
    message = str(fields.get("error") or fields.get("message") or f"the agent answered {status}")
    known = {found.code: found for found in _classes()}
    kind = known.get(str(fields.get("code")), EngineError if status in (502, 503, 504) else None)
    common = {
        "hint": fields.get("hint"),
        "node_id": fields.get("node_id"),
        "node_type": fields.get("node_type"),
    }
    log = fields.get("log")
    if kind is not None and issubclass(kind, InvalidPrompt):
        return kind(
            message,
            node_errors=fields.get("node_errors"),
            input_name=fields.get("input"),
            **common,
        )
    if kind is not None and issubclass(kind, ExecutionFailed):
        return kind(
            message,
            exception_type=fields.get("exception_type"),
            traceback=fields.get("traceback"),
            log=log,
            **common,
        )
    return (kind or EaselError)(message, input_name=fields.get("input"), log=log, **common)
