"""The places instances can run in: what a test needs to know of each besides the port itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from easel.fleet.runtime import Handle, Launch, Runtime
from easel.fleet.runtimes.local import LocalRuntime
from easel.services.model import EngineSpec, ServiceSpec
from easel.settings import FleetSettings
from tests.waiting import until

NOWHERE = "http://127.0.0.1:9"
"""A gateway that never answers: its agents keep on dialling."""
STARTER = "tests.contract.runtime_starter"
ENGINE = Path(__file__).with_name("standin_engine.py")
ROOT = Path(__file__).parents[2]
GRACE = 20.0


class Place(ABC):
    """Where the instances of one test run."""

    @abstractmethod
    def runtime(self) -> Runtime:
        """Return a runtime that knows nothing of what others started here."""

    @abstractmethod
    def running(self, instance: str | None = None) -> list[int]:
        """Return every process that runs for an instance, for any of them; looked at from outside."""

    @abstractmethod
    def files(self, instance: str) -> list[Path]:
        """Return what lies about for an instance."""

    @abstractmethod
    def kill(self, instance: str) -> None:
        """Kill what `Runtime.check` looks at, as the system would."""

    @abstractmethod
    async def starter(self, launch: Launch, *, dies_unnoticed: bool = False) -> list[Handle]:
        """Have another process start an instance and then be killed (SIGKILL); return the handles it had stored.

        ``dies_unnoticed``: it dies after it started something and before the handle of that.
        """

    def launch(self, instance: str = "one", *flags: str, **fields: Any) -> Launch:
        """Return an instance to start, on an engine of a few lines (`standin_engine.py`)."""
        engine = EngineSpec(
            kind="command", command=[sys.executable, str(ENGINE), "--port", "{port}", *flags]
        )
        whole = {"name": "draw", "edition": "api", "engine": engine, **fields}
        return Launch(
            instance=instance,
            service="draw",
            spec=ServiceSpec(**whole),
            device=None,
            gateway_url=NOWHERE,
            token=f"secret-of-{instance}",
        )

    async def started(self, runtime: Runtime, launch: Launch) -> Handle:
        """Start an instance to the end of its start."""
        handle: Handle = {}
        async for one in runtime.start(launch):
            handle = one
        return handle

    async def speaks(self, runtime: Runtime, handle: Handle, word: str = "engine speaks") -> str:
        """Wait until an instance has printed a line with a word, and return the line."""

        async def look() -> str | None:
            lines = await runtime.logs(handle, lines=100)
            return next((line for line in lines if word in line), None)

        try:
            return await until(look, timeout=40)
        except TimeoutError:
            raise AssertionError(await runtime.logs(handle, lines=100)) from None


class LocalPlace(Place):
    """Processes of this machine."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.settings = FleetSettings(cpu_slots=2)

    def runtime(self) -> LocalRuntime:
        return LocalRuntime(self.home, self.settings)

    def running(self, instance: str | None = None) -> list[int]:
        # By the environment, which all that an instance starts inherits, or by a word of the command line.
        mark = str(self.home / "instances" / instance) if instance else str(self.home)
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                words = [*process.cmdline(), *process.environ().values()]
                if STARTER not in words and any(mark in word for word in words):
                    found.append(process.pid)
        return found

    def files(self, instance: str) -> list[Path]:
        folder = self.home / "instances" / instance
        return [folder, *folder.rglob("*")] if folder.exists() else []

    def kill(self, instance: str) -> None:
        for pid in self.running(instance):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if "agent" in process.cmdline():
                    process.kill()
                    return
        raise AssertionError(f"nothing runs for {instance}")

    async def starter(self, launch: Launch, *, dies_unnoticed: bool = False) -> list[Handle]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", STARTER, str(self.home), *["die"] * dies_unnoticed),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        try:
            async with asyncio.timeout(40):
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(msgspec.json.encode(launch) + b"\n")
                stored: list[Handle] = []
                while (line := await process.stdout.readline()) and line != b"started\n":
                    stored.append(json.loads(line))
        finally:
            # One that is dead already must not be asked again: asyncio would lose how it ended.
            if not dies_unnoticed:
                process.kill()
            async with asyncio.timeout(10):
                assert await process.wait() == -signal.SIGKILL
        return stored


@pytest.fixture(params=["local"])
async def runs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """A place of each kind; nothing of it is left after the test."""
    place = LocalPlace(tmp_path / "home")
    try:
        yield place
    finally:
        for pid in await asyncio.to_thread(place.running):
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).kill()


@pytest.fixture
def secrets_of_the_platform(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the platform's own process was given and nobody else may see."""
    found = {"EASEL_DATABASE": "postgresql://u:hush-1@db/easel", "EASEL_TOKEN": "hush-2"}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return list(found.values())
