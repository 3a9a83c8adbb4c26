"""Everything is killed at random while tasks run: every one ends once, with the result of what was asked, and nothing is left.

Seeded (``EASEL_CHAOS_SEED``) and bounded (``EASEL_CHAOS_TASKS``); `make chaos` runs the long form.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from PIL import Image

from tests.contract.databases import Database as Server
from tests.contract.task_stores import fresh_database
from tests.platforms import Platform, Service, running_platform
from tests.waiting import until

SEED = int(os.environ.get("EASEL_CHAOS_SEED", "20261123"))
TASKS = int(os.environ.get("EASEL_CHAOS_TASKS", "120"))
INSTANCES = 3
CALLERS = 12
SECONDS = 0.1
"""How long a task runs."""
KILLS_APART = 1.5
"""Seconds between two faults: a fault every few tasks, and time for the platform to come back."""

GONE = (aiohttp.ClientError, ConnectionError, TimeoutError)


def colour_of(number: int) -> tuple[int, int, int]:
    """The colour that belongs to a task."""
    return (number % 256, number // 256 % 256, 77)


def prompt(number: int) -> dict[str, Any]:
    """A task whose picture has a colour that no other task asks for."""
    red, green, blue = colour_of(number)
    colour = red * 65536 + green * 256 + blue
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": colour},
        },
        "2": {
            "class_type": "EaselSleep",
            "inputs": {"seconds": SECONDS, "salt": 0, "image": ["1", 0]},
        },
        "3": {
            "class_type": "SaveImage",
            "inputs": {"images": ["2", 0], "filename_prefix": f"chaos-{number}"},
        },
    }


class Caller:
    """A client that retries blindly, as the vendor's SDK does."""

    def __init__(self, service: Service, results: dict[str, dict[str, Any]]) -> None:
        self._service = service
        self._results = results

    async def call(self, number: int) -> None:
        """Submit a task until it is accepted, ask for it until it has ended."""
        task_id = f"t-{number}"

        async def accepted() -> bool:
            with contextlib.suppress(*GONE, AssertionError):
                await self._service.submit(prompt(number), task_id)
                return True
            return False

        await until(accepted, timeout=120, pause=0.1)

        async def over() -> dict[str, Any] | None:
            with contextlib.suppress(*GONE, AssertionError):
                found = await self._service.status(task_id)
                return found if found["ended"] else None
            return None

        self._results[task_id] = await until(over, timeout=180, pause=0.2)


class Faults:
    """What goes wrong."""

    def __init__(self, platform: Platform, dice: random.Random) -> None:
        self._platform = platform
        self._dice = dice
        self.done: list[str] = []

    def _processes(self, word: str) -> list[psutil.Process]:
        found = []
        for process in self._platform.descendants():
            with contextlib.suppress(psutil.Error):
                if word in process.cmdline():
                    found.append(process)
        return found

    async def _cut(self) -> bool:
        """Break every connection to the gateway, agents' and callers'; False where only root may, or there is no `ss`."""
        if shutil.which("ss") is None or os.geteuid() != 0:
            sys.stderr.write("sockets are not cut: that needs root and ss (iproute2)\n")
            return False
        port = f":{self._platform.port}"
        process = await asyncio.create_subprocess_exec(
            *("ss", "--kill", "dst", "127.0.0.1", "dport", "=", port),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return await process.wait() == 0

    async def one(self) -> None:
        """Let one thing go wrong."""
        kind = self._dice.choice(["platform", "agent", "engine", "hang", "cut"])
        if kind == "cut":
            if not await self._cut():
                return
        elif kind == "platform":
            await self._platform.kill()
            await self._platform.start()
        else:
            candidates = self._processes("engine" if kind == "engine" else "agent")
            if not candidates:
                return
            victim = self._dice.choice(sorted(candidates, key=lambda one: one.pid))
            with contextlib.suppress(psutil.Error):
                if kind == "hang":  # as good as a cut: the socket stays silent for a while
                    victim.send_signal(signal.SIGSTOP)
                    await asyncio.sleep(0.5)
                    victim.send_signal(signal.SIGCONT)
                else:
                    victim.kill()
        self.done.append(kind)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def database(request: pytest.FixtureRequest) -> str | None:
    """The platform's state: its own file, or a server."""
    if request.param == "sqlite":
        return None
    server: Server = request.getfixturevalue("postgresql")
    if server.process is None:
        server.start()
    return fresh_database(server)


@pytest.mark.timeout(900)
async def test_every_task_ends_once_whatever_dies(tmp_path: Path, database: str | None) -> None:
    dice = random.Random(SEED)
    async with running_platform(
        tmp_path,
        database,
        tasks={"lease_seconds": 4, "renew_seconds": 1, "max_delivery": 50},
        fleet={"cpu_slots": INSTANCES, "backoff_max_seconds": 1, "check_interval": 0.5},
    ) as platform:
        service = await platform.deploy("chaos", edition="api", instances=INSTANCES)
        faults = Faults(platform, dice)
        results: dict[str, dict[str, Any]] = {}
        numbers = iter(range(TASKS))

        async def work() -> None:
            for number in numbers:
                await Caller(service, results).call(number)

        callers = [asyncio.create_task(work()) for _ in range(CALLERS)]
        while not all(caller.done() for caller in callers):
            await asyncio.wait(callers, timeout=KILLS_APART)
            if not all(caller.done() for caller in callers):
                await faults.one()
        for caller in callers:
            caller.result()
        assert faults.done, "nothing went wrong: the test shows nothing"

        assert len(results) == TASKS
        failed = {k: v["error"] for k, v in results.items() if v["state"] != "succeeded"}
        assert not failed
        for number in range(TASKS):
            await _is_of_the_right_colour(service, number, results[f"t-{number}"])
        counts = await platform.control("GET", "/services/chaos/tasks", limit=500)
        assert len(counts["tasks"]) == min(TASKS, 500)
        await platform.control("DELETE", "/services/chaos", wait="true")
        await _nothing_is_left(platform)


async def _is_of_the_right_colour(service: Service, number: int, task: dict[str, Any]) -> None:
    (image,) = task["nodes"]["3"]["images"]
    path = image["url"].removeprefix(f"/api/predict/{service.name}")
    async with service.request("GET", path) as answer:
        assert answer.status == 200
        picture = Image.open(io.BytesIO(await answer.read()))
    assert picture.getpixel((0, 0)) == colour_of(number)


async def _nothing_is_left(platform: Platform) -> None:
    async def alone() -> bool:
        return [one.pid for one in platform.descendants()] == [platform.pid]

    await until(alone, timeout=30)
