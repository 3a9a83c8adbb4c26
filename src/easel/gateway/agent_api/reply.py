"""JSON responses of the agent API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from easel import fc
from easel.errors import EaselError

_encode = msgspec.json.Encoder().encode

RETRY_AFTER = {429: "1", 450: "5", 503: "5"}
"""Status → seconds after which trying again makes sense."""


def json_reply(
    body: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON response."""
    return Response(_encode(body), status, headers, media_type="application/json")


def error_reply(
    error: EaselError | Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error with its HTTP status, and when to try again where that makes sense."""
    status = fc.error_status(error)
    response = json_reply(fc.error_body(error), status, headers)
    if status in RETRY_AFTER:
        response.headers["Retry-After"] = RETRY_AFTER[status]
    return response
