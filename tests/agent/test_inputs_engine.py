"""Files into and out of a running engine, over its HTTP routes."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from easel.agent.engine_files import EngineUploader, store_output
from easel.agent.input_files import InputFiles
from easel.comfy.client import ComfyClient
from easel.engine.serve import running_engine
from easel.errors import EngineUnavailable, OutputFailed
from easel.settings import EngineSettings
from easel.storage.outputs import OutputFiles
from easel.workflow.outputs import OutputItem
from tests.agent.web import files_below, picture, settings


class Pair(NamedTuple):
    client: ComfyClient
    folder: Path
    """The engine's data directory."""


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Pair]:
    folder = tmp_path / "engine"
    async with (
        running_engine(EngineSettings(port=0, data_dir=folder)) as running,
        ComfyClient(running.url) as client,
    ):
        yield Pair(client, folder)


async def brought(uploader: EngineUploader, data: Path, content: bytes) -> str:
    files = InputFiles(uploader, data, settings())
    await files.open()
    value = base64.b64encode(content).decode()
    prompt: Any = {"1": {"class_type": "LoadImage", "inputs": {"image": value}}}
    try:
        name = (await files.materialise(prompt))["1"]["inputs"]["image"]
    finally:
        await files.close()
    assert isinstance(name, str)
    return name


async def test_a_picture_arrives_once(engine: Pair, tmp_path: Path) -> None:
    content = picture((40, 30))
    uploader = EngineUploader(engine.client)
    name = await brought(uploader, tmp_path / "agent", content)
    assert (engine.folder / "input" / name).read_bytes() == content
    assert await uploader.exists(name, len(content))
    assert not await uploader.exists(name, len(content) - 1)
    assert not await uploader.exists("easel/none.png", 3)
    assert await brought(uploader, tmp_path / "agent", content) == name
    assert len(files_below(engine.folder / "input" / "easel")) == 1


async def test_a_torn_file_is_replaced(engine: Pair, tmp_path: Path) -> None:
    content = picture((40, 30))
    uploader = EngineUploader(engine.client)
    name = await brought(uploader, tmp_path / "agent", content)
    (engine.folder / "input" / name).write_bytes(content[:100])
    assert await brought(uploader, tmp_path / "agent", content) == name
    assert (engine.folder / "input" / name).read_bytes() == content


async def test_an_engine_that_is_gone(tmp_path: Path) -> None:
    async with ComfyClient("http://127.0.0.1:9") as client:
        with pytest.raises(EngineUnavailable):
            await brought(EngineUploader(client), tmp_path, picture())
    assert files_below(tmp_path) == []


async def test_an_output_is_copied(engine: Pair, tmp_path: Path) -> None:
    files = OutputFiles(tmp_path / "agent")
    await files.open()
    content = picture((60, 50))
    source = engine.folder / "output" / "sub" / "ü x_00001_.png"
    source.parent.mkdir(parents=True)
    source.write_bytes(content)
    item = OutputItem(
        node_id="9",
        node_type="SaveImage",
        kind="image",
        key="images",
        filename=source.name,
        subfolder="sub",
        type="output",
        media_type="image/png",
    )
    entry = await store_output(engine.client, files, "task", item)
    source.unlink()
    found = await files.find("task", entry["filename"])
    assert found.path.read_bytes() == content
    with pytest.raises(OutputFailed) as caught:
        await store_output(engine.client, files, "task", item)
    assert caught.value.node_id == "9"
    assert len(files_below(tmp_path / "agent")) == 1
