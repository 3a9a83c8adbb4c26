"""The control API, as the commands call it."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import aiohttp

from easel.cli.platform.where import Where
from easel.cli.wire import error_of
from easel.errors import EaselError, EngineUnavailable, InvalidSpec

TIMEOUT = aiohttp.ClientTimeout(total=700, sock_connect=10)


def call(
    where: Where,
    method: str,
    path: str,
    *,
    json: Any = None,
    params: dict[str, Any] | None = None,
) -> Any:
    """Call ``/easel/v1{path}`` and return what it answers. Raises the error it answers, or EngineUnavailable."""
    return asyncio.run(_call(where, method, path, json, params))


async def _call(
    where: Where, method: str, path: str, json: Any, params: dict[str, Any] | None
) -> Any:
    given = {name: str(value) for name, value in (params or {}).items() if value is not None}
    headers = {"Authorization": f"Bearer {where.token}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT, headers=headers) as http,
            http.request(
                method, f"{where.url}/easel/v1{path}", json=json, params=given
            ) as response,
        ):
            found = await response.json(content_type=None) if response.status != 204 else None
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise EngineUnavailable(
            f"no platform answers at {where.url}: {reason}", hint="start one with `easel up`"
        ) from error
    if response.status >= 400:
        raise refusal(found, response.status)
    return found


def refusal(body: Any, status: int) -> EaselError:
    """Return the error that a problem document describes."""
    if isinstance(body, dict) and body.get("errors"):
        faults = [(str(one["path"]), str(one["message"])) for one in body["errors"]]
        return InvalidSpec(faults, hint=body.get("hint"))
    if isinstance(body, dict):
        body = {**body, "message": body.get("detail") or body.get("message")}
    return error_of(body, status)


def service_path(name: str, *rest: str) -> str:
    """Return the path of a service's resource."""
    return "/".join(["/services", quote(name, safe=""), *(quote(part, safe="") for part in rest)])
