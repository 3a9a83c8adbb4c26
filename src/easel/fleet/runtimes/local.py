"""Instances as processes of this machine, which outlive the platform's own process.

An instance is ``easel agent --join … -- engine`` in a session of its own; the agent looks after the engine. What an instance
keeps for itself is in ``<home>/instances/<id>/``: its log, its token, the engine's temporary files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import psutil

from easel.errors import EngineUnavailable
from easel.fleet.runtime import Device, Handle, Launch, Vitals
from easel.fleet.runtimes import processes
from easel.fleet.runtimes.command import INSTANCE_FLAG
from easel.fleet.runtimes.devices import devices
from easel.fleet.runtimes.log_files import last_lines, shorten
from easel.fleet.runtimes.starting import (
    HOME_VARIABLE,
    INSTANCE_VARIABLE,
    LOG,
    PREVIOUS,
    SHARED_MEMORY,
    Starting,
    empty_prefix,
    home_mark,
)
from easel.services.installations import Installations
from easel.settings import FleetSettings

MOST_AT_A_TIME = 32
"""Instances that are prepared or stopped at a time; others wait."""
FORCE_TIMEOUT = 5.0
"""Seconds after which a process that was killed and is still there is given up for now."""

Made = TypeVar("Made")


class LocalRuntime:
    """A `Runtime` of this machine's processes."""

    name = "local"

    def __init__(self, home: Path, settings: FleetSettings) -> None:
        self._home = home.absolute()
        self._settings = settings
        self._installations = Installations(self._home)
        self._processes = processes.Processes()
        # Of its own: preparing and stopping last long, and would keep everybody else's short work waiting.
        self._threads = ThreadPoolExecutor(MOST_AT_A_TIME, thread_name_prefix="easel instances")
        self._kills: int | None = None
        """How often the system had ended a process for want of memory when it was last looked."""

    async def devices(self) -> list[Device]:
        """Return this machine's GPUs, or slots of its CPU."""
        return await asyncio.to_thread(devices, self._settings)

    # Starting.

    async def start(self, launch: Launch) -> AsyncIterator[Handle]:
        """Prepare the folders, then start the agent."""
        folder = self._folder(launch.instance)
        handle: Handle = {"instance": launch.instance, "folder": str(folder)}
        yield handle
        # What an earlier start left that was cut off would share its folder, and its name with the gateway.
        await self._to_the_end(lambda: self._stop(handle, 0.0), lambda: None)
        starting = Starting(launch, self._home, self._settings, self._installations, folder)
        command = await self._to_the_end(starting.prepare, starting.cancel)
        pid, started = await self._to_the_end(lambda: self._spawn(starting, command), lambda: None)
        yield {**handle, "pid": pid, "started": started}

    async def _to_the_end(self, work: Callable[[], Made], cancel: Callable[[], None]) -> Made:
        """Run in a thread; when cancelled, wait all the same until the thread has left: nothing may go on behind us."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            cancel()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()
            raise

    def _spawn(self, starting: Starting, command: list[str]) -> tuple[int, float]:
        with starting.failing():
            return self._processes.spawn(
                command, env=starting.env, cwd=starting.folder, log=starting.log
            )

    def _folder(self, instance: str) -> Path:
        return self._home / "instances" / instance

    # Stopping.

    async def stop(self, handle: Handle, *, grace: float) -> None:
        """End the agent, which ends its engine; by force after ``grace`` seconds."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._stop, handle, grace)

    def _stop(self, handle: Handle, grace: float) -> None:
        agent = self._agent(handle)
        found = [agent] if agent is not None else self._agents_of(handle["instance"])
        left: dict[int, psutil.Process] = {}
        for one in found:
            left |= {below.pid: below for below in processes.tree(one)}
            with contextlib.suppress(psutil.Error):
                self._processes.ask(one.pid, processes.started_at(one.pid), grace)
        # What survived it, what was started just before a crash, and what nobody is the parent of.
        until = time.monotonic() + FORCE_TIMEOUT
        while True:
            for one in self._of(handle["instance"]):
                # With what it started, which need not be marked, and is nobody's once its parent is gone.
                left |= {below.pid: below for below in processes.tree(one)}
            rest = self._processes.kill(left.values(), FORCE_TIMEOUT)
            left = {one.pid: one for one in rest}
            if not left and not self._of(handle["instance"]):
                return
            if time.monotonic() > until:
                said = f"processes do not end although they were killed: {sorted(left)}"
                raise EngineUnavailable(said)

    def _agent(self, handle: Handle) -> psutil.Process | None:
        if "pid" not in handle:
            return None
        return self._processes.find(int(handle["pid"]), float(handle["started"]))

    def _agents_of(self, instance: str) -> list[psutil.Process]:
        return [one for one in self._of(instance) if _instance_of(one) == instance]

    def _of(self, instance: str) -> list[psutil.Process]:
        return [process for process, owner in self._marked() if owner == instance]

    def _marked(self) -> Iterator[tuple[psutil.Process, str]]:
        """Yield every process of this platform's instances, with the instance it belongs to."""
        mark = home_mark(self._home)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                env = process.environ()
                owner = env.get(INSTANCE_VARIABLE)
                if (
                    owner is not None
                    and env.get(HOME_VARIABLE) == mark
                    and process.pid != os.getpid()
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    yield process, owner

    # Watching.

    async def check(self, handles: dict[str, Handle]) -> dict[str, Vitals]:
        """Look at every instance's process."""
        return await asyncio.to_thread(self._check, handles)

    def _check(self, handles: dict[str, Handle]) -> dict[str, Vitals]:
        alive = {
            instance: process.pid
            for instance, handle in handles.items()
            if (process := self._agent(handle)) is not None
        }
        # After they were looked at: who is gone by now was counted before.
        before, self._kills = self._kills, processes.out_of_memory_kills()
        starved = None not in (before, self._kills) and before != self._kills
        used = processes.memory(alive.values()) if alive else {}
        found = {}
        for instance, handle in handles.items():
            if instance in alive:
                shorten(Path(handle["folder"]) / LOG)
                found[instance] = Vitals(
                    instance=instance, alive=True, memory_bytes=used[alive[instance]]
                )
                continue
            code = None
            if "pid" in handle:
                code = self._processes.exit_code(int(handle["pid"]), float(handle["started"]))
            word, message = _ended(code, starved=starved)
            found[instance] = Vitals(instance=instance, alive=False, exit=word, message=message)
        return found

    async def logs(self, handle: Handle, *, lines: int, previous: bool = False) -> list[str]:
        """Return the last lines of the instance's log."""
        path = Path(handle.get("folder", "")) / (PREVIOUS if previous else LOG)
        return await asyncio.to_thread(last_lines, path, lines)

    async def strays(self, known: Collection[str]) -> list[Handle]:
        """Find what belongs to instances of this platform that are not among the known ones."""
        return await asyncio.to_thread(self._strays, set(known))

    def _strays(self, known: set[str]) -> list[Handle]:
        found: dict[str, Handle] = {}
        for process, instance in self._marked():
            if instance in known:
                continue
            handle = found.setdefault(
                instance, {"instance": instance, "folder": str(self._folder(instance))}
            )
            with contextlib.suppress(psutil.Error):
                if _instance_of(process) == instance:
                    handle |= {"pid": process.pid, "started": processes.started_at(process.pid)}
        return list(found.values())

    async def discard(self, handle: Handle) -> None:
        """Remove the instance's folder."""
        await asyncio.to_thread(self._discard, handle)

    def _discard(self, handle: Handle) -> None:
        folder = Path(handle["folder"])
        if folder.parent != self._home / "instances":
            return
        for one in SHARED_MEMORY.glob(f"{empty_prefix(folder)}*"):
            shutil.rmtree(one, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def _instance_of(process: psutil.Process) -> str | None:
    """Return the instance a process is the agent of."""
    words = process.cmdline()
    if INSTANCE_FLAG in words[:-1] and words[:1] == [sys.executable]:
        return words[words.index(INSTANCE_FLAG) + 1]
    return None


def _ended(code: int | None, *, starved: bool) -> tuple[str, str]:
    """Return in a word and in words how an agent ended; ``starved``: the system has ended a process for want of memory."""
    if starved and code in (None, -signal.SIGKILL):
        return "OOMKilled", "host memory exhausted: the system ended its agent"
    if code is None:
        return (
            "Error",
            "its agent has ended; how is not known, an earlier process of the platform had started it",
        )
    if code == 0:
        return "Completed", "its agent ended by itself"
    if code > 0:
        return "Error", f"its agent ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    word = "Killed" if -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT) else "Error"
    return word, f"its agent was ended by {name}"
