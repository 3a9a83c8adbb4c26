"""ComfyUI and its interpreter; Easel's settings, data directory and progress store."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from easel.cli.doctor import Finding, Request
from easel.errors import EaselError
from easel.settings import AgentSettings, load

_GIGABYTE = 1 << 30

_GUESSES = (
    "ComfyUI",
    "~/ComfyUI",
    "~/comfy/ComfyUI",
    "/ComfyUI",
    "/workspace/ComfyUI",
    "/opt/ComfyUI",
)
"""Where ComfyUI is usually put: by hand, by comfy-cli, in container images."""

_INTERPRETERS = (".venv/bin/python", "venv/bin/python", "../.venv/bin/python", "../venv/bin/python")
_PORTABLE = ("../python_embeded/python.exe",)

_LOOK_AT_TORCH = """
import json, torch
devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
mps = getattr(torch.backends, "mps", None)
if mps is not None and mps.is_available():
    devices.append("Apple silicon (mps)")
print(json.dumps({"version": torch.__version__, "devices": devices}))
"""


def comfyui(request: Request) -> Iterator[Finding]:
    """The real ComfyUI, and whether its interpreter has torch. Optional: the built-in engine needs neither."""
    named = request.comfyui or _environment("COMFYUI_PATH")
    folder = named or next(filter(_is_comfyui, (Path(g).expanduser() for g in _GUESSES)), None)
    if folder is None:
        yield Finding(
            "ComfyUI",
            "warn",
            "not found; the built-in engine works without it",
            "name its folder with --comfyui or COMFYUI_PATH, or install it: "
            "https://docs.comfy.org/installation",
        )
        return
    if not _is_comfyui(folder):
        why = "does not exist" if not folder.exists() else "has no main.py of ComfyUI in it"
        yield Finding("ComfyUI", "fail", f"{folder} {why}", "name the folder that has main.py")
        return
    yield Finding("ComfyUI", "ok", f"{version(folder) or 'of unknown version'} in {folder}")
    yield from _torch(folder, request.python)


def _environment(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value).expanduser() if value else None


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def version(folder: Path) -> str | None:
    """Return the version a ComfyUI folder says it is."""
    for name, pattern in (
        ("comfyui_version.py", r'__version__\s*=\s*"([^"]+)"'),
        ("pyproject.toml", r'(?m)^version\s*=\s*"([^"]+)"'),
    ):
        try:
            found = re.search(pattern, (folder / name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
        if found:
            return found[1]
    return None


def interpreter(folder: Path) -> Path | None:
    """Guess which Python runs a ComfyUI: a virtual environment in or beside its folder, else the one on the path."""
    for name in (*_INTERPRETERS, *_PORTABLE):
        if (folder / name).is_file():
            return folder / name
    found = shutil.which("python3")
    return Path(found) if found else None


def _torch(folder: Path, named: Path | None) -> Iterator[Finding]:
    python = named or interpreter(folder)
    todo = (
        f"install ComfyUI's requirements into it (pip install -r {folder / 'requirements.txt'}), "
        "or name another with --python"
    )
    if python is None:
        yield Finding("torch", "fail", "no Python found that could run ComfyUI", todo)
        return
    try:
        done = subprocess.run(
            [str(python), "-c", _LOOK_AT_TORCH],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=folder,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("torch", "fail", f"{python} cannot be run: {error}", todo)
        return
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding("torch", "fail", f"{python} cannot import torch: {last}", todo)
        return
    found = json.loads(done.stdout.strip().splitlines()[-1])
    shown = f"{found['version']} of {python}"
    if found["devices"]:
        yield Finding("torch", "ok", f"{shown}, runs on {', '.join(found['devices'])}")
    else:
        yield Finding(
            "torch",
            "warn",
            f"{shown}, sees no GPU",
            "start ComfyUI with --cpu, or install the torch that fits the GPU: https://pytorch.org",
        )


def settings(request: Request) -> Iterator[Finding]:
    """Settings from environment and file, and what they name."""
    try:
        found = load().agent
    except EaselError as error:
        yield Finding("settings", "fail", error.message, error.hint or "correct the setting")
        return
    named = os.environ.get("EASEL_CONFIG") or ("easel.toml" if Path("easel.toml").is_file() else "")
    yield Finding("settings", "ok", f"from {named}" if named else "defaults and environment")
    data_dir = request.data_dir or found.data_dir
    yield from _data_directory(data_dir)
    yield from _store(found.model_copy(update={"store": request.store or found.store}))


def _data_directory(folder: Path) -> Iterator[Finding]:
    """Whether the data directory can be made and written to, and how much room there is."""
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        yield Finding(
            "data directory",
            "fail",
            f"{folder}: {nearest} is a file",
            "choose another with --data-dir",
        )
        return
    if not os.access(nearest, os.W_OK | os.X_OK):
        yield Finding(
            "data directory",
            "fail",
            f"{folder}: no right to write to {nearest}",
            "choose another with --data-dir, or change the folder's owner",
        )
        return
    free = shutil.disk_usage(nearest).free
    shown = f"{folder}, {free / _GIGABYTE:.1f} GB free"
    if free < _GIGABYTE / 4:
        yield Finding("data directory", "fail", shown, "free some space: outputs will not fit")
    elif free < 5 * _GIGABYTE:
        yield Finding("data directory", "warn", shown, "free some space before long")
    else:
        yield Finding("data directory", "ok", shown)


def _store(found: AgentSettings) -> Iterator[Finding]:
    """Whether the database of the progress store answers; nothing is made in it."""
    if found.store == "files":
        yield Finding("progress store", "ok", "files in the data directory")
        return
    from easel.agent.store.database import described, parse, probe

    try:
        url = parse(found.store)
        probe(url)
    except EaselError as error:
        yield Finding("progress store", "fail", error.message, error.hint)
    else:
        yield Finding("progress store", "ok", f"{described(url)} answers")
