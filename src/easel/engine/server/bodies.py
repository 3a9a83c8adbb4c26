"""Reading and writing JSON: one way in, one way out."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from aiohttp import web

from easel.errors import BadRequest, BodyTooLarge, NotJson

_encoder = msgspec.json.Encoder(enc_hook=str)


def encode(value: object) -> bytes:
    """Serialise to JSON. NaN becomes null; what JSON does not know becomes its ``str()``; lone surrogates are escaped."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, default=str).encode()


def decode(data: bytes) -> Any:
    """Parse JSON; ``NaN`` and ``Infinity`` are taken as Python writes them, as ComfyUI does.

    Raises NotJson.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotJson(
            f"the request body is not JSON: {error}",
            hint="send a JSON document with Content-Type: application/json",
        ) from None


async def read(request: web.Request) -> bytes:
    """Read a body up to the application's limit; one that announces more is refused unread.

    Raises BodyTooLarge.
    """
    limit = request.client_max_size
    if request.content_length is not None and request.content_length > limit:
        raise too_large(limit)
    return await request.read()


def too_large(limit: int) -> BodyTooLarge:
    """The error for a body over ``limit`` bytes, in the real one's words."""
    return BodyTooLarge(f"Maximum request body size {limit} exceeded.")


async def read_json(request: web.Request) -> Any:
    """Read a JSON body of any kind.

    Raises NotJson and BodyTooLarge.
    """
    return decode(await read(request))


async def read_object(request: web.Request) -> dict[str, Any]:
    """Read a JSON object.

    Raises NotJson (also for another JSON value) and BodyTooLarge.
    """
    value = await read_json(request)
    if not isinstance(value, dict):
        raise NotJson("the request body is not a JSON object")
    return value


def ids(value: object, name: str) -> list[str]:
    """Check a list of prompt ids.

    Raises BadRequest.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRequest(f"{name!r} must be a list of prompt ids")
    return value


def json_response(value: object, status: int = 200) -> web.Response:
    """Answer with JSON."""
    return json_bytes(encode(value), status)


def json_bytes(body: bytes, status: int = 200) -> web.Response:
    """Answer with JSON that is already serialised."""
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")
