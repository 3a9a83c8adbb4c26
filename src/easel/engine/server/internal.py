"""``/internal/*``: what only the front end asks for. No ``/api`` alias."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from aiohttp import web

from easel.engine.folders import FOLDER_TYPES
from easel.engine.server.bodies import json_response, read_object
from easel.engine.server.state import STATE
from easel.errors import BadRequest

routes = web.RouteTableDef()


@routes.get("/internal/logs")
async def get_logs(request: web.Request) -> web.Response:
    """Return the last log lines as one text."""
    entries = request.app[STATE].logs.entries()
    return json_response("".join(f"{entry['t']} - {entry['m']}" for entry in entries))


@routes.get("/internal/logs/raw")
async def get_raw_logs(request: web.Request) -> web.Response:
    """Return the last log lines and the terminal's size."""
    size = shutil.get_terminal_size()
    return json_response(
        {
            "entries": request.app[STATE].logs.entries(),
            "size": {"cols": size.columns, "rows": size.lines},
        }
    )


@routes.patch("/internal/logs/subscribe")
async def subscribe(request: web.Request) -> web.Response:
    """Start or stop sending log lines to a client's socket."""
    logs = request.app[STATE].logs
    body = await read_object(request)
    client_id, enabled = body.get("clientId"), body.get("enabled")
    if not isinstance(client_id, str) or not isinstance(enabled, bool):
        raise BadRequest("'clientId' must be a string and 'enabled' true or false")
    if enabled:
        logs.subscribe(client_id)
    else:
        logs.unsubscribe(client_id)
    return web.Response()


@routes.get("/internal/folder_paths")
async def folder_paths(request: web.Request) -> web.Response:
    """List the folders of each model kind."""
    models = request.app[STATE].models
    return json_response({kind: [str(path) for path in models.paths(kind)] for kind in models})


@routes.get("/internal/files/{directory_type}")
async def list_files(request: web.Request) -> web.Response:
    """List the file names directly in ``output``, ``input`` or ``temp``, newest first."""
    folder_type = request.match_info["directory_type"]
    if folder_type not in FOLDER_TYPES:
        return json_response({"error": "Invalid directory type"}, 400)
    folder = request.app[STATE].folders.of_type(folder_type)
    return json_response(await asyncio.to_thread(newest_first, folder))


def newest_first(folder: Path) -> list[str]:
    """Return the names of a folder's files by time of change; files that vanish meanwhile are left out."""
    found: list[tuple[float, str]] = []
    if folder.is_dir():
        for entry in folder.iterdir():
            try:
                if entry.is_file():
                    found.append((entry.stat().st_mtime, entry.name))
            except OSError:
                continue
    return [name for _, name in sorted(found, key=lambda item: -item[0])]
