"""``/users`` and ``/settings``."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from easel.engine.server.bodies import json_response, read_json, read_object
from easel.engine.server.errors import UnknownUser
from easel.engine.server.files import write_atomically
from easel.engine.server.state import STATE
from easel.engine.server.users import DuplicateName
from easel.errors import BadRequest

log = logging.getLogger(__name__)

routes = web.RouteTableDef()

SETTINGS_FILE = "comfy.settings.json"


@routes.get("/users")
async def get_users(request: web.Request) -> web.Response:
    """List the users; with one user only, say whether there is anything of theirs yet."""
    users = request.app[STATE].users
    if users.multi_user:
        return json_response({"storage": "server", "users": users.listing()})
    folder = users.folder(users.of(request))
    migrated = await asyncio.to_thread(folder.exists)
    return json_response({"storage": "server", "migrated": migrated})


@routes.post("/users")
async def post_users(request: web.Request) -> web.Response:
    """Add a user."""
    body = await read_object(request)
    name = body.get("username")
    if not isinstance(name, str):
        raise BadRequest("'username' must be a string")
    try:
        return json_response(await request.app[STATE].users.add(name))
    except DuplicateName as error:
        return json_response({"error": error.message}, 400)


@routes.get("/settings")
async def get_settings(request: web.Request) -> web.Response:
    """Return all settings of the request's user."""
    _, file = _settings_of(request)
    return json_response(await asyncio.to_thread(_read, file))


@routes.get("/settings/{id}")
async def get_setting(request: web.Request) -> web.Response:
    """Return one setting, null when it was never set."""
    _, file = _settings_of(request)
    settings = await asyncio.to_thread(_read, file)
    return json_response(settings.get(request.match_info["id"]))


@routes.post("/settings")
async def post_settings(request: web.Request) -> web.Response:
    """Set several settings."""
    user, file = _settings_of(request)
    await _change(request, user, file, await read_object(request))
    return web.Response()


@routes.post("/settings/{id}")
async def post_setting(request: web.Request) -> web.Response:
    """Set one setting to any JSON value."""
    user, file = _settings_of(request)
    await _change(request, user, file, {request.match_info["id"]: await read_json(request)})
    return web.Response()


def _settings_of(request: web.Request) -> tuple[str, Path]:
    users = request.app[STATE].users
    try:
        user = users.of(request)
    except UnknownUser:
        raise web.HTTPUnauthorized from None  # in the real one's words
    return user, users.folder(user) / SETTINGS_FILE


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text())
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        log.error("the settings file %s is damaged; taken as empty", file.name)
        return {}
    return settings


async def _change(request: web.Request, user: str, file: Path, changes: Mapping[str, Any]) -> None:
    """Read, change and write under the user's lock, so that no change is lost."""

    def rewrite() -> None:
        write_atomically(file, json.dumps({**_read(file), **changes}, indent=4).encode())

    async with request.app[STATE].users.settings_lock(user):
        await asyncio.to_thread(rewrite)
