"""Errors as RFC 9457 problem details, the one shape of the control API's refusals."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from easel.errors import BadRequest, EaselError, InvalidSpec, NotFound

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

_encode = msgspec.json.Encoder().encode


class Fault(BaseModel):
    """One fault of what was sent."""

    path: str
    """Where, such as ``eas.containers[0].port``."""
    message: str


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = "about:blank"
    title: str
    """The error's kind in words."""
    status: int
    detail: str
    """One sentence for people."""
    code: str
    """The error's stable name (the tree in ``easel/errors.py``)."""
    hint: str | None = None
    """What to do about it."""
    errors: list[Fault] | None = None
    """Every fault, where there may be several."""


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": words, "content": {MEDIA_TYPE: {}}}
    for status, words in (
        (400, "What was sent is wrong"),
        (401, "The token is missing or wrong"),
        (404, "There is no such thing"),
        (409, "It does not fit what is there"),
        (500, "Something failed here"),
    )
}


def problem(error: EaselError) -> Response:
    """Return an error as a response."""
    known = error.to_json()
    body = {
        **known,
        "type": "about:blank",
        "title": error.code.replace("_", " ").capitalize(),
        "status": error.http_status,
        "detail": known.pop("message"),
    }
    body.pop("message", None)
    return Response(_encode(body), error.http_status, media_type=MEDIA_TYPE)


def path_of(location: tuple[int | str, ...]) -> str:
    """Return ``a.b[2].c`` for pydantic's ``("body", "a", "b", 2, "c")``."""
    path = ""
    for part in location[1:] if location[:1] == ("body",) else location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def add_handlers(app: FastAPI) -> None:
    """Make every error of the application a problem."""

    async def typed(_: Request, error: Exception) -> Response:
        assert isinstance(error, EaselError)
        return problem(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        faults = [(path_of(one["loc"]), str(one["msg"])) for one in error.errors()]
        return problem(InvalidSpec(faults, hint="/easel/v1/openapi.json describes what is taken"))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = f"{request.method} {request.url.path}: {error.detail}"
        response = problem(NotFound(said) if error.status_code == 404 else BadRequest(said))
        response.status_code = error.status_code
        return response

    async def unforeseen(request: Request, error: Exception) -> Response:
        log.error("%s %s", request.method, request.url.path, exc_info=error)
        return problem(EaselError("internal error; the gateway's log has more"))

    app.add_exception_handler(EaselError, typed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, unforeseen)
