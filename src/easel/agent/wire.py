"""The agent's answers as JSON: the Function Compute agent's shapes (eas-and-fc.md D.1), with what Easel adds beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from easel import fc
from easel.agent.record import TaskRecord
from easel.errors import BadRequest, EaselError
from easel.fc import (
    TASK_ID_HEADERS,
    TASK_ID_QUERY,
    error_body,
    error_status,
    error_word,
    message,
    task_headers,
)

__all__ = [
    "detail",
    "error_answer",
    "error_body",
    "error_word",
    "flag",
    "json_answer",
    "message",
    "task_headers",
    "task_id_of",
]

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


def error_answer(
    error: EaselError | Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return an error with its HTTP status."""
    return json_answer(error_body(error), error_status(error), headers)


def detail(record: TaskRecord, position: int | None) -> dict[str, Any]:
    """Return the whole record as ``/api/status?detail=true`` shows it."""
    return fc.detail(record, position, HIDDEN)


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
    for name in TASK_ID_HEADERS:
        if value := request.headers.get(name):
            return value
    for name in TASK_ID_QUERY:
        if value := request.query.get(name):
            return value
    return None
