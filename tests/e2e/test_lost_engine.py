"""A service on the real ComfyUI whose process is killed in the middle of a task: the task is run again, its caller notices nothing."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.e2e.conftest import text_to_image
from tests.platforms import Platform, Service, register, running_platform
from tests.waiting import until

pytestmark = [pytest.mark.real_comfyui, pytest.mark.timeout(400)]

SIDE = 96
STEPS = 40
"""Some seconds on a CPU."""


async def picture(service: Service, nodes: dict[str, Any]) -> Image.Image:
    """Fetch what the prompt saved."""
    (image,) = nodes["9"]["images"]
    path = image["url"].removeprefix(f"/api/predict/{service.name}")
    async with service.request("GET", path) as answer:
        assert answer.status == 200
        found = Image.open(io.BytesIO(await answer.read()))
    found.load()
    return found


def engines(platform: Platform) -> list[psutil.Process]:
    """The engines' own processes: what runs ``main.py`` and has no launcher's command line."""
    found = []
    for process in platform.descendants():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if len(words) > 1 and words[1].endswith("main.py"):
                found.append(process)
    return found


async def test_killed_in_the_middle(
    tmp_path: Path, comfyui: tuple[Path, str], comfyui_base: Path
) -> None:
    async with running_platform(tmp_path) as platform:
        await register(platform, comfyui)
        service = await platform.deploy(
            "paint", engine="comfyui:real", packs=None, storage=str(comfyui_base)
        )
        nodes = await service.run(text_to_image(1, steps=4))
        assert (await picture(service, nodes)).size == (64, 64)

        await service.submit(text_to_image(2, steps=STEPS, side=SIDE), "long")

        async def sampling() -> bool:
            found = await service.status("long")
            assert not found["ended"], "it was too quick to be killed"
            return bool(found["nodes"].get("3", {}).get("value", 0) >= 1)

        await until(sampling, timeout=60)
        (engine,) = engines(platform)
        engine.kill()
        ended = await service.ended("long", timeout=240)
        assert ended["state"] == "succeeded", ended["error"]
        assert ended["nodes"]["3"]["value"] == STEPS
        assert (await picture(service, ended["nodes"])).size == (SIDE, SIDE)
        (again,) = engines(platform)
        assert again.pid != engine.pid

        events = (await platform.control("GET", "/services/paint/events"))["events"]
        told = [one for one in events if one["reason"] == "InstanceUnready"]
        assert any("SIGKILL" in one["message"] for one in told), events
        (instance,) = (await platform.control("GET", "/services/paint/instances"))["instances"]
        assert instance["restarts"] == 0, "the agent lives on and starts another engine"

        await platform.control("DELETE", "/services/paint", wait="true")
        assert not engines(platform)
        assert (comfyui_base / "models").is_dir(), "storage stays"
