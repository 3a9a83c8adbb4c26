"""File inputs of a prompt: fetched, checked, put where the engine reads them, once for each content."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from weakref import WeakValueDictionary

from aiohttp.abc import AbstractResolver

from easel.agent import pictures
from easel.agent.fetch import Fetcher
from easel.agent.incoming import IncomingFile
from easel.agent.inline_files import read_base64, read_data_uri
from easel.agent.input_names import check_name
from easel.errors import EngineError, InputRejected, StoreFailed
from easel.settings import InputSettings
from easel.storage.paths import PathEscape, inside
from easel.workflow.inputs import (
    InputKind,
    UploadInput,
    ValueKind,
    classify,
    replace_inputs,
    upload_inputs,
)
from easel.workflow.types import ObjectInfo, Prompt

T = TypeVar("T")

_LISTED_3D = {".gltf", ".obj", ".stl"}
"""Load3D lists only what lies in the input folder's ``3d``."""

_AT_ONCE = 64
"""Files brought in at the same time, over all prompts."""

_AT_ONCE_FOR_ONE = 8
"""Files brought in at the same time for one prompt: slow servers of one caller do not hold up the others."""

_CHECKS_AT_ONCE = 2
"""Pictures read through at the same time: each may take a few hundred megabytes."""


class Uploader(Protocol):
    """Puts files into an engine's input folder. Called concurrently; both methods raise `EngineError` when it does not answer."""

    async def upload(self, path: Path, name: str, media_type: str) -> str:
        """Store the file at ``path`` as ``name`` (``"easel/easel-<hash>.png"``), replacing what has that name.

        Returns the name by which nodes read it.
        """

    async def exists(self, name: str, size: int) -> bool:
        """Tell whether the input folder holds ``name`` with ``size`` bytes (another size is a torn copy)."""


