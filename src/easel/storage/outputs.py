"""Outputs copied out of the engine, under unique names, to be served for as long as the operator keeps them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import AsyncIterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from easel.errors import BodyTooLarge, FileNotFound, OutputFailed
from easel.storage.paths import PathEscape, inside
from easel.workflow.outputs import OutputItem, media_type_of

_BUFFER = 1024 * 1024
_SAFE_TASK = re.compile(r"[a-z0-9_][a-z0-9_.\-]{0,127}")
_UNSAFE = re.compile(r"[^\w.\- ()]+")
_HALF = ".part"
_MAX_STEM = 120
"""Bytes kept of a file name; file systems allow 255 with everything that is added."""
_MAX_NAME = 200
"""Bytes of a name from outside."""
_READ_PIECE = 3 * 256 * 1024


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A stored output, to be served."""

    path: Path
    size: int
    media_type: str


class OutputFiles:
    """Files in ``<data_dir>/outputs/<task>/<name>``, served as ``/api/outputs/<task id>/<name>``."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "outputs"
        # One thread for the last (for most: the only) write of a file: more of them only wrest the interpreter from one another.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="easel-outputs")

    async def open(self, *, shared: bool = False) -> None:
        """Make the folder and remove half-written files of a dead agent. Called once, before anything else.

        ``shared``: others write here, too, and half-written files may be theirs; they stay until their task's outputs go.
        """
        await asyncio.to_thread(self._prepare, shared)

    async def close(self) -> None:
        """Finish what is being written. Safe to call twice."""
        await asyncio.to_thread(self._writer.shutdown)

    async def store(
        self,
        task_id: str,
        item: OutputItem,
        stream: AsyncIterable[bytes],
        contents: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Copy a file output from the engine's byte stream and return its entry for `NodeProgress.images`:

        ``{filename, subfolder, type: "output", url, size, media_type, kind, node, key}`` and what the node said besides.
        ``url`` is relative to the agent's root. A small file's base64 is put into ``contents``, under its new name, while
        it is at hand. Raises `OutputFailed`; errors of the stream pass; no half file stays.
        """
        name = _unique_name(item.filename)
        waiting: list[bytes] = []
        waiting_size = 0
        half: _HalfFile | None = None
        try:
            async for chunk in stream:
                waiting.append(chunk)
                waiting_size += len(chunk)
                if waiting_size >= _BUFFER:
                    half = half or _HalfFile(self._task_folder(task_id), name)
                    await asyncio.to_thread(half.write, waiting)
                    waiting, waiting_size = [], 0
            if contents is not None and half is None:
                contents[name] = base64.b64encode(b"".join(waiting)).decode("ascii")
            half = half or _HalfFile(self._task_folder(task_id), name)
            size = await asyncio.get_running_loop().run_in_executor(
                self._writer, half.finish, waiting
            )
        except OSError as error:
            raise OutputFailed(
                f"output {item.filename!r} of node {item.node_id!r} cannot be stored: {error}",
                hint="is the disk of the agent's data directory full or read-only?",
                node_id=item.node_id,
                node_type=item.node_type,
            ) from error
        finally:
            if half is not None and not half.finished:
                await asyncio.shield(asyncio.to_thread(half.remove))
        return {
            **item.extra,
            "filename": name,
            "subfolder": "",
            "type": "output",
            "url": output_url(task_id, name),
            "size": size,
            "media_type": item.media_type,
            "kind": item.kind,
            "node": item.node_id,
            "key": item.key,
        }

    async def receive(
        self, task_id: str, name: str, stream: AsyncIterable[bytes], limit: int
    ) -> int:
        """Take a file that an agent elsewhere has stored under this name already, and return its size in bytes.

        It is there under its name when it is whole; one of that name is replaced. Raises `FileNotFound` for what is no name
        of a file, `BodyTooLarge` beyond ``limit`` bytes, `OutputFailed`; errors of the stream pass; no half file stays.
        """
        folder = await asyncio.to_thread(self._receiving_folder, task_id, name)
        half = _HalfFile(folder, name, mark=secrets.token_hex(4))
        waiting: list[bytes] = []
        waiting_size = size = 0
        try:
            async for chunk in stream:
                size += len(chunk)
                if size > limit:
                    raise BodyTooLarge(f"the file is larger than {limit} bytes")
                waiting.append(chunk)
                waiting_size += len(chunk)
                if waiting_size >= _BUFFER:
                    await asyncio.to_thread(half.write, waiting)
                    waiting, waiting_size = [], 0
            return await asyncio.to_thread(half.finish, waiting)
        except OSError as error:
            raise OutputFailed(
                f"output {name!r} cannot be stored: {error.strerror or error}",
                hint="is the disk of the service's storage full or read-only?",
            ) from error
        finally:
            if not half.finished:
                await asyncio.shield(asyncio.to_thread(half.remove))

    async def read_base64(self, task_id: str, name: str, limit: int) -> str:
        """Return a stored file as padded base64.

        Raises `OutputFailed` when it is larger than ``limit`` bytes, `FileNotFound` when there is none.
        """
        return await asyncio.to_thread(self._read_base64, task_id, name, limit)

    async def find(self, task_id: str, name: str) -> StoredFile:
        """Return a stored file for serving. Raises `FileNotFound` for whatever is not one, names like ``../x`` included."""
        return await asyncio.to_thread(self._find, task_id, name)

    async def delete(self, task_id: str) -> None:
        """Remove the files of a task; nothing happens when there are none."""
        await asyncio.to_thread(shutil.rmtree, self._task_folder(task_id), ignore_errors=True)

    async def expire(self, before: float) -> int:
        """Remove tasks' folders last written before ``before`` (seconds since the epoch); returns how many."""
        return await asyncio.to_thread(self._expire, before)

    def _task_folder(self, task_id: str) -> Path:
        return self._folder / _folder_name(task_id)

    def _receiving_folder(self, task_id: str, name: str) -> Path:
        missing = FileNotFound("this is not the name of a file")
        if not name or name.startswith(".") or "/" in name or "\\" in name:
            raise missing
        try:
            folder = self._task_folder(task_id)
            if inside(self._folder, folder.name) != self._folder.resolve() / folder.name:
                raise missing  # a link
            if (
                len(os.fsencode(name)) > _MAX_NAME
                or inside(folder, name).parent != folder.resolve()
            ):
                raise missing
        except (OSError, UnicodeError, PathEscape):
            raise missing from None
        return folder

    def _prepare(self, shared: bool) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if shared:
            return
        for left in self._folder.glob(f"*/.*{_HALF}"):
            left.unlink(missing_ok=True)

    def _find(self, task_id: str, name: str) -> StoredFile:
        missing = FileNotFound("there is no such output", hint="outputs may have been removed")
        if not name or name.startswith(".") or "/" in name or "\\" in name:
            raise missing
        try:
            path = inside(self._folder, _folder_name(task_id), name)
            if not path.is_file():
                raise missing
            size = path.stat().st_size
        except (OSError, PathEscape):
            raise missing from None
        return StoredFile(path=path, size=size, media_type=media_type_of(name))

    def _read_base64(self, task_id: str, name: str, limit: int) -> str:
        found = self._find(task_id, name)
        if found.size > limit:
            raise OutputFailed(
                f"output {name!r} has {found.size} bytes, too many to return as base64",
                hint="fetch it from its url",
            )
        # Pieces of three bytes' multiple join without padding in between, so the file is never in memory twice.
        pieces: list[str] = []
        with found.path.open("rb") as file:
            while piece := file.read(_READ_PIECE):
                pieces.append(base64.b64encode(piece).decode("ascii"))
        return "".join(pieces)

    def _expire(self, before: float) -> int:
        removed = 0
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            with contextlib.suppress(OSError):
                if folder.is_dir() and folder.stat().st_mtime < before:
                    shutil.rmtree(folder)
                    removed += 1
        return removed


