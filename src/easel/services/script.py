"""The script of a service (eas-and-fc.md A.2, A.3, A.6): what of it prepares, what is the engine, and its words on this machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from easel.services.model import EngineSpec, Mount

_TOKEN = re.compile(
    r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.|&&|(?P<comment>(?<![^\s;&])\#[^\n]*)|[^'"\\&\#;\n]+|.|\n""",
    re.DOTALL,
)
"""A quoted or escaped part of a shell's line, what ends a command, a comment, or plain text."""
PYTHON = re.compile(r"(?:\S*/)?python(?:3(?:\.\d+)?)?")

VALUED = {
    "--port": "the instance gets a port of its own",
    "--listen": "the instance listens for the gateway alone",
    "--data-dir": "",
    "--base-directory": "the data directory is the mount that --data-dir names",
    "--temp-directory": "each instance has a folder of its own",
    "--database-url": "each instance has a database of its own",
    "--tls-keyfile": "the gateway speaks TLS, not the instance",
    "--tls-certfile": "the gateway speaks TLS, not the instance",
}
"""Flags of ComfyUI that are the platform's to give, and what becomes of them."""


@dataclass
class Script:
    """What a script says."""

    engine: EngineSpec | None = None
    data_path: str | None = None
    port: int | None = None
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_script(text: str, *, comfyui: str | None = None) -> Script:
    """Read a script of one or more commands (newline, ``;`` or ``&&``); the last one is the engine.

    ``comfyui`` is the installation that ``main.py`` means; None: the one in use.
    """
    script = Script()
    try:
        commands = _commands(text)
        last = _words(commands[-1]) if commands else []
    except ValueError as error:
        script.faults.append(f"cannot be read as shell words: {error}")
        return script
    if not commands:
        script.faults.append("is empty")
        return script
    prepare = commands[:-1]
    if any(word in ("|", "&", "||", "(", ")", "<", ">", ">>") for word in last):
        script.faults.append(
            "the last command, the engine, must stand alone: no pipe, redirection or background there"
        )
        return script
    environment = []
    while last and re.fullmatch(r"[A-Za-z_]\w*=.*", last[0], re.DOTALL):
        environment.append(last.pop(0))
    if environment or (last and last[0] == "exec"):
        last = last[1:] if last and last[0] == "exec" else last
    if environment:
        script.faults.append("variables before the engine's command belong into env")
    main = next((i for i, word in enumerate(last) if PurePosixPath(word).name == "main.py"), None)
    if main is not None and PYTHON.fullmatch(last[0]):
        arguments = _translated(last[main + 1 :], script)
        script.engine = EngineSpec(
            kind="comfyui", comfyui=comfyui, arguments=arguments, prepare=prepare
        )
    elif last[:2] == ["easel", "engine"]:
        arguments = _translated(last[2:], script)
        script.engine = EngineSpec(kind="builtin", arguments=arguments, prepare=prepare)
    elif last:
        script.port = _port_of(last)
        script.engine = EngineSpec(kind="command", command=last, prepare=prepare)
    else:
        script.faults.append("names no command to run")
    return script


def _commands(text: str) -> list[str]:
    """Split a script into its commands, each as it is written. Raises ValueError for an unclosed quote."""
    found: list[list[str]] = [[]]
    for match in _TOKEN.finditer(text.replace("\\\n", " ")):
        part = match[0]
        if part in ("'", '"'):
            raise ValueError("No closing quotation")
        if part in (";", "&&", "\n"):
            found.append([])
        elif match["comment"] is None:
            found[-1].append(part)
    commands = ("".join(parts).strip() for parts in found)
    return [command for command in commands if command]


def _words(command: str) -> list[str]:
    """Split a command into words; operators of the shell are words of their own. Raises ValueError."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=";&|()<>")
    lexer.whitespace_split = True
    return list(lexer)


def _translated(words: Sequence[str], script: Script) -> list[str]:
    """Take out what is the platform's to say; the rest stays in order."""
    kept: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if name not in VALUED:
            kept.append(word)
            continue
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else ""
        _take(name, value, script)
    return kept


def _take(name: str, value: str, script: Script) -> None:
    if name == "--data-dir":
        if not value:
            script.faults.append("--data-dir needs a path")
        script.data_path = value.rstrip("/") or None
    elif name == "--port":
        if not value.isdigit() or not 0 < int(value) < 65536:
            script.faults.append(f"--port {value or '(nothing)'} is not a port")
        else:
            script.port = int(value)
    elif name != "--listen":
        script.warnings.append(f"{name} is not obeyed: {VALUED[name]}")


def _port_of(words: Sequence[str]) -> int | None:
    for index, word in enumerate(words):
        value = word.partition("=")[2] if word.startswith("--port=") else ""
        if word == "--port" and index + 1 < len(words):
            value = words[index + 1]
        if value.isdigit() and 0 < int(value) < 65536:
            return int(value)
    return None


def realise(text: str, mounts: Sequence[Mount], container_port: int, port: int) -> str:
    """Replace mount paths (as whole path prefixes) by their folders, and ``{port}`` or the spec's port by the instance's."""
    text = real_paths(text, mounts)
    text = text.replace("{port}", str(port))
    if container_port and text in (str(container_port), f"--port={container_port}"):
        return text.replace(str(container_port), str(port))
    return text


def real_paths(text: str, mounts: Sequence[Mount]) -> str:
    """Replace mount paths (as whole path prefixes) by their folders."""
    for mount in sorted(mounts, key=lambda one: len(one.mount_path), reverse=True):
        if mount.source is not None:
            text = _replaced(text, mount.mount_path.rstrip("/"), mount.source.rstrip("/"))
    return text


def _replaced(text: str, path: str, folder: str) -> str:
    """Replace a path where it is one, or the beginning of one."""
    return re.sub(rf"(?<![\w./-]){re.escape(path)}(?=/|$|[\s\"':;,)])", lambda _: folder, text)
