"""Which engine an agent gets: a command to supervise, the built-in one, or the URL of one that runs already."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from easel.errors import ConfigurationError
from easel.settings import EngineSettings

DEFAULT_PORT = 8188
"""Where ComfyUI listens when its command does not say."""
NO = {"0", "false", "no", "off", ""}


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine: where it answers, and how it is started if that is ours to do."""

    url: str
    command: list[str] | None
    cwd: Path | None = None


def agent_wanted(environ: Mapping[str, str]) -> bool:
    """Tell whether ``USE_AGENT`` asks for the agent: unset or true; the reference image starts ComfyUI alone otherwise."""
    return environ.get("USE_AGENT", "1").strip().lower() not in NO


def with_extra_args(command: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Append ``EXTRA_ARGS``, split as a shell would. Raises ConfigurationError for an unclosed quote."""
    try:
        return [*command, *shlex.split(environ.get("EXTRA_ARGS", ""))]
    except ValueError as error:
        raise ConfigurationError(f"EXTRA_ARGS cannot be split: {error}") from None


def choose(
    *,
    engine: str | None,
    comfyui: str | None,
    command: Sequence[str],
    builtin: EngineSettings,
    data_dir: Path,
    environ: Mapping[str, str],
) -> EngineChoice:
    """Return the engine that the flags name. Raises ConfigurationError unless it is exactly one."""
    named = [name for name, given in (("--engine", engine), ("--comfyui", comfyui)) if given]
    if command:
        named.append("a command after --")
    if len(named) != 1:
        raise ConfigurationError(
            "name exactly one engine" + (f", not {' and '.join(named)}" if named else ""),
            hint="easel agent -- python main.py --port 8188, or --engine builtin, or --comfyui URL",
        )
    if comfyui:
        return EngineChoice(comfyui, None)
    if engine:
        if engine != "builtin":
            raise ConfigurationError(
                f"unknown engine {engine!r}", hint="builtin is the only one that has a name"
            )
        return _builtin(builtin, data_dir, environ)
    full = with_extra_args(command, environ)
    return EngineChoice(f"http://{_host(full)}:{_port(full)}", full, _folder(full))


def _builtin(settings: EngineSettings, data_dir: Path, environ: Mapping[str, str]) -> EngineChoice:
    """The built-in engine on a free port of the loopback interface, in its own process."""
    port = _free_port()
    command = [sys.executable, "-m", "easel", "engine", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--data-dir", str(data_dir), "--with-parent"]
    for pack in settings.packs:
        command += ["--pack", pack]
    return EngineChoice(f"http://127.0.0.1:{port}", with_extra_args(command, environ))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _option(command: Sequence[str], name: str) -> str | None:
    """The last value of ``--name value`` or ``--name=value``."""
    found = None
    for index, word in enumerate(command):
        if word == name and index + 1 < len(command):
            found = command[index + 1]
        elif word.startswith(name + "="):
            found = word[len(name) + 1 :]
    return found


def _port(command: Sequence[str]) -> int:
    value = _option(command, "--port")
    if value is None:
        return DEFAULT_PORT
    if not value.isdigit() or not 0 < int(value) < 65536:
        raise ConfigurationError(f"the engine's --port is {value!r}, not a port number")
    return int(value)


def _host(command: Sequence[str]) -> str:
    """Where the engine is reached on this machine: its first ``--listen`` address unless that means all of them."""
    value = (_option(command, "--listen") or "").split(",")[0]
    if not value or value.startswith("-") or value in ("0.0.0.0", "::", "[::]"):  # noqa: S104 - compared
        return "127.0.0.1"
    return f"[{value}]" if ":" in value else value


def _folder(command: Sequence[str]) -> Path | None:
    """ComfyUI's own folder, where ``main.py`` is named by a path: it looks for its files relative to itself anyway."""
    for word in command:
        if Path(word).name == "main.py" and Path(word).is_absolute():
            return Path(word).parent
    return None


def exec_engine(command: Sequence[str], port: int, environ: Mapping[str, str]) -> None:
    """Become the engine, on the agent's port (``USE_AGENT=0``). Raises ConfigurationError when it cannot be started."""
    words = with_extra_args(command, environ)
    if not words:
        raise ConfigurationError(
            "USE_AGENT is off, and there is no command to run instead",
            hint="easel agent -- python main.py --listen",
        )
    words += ["--port", str(port)]
    try:
        os.execvp(words[0], words)  # noqa: S606 - the operator's own command
    except OSError as error:
        raise ConfigurationError(f"{words[0]!r} cannot be started: {error.strerror}") from error
