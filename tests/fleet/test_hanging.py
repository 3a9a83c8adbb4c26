"""An engine whose process lives while nothing moves: noticed by its agent, over a platform."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Any

import psutil

from tests.platforms import Platform, Service, running_platform
from tests.waiting import until

SETTINGS: dict[str, Any] = {
    "agent": {
        "supervision__silent_timeout": 3,
        "supervision__stall_timeout": 3,
        "supervision__probe_interval": 0.3,
        "supervision__restart_backoff": 0.1,
    },
    "fleet": {"cpu_slots": 1},
    "tasks": {"max_delivery": 2},
}
"""An operator's settings for agents reach those that the platform starts."""


def prompt(kind: str, **inputs: Any) -> dict[str, Any]:
    """One node of the demo pack, and a picture."""
    return {
        "1": {"class_type": kind, "inputs": {"salt": 0, **inputs}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }


def engine(platform: Platform) -> psutil.Process:
    """The engine's own process."""
    for process in platform.descendants():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "engine" in words and not process.children() and "agent" not in words:
                return process
    raise AssertionError("no engine runs")


async def runs(service: Service, task: str) -> None:
    async def look() -> bool:
        return bool((await service.status(task))["state"] == "running")

    await until(look, timeout=30)


async def told(platform: Platform) -> list[str]:
    events = (await platform.control("GET", "/services/draw/events"))["events"]
    return [one["message"] for one in events if one["reason"] == "InstanceUnready"]


async def test_an_engine_that_stands_still_is_started_anew(tmp_path: Path) -> None:
    async with running_platform(tmp_path, **SETTINGS) as platform:
        service = await platform.deploy("draw", edition="api")
        await service.submit(prompt("EaselSleep", seconds=1), "a")
        await runs(service, "a")
        stopped = engine(platform)
        stopped.send_signal(signal.SIGSTOP)
        assert (await service.ended("a"))["state"] == "succeeded"
        assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE
        assert any("has not answered for" in one for one in await told(platform))


async def test_a_prompt_that_never_moves_fails_alone(tmp_path: Path) -> None:
    """HTTP answers all the time; only the work does not move."""
    async with running_platform(tmp_path, **SETTINGS) as platform:
        service = await platform.deploy("draw", edition="api")
        await service.submit(prompt("EaselHang", silent=False), "hangs")
        await service.submit(prompt("EaselSleep", seconds=0), "waits")
        ended = await service.ended("hangs", timeout=90)
        assert ended["state"] == "failed"
        assert ended["error"]["code"] == "task_lost"
        assert "not moved" in str(ended["error"])
        assert (await service.ended("waits", timeout=60))["state"] == "succeeded"
        assert any("not moved" in one for one in await told(platform))
