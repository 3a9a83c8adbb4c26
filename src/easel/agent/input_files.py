"""File inputs of a prompt: fetched, checked, put where the engine reads them, once for each content."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from easel.settings import InputSettings
from easel.workflow.types import ObjectInfo, Prompt


class Uploader(Protocol):
    """Puts files into an engine's input folder. Called concurrently; both methods raise `EngineError` when it does not answer."""

    async def upload(self, path: Path, name: str, media_type: str) -> str:
        """Store the file at ``path`` as ``name`` (``"easel/easel-<hash>.png"``), replacing what has that name.

        Returns the name by which nodes read it.
        """

    async def exists(self, name: str, size: int) -> bool:
        """Tell whether the input folder holds ``name`` with ``size`` bytes (another size is a torn copy)."""


class InputFiles:
    """Turns URLs, ``data:`` URIs and base64 in file inputs into names of files in the engine's input folder."""

    def __init__(self, uploader: Uploader, data_dir: Path, settings: InputSettings) -> None:
        self._uploader = uploader
        self._folder = data_dir / "incoming"
        self._settings = settings

    async def open(self) -> None:
        """Make the folder for incoming files and empty it of what a dead agent left. Called once, before anything else."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close connections. Safe to call twice."""
        raise NotImplementedError

    async def materialise(self, prompt: Prompt, object_info: ObjectInfo | None = None) -> Prompt:
        """Return the prompt with a file name in every file input; the same object when there was nothing to do.

        All files are fetched and checked before the first is given to the engine. Raises `InputRejected` (with node and
        input) or `EngineError`; then nothing of it is left behind. Call it after validation.
        """
        raise NotImplementedError
