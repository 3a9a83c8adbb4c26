"""Outputs copied out of the engine, under unique names, to be served for as long as the operator keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterable
from pathlib import Path
from typing import Any

import msgspec

from easel.workflow.outputs import OutputItem


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A stored output, to be served."""

    path: Path
    size: int
    media_type: str


class OutputFiles:
    """Files in ``<data_dir>/outputs/<task>/<name>``, served as ``/api/outputs/<task id>/<name>``."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "outputs"

    async def open(self) -> None:
        """Make the folder and remove half-written files of a dead agent. Called once, before anything else."""
        raise NotImplementedError

    async def store(
        self, task_id: str, item: OutputItem, stream: AsyncIterable[bytes]
    ) -> dict[str, Any]:
        """Copy a file output from the engine's byte stream and return its entry for `NodeProgress.images`:

        ``{filename, subfolder, type: "output", url, size, media_type, kind, node, key}`` and what the node said besides.
        ``url`` is relative to the agent's root. Raises `OutputFailed`; errors of the stream pass; no half file stays.
        """
        raise NotImplementedError

    async def read_base64(self, task_id: str, name: str, limit: int) -> str:
        """Return a stored file as padded base64. Raises `OutputFailed` over ``limit`` bytes, `FileNotFound`."""
        raise NotImplementedError

    async def find(self, task_id: str, name: str) -> StoredFile:
        """Return a stored file for serving. Raises `FileNotFound` for whatever is not one, names like ``../x`` included."""
        raise NotImplementedError

    async def delete(self, task_id: str) -> None:
        """Remove the files of a task; nothing happens when there are none."""
        raise NotImplementedError

    async def expire(self, before: float) -> int:
        """Remove tasks' folders last written before ``before`` (seconds since the epoch); returns how many."""
        raise NotImplementedError


def value_entry(item: OutputItem) -> dict[str, Any]:
    """Return the `NodeProgress.images` entry of an output that is no file: ``{kind: "text", text, node, key}`` or ``{kind: "json", value, …}``."""
    raise NotImplementedError
