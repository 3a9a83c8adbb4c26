"""Setting up ComfyUI with git and pip, or registering one that is there. Blocks; says what it does line by line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from easel.errors import ConfigurationError
from easel.services.installations import Installation, Installations, version_of

SOURCE = "https://github.com/comfyanonymous/ComfyUI"
TORCH_INDEX = "https://download.pytorch.org/whl/"
CHECK_TIMEOUT = 300
"""Seconds until torch must have been imported once."""
LAST_LINES = 15

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to set up."""

    name: str | None = None
    version: str | None = None
    """A release such as 0.3.64, or any tag, branch or commit of the source; None: the newest."""
    source: str | None = None
    """A folder that holds a ComfyUI, or a git URL."""
    python: Path | None = None
    """The interpreter: of the folder's environment, or to make a new environment with."""
    torch: str | None = None
    """Which build of torch, as its index names it: ``cpu``, ``cu126``; None: what pip finds."""


def install(installations: Installations, order: Order, say: Say) -> Installation:
    """Set up a ComfyUI. Raises ConfigurationError with what was tried and what else can be done.

    A half-made one is kept, marked as incomplete; the same order goes on with it.
    """
    folder = Path(order.source).expanduser() if order.source else None
    if folder is not None and (folder / "main.py").is_file():
        return _register(installations, order, folder.absolute(), say)
    if folder is not None and folder.is_dir() and not (folder / ".git").exists():
        raise ConfigurationError(
            f"{folder} is no ComfyUI: it has no main.py", hint="name the folder that holds main.py"
        )
    return _build(installations, order, say)


def _register(installations: Installations, order: Order, folder: Path, say: Say) -> Installation:
    """Note a ComfyUI that is there, with its own interpreter, after a short look at both."""
    python = order.python
    if python is None:
        candidates = (folder / "venv/bin/python", folder / ".venv/bin/python")
        python = next((one for one in candidates if one.exists()), None)
    if python is None:
        raise ConfigurationError(
            f"which Python runs the ComfyUI in {folder}?", hint="name it: --python PATH"
        )
    if not python.exists():
        raise ConfigurationError(f"there is no Python at {python}")
    python = python.absolute()
    version = version_of(folder)
    name = order.name or version or folder.name
    say(f"checking {folder} with {python}")
    _run([str(python), "-c", "import torch, aiohttp"], say, timeout=CHECK_TIMEOUT)
    found = Installation(name=name, folder=folder, python=python, version=version)
    installations.save(found)
    return found


def _build(installations: Installations, order: Order, say: Say) -> Installation:
    """Clone, make an environment, install."""
    name = order.name or order.version or "latest"
    known = next((one for one in installations.all() if one.name == name), None)
    if known is not None and known.ready:
        say(f"{name} is installed already; `easel comfyui remove {name}` makes room for another")
        return known
    home = installations.folder / name
    folder, environment = home / "ComfyUI", home / "venv"
    source = order.source or SOURCE
    begun = Installation(
        name=name,
        folder=folder,
        python=environment / "bin" / "python",
        ready=False,
        error="its installation did not come to its end; the same command goes on with it",
    )
    installations.save(begun)
    try:
        if not (folder / "main.py").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            say(f"fetching {source}")
            _run(["git", "clone", "--filter=blob:none", source, str(folder)], say)
        if order.version is not None:
            _check_out(folder, order.version, say)
        if not begun.python.exists():
            say("making its environment")
            _run([str(order.python or sys.executable), "-m", "venv", str(environment)], say)
        pip = [str(begun.python), "-m", "pip", "install"]
        if order.torch is not None:
            index = ["--index-url", TORCH_INDEX + order.torch]
            _run([*pip, "torch", "torchvision", "torchaudio", *index], say)
        say("installing its requirements")
        _run([*pip, "-r", str(folder / "requirements.txt")], say)
    except ConfigurationError as error:
        installations.save(msgspec.structs.replace(begun, error=error.message))
        error.hint = error.hint or (
            "if this machine cannot reach the source, copy a ComfyUI here and name it: "
            "easel comfyui install --from FOLDER --python ITS_PYTHON"
        )
        raise
    done = msgspec.structs.replace(begun, ready=True, error="", version=version_of(folder))
    installations.save(done)
    return done


def _check_out(folder: Path, version: str, say: Say) -> None:
    tags = _run(["git", "-C", str(folder), "tag", "--list", f"v{version}"], lambda _: None)
    target = f"v{version}" if tags else version
    _run(["git", "-C", str(folder), "checkout", "--quiet", target], say)


def remove(installations: Installations, name: str) -> Installation:
    """Forget an installation; what Easel itself has set up is deleted, a registered folder is left alone.

    Raises ConfigurationError for an unknown one.
    """
    known = {one.name: one for one in installations.all()}
    if name not in known:
        listed = ", ".join(known) or "there is none"
        raise ConfigurationError(f"no installation is called {name!r}", hint=f"there are: {listed}")
    shutil.rmtree(installations.folder / name, ignore_errors=True)
    return known[name]


def _run(command: Sequence[str], say: Say, *, timeout: float | None = None) -> list[str]:
    """Run a step and say what it says. Raises ConfigurationError with its last lines."""
    lines: list[str] = []
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                say(lines[-1])
            code = process.wait(timeout)
    except OSError as error:
        raise ConfigurationError(
            f"{command[0]} cannot be run: {error.strerror}", hint=f"is {command[0]} installed?"
        ) from error
    if code != 0:
        shown = " ".join(command[:6])
        raise ConfigurationError(f"failed (exit code {code}): {shown} ...", log=lines[-LAST_LINES:])
    return lines
