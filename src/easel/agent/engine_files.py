"""The files of an engine as the agent uses them: inputs go up, outputs come down, over ComfyUI's HTTP routes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp

from easel.comfy.answers import FileRef
from easel.comfy.client import ComfyClient
from easel.errors import EngineSilent, EngineUnavailable, FileNotFound, OutputFailed
from easel.storage.outputs import OutputFiles
from easel.workflow.outputs import OutputItem


class EngineUploader:
    """An `Uploader` over ``/upload/image`` and ``/view``: works wherever the engine runs."""

    def __init__(self, client: ComfyClient) -> None:
        self._client = client

    async def upload(self, path: Path, name: str, media_type: str) -> str:
        """Upload the file, replacing a torn one of the same name. Raises `EngineError`."""
        folder, _, filename = name.rpartition("/")
        stored = await self._client.upload(filename, path, subfolder=folder, overwrite=True)
        return f"{stored.subfolder}/{stored.filename}" if stored.subfolder else stored.filename

    async def exists(self, name: str, size: int) -> bool:
        """Ask for the file's headers. Raises `EngineError`."""
        folder, _, filename = name.rpartition("/")
        query = urlencode(
            {"filename": filename, "subfolder": folder, "type": "input"}, quote_via=quote
        )
        client = self._client
        try:
            async with client.session.head(
                client.url(f"/view?{query}"),
                headers=client.headers,
                timeout=aiohttp.ClientTimeout(total=client.timeout),
                allow_redirects=False,
            ) as response:
                return response.status == 200 and response.headers.get("Content-Length") == str(
                    size
                )
        except TimeoutError as error:
            raise EngineSilent("the engine did not answer HEAD /view in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineUnavailable(
                f"the engine cannot be reached (HEAD /view): {error}"
            ) from error


async def store_output(
    client: ComfyClient,
    files: OutputFiles,
    task_id: str,
    item: OutputItem,
    contents: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Copy one file output of the engine into storage; see `OutputFiles.store`.

    Raises `OutputFailed`, naming the node, when the engine no longer has the file; `EngineError` when it does not answer.
    """
    ref = FileRef(item.filename, item.subfolder, item.type)
    try:
        async with client.view(ref) as stream:
            return await files.store(task_id, item, stream.chunks(), contents)
    except FileNotFound as error:
        raise OutputFailed(
            f"output {item.filename!r} of node {item.node_id!r} is gone from the engine",
            hint="a cached prompt names its earlier file; was it moved or deleted?",
            node_id=item.node_id,
            node_type=item.node_type,
        ) from error
