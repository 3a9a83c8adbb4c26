"""Outputs of a task, written into a folder: nothing is overwritten."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from easel.cli.agent_client import AgentClient
from easel.cli.report import UsageError
from easel.errors import OutputFailed
from easel.workflow.progress import NodeProgress
from easel.workflow.types import NodeId

_ODD = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Text:
    """A text that a node showed."""

    node_id: NodeId
    text: str


def texts(nodes: dict[NodeId, NodeProgress]) -> list[Text]:
    """Return the texts among a task's outputs."""
    return [
        Text(node_id, str(output.get("text", "")))
        for node_id, output in _outputs(nodes)
        if output.get("kind") == "text"
    ]


def _outputs(nodes: dict[NodeId, NodeProgress]) -> Iterator[tuple[NodeId, dict[str, Any]]]:
    for node_id, node in nodes.items():
        for output in node.images:
            yield node_id, output


def make_folder(folder: Path) -> None:
    """Make the folder, before anything runs. Raises UsageError when it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "no right to write there")
    except OSError as error:
        raise UsageError(
            f"the output folder {folder} cannot be used: {error.strerror}",
            hint="choose another with -o",
        ) from error


async def save_outputs(
    client: AgentClient, nodes: dict[NodeId, NodeProgress], folder: Path
) -> list[Path]:
    """Download every file among the outputs and return their paths. Raises OutputFailed and the client's errors."""
    saved = []
    for _, output in _outputs(nodes):
        if output.get("url"):
            saved.append(await _save(client, output, folder))
    return saved


async def _save(client: AgentClient, output: dict[str, Any], folder: Path) -> Path:
    async with client.download(str(output["url"])) as response:
        try:
            path, file = await asyncio.to_thread(_claim, folder, str(output.get("filename", "")))
            try:
                async for chunk in response.content.iter_chunked(_CHUNK):
                    await asyncio.to_thread(file.write, chunk)
                await asyncio.to_thread(file.close)
            except BaseException:
                file.close()
                path.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise OutputFailed(
                f"an output cannot be written to {folder}: {error.strerror or error}"
            ) from error
    return path


def _claim(folder: Path, name: str) -> tuple[Path, IO[bytes]]:
    """Open a new file of this name; when there is one already, with a number: ``cat.png``, ``cat-2.png`` …"""
    plain = Path(_ODD.sub("_", Path(name.replace("\\", "/")).name).lstrip(".") or "output")
    stem, suffix = plain.stem[:150], plain.suffix[:20]
    for number in itertools.count(1):
        path = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
        with contextlib.suppress(FileExistsError):
            return path, path.open("xb")
    raise AssertionError
