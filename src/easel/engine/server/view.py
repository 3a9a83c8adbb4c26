"""``GET /view``: a file of ``output``, ``input`` or ``temp``, as it is, as a smaller preview, or one of its channels."""

from __future__ import annotations

import asyncio
import mimetypes
from io import BytesIO
from pathlib import Path

from aiohttp import web
from PIL import Image

from easel.engine.folders import FOLDER_TYPES, Folders, PathEscape, inside, split_annotation
from easel.engine.server.bodies import json_response
from easel.engine.server.errors import EmptyAnswer, error_body
from easel.engine.server.state import STATE

routes = web.RouteTableDef()

DOWNLOADED = frozenset(
    {
        "text/html",
        "text/html-sandboxed",
        "application/xhtml+xml",
        "text/javascript",
        "application/javascript",
        "text/css",
    }
)
"""Types that would run in the engine's own origin: sent as ``application/octet-stream``."""

_types = mimetypes.MimeTypes()
_types.add_type("image/webp", ".webp")


@routes.get("/view")
async def view(request: web.Request) -> web.StreamResponse:
    """Return a file; Range, ETag and Last-Modified as usual. Refusals are those of the real one."""
    folders = request.app[STATE].folders
    query = request.query
    if "filename" not in query:
        raise EmptyAnswer(404)
    name, folder_type = split_annotation(query["filename"], query.get("type", "output"))
    path = await asyncio.to_thread(find, folders, name, folder_type, query.get("subfolder", ""))
    headers = {"Content-Disposition": f'filename="{quoted(path.name)}"'}
    channel = query.get("channel", "")
    preview = query.get("preview")
    if preview is None and channel not in ("rgb", "a"):
        guessed = _types.guess_type(path.name)[0] or "application/octet-stream"
        if guessed in DOWNLOADED:
            guessed = "application/octet-stream"
        headers["Content-Type"] = guessed
        headers["Content-Security-Policy"] = "sandbox"  # an SVG may carry scripts
        return web.FileResponse(path, headers=headers)
    try:
        if preview is not None:
            body, kind = await asyncio.to_thread(as_preview, path, preview, channel)
        else:
            body, kind = await asyncio.to_thread(as_channel, path, channel), "image/png"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return json_response(
            error_body("not_a_picture", f"{path.name} cannot be shown as a picture", str(error)),
            400,
        )
    return web.Response(body=body, content_type=kind, headers=headers)


def find(folders: Folders, name: str, folder_type: str, subfolder: str) -> Path:
    """Return the file a query names.

    Raises EmptyAnswer: 400 for a name that is empty, absolute or has ``..``, or an unknown type; 403 for a subfolder that
    leaves the folder; 404 for a missing file.
    """
    if not name or name.startswith("/") or ".." in name or "\0" in name:
        raise EmptyAnswer(400)
    if folder_type not in FOLDER_TYPES:
        raise EmptyAnswer(400)
    try:
        path = inside(folders.of_type(folder_type), subfolder, Path(name).name)
    except PathEscape:
        raise EmptyAnswer(403) from None
    try:
        if path.is_file():
            return path
    except OSError:  # a name too long to be one
        pass
    raise EmptyAnswer(404)


def quoted(name: str) -> str:
    """Escape a file name for a quoted header parameter; control characters are left out."""
    printable = "".join(character for character in name if character.isprintable())
    return printable.replace("\\", "\\\\").replace('"', '\\"')


def as_preview(path: Path, wanted: str, channel: str) -> tuple[bytes, str]:
    """Encode ``format;quality`` (webp or jpeg) and return the bytes and their type."""
    parts = wanted.split(";")
    image_format = parts[0]
    if image_format not in ("webp", "jpeg") or "a" in channel:
        image_format = "webp"
    quality = min(int(parts[-1]), 100) if parts[-1].isdecimal() else 90
    with Image.open(path) as image:
        shown: Image.Image = image
        if image_format == "jpeg" or channel == "rgb":
            shown = image.convert("RGB")
        buffer = BytesIO()
        shown.save(buffer, format=image_format, quality=quality)
    return buffer.getvalue(), f"image/{image_format}"


def as_channel(path: Path, channel: str) -> bytes:
    """Encode the colours without alpha (``rgb``), or the alpha channel alone (``a``), as PNG."""
    with Image.open(path) as image:
        image.load()  # a cut file is none, also where only its size is asked for
        if channel == "rgb":
            shown = image.convert("RGB")
        else:
            shown = Image.new("RGBA", image.size)
            alpha = image.getchannel("A") if image.mode == "RGBA" else None
            shown.putalpha(Image.new("L", image.size, 255) if alpha is None else alpha)
        buffer = BytesIO()
        shown.save(buffer, format="PNG")
    return buffer.getvalue()