class FolderUploader:
    """An `Uploader` for an engine whose input folder this process can write to."""

    def __init__(self, input_folder: Path) -> None:
        self._folder = input_folder

    async def upload(self, path: Path, name: str, media_type: str) -> str:
        """Copy the file under a temporary name, then rename it."""
        try:
            await asyncio.to_thread(self._copy, path, name)
        except (OSError, PathEscape) as error:
            raise EngineError(f"the engine's input folder cannot be written: {error}") from error
        return name

    async def exists(self, name: str, size: int) -> bool:
        """Look at the file's size."""
        return await asyncio.to_thread(self._has, name, size)

    def _copy(self, path: Path, name: str) -> None:
        target = inside(self._folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.parent / f".{path.name}"
        try:
            shutil.copyfile(path, half)
            half.replace(target)
        finally:
            half.unlink(missing_ok=True)

    def _has(self, name: str, size: int) -> bool:
        try:
            return inside(self._folder, name).stat().st_size == size
        except (OSError, PathEscape):
            return False


class _Brought(NamedTuple):
    """A checked file in the agent's own folder."""

    file: IncomingFile
    name: str
    media_type: str


class InputFiles:
    """Turns URLs, ``data:`` URIs and base64 in file inputs into names of files in the engine's input folder.

    A file's name is made of its content's hash, so the same content always has the same name: it is stored once, and the
    engine's cache knows it again. Whether the engine still has it is asked every time; a restarted engine or an emptied
    input folder costs another upload, nothing more.
    """

    def __init__(
        self,
        uploader: Uploader,
        data_dir: Path,
        settings: InputSettings,
        *,
        lookup: AbstractResolver | None = None,
    ) -> None:
        """``lookup`` resolves host names in place of the system's resolver; its answers are checked like any."""
        self._uploader = uploader
        self._folder = data_dir / "incoming"
        self._settings = settings
        self._fetcher = Fetcher(settings, lookup)
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._threads = ThreadPoolExecutor(_CHECKS_AT_ONCE, thread_name_prefix="input-files")

    async def open(self) -> None:
        """Make the folder for incoming files and empty it of what a dead agent left. Called once, before anything else."""
        pictures.allow_pixels(self._settings.max_pixels)
        await asyncio.to_thread(self._prepare)

    async def close(self) -> None:
        """Close connections. Safe to call twice."""
        await self._fetcher.close()
        self._threads.shutdown(wait=False)

    async def materialise(self, prompt: Prompt, object_info: ObjectInfo | None = None) -> Prompt:
        """Return the prompt with a file name in every file input; the same object when there was nothing to do.

        All files are fetched and checked before the first is given to the engine. Raises `InputRejected` (with node and
        input) or `EngineError`; then nothing of it is left behind. Call it after validation.
        """
        wanted: dict[tuple[InputKind, str], list[UploadInput]] = {}
        for upload in upload_inputs(prompt, object_info):
            if classify(upload.value) == "name":
                with _naming(upload):
                    check_name(upload.value)
            else:
                wanted.setdefault((upload.kind, upload.value), []).append(upload)
        if not wanted:
            return prompt
        groups = list(wanted.values())
        files = [IncomingFile(self._folder) for _ in groups]
        try:
            own = asyncio.Semaphore(_AT_ONCE_FOR_ONE)
            brought = await _all(
                self._bring(group[0], file, own) for group, file in zip(groups, files, strict=True)
            )
            names = await _all(self._place(entry) for entry in brought)
        finally:
            await asyncio.shield(asyncio.to_thread(_remove, files))
        return replace_inputs(
            prompt,
            [(upload, name) for group, name in zip(groups, names, strict=True) for upload in group],
        )

    async def _bring(
        self, upload: UploadInput, file: IncomingFile, own: asyncio.Semaphore
    ) -> _Brought:
        """Write one input's content to the agent's folder and check it."""
        kind = classify(upload.value)
        hint = ""
        with _naming(upload):
            try:
                async with own, self._slots:
                    if kind == "url":
                        hint = (await self._fetcher.fetch(upload.value, file.write)).name
                    content = await asyncio.get_running_loop().run_in_executor(
                        self._threads, partial(self._complete, file, upload, kind, hint)
                    )
            except OSError as error:
                raise StoreFailed(f"incoming files cannot be written: {error}") from error
        folder = "3d" if content.family == "3d" or content.extension in _LISTED_3D else "easel"
        return _Brought(
            file, f"{folder}/easel-{file.digest[:32]}{content.extension}", content.media_type
        )

    def _complete(
        self, file: IncomingFile, upload: UploadInput, kind: ValueKind, hint: str
    ) -> pictures.Content:
        if kind != "url":
            read = read_data_uri if kind == "data_uri" else read_base64
            file.write_now(read(upload.value, self._settings.max_bytes))
        file.finish_now()
        return pictures.inspect(file.path, upload.kind, self._settings.max_pixels, hint)

    async def _place(self, entry: _Brought) -> str:
        """Give a file to the engine unless it has it. Whoever brings the same content meanwhile waits and finds it there."""
        lock = self._locks.setdefault(entry.name, asyncio.Lock())
        async with lock:
            if await self._uploader.exists(entry.name, entry.file.size):
                return entry.name
            return await self._uploader.upload(entry.file.path, entry.name, entry.media_type)

    def _prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob("*.part"):
            left.unlink(missing_ok=True)


@contextmanager
def _naming(upload: UploadInput) -> Iterator[None]:
    """Say which node and input a rejected file was meant for."""
    try:
        yield
    except InputRejected as error:
        name = upload.input_name if upload.key is None else f"{upload.input_name}.{upload.key}"
        raise InputRejected(
            f"node {upload.node_id!r} ({upload.node_type}), input {name!r}: {error.message}",
            hint=error.hint,
            node_id=upload.node_id,
            node_type=upload.node_type,
            input_name=name,
        ) from error


async def _all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run the calls together; when one fails the others are cancelled and its error is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]


def _remove(files: Iterable[IncomingFile]) -> None:
    for file in files:
        file.remove_now()
