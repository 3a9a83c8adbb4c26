"""Instances as processes of this machine, which outlive the platform's own process.

An instance is ``easel agent --join … -- engine`` in a session of its own; the agent looks after the engine. What an instance
keeps for itself is in ``<home>/instances/<id>/``: its log, its token, the engine's temporary files.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import sys
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

import msgspec
import psutil

from easel.errors import InstanceFailed
from easel.fleet.runtime import Device, Handle, Launch, Vitals
from easel.fleet.runtimes import detached
from easel.fleet.runtimes.command import (
    INSTANCE_FLAG,
    agent_command,
    engine_command,
    engine_folders,
)
from easel.fleet.runtimes.devices import devices
from easel.fleet.runtimes.preparing import environment
from easel.services.folders import data_directory
from easel.services.installations import Installations
from easel.services.model import Mount
from easel.settings import FleetSettings
from easel.storage.data_directory import make_tree

LOG, PREVIOUS = "log", "log.1"
MOST_LOG = 32 * 1024 * 1024
"""Bytes of a log from which on its older part is thrown away."""
KEPT_LOG = 8 * 1024 * 1024
HOME_VARIABLE = "EASEL_INSTANCE_HOME"
"""Tells instances of this platform from those of another one on the same machine."""

_REMEDIES = {
    errno.ENOSPC: ("DiskFull", "the disk is full: free some space, then `easel start`"),
    errno.EDQUOT: ("DiskFull", "the disk quota is used up: free some space, then `easel start`"),
    errno.EROFS: ("ReadOnly", "the file system is read-only: choose another storage"),
    errno.EACCES: ("PermissionDenied", "make the folder writable for the platform's user"),
    errno.EPERM: ("PermissionDenied", "make the folder writable for the platform's user"),
}


class LocalRuntime:
    """A `Runtime` of this machine's processes."""

    name = "local"

    def __init__(self, home: Path, settings: FleetSettings) -> None:
        self._home = home.absolute()
        self._settings = settings
        self._installations = Installations(self._home)

    async def devices(self) -> list[Device]:
        """Return this machine's GPUs, or slots of its CPU."""
        return await asyncio.to_thread(devices, self._settings)

    async def start(self, launch: Launch) -> AsyncIterator[Handle]:
        """Prepare the folders, then start the agent."""
        folder = self._home / "instances" / launch.instance
        handle: Handle = {"instance": launch.instance, "folder": str(folder)}
        yield handle
        try:
            command = await asyncio.to_thread(self._prepare, launch, folder)
            pid, started = await asyncio.to_thread(self._spawn, launch, folder, command)
        except OSError as error:
            reason, advice = _REMEDIES.get(error.errno or 0, ("StartFailed", None))
            raise InstanceFailed(
                reason,
                f"the instance cannot be started: {error.filename or ''}: {error.strerror}",
                hint=advice,
            ) from error
        yield {**handle, "pid": pid, "started": started}

    def _prepare(self, launch: Launch, folder: Path) -> list[str]:
        """Make folders, install what the service wants, and return the command line."""
        spec = launch.spec
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = folder / LOG
        with contextlib.suppress(FileNotFoundError):
            log.replace(folder / PREVIOUS)
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(launch.token)
        (folder / "engine").mkdir(exist_ok=True)
        mounts = self._mounts(spec.mounts, folder)
        data = data_directory(spec, self._home)
        make_tree(data)
        python = None
        if spec.engine.kind == "comfyui":
            python = environment(
                spec,
                self._installations.resolve(spec.engine.comfyui),
                mounts=mounts,
                folder=self._home / "environments",
                env=self._environment(launch),
                log=log,
            )
        return agent_command(launch, folder, data) + engine_command(
            launch,
            folder=folder,
            data=data,
            mounts=mounts,
            installations=self._installations,
            python=python,
        )

    def _mounts(self, mounts: Sequence[Mount], folder: Path) -> list[Mount]:
        """Give every ``empty_dir`` a folder of the instance's own. Raises InstanceFailed for a mount that is not there."""
        found = []
        for number, mount in enumerate(mounts):
            source = mount.source
            if source is None:
                base = Path("/dev/shm") if mount.memory and Path("/dev/shm").is_dir() else folder  # noqa: S108
                empty = base / f"easel-empty-{folder.name}-{number}"
                empty.mkdir(exist_ok=True)
                source = str(empty)
            elif mount.read_only and not Path(source).is_dir():
                raise InstanceFailed(
                    "MountMissing",
                    f"the folder {source} that is mounted at {mount.mount_path} is not there",
                    hint="make it, or change storage in the service's specification",
                )
            found.append(msgspec.structs.replace(mount, source=source))
        return found

    def _environment(self, launch: Launch) -> dict[str, str]:
        env = {
            **os.environ,
            **launch.spec.env,
            HOME_VARIABLE: str(self._home),
            "EASEL_AGENT__ORPHAN_TIMEOUT": str(self._settings.orphan_timeout),
            "EASEL_AGENT__SUPERVISION__START_TIMEOUT": str(self._settings.start_timeout),
            "EASEL_AGENT__SUPERVISION__DRAIN_TIMEOUT": str(
                max(1.0, launch.spec.termination_grace_seconds)
            ),
        }
        if launch.spec.engine.kind == "builtin":
            env |= engine_folders(launch, self._home / "instances" / launch.instance)
        if launch.device is not None and not launch.device.startswith("cpu"):
            env["CUDA_VISIBLE_DEVICES"] = launch.device
        # An agent reads its settings from its own flags and these variables, not from a file that lies about.
        env.pop("EASEL_CONFIG", None)
        return env

    def _spawn(self, launch: Launch, folder: Path, command: list[str]) -> tuple[int, float]:
        return detached.spawn(command, env=self._environment(launch), log=folder / LOG)

    async def stop(self, handle: Handle, *, grace: float) -> None:
        """End the agent, which ends its engine; by force after ``grace`` seconds."""
        await asyncio.to_thread(self._stop, handle, grace)

    def _stop(self, handle: Handle, grace: float) -> None:
        found = self._found(handle)
        if found is not None:
            detached.stop(found, grace)
        # Started just before a crash, or its handle was not stored: found by its flag.
        for process in self._marked():
            if _instance_of(process) == handle["instance"]:
                detached.stop(process, grace)

    def _found(self, handle: Handle) -> psutil.Process | None:
        if "pid" not in handle:
            return None
        return detached.find(int(handle["pid"]), float(handle["started"]))

    async def check(self, handles: dict[str, Handle]) -> dict[str, Vitals]:
        """Look at every instance's process."""
        return await asyncio.to_thread(self._check, handles)

    def _check(self, handles: dict[str, Handle]) -> dict[str, Vitals]:
        found = {}
        for instance, handle in handles.items():
            process = self._found(handle)
            if process is not None:
                _shorten(Path(handle["folder"]) / LOG)
                found[instance] = Vitals(
                    instance=instance, alive=True, memory_bytes=detached.memory(process)
                )
                continue
            code = detached.reap(int(handle["pid"])) if "pid" in handle else None
            word, message = _ended(code)
            found[instance] = Vitals(instance=instance, alive=False, exit=word, message=message)
        return found

    async def logs(self, handle: Handle, *, lines: int, previous: bool = False) -> list[str]:
        """Return the last lines of the instance's log."""
        path = Path(handle.get("folder", "")) / (PREVIOUS if previous else LOG)
        return await asyncio.to_thread(_tail, path, lines)

    async def strays(self, known: Collection[str]) -> list[Handle]:
        """Find this platform's agents by their flag."""
        return await asyncio.to_thread(self._strays, set(known))

    def _strays(self, known: set[str]) -> list[Handle]:
        found: list[Handle] = []
        for process in self._marked():
            instance = _instance_of(process)
            if instance is not None and instance not in known:
                with contextlib.suppress(psutil.Error):
                    found.append(
                        {
                            "instance": instance,
                            "folder": str(self._home / "instances" / instance),
                            "pid": process.pid,
                            "started": process.create_time(),
                        }
                    )
        return found

    def _marked(self) -> list[psutil.Process]:
        """Every agent of this platform."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            with contextlib.suppress(psutil.Error):
                if (
                    _instance_of(process) is not None
                    and process.environ().get(HOME_VARIABLE) == str(self._home)
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
        return found

    async def discard(self, handle: Handle) -> None:
        """Remove the instance's folder."""
        await asyncio.to_thread(self._discard, handle)

    def _discard(self, handle: Handle) -> None:
        folder = Path(handle["folder"])
        for empty in (Path("/dev/shm"), folder):  # noqa: S108
            for one in empty.glob(f"easel-empty-{folder.name}-*"):
                shutil.rmtree(one, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def _instance_of(process: psutil.Process) -> str | None:
    """Return the instance a process is the agent of."""
    words: list[str] = process.info["cmdline"] or [] if hasattr(process, "info") else []
    words = words or process.cmdline()
    if INSTANCE_FLAG in words and words[:1] == [sys.executable]:
        return words[words.index(INSTANCE_FLAG) + 1]
    return None


def _ended(code: int | None) -> tuple[str, str]:
    if code is None:
        return "Error", "its agent has ended"
    if code == 0:
        return "Completed", "its agent ended by itself"
    if code < 0:
        return "Killed", f"its agent was ended by signal {-code}"
    return "Error", f"its agent ended with exit code {code}"


def _tail(path: Path, lines: int) -> list[str]:
    try:
        with path.open(errors="replace") as log:
            return [line.rstrip("\n") for line in deque(log, lines)]
    except OSError:
        return []


def _shorten(log: Path) -> None:
    """Throw the older part of a long log away; its writer appends, so it goes on at the new end."""
    with contextlib.suppress(OSError):
        if log.stat().st_size <= MOST_LOG:
            return
        with log.open("r+b") as file:
            file.seek(-KEPT_LOG, os.SEEK_END)
            kept = file.read()
            file.seek(0)
            file.write(kept[kept.find(b"\n") + 1 :])
            file.truncate()
