"""The real ComfyUI as an instance: started, with a package of the service's own, stopped (`make test-comfyui`)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import aiohttp
import pytest

from easel.fleet.runtimes import command
from easel.services.installations import Installation
from easel.services.model import EngineSpec, Mount
from tests.contract.runtimes import LocalPlace, Place, runs
from tests.fleet.runtimes.test_preparing import wheel
from tests.waiting import until

__all__ = ["runs"]

NODE = """
import os
import easel_extra


class EaselExtra:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("STRING",)

    @classmethod
    def INPUT_TYPES(cls):
        exported = os.environ.get("EXPORTED", "")
        return {
            "required": {
                "value": ("INT", {"default": easel_extra.VALUE}),
                "exported": ("STRING", {"default": exported}),
            }
        }

    def run(self, value, exported):
        return (str(value),)


NODE_CLASS_MAPPINGS = {"EaselExtra": EaselExtra}
"""


@pytest.fixture
def installation(runs: Place) -> Installation:
    """The real ComfyUI, registered and in use."""
    folder, python = os.environ.get("EASEL_COMFYUI"), os.environ.get("EASEL_COMFYUI_PYTHON")
    if not folder or not python:
        pytest.skip(
            "no real ComfyUI given: make test-comfyui COMFYUI=<folder> PYTHON=<interpreter>"
        )
    assert isinstance(runs, LocalPlace)
    found = Installation(name="real", folder=Path(folder), python=Path(python))
    runs.runtime()._installations.save(found)
    return found


@pytest.mark.real_comfyui
async def test_comfyui_as_an_instance(
    runs: Place, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "other_accelerator", lambda: False)
    data = tmp_path / "storage"

    def store() -> None:
        (data / "models" / "whl").mkdir(parents=True)
        (data / "custom_nodes").mkdir()
        (data / "temp").mkdir()
        (data / "temp" / "of-another-instance").touch()
        wheel(data / "models" / "whl", "easel_extra", 42)
        (data / "custom_nodes" / "extra.py").write_text(NODE)

    await asyncio.to_thread(store)
    engine = EngineSpec(
        kind="comfyui",
        arguments=["--lowvram", "--disable-api-nodes"],
        prepare=[
            "pip install --no-index /mnt/data/models/whl/easel_extra-1.0-py3-none-any.whl",
            "export EXPORTED=/mnt/data/x",
        ],
    )
    mounts = [Mount(mount_path="/mnt/data", source=str(data))]
    launch = runs.launch("real", engine=engine, mounts=mounts, data_path="/mnt/data")
    runtime = runs.runtime()
    handle = await runs.started(runtime, launch)

    async def ready() -> bool:
        assert (await runtime.check({"real": handle}))["real"].alive, await runtime.logs(
            handle, lines=100
        )
        return any("engine ready" in line for line in await runtime.logs(handle, lines=300))

    try:
        await until(ready, timeout=180, pause=0.5)
    except TimeoutError:
        raise AssertionError("\n".join(await runtime.logs(handle, lines=100))) from None
    lines = await runtime.logs(handle, lines=1000)
    url = next(line for line in lines if "engine at " in line).rpartition(" ")[2]
    async with aiohttp.ClientSession(url) as http:
        async with http.get("/system_stats") as answer:
            stats = await answer.json()
        async with http.get("/object_info/EaselExtra") as answer:
            node = await answer.json()
    assert stats["devices"][0]["type"] == "cpu"
    inputs = node["EaselExtra"]["input"]["required"]
    assert inputs["value"][1]["default"] == 42
    assert inputs["exported"][1]["default"] == f"{data}/x"
    used = (await runtime.check({"real": handle}))["real"].memory_bytes
    assert used is not None
    assert 100 * 2**20 < used < 3000 * 2**20
    await runtime.stop(handle, grace=30)
    assert not await asyncio.to_thread(runs.running)
    assert await asyncio.to_thread((data / "temp" / "of-another-instance").exists)
    assert not await asyncio.to_thread((installation.folder / "user" / "comfyui.db.lock").exists)
    await runtime.discard(handle)
