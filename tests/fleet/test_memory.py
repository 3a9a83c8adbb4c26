"""Memory that is used up, over a platform: an instance beyond its limit is ended, an engine that the kernel kills is not the end."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import psutil

from tests.platforms import Platform, running_platform
from tests.waiting import until

FLEET = {"check_interval": 0.2, "backoff_seconds": 0.1, "cpu_slots": 1}
LIMIT = "450M"
MUCH = 700
"""MiB; agent and engine need about 150 by themselves."""


def prompt(*nodes: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """A chain of nodes, the last of which is saved."""
    found: dict[str, Any] = {}
    for number, (kind, inputs) in enumerate(nodes, 1):
        link = {"image": [str(number - 1), 0]} if number > 1 else {}
        found[str(number)] = {"class_type": kind, "inputs": {**inputs, **link}}
    found["save"] = {
        "class_type": "SaveImage",
        "inputs": {"images": [str(len(nodes)), 0], "filename_prefix": "x"},
    }
    return found


def taking(megabytes: int, salt: int = 0) -> tuple[str, dict[str, Any]]:
    inputs = {"megabytes": megabytes, "outcome": "allocate", "keep": True, "salt": salt}
    return "EaselAllocate", inputs


def sleeping(seconds: float) -> tuple[str, dict[str, Any]]:
    return "EaselSleep", {"seconds": seconds, "salt": 0}


async def event(platform: Platform, reason: str, **fields: Any) -> dict[str, Any]:
    """Wait until something was told of the service."""

    async def look() -> dict[str, Any] | None:
        events = (await platform.control("GET", "/services/draw/events", **fields))["events"]
        return next((one for one in events if one["reason"] == reason), None)

    return await until(look, timeout=60)


async def instance(platform: Platform) -> dict[str, Any]:
    (found,) = (await platform.control("GET", "/services/draw/instances"))["instances"]
    return dict(found)


async def back(platform: Platform) -> dict[str, Any]:
    """Wait until the instance was started again and is ready."""

    async def look() -> dict[str, Any] | None:
        found = await instance(platform)
        return found if found["restarts"] and found["status"] == "ready" else None

    return await until(look, timeout=60)


async def test_an_instance_beyond_its_limit_is_ended_and_started_again(tmp_path: Path) -> None:
    async with running_platform(tmp_path, fleet=FLEET) as platform:
        service = await platform.deploy("draw", memory=LIMIT)
        before = await instance(platform)
        await service.run(prompt(taking(1)))
        await service.run(prompt(taking(MUCH, salt=1)))
        told = await event(platform, "OOMKilled")
        assert "host memory exhausted" in told["message"]
        assert "450 MiB allowed" in told["message"]
        assert "started again in" in told["message"]
        assert "lower the resolution" in told["advice"]
        assert "--memory" in told["advice"]
        assert told["log"]
        after = await back(platform)
        assert after["id"] == before["id"]
        assert after["last_state"] == "OOMKilled"
        await service.run(prompt(taking(1, salt=2)))


async def test_a_task_that_needs_more_than_there_is_fails_alone(tmp_path: Path) -> None:
    tasks = {"max_delivery": 2, "lease_seconds": 4, "renew_seconds": 1}
    async with running_platform(tmp_path, fleet=FLEET, tasks=tasks) as platform:
        service = await platform.deploy("draw", memory=LIMIT, edition="api")
        await service.submit(prompt(taking(MUCH), sleeping(600)), "too-large")
        await service.submit(prompt(taking(1, salt=1)), "small")
        ended = await service.ended("too-large", timeout=90)
        assert ended["state"] == "failed"
        assert ended["error"]["code"] == "task_lost"
        assert (await service.ended("small", timeout=90))["state"] == "succeeded"


async def test_an_engine_that_is_killed_alone(tmp_path: Path) -> None:
    """As the kernel kills the largest process: the agent lives on, starts another, and the task is run again."""
    async with running_platform(tmp_path, fleet=FLEET) as platform:
        service = await platform.deploy("draw", edition="api")
        before = await instance(platform)
        await service.submit(prompt(sleeping(3)), "a")

        async def running() -> bool:
            return bool((await service.status("a"))["state"] == "running")

        await until(running, timeout=30)
        for process in platform.descendants():
            with contextlib.suppress(psutil.Error):
                if "engine" in process.cmdline() and "agent" not in process.cmdline():
                    process.kill()
        ended = await service.ended("a")
        assert ended["state"] == "succeeded"
        told = await event(platform, "InstanceUnready")
        assert "SIGKILL" in told["message"]
        assert "memory" in told["advice"]
        after = await instance(platform)
        assert (after["id"], after["restarts"]) == (before["id"], 0)
