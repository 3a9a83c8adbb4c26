"""The agent's answers as JSON: the Function Compute agent's shapes (eas-and-fc.md D.1), with what Easel adds beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from easel.agent.record import TaskRecord
from easel.errors import (
    BadRequest,
    EaselError,
    FileNotFound,
    OutputFailed,
    StoreFailed,
    TaskNotFound,
)

_encode = msgspec.json.Encoder().encode

HIDDEN = {"request", "signature", "owner"}
"""Fields of a record that are nobody's business."""


def json_answer(
    body: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a JSON response."""
    return web.Response(
        body=_encode(body), status=status, headers=headers, content_type="application/json"
    )


def error_word(fields: Mapping[str, Any]) -> str:
    """Return the Function Compute agent's word for an error of ours."""
    code, status = fields.get("code"), fields.get("http_status", 500)
    if code in (TaskNotFound.code, StoreFailed.code):
        return "LoadProgressError"
    if code in (FileNotFound.code, OutputFailed.code):
        return "MarshalResultError"
    return "RequestParamsError" if 400 <= status < 500 and code != "task_cancelled" else _CALL


_CALL = "CallComfyUIPromptError"


def error_body(error: EaselError | Mapping[str, Any], word: str | None = None) -> dict[str, Any]:
    """Return ``{"message": word, "error": sentence, "code": …, …}`` for an error or the stored form of one."""
    if isinstance(error, EaselError):
        error = {**error.to_json(), "http_status": error.http_status}
    rest = {k: v for k, v in error.items() if k not in ("message", "http_status")}
    return {"message": word or error_word(error), "error": error.get("message", ""), **rest}


def error_answer(
    error: EaselError | Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return an error with its HTTP status."""
    status = error.http_status if isinstance(error, EaselError) else error.get("http_status", 500)
    return json_answer(error_body(error), status, headers)


def task_headers(record: TaskRecord) -> dict[str, str]:
    """Return the headers that go with every answer about a task."""
    headers = {
        "task-id": record.id,
        "task-status": record.state,
        "task-progress": f"{record.percent:g}",
    }
    if record.current_node is not None and record.current_node.isascii():
        headers["task-current-node"] = record.current_node
    if record.node_errors:
        headers["task-warnings"] = str(len(record.node_errors))
    return headers


def detail(record: TaskRecord, position: int | None) -> dict[str, Any]:
    """Return the whole record as ``/api/status?detail=true`` shows it."""
    fields: dict[str, Any] = msgspec.to_builtins(record)
    shown = {k: v for k, v in fields.items() if k not in HIDDEN}
    return {**shown, "queue_position": position}


def message(kind: str, data: object, record: TaskRecord, position: int | None) -> bytes:
    """Return one message of the WebSocket and of server-sent events."""
    return _encode(
        {
            "type": kind,
            "data": data,
            "task_id": record.id,
            "state": record.state,
            "percent": record.percent,
            "current_node": record.current_node,
            "queue_position": position,
        }
    )


def flag(request: web.Request, name: str) -> bool:
    """Read a yes-or-no query parameter.

    Raises BadRequest for anything but true, false, 1, 0 or nothing.
    """
    value = request.query.get(name, "false").lower()
    if value in ("true", "1", ""):
        return True
    if value in ("false", "0"):
        return False
    raise BadRequest(f"{name} must be true or false, not {value!r}")


def task_id_of(request: web.Request) -> str | None:
    """Return the task id a request names: ``task-id``, Function Compute's own, or in the query where headers cannot be set."""
    for name in ("task-id", "X-Fc-Async-Task-Id", "X-Fc-Request-Id"):
        value = request.headers.get(name)
        if value:
            return value
    return request.query.get("task-id") or request.query.get("task_id") or None
