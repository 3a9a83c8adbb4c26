"""``/userdata`` and ``/v2/userdata``: a user's own files (saved workflows, style sheets).

``{file}`` is one path segment: a slash within it is written ``%2F``.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from easel.engine.folders import PathEscape, inside
from easel.engine.server.bodies import json_response, read
from easel.engine.server.errors import EmptyAnswer, UnknownUser
from easel.engine.server.files import write_atomically
from easel.engine.server.state import STATE
from easel.errors import BadRequest

routes = web.RouteTableDef()


def _root(request: web.Request) -> Path:
    users = request.app[STATE].users
    return users.folder(users.of(request))


def _below(root: Path, name: str) -> Path:
    """Resolve a name from the address below a user's folder; a name that is still escaped is unescaped once more.

    Raises PathEscape.
    """
    return inside(root, unquote(name) if "%" in name else name)


def _flag(request: web.Request, name: str) -> bool:
    return request.query.get(name, "").lower() == "true"


def _describe(path: Path, root: Path) -> dict[str, Any]:
    found = path.stat()
    return {
        "path": path.relative_to(root).as_posix(),
        "size": found.st_size,
        "modified": found.st_mtime,
        "created": found.st_ctime,
    }


@routes.get("/userdata")
async def list_files(request: web.Request) -> web.Response:
    """List the files of ``dir``: names, split names (``split``) or descriptions (``full_info``); ``recurse`` goes down."""
    name = request.query.get("dir", "")
    if not name:
        return web.Response(status=400, text="Directory not provided")
    root = _root(request)
    try:
        folder = await asyncio.to_thread(_below, root, name)
    except PathEscape:
        return web.Response(status=403, text="Invalid directory")
    full, split = _flag(request, "full_info"), _flag(request, "split")
    recurse = _flag(request, "recurse")

    def listing() -> list[Any] | None:
        if not folder.exists():
            return None
        paths = _visible_files(folder, recurse=recurse)
        if full:
            return [_describe(path, folder) for path in paths]
        names = [path.relative_to(folder).as_posix() for path in paths]
        return [[name, *name.split("/")] for name in names] if split else list(names)

    found = await asyncio.to_thread(listing)
    if found is None:
        return web.Response(status=404, text="Directory not found")
    return json_response(found)


def _visible_files(folder: Path, *, recurse: bool) -> list[Path]:
    """List files by name; names that begin with a dot are hidden, folders and what is in them included."""
    found: list[Path] = []
    for where, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(n for n in subfolders if recurse and not n.startswith("."))
        found.extend(Path(where) / name for name in sorted(files) if not name.startswith("."))
    return [path for path in found if path.is_file()]


@routes.get("/v2/userdata")
async def list_all(request: web.Request) -> web.Response:
    """List everything below ``path``, folders first."""
    try:
        root = _root(request)
    except UnknownUser:
        return web.Response(status=403, text="Invalid user specified in request")
    name = request.query.get("path", "")
    try:
        target = await asyncio.to_thread(_below, root, name)
    except PathEscape:
        return web.Response(status=400, text="Invalid path requested")

    def listing() -> list[dict[str, Any]] | web.Response:
        if not target.exists():
            if not name:
                return []
            return web.Response(status=404, text="Requested path not found")
        if not target.is_dir():
            return web.Response(status=400, text="Requested path is not a directory")
        return _everything(target, root.resolve())

    found = await asyncio.to_thread(listing)
    return found if isinstance(found, web.Response) else json_response(found)


def _everything(target: Path, root: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for where, subfolders, files in os.walk(target):
        for name in (*subfolders, *files):
            path = Path(where) / name
            entry: dict[str, Any] = {
                "name": name,
                "path": path.relative_to(root).as_posix(),
                "type": "directory" if name in subfolders else "file",
            }
            if entry["type"] == "file":
                try:
                    found = path.stat()
                    entry |= {"size": found.st_size, "modified": found.st_mtime}
                except OSError:
                    pass  # gone meanwhile, or a dangling link: listed without
            entries.append(entry)
    return sorted(entries, key=lambda e: (e["type"] != "directory", e["name"].lower()))


async def _named(request: web.Request, part: str = "file") -> tuple[Path, Path]:
    """Return the user's folder and the file a route names; 403 when it leaves the folder."""
    root = _root(request)

    def resolve() -> tuple[Path, Path]:
        base = root.resolve()
        return base, _below(base, request.match_info[part])

    try:
        base, path = await asyncio.to_thread(resolve)
    except PathEscape:
        raise EmptyAnswer(403) from None
    if path == base:
        raise BadRequest("the user's folder itself is no file")
    return base, path


@routes.get("/userdata/{file}")
async def get_file(request: web.Request) -> web.StreamResponse:
    """Return a file."""
    _, path = await _named(request)
    if not await asyncio.to_thread(path.is_file):
        return web.Response(status=404)
    return web.FileResponse(path)


@routes.post("/userdata/{file}")
async def post_file(request: web.Request) -> web.Response:
    """Write a file; with ``overwrite=false`` an existing one is kept and the answer is 409."""
    root, path = await _named(request)
    keep = request.query.get("overwrite") == "false"
    if keep and await asyncio.to_thread(path.exists):
        return web.Response(status=409, text="File already exists")
    body = await read(request)
    await asyncio.to_thread(write_atomically, path, body)
    return await _written(request, path, root)


async def _written(request: web.Request, path: Path, root: Path) -> web.Response:
    if _flag(request, "full_info"):
        return json_response(await asyncio.to_thread(_describe, path, root))
    return json_response(path.relative_to(root).as_posix())


@routes.delete("/userdata/{file}")
async def delete_file(request: web.Request) -> web.Response:
    """Remove a file."""
    _, path = await _named(request)

    def remove() -> int:
        try:
            path.unlink()
        except FileNotFoundError:
            return 404
        except (IsADirectoryError, PermissionError):
            raise BadRequest(f"{path.name!r} is not a file") from None
        return 204

    return web.Response(status=await asyncio.to_thread(remove))


@routes.post("/userdata/{file}/move/{dest}")
async def move_file(request: web.Request) -> web.Response:
    """Move or rename a file; with ``overwrite=false`` an existing target is kept and the answer is 409."""
    root, source = await _named(request)
    _, target = await _named(request, "dest")
    keep = request.query.get("overwrite") == "false"

    def move() -> web.Response | None:
        if not source.exists():
            return web.Response(status=404)
        if keep and target.exists():
            return web.Response(status=409, text="File already exists")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
        except OSError as error:
            raise BadRequest(f"cannot move to {target.name!r}: {error.strerror}") from None
        return None

    refused = await asyncio.to_thread(move)
    return refused if refused is not None else await _written(request, target, root)
