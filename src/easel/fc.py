"""The shapes of the Function Compute agent API (eas-and-fc.md D.1), with what Easel adds beside them.

Spoken by the agent itself and, for every service, by the gateway.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import msgspec

from easel.errors import (
    EaselError,
    FileNotFound,
    InvalidTaskId,
    OutputFailed,
    StoreFailed,
    TaskNotFound,
)

TASK_ID = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]{0,127}")
TASK_ID_HEADERS = ("task-id", "X-Fc-Async-Task-Id", "X-Fc-Request-Id")
"""Where a caller names the task, strongest first; where headers cannot be set, in the query as `TASK_ID_QUERY`."""
TASK_ID_QUERY = ("task-id", "task_id")

_encode = msgspec.json.Encoder().encode
_CALL = "CallComfyUIPromptError"


class Described(Protocol):
    """A task as far as its answers show it."""

    @property
    def id(self) -> str:
        """The caller's id."""

    @property
    def state(self) -> str:
        """The task's state."""

    @property
    def percent(self) -> float:
        """Whole-task progress, 0-100."""

    @property
    def current_node(self) -> str | None:
        """The node that runs."""

    @property
    def node_errors(self) -> Mapping[str, Any]:
        """Outputs that were left out."""


def check_task_id(task_id: str) -> None:
    """Raise InvalidTaskId unless the id can be used."""
    if not TASK_ID.fullmatch(task_id):
        raise InvalidTaskId(
            "the task id is not usable",
            hint="1-128 letters, digits, '_', '-' or '.', not starting with a dot",
        )


def error_word(fields: Mapping[str, Any]) -> str:
    """Return the Function Compute agent's word for an error of ours."""
    code, status = fields.get("code"), fields.get("http_status", 500)
    if code in (TaskNotFound.code, StoreFailed.code):
        return "LoadProgressError"
    if code in (FileNotFound.code, OutputFailed.code):
        return "MarshalResultError"
    return "RequestParamsError" if 400 <= status < 500 and code != "task_cancelled" else _CALL


def error_body(error: EaselError | Mapping[str, Any], word: str | None = None) -> dict[str, Any]:
    """Return ``{"message": word, "error": sentence, "code": …, …}`` for an error or the stored form of one."""
    if isinstance(error, EaselError):
        error = {**error.to_json(), "http_status": error.http_status}
    rest = {k: v for k, v in error.items() if k not in ("message", "http_status")}
    return {"message": word or error_word(error), "error": error.get("message", ""), **rest}


def error_status(error: EaselError | Mapping[str, Any]) -> int:
    """Return the HTTP status of an error or of the stored form of one."""
    if isinstance(error, EaselError):
        return error.http_status
    return int(error.get("http_status", 500))


def task_headers(task: Described) -> dict[str, str]:
    """Return the headers that go with every answer about a task."""
    headers = {
        "task-id": task.id,
        "task-status": task.state,
        "task-progress": f"{task.percent:g}",
    }
    if task.current_node is not None and task.current_node.isascii():
        headers["task-current-node"] = task.current_node
    if task.node_errors:
        headers["task-warnings"] = str(len(task.node_errors))
    return headers


def detail(task: msgspec.Struct, position: int | None, hidden: Collection[str]) -> dict[str, Any]:
    """Return a whole task as ``/api/status?detail=true`` shows it, but for the fields that are nobody's business."""
    fields: dict[str, Any] = msgspec.to_builtins(task)
    shown = {k: v for k, v in fields.items() if k not in hidden}
    return {**shown, "queue_position": position}


def message(kind: str, data: object, task: Described, position: int | None) -> bytes:
    """Return one message of the WebSocket and of server-sent events."""
    return _encode(
        {
            "type": kind,
            "data": data,
            "task_id": task.id,
            "state": task.state,
            "percent": task.percent,
            "current_node": task.current_node,
            "queue_position": position,
        }
    )
