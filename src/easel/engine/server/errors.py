"""One translation of errors to the wire: ComfyUI's own ``{"error": {...}, "node_errors": {...}}``.

The front end reads every refused ``/prompt`` as that shape, so all refusals have it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from easel.engine.folders import PathEscape
from easel.engine.server.bodies import json_response, too_large
from easel.engine.server.files import NAME_ERRORS
from easel.errors import BadRequest, BodyTooLarge, EaselError

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class UnknownUser(BadRequest):
    """The ``comfy-user`` header names nobody."""

    code = "unknown_user"
    http_status = 401


class EmptyAnswer(Exception):
    """An answer that is its status alone, where the real one says no more either."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def error_body(kind: str, message: str, details: str = "") -> dict[str, object]:
    """Return an error in ComfyUI's shape."""
    return {
        "error": {"type": kind, "message": message, "details": details, "extra_info": {}},
        "node_errors": {},
    }


def refusal(error: EaselError) -> web.Response:
    """Return the answer for an error a caller can meet."""
    body = error_body(error.code, error.message, error.hint or "")
    response = json_response(body, error.http_status)
    if isinstance(error, BodyTooLarge):
        response.force_close()  # the rest of the body is never read
    return response


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer whatever a handler raises with typed JSON, and go on serving."""
    try:
        return await handler(request)
    except EaselError as error:
        return refusal(error)
    except EmptyAnswer as answer:
        return web.Response(status=answer.status)
    except PathEscape as error:
        return refusal(BadRequest(f"forbidden path: {error}"))
    except web.HTTPRequestEntityTooLarge:
        return refusal(too_large(request.client_max_size))
    except OSError as error:
        if isinstance(error, ConnectionResetError):
            raise
        if error.errno in NAME_ERRORS:
            return refusal(BadRequest(f"no file name: {error.strerror}"))
        log.exception("%s %s failed", request.method, request.path)
        return failure()
    except (web.HTTPException, asyncio.CancelledError):
        raise
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return failure()


def failure() -> web.Response:
    """Return the answer for a fault of the engine's own."""
    return json_response(error_body("internal_error", "The engine failed to answer"), 500)