def output_url(task_id: str, name: str) -> str:
    """Return the URL of a stored output, relative to the agent's root."""
    return f"/api/outputs/{quote(task_id, safe='')}/{quote(name, safe='')}"


def value_entry(item: OutputItem) -> dict[str, Any]:
    """Return the `NodeProgress.images` entry of an output that is no file: a text, or another JSON value."""
    entry: dict[str, Any] = {"kind": item.kind, "node": item.node_id, "key": item.key}
    if item.kind == "text":
        entry["text"] = item.text
    else:
        entry["value"] = item.value
    return entry


class _HalfFile:
    """A file under a hidden name until it is whole. Every method blocks: for use in a thread."""

    def __init__(self, folder: Path, name: str, *, mark: str = "") -> None:
        """``mark`` keeps two apart that bring the same file."""
        self._folder = folder
        self._final = folder / name
        self._path = folder / f".{name}{mark}{_HALF}"
        self._size = 0
        self._made = False
        # A cancelled task's thread may still be writing when the file is removed.
        self._lock = threading.Lock()
        self._removed = False
        self.finished = False

    def write(self, chunks: list[bytes]) -> None:
        with self._lock:
            if not self._removed:
                self._append(chunks)

    def finish(self, chunks: list[bytes]) -> int:
        with self._lock:
            if not self._removed:
                self._append(chunks)
                self._path.replace(self._final)
                self.finished = True
        return self._size

    def remove(self) -> None:
        with self._lock:
            self._removed = True
            if self._made:
                self._path.unlink(missing_ok=True)

    def _append(self, chunks: list[bytes]) -> None:
        # Few system calls: each of them hands the interpreter over to the event loop and has to get it back.
        flags = os.O_WRONLY | os.O_APPEND
        if not self._made:
            flags |= os.O_CREAT | os.O_EXCL
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir(parents=True)
        file = os.open(self._path, flags, 0o644)
        self._made = True
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    written = os.write(file, view)
                    self._size += written
                    view = view[written:]
        finally:
            os.close(file)


def _folder_name(task_id: str) -> str:
    """Name a task's folder: its id where that is a safe file name everywhere, else a hash of it."""
    if _SAFE_TASK.fullmatch(task_id):
        return task_id
    return "~" + hashlib.sha256(task_id.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def _unique_name(filename: str) -> str:
    """Keep what can be kept of the engine's file name and make it unique: cached prompts name the same file again."""
    plain = filename.replace("\\", "/").rpartition("/")[2]
    stem, dot, extension = plain.rpartition(".")
    if not stem:
        stem, dot, extension = plain, "", ""
    if not re.fullmatch(r"[A-Za-z0-9]{1,16}", extension):
        stem, dot, extension = plain, "", ""
    stem = (
        _UNSAFE.sub("_", stem).strip(" .").encode()[:_MAX_STEM].decode(errors="ignore").strip(" .")
    )
    stem = stem or "output"
    return f"{stem}-{secrets.token_hex(5)}{dot}{extension}"
