"""The command line of an instance: the agent, and behind it the engine."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from easel.errors import InstanceFailed
from easel.fleet.runtime import Launch
from easel.services.installations import Installation, Installations
from easel.services.model import Mount
from easel.services.script import realise

INSTANCE_FLAG = "--instance"
"""Stands in every instance's command line, by which instances are found that nobody remembers."""


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def agent_command(launch: Launch, folder: Path, data: Path) -> list[str]:
    """Return the agent's part: which platform it joins, as which instance."""
    # Isolated from what the service's env says to its own Python, unless Easel itself is found by such words.
    isolated = "-P" if "PYTHONPATH" in os.environ else "-I"
    return [
        *(sys.executable, isolated, "-m", "easel", "agent"),
        *("--join", launch.gateway_url, "--token-file", str(folder / "token")),
        *(INSTANCE_FLAG, launch.instance, "--name", launch.instance),
        *("--storage", str(data), "--data-dir", str(folder / "agent")),
    ]


def engine_command(
    launch: Launch,
    *,
    folder: Path,
    data: Path,
    mounts: Sequence[Mount],
    installations: Installations,
    python: Path | None,
) -> list[str]:
    """Return the engine's part of the command line. ``python`` replaces the installation's, where packages were added.

    Raises InstanceFailed for a ComfyUI that is not there.
    """
    engine = launch.spec.engine
    if engine.kind == "builtin":
        return ["--engine", "builtin", *engine.arguments]
    port = free_port()
    if engine.kind == "command":
        words = [realise(word, mounts, launch.spec.port, port) for word in engine.command]
        if not words:
            raise InstanceFailed("NoCommand", "the service names no command to run")
        return ["--", *words]
    installation = installations.resolve(engine.comfyui)
    words = [str(python or installation.python), str(installation.folder / "main.py")]
    words += ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(data)]
    own = folder / "engine"
    # Two instances on one base directory would wipe each other's temp (comfyui.md 7); the database does not follow it.
    words += ["--temp-directory", str(own), "--disable-auto-launch"]
    words += ["--database-url", f"sqlite:///{own / 'comfyui.db'}"]
    if shares_outputs(launch):
        words += ["--output-directory", str(own / "output")]
    if launch.device is None or launch.device.startswith("cpu"):
        words.append("--cpu")
    words += [realise(word, mounts, launch.spec.port, port) for word in engine.arguments]
    return ["--", *words]


def shares_outputs(launch: Launch) -> bool:
    """Whether several instances save at a time: each counts its files by what lies in the folder, and would overwrite another's.

    Outputs of tasks are copied into the service's storage anyway.
    """
    return launch.spec.edition != "standard"


def engine_folders(launch: Launch, folder: Path) -> dict[str, str]:
    """Return the variables that give the built-in engine folders of its own where instances share the data directory."""
    own = folder / "engine"
    found = {"EASEL_ENGINE__TEMP_DIRECTORY": str(own)}
    if shares_outputs(launch):
        found["EASEL_ENGINE__OUTPUT_DIRECTORY"] = str(own / "output")
    return found


def described(installation: Installation) -> str:
    """Return an installation for people."""
    return f"ComfyUI {installation.version or '(unknown version)'} in {installation.folder}"


def shell_line(line: str, mounts: Sequence[Mount], *, python: Path) -> str:
    """Return a line of a service's script for this machine: folders for mount paths, its Python for ``python`` and ``pip``."""
    words = f"PATH={shlex.quote(str(python.parent))}:$PATH"
    return f"export {words}; {realise(line, mounts, 0, 0)}"
