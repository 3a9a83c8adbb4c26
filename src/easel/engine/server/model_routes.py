"""``/models``, ``/experiment/models``, ``/embeddings`` and ``/view_metadata``."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import mimetypes
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import Image

from easel.engine.folders import PathEscape, inside
from easel.engine.server.bodies import json_response
from easel.engine.server.state import STATE
from easel.errors import BadRequest

routes = web.RouteTableDef()

NOT_MODELS = ("configs", "custom_nodes")
MAX_HEADER = 1024 * 1024
MAX_HEADER_WITH_COVER = 8 * 1024 * 1024
_types = mimetypes.MimeTypes()


@routes.get("/models")
async def list_kinds(request: web.Request) -> web.Response:
    """List the model kinds."""
    return json_response(list(request.app[STATE].models))


@routes.get("/models/{folder}")
async def list_models(request: web.Request) -> web.Response:
    """List one kind's files; 404 for an unknown kind."""
    return await _of_kind(request, request.app[STATE].models.names)


@routes.get("/experiment/models")
async def list_model_folders(request: web.Request) -> web.Response:
    """List the model kinds with their folders."""
    models = request.app[STATE].models
    return json_response(
        [
            {"name": kind, "folders": [str(path) for path in models.paths(kind)]}
            for kind in models
            if kind not in NOT_MODELS
        ]
    )


@routes.get("/experiment/models/{folder}")
async def describe_models(request: web.Request) -> web.Response:
    """List one kind's files with size and times."""
    return await _of_kind(request, request.app[STATE].models.describe)


async def _of_kind(request: web.Request, listing: Callable[[str], Any]) -> web.Response:
    kind = request.match_info["folder"]
    if kind not in request.app[STATE].models:
        return web.Response(status=404)
    return json_response(await asyncio.to_thread(listing, kind))


@routes.get("/embeddings")
async def list_embeddings(request: web.Request) -> web.Response:
    """List the embeddings' names without extension."""
    names = await asyncio.to_thread(request.app[STATE].models.names, "embeddings")
    return json_response([str(Path(name).with_suffix("")) for name in names])


@routes.get("/view_metadata/{folder_name}")
async def view_metadata(request: web.Request) -> web.Response:
    """Return the ``__metadata__`` of a safetensors file; 404 when there is none."""
    name = request.query.get("filename", "")
    if not name.endswith(".safetensors"):
        return web.Response(status=404)
    kind = request.match_info["folder_name"]
    models = request.app[STATE].models

    def read() -> Any:
        path = models.find(kind, name)
        return None if path is None else safetensors_header(path, MAX_HEADER).get("__metadata__")

    metadata = await asyncio.to_thread(read)
    return web.Response(status=404) if metadata is None else json_response(metadata)


def safetensors_header(path: Path, limit: int) -> dict[str, Any]:
    """Read the JSON header of a safetensors file; empty when it is longer than ``limit`` bytes.

    Raises BadRequest when the file is not a safetensors file.
    """
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) == 8:
            (length,) = struct.unpack("<Q", head)
            if length > limit:
                return {}
            try:
                header = json.loads(file.read(length))
            except (ValueError, RecursionError):
                header = None
            if isinstance(header, dict):
                return header
    raise BadRequest(f"{path.name} is not a safetensors file")


@routes.get("/experiment/models/preview/{folder}/{path_index}/{filename:.*}")
async def model_preview(request: web.Request) -> web.Response:
    """Return a model's cover picture (a file beside it, or in its metadata) as WEBP; 404 without one."""
    models = request.app[STATE].models
    kind, index = request.match_info["folder"], request.match_info["path_index"]
    if kind not in models or not index.isdecimal() or int(index) >= len(models.paths(kind)):
        return web.Response(status=404)
    folder = models.paths(kind)[int(index)]
    name = request.match_info["filename"]
    picture = await asyncio.to_thread(_cover, folder, name)
    if picture is None:
        return web.Response(status=404)
    return web.Response(body=picture, content_type="image/webp")


def _cover(folder: Path, name: str) -> bytes | None:
    """Encode the first cover picture found, or return None."""
    try:
        model = inside(folder, name)
    except PathEscape:
        return None
    stem = model.with_suffix("")
    sources: list[Path | BytesIO] = [*_pictures_beside(stem)]
    sources += _pictures_within(stem.with_suffix(".safetensors"))
    for source in sources:
        try:
            with Image.open(source) as image:
                buffer = BytesIO()
                image.save(buffer, format="WEBP")
                return buffer.getvalue()
        except (OSError, ValueError, Image.DecompressionBombError):
            return None
    return None


def _pictures_beside(stem: Path) -> list[Path]:
    if not stem.parent.is_dir():
        return []
    wanted = (stem.name, f"{stem.name}.preview")
    return sorted(
        path
        for path in stem.parent.iterdir()
        if path.stem in wanted and (_types.guess_type(path.name)[0] or "").startswith("image/")
    )


def _pictures_within(path: Path) -> list[BytesIO]:
    if not path.is_file():
        return []
    try:
        metadata = safetensors_header(path, MAX_HEADER_WITH_COVER).get("__metadata__") or {}
        covers = json.loads(metadata.get("ssmd_cover_images") or "[]")
        return [BytesIO(base64.b64decode(cover)) for cover in covers]
    except (BadRequest, ValueError, TypeError, AttributeError, binascii.Error):
        return []
