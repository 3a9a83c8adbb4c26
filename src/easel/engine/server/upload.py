"""``/upload/image`` and ``/upload/mask``: files from clients into ``input``, ``temp`` or ``output``.

The body is read part by part: one file, spooled to disk beyond a few MiB, and a handful of short fields.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import tempfile
import threading
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

from aiohttp import BodyPartReader, web
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from easel.engine.folders import Folders, PathEscape, inside, split_annotation
from easel.engine.server.bodies import decode, json_response, too_large
from easel.engine.server.errors import EmptyAnswer
from easel.engine.server.files import write_atomically
from easel.engine.server.state import STATE
from easel.errors import BadRequest

routes = web.RouteTableDef()

IN_MEMORY = 4 * 1024 * 1024
MAX_PARTS = 64
MAX_FIELD = 1024 * 1024

_naming = threading.Lock()
"""Held while a free name is looked for and taken: two uploads of one name never take the same."""


@dataclass
class Form:
    """A parsed upload. `close` it."""

    file: BinaryIO | None = None
    filename: str = ""
    fields: dict[str, str] = field(default_factory=dict)

    def close(self) -> None:
        """Let go of the spooled file."""
        if self.file is not None:
            self.file.close()


@routes.post("/upload/image")
async def upload_image(request: web.Request) -> web.Response:
    """Store a file under its own name, or a numbered one when that is taken by other bytes."""
    return await _upload(request, mask=False)


@routes.post("/upload/mask")
async def upload_mask(request: web.Request) -> web.Response:
    """Store the picture ``original_ref`` names, with the uploaded mask's alpha channel put in."""
    return await _upload(request, mask=True)


async def _upload(request: web.Request, *, mask: bool) -> web.Response:
    form = await read_form(request)
    try:
        answer = await asyncio.to_thread(store, request.app[STATE].folders, form, mask=mask)
    finally:
        await asyncio.to_thread(form.close)
    return json_response(answer)


async def read_form(request: web.Request) -> Form:
    """Read the multipart body.

    Raises BadRequest when it is none, and BodyTooLarge.
    """
    form = Form()
    limit = request.client_max_size
    if request.content_length is not None and request.content_length > limit:
        raise too_large(limit)
    if request.content_type != "multipart/form-data":
        return form
    left = limit
    try:
        reader = await request.multipart()
        for _ in range(MAX_PARTS):
            part = await reader.next()
            if part is None:
                return form
            if not isinstance(part, BodyPartReader):
                raise BadRequest("nested multipart bodies are not taken")
            left -= await _take(part, form, left, limit)
    except (ValueError, AssertionError) as error:
        await asyncio.to_thread(form.close)
        raise BadRequest(f"the body is not a multipart form: {error}") from None
    except BaseException:
        form.close()
        raise
    await asyncio.to_thread(form.close)
    raise BadRequest(f"more than {MAX_PARTS} parts")


async def _take(part: BodyPartReader, form: Form, left: int, limit: int) -> int:
    """Put one part into the form and return its size; at most ``left`` bytes are taken."""
    is_file = part.name == "image" and part.filename is not None and form.file is None
    if is_file:
        form.filename = part.filename or ""
        form.file = cast("BinaryIO", tempfile.SpooledTemporaryFile(IN_MEMORY))  # noqa: SIM115
    size, text = 0, bytearray()
    while chunk := await part.read_chunk(256 * 1024):
        size += len(chunk)
        if size > left:
            raise too_large(limit)
        if is_file and form.file is not None:
            await asyncio.to_thread(form.file.write, chunk)
        elif size > MAX_FIELD:
            raise BadRequest(f"the field {part.name!r} is too long")
        else:
            text += chunk
    if not is_file and part.name:
        form.fields[part.name] = text.decode("utf-8", "replace")
    return size


def store(folders: Folders, form: Form, *, mask: bool) -> dict[str, str]:
    """Put an upload in its place and return where that is.

    Raises EmptyAnswer and BadRequest.
    """
    folder_type = form.fields.get("type", "input")
    subfolder = form.fields.get("subfolder", "")
    if form.file is None or not form.filename:
        raise EmptyAnswer(400)
    try:
        root = folders.of_type(folder_type)
    except KeyError:
        raise BadRequest(f"type {folder_type!r} is none of input, temp, output") from None
    try:
        folder = inside(root, subfolder)
        target = inside(root, subfolder, form.filename)
    except PathEscape:
        raise EmptyAnswer(400) from None
    if target == folder or target.is_dir():
        raise BadRequest(f"{form.filename!r} is a folder")
    if target.parent != folder and not target.parent.is_dir():
        raise BadRequest(f"{form.filename!r}: there is no such folder", hint="use 'subfolder'")
    content = with_mask(folders, form) if mask else form.file
    overwrite = form.fields.get("overwrite") in ("true", "1")
    with _naming:
        name = form.filename
        if not overwrite:
            # a mask never equals the finished picture, so only plain uploads are compared
            name, known = free_name(folder, form.filename, None if mask else form.file)
            if known:
                return {"name": name, "subfolder": subfolder, "type": folder_type}
        content.seek(0)
        write_atomically(folder / name, content)
    return {"name": name, "subfolder": subfolder, "type": folder_type}


def free_name(folder: Path, filename: str, content: BinaryIO | None) -> tuple[str, bool]:
    """Return the first of ``pic.png``, ``pic (1).png`` … that is free, or has just this content (then True)."""
    digest = None if content is None else _digest(content)
    stem, dot, suffix = filename.rpartition(".")
    if not stem:
        stem, dot, suffix = filename, "", ""
    for number in itertools.count():
        name = f"{stem} ({number}){dot}{suffix}" if number else filename
        path = folder / name
        if not path.exists():
            return name, False
        if digest is not None and path.is_file():
            with path.open("rb") as file:
                if _digest(file) == digest:
                    return name, True
    raise AssertionError("unreachable")


def _digest(file: BinaryIO) -> bytes:
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(1024 * 1024):
        digest.update(chunk)
    return digest.digest()


def with_mask(folders: Folders, form: Form) -> BinaryIO:
    """Return the original picture as PNG with the mask's alpha channel; its text chunks are kept.

    Raises BadRequest when there is no such picture or one of the two is broken.
    """
    reference = decode(form.fields.get("original_ref", "").encode())
    if not isinstance(reference, dict) or not isinstance(reference.get("filename"), str):
        raise BadRequest("'original_ref' must be an object with 'filename'")
    default = str(reference.get("type", "output"))
    plain, folder_type = split_annotation(reference["filename"], default)
    try:
        root = folders.of_type(folder_type)
        path = inside(root, str(reference.get("subfolder") or ""), plain)
    except (KeyError, PathEscape):
        raise BadRequest("'original_ref' names no picture") from None
    if not path.is_file():
        raise BadRequest("'original_ref' names no picture", hint="upload the picture first")
    assert form.file is not None
    form.file.seek(0)
    try:
        with Image.open(path) as original, Image.open(form.file) as mask:
            texts = PngInfo()
            for key, text in getattr(original, "text", {}).items():
                texts.add_text(key, text)
            masked = original.convert("RGBA")
            masked.putalpha(mask.convert("RGBA").getchannel("A"))
            buffer = BytesIO()
            masked.save(buffer, format="PNG", compress_level=4, pnginfo=texts)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadRequest(f"not a picture, or the sizes differ: {error}") from None
    return buffer
