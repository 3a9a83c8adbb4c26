"""One start of an instance on this machine: its folder, what it wants installed, its environment, its command line."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from easel.errors import EngineUnavailable, InstanceFailed
from easel.fleet.runtime import Launch
from easel.fleet.runtimes.command import agent_command, builtin_variables, engine_command
from easel.fleet.runtimes.preparing import Steps, prepare
from easel.services.folders import data_directory
from easel.services.installations import Installation, Installations
from easel.services.model import Mount
from easel.services.script import real_paths
from easel.settings import FleetSettings
from easel.storage.data_directory import make_tree

LOG, PREVIOUS = "log", "log.1"
CONFIG = "easel.toml"
HOME_VARIABLE = "EASEL_INSTANCE_HOME"
"""Tells processes of this platform's instances from those of another one on the same machine."""
INSTANCE_VARIABLE = "EASEL_INSTANCE"
"""The instance a process belongs to, whoever its parent is by now."""
HANDED_ON = ("EASEL_AGENT__", "EASEL_ENGINE__")
"""Settings in the platform's own environment that are meant for its instances, too; all others are its own business."""
WITHHELD = frozenset({"PGPASSWORD"})
"""What else of the platform's environment is not for other people's Python."""
GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
OURS = frozenset({GPU_VARIABLE, "USE_AGENT"})
"""What a service's env and script do not decide, besides everything that begins with EASEL_."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - for empty_dir of medium Memory

_REASONS = {
    errno.ENOSPC: "DiskFull",
    errno.EDQUOT: "DiskFull",
    errno.EROFS: "ReadOnly",
    errno.EACCES: "PermissionDenied",
    errno.EPERM: "PermissionDenied",
    errno.EEXIST: "FileInTheWay",
    errno.ENOTDIR: "FileInTheWay",
}
_PASSING = frozenset(
    {
        errno.EAGAIN,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
        errno.EADDRINUSE,
        errno.EBUSY,
        errno.EIO,
    }
)
"""What may be over the next time: too many processes or open files, no memory, a server of files that is away."""


class Starting:
    """One start. Its methods block: for use in a thread."""

    def __init__(
        self,
        launch: Launch,
        home: Path,
        settings: FleetSettings,
        installations: Installations,
        folder: Path,
    ) -> None:
        self.folder = folder
        self.log = folder / LOG
        self._launch = launch
        self._home = home
        self._settings = settings
        self._installations = installations
        self._data = data_directory(launch.spec, home)
        self._env: dict[str, str] = {}
        self._cancelled = False
        self._steps: Steps | None = None

    def cancel(self) -> None:
        """End what `prepare` runs in another thread, and let it begin nothing more."""
        self._cancelled = True
        if self._steps is not None:
            self._steps.cancel()

    def prepare(self) -> list[str]:
        """Make folders, install what the service wants, and return the command line.

        Raises InstanceFailed, and Cancelled after `cancel`.
        """
        with self.failing():
            self._env = self._environment()
            self._make_folder()
            mounts = self._mounts()
            own = {name: real_paths(value, mounts) for name, value in self._launch.spec.env.items()}
            self._env |= _allowed(own)
            make_tree(self._data)
            python = self._prepare_python(mounts)
            return agent_command(self._launch, self.folder, self._data) + engine_command(
                self._launch,
                folder=self.folder,
                data=self._data,
                mounts=mounts,
                installations=self._installations,
                python=python,
            )

    @property
    def env(self) -> dict[str, str]:
        """The agent's environment, which the engine inherits."""
        return self._env

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Tell what the system refuses: as `InstanceFailed`, or as EngineUnavailable where it may do it the next time."""
        try:
            yield
        except OSError as error:
            reason = _REASONS.get(error.errno or 0, "StartFailed")
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            said = f"the instance cannot be started: {what}"
            if error.errno in _PASSING:
                raise EngineUnavailable(said) from error
            raise InstanceFailed(reason, said) from error

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        (self.folder / "engine").mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.log.replace(self.folder / PREVIOUS)
        self.log.touch()
        # Its agent reads its settings from flags and variables, not from a file that lies about.
        (self.folder / CONFIG).write_bytes(b"")
        token = self.folder / "token"
        token.unlink(missing_ok=True)
        with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(self._launch.token)

    def _mounts(self) -> list[Mount]:
        """Give every ``empty_dir`` a folder of the instance's own. Raises InstanceFailed for a mount that is not there."""
        found = []
        for number, mount in enumerate(self._launch.spec.mounts):
            source = mount.source
            if source is None:
                shared = mount.memory and SHARED_MEMORY.is_dir()
                base = SHARED_MEMORY if shared else self.folder
                source = str(_private(base / f"{empty_prefix(self.folder)}{number}"))
            elif not Path(source).is_dir() and (mount.read_only or not _is_data(mount, self._data)):
                raise InstanceFailed(
                    "MountMissing",
                    f"the folder {source} that is mounted at {mount.mount_path} is not there",
                    hint="make it, or change storage in the service's specification",
                )
            found.append(msgspec.structs.replace(mount, source=source))
        return found

    def _prepare_python(self, mounts: Sequence[Mount]) -> Path | None:
        """Return the interpreter with what the service wants installed; None where its engine has no Python of its own."""
        spec = self._launch.spec
        if spec.engine.kind == "builtin":
            if spec.requirements or spec.requirements_path or spec.engine.prepare:
                self.log.write_text("nothing is prepared for the built-in engine\n")
            return None
        if spec.engine.kind == "comfyui":
            installation = self._installations.resolve(spec.engine.comfyui)
        else:
            own = Path(sys.executable)
            installation = Installation(name="easel", folder=self.folder, python=own)
        steps = self._steps = Steps(self._env, self.log, installation.folder)
        if self._cancelled:
            steps.cancel()
        done = prepare(spec, installation, steps, mounts=mounts, folder=self._home / "environments")
        self._env |= _allowed(done.variables)
        if spec.engine.kind == "command" and done.python != installation.python:
            path = self._env.get("PATH", os.defpath)
            self._env["PATH"] = f"{done.python.parent}{os.pathsep}{path}"
        return done.python

    def _environment(self) -> dict[str, str]:
        launch = self._launch
        env = {
            name: value
            for name, value in os.environ.items()
            if name not in WITHHELD
            and (not name.startswith("EASEL_") or name.startswith(HANDED_ON))
        }
        grace = max(1.0, launch.spec.termination_grace_seconds)
        env |= {
            HOME_VARIABLE: home_mark(self._home),
            INSTANCE_VARIABLE: launch.instance,
            "EASEL_CONFIG": str(self.folder / CONFIG),
            "EASEL_AGENT__ORPHAN_TIMEOUT": str(self._settings.orphan_timeout),
            "EASEL_AGENT__SUPERVISION__START_TIMEOUT": str(self._settings.start_timeout),
            "EASEL_AGENT__SUPERVISION__DRAIN_TIMEOUT": str(grace),
        }
        env.pop("EASEL_AGENT__DEVICE", None)
        env.pop("USE_AGENT", None)
        if launch.device is not None:
            env[GPU_VARIABLE] = launch.device
            env["EASEL_AGENT__DEVICE"] = launch.device
        if launch.spec.engine.kind == "builtin":
            env |= builtin_variables(launch, self.folder)
        return env


def _allowed(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what a service may say of the environment. A name or value that no environment can hold is left out."""
    return {
        name: value
        for name, value in variables.items()
        if name
        and name not in OURS
        and not name.startswith("EASEL_")
        and "=" not in name
        and "\0" not in name + value
    }


def home_mark(home: Path) -> str:
    """Return what stands for a platform in its instances' environment, by whatever path its home is named."""
    return str(home.resolve())


def empty_prefix(folder: Path) -> str:
    """Return how names of an instance's empty folders begin, other than those of every other platform's."""
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return f"easel-empty-{digest}-"


def _private(folder: Path) -> Path:
    """Make a folder for us alone, also in a place where everybody may make one of that name. Raises OSError."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise OSError(errno.EEXIST, "somebody else made it", str(folder))
    folder.chmod(0o700)
    return folder


def _is_data(mount: Mount, data: Path) -> bool:
    return mount.source is not None and Path(mount.source) == data
