"""The built-in nodes give the real ComfyUI's results: those it was recorded with, and, where one is given, its own."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from easel.engine.folders import Folders
from easel.engine.nodes import registry
from tests.engine.nodes import parity
from tests.engine.nodes.graphs import Case, cases, write_inputs
from tests.engine.nodes.local import Context
from tests.servers import free_port, running

COMFYUI = os.environ.get("EASEL_COMFYUI", "")
PYTHON = os.environ.get("EASEL_COMFYUI_PYTHON", "")

ALL = list(cases())
SMALL = [case for case in ALL if not case.large]
TOLERANCE = 1
"""Of 255: pixels are rounded down when they are saved, so that the last bit of a float can show."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folders = Folders(tmp_path_factory.mktemp("ours"))
    folders.prepare()
    write_inputs(folders.input)
    return folders


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(parity.GOLDEN.read_text())
    return recorded


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_as_recorded(case: Case, folders: Folders, golden: dict[str, Any]) -> None:
    recorded = parity.unpack(golden[case.name])
    assert parity.compare(parity.ours(case, Context(folders)), recorded).largest <= TOLERANCE


def test_every_class_with_pixels_or_text_is_compared() -> None:
    used = {node["class_type"] for case in ALL for node in case.prompt()[0].values()}
    # What they do is not in the pixels: tests of their own.
    elsewhere = {
        "PreviewImage", "MaskPreview", "SaveImageWebsocket", "SaveAnimatedWEBP", "SaveAnimatedPNG", "LoadImageOutput",
        "RebatchImages", "LoadAudio", "EmptyAudio", "SaveAudio", "PreviewAudio",
    }  # fmt: skip
    assert {node_class.name for node_class in registry} - elsewhere == used


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The URL of a real ComfyUI on CPU."""
    if not (COMFYUI and PYTHON):
        pytest.skip("no real ComfyUI: set EASEL_COMFYUI and EASEL_COMFYUI_PYTHON")
    base = tmp_path_factory.mktemp("theirs")
    (base / "custom_nodes").mkdir()
    write_inputs(base / "input")
    port = free_port()
    main = str(Path(COMFYUI) / "main.py")
    command = [PYTHON, main, "--cpu", "--port", str(port), "--base-directory", str(base)]
    command += ["--database-url", f"sqlite:///{base}/comfyui.db", "--disable-api-nodes"]
    url = f"http://127.0.0.1:{port}"
    async with running(url, "/system_stats", command, base / "log", timeout=120):
        yield url


@pytest.mark.real_comfyui
@pytest.mark.timeout(600)
@pytest.mark.asyncio(loop_scope="module")
async def test_as_the_real_one(real: str, folders: Folders) -> None:
    wrong = []
    async with aiohttp.ClientSession() as session:
        for case in ALL:
            theirs = await parity.theirs(case, session, real)
            mine = await asyncio.to_thread(parity.ours, case, Context(folders))
            difference = parity.compare(mine, theirs)
            if difference.largest > TOLERANCE:
                wrong.append((case.name, difference))
    assert not wrong
