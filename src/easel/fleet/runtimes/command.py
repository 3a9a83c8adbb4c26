"""The command line of an instance: the agent, and behind it the engine."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from easel.errors import InstanceFailed
from easel.fleet.runtime import Launch
from easel.services.installations import Installations
from easel.services.model import Mount
from easel.services.script import realise

_ENGINE = "EASEL_ENGINE__"
INSTANCE_FLAG = "--instance"
"""Stands in every instance's command line, by which instances are found that nobody remembers."""


GPU_MEMORY_FLAGS = frozenset({"--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram"})
"""ComfyUI takes none of these together with --cpu, and without an accelerator ends at once where --cpu is missing."""
CPU_FLAGS = GPU_MEMORY_FLAGS | {"--cpu"}
PORTS = range(20_000, 32_000)
"""Below those that systems give to outgoing connections: one of them might be taken before ComfyUI, seconds later, listens."""
TRIES = 200


def free_port() -> int:
    """Return a port of the loopback interface that is free now. Raises OSError when none is."""
    for port in [*random.sample(PORTS, TRIES), 0]:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found: int = probe.getsockname()[1]
            return found
    raise OSError(errno.EADDRINUSE, "no port of the loopback interface is free")


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
        packs, _ = _builtin_flags(engine.arguments)
        return ["--engine", "builtin", *packs]
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
    arguments = [realise(word, mounts, launch.spec.port, port) for word in engine.arguments]
    if launch.device is None and not other_accelerator():
        arguments = ["--cpu", *(one for one in arguments if one not in CPU_FLAGS)]
    return ["--", *words, *arguments]


def other_accelerator() -> bool:
    """Whether this machine has something that PyTorch computes on and NVML does not show: Apple's GPU, or AMD's."""
    return sys.platform == "darwin" or Path("/dev/kfd").exists()


def shares_outputs(launch: Launch) -> bool:
    """Whether several instances save at a time: each counts its files by what lies in the folder, and would overwrite another's.

    Outputs of tasks are copied into the service's storage anyway.
    """
    return launch.spec.edition != "standard"


def builtin_variables(launch: Launch, folder: Path) -> dict[str, str]:
    """Return the built-in engine's settings: what its flags ask for, and folders of its own where data directories are shared.

    Raises InstanceFailed for a flag that it does not have.
    """
    own = folder / "engine"
    _, found = _builtin_flags(launch.spec.engine.arguments)
    found["EASEL_ENGINE__TEMP_DIRECTORY"] = str(own)
    if shares_outputs(launch):
        found["EASEL_ENGINE__OUTPUT_DIRECTORY"] = str(own / "output")
    return found


def _builtin_flags(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return flags of `easel engine` as the agent's own flags and as variables. Raises InstanceFailed."""
    packs: list[str] = []
    variables: dict[str, str] = {}
    waiting = list(arguments)
    while waiting:
        name, equals, value = waiting.pop(0).partition("=")
        if name in {"--previews", "--multi-user"} and not equals:
            variables[_ENGINE + name[2:].replace("-", "_").upper()] = "true"
            continue
        if name not in {"--pack", "--cors-origin"} or not (equals or waiting):
            raise InstanceFailed(
                "UnknownFlag",
                f"the built-in engine does not know {name}",
                hint="it has --pack, --previews, --multi-user and --cors-origin; ComfyUI's flags are for ComfyUI",
            )
        value = value if equals else waiting.pop(0)
        if name == "--pack":
            packs += [name, value]
        else:
            variables[_ENGINE + "CORS_ORIGIN"] = value
    return packs, variables
