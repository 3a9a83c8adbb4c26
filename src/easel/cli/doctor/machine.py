"""Python, its environment, the clock, the GPU, the front end, the ports."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil

from easel import __version__
from easel.cli.doctor import Finding, Request
from easel.cli.private import agent_answers

_RELEASED = 1_760_000_000
"""Seconds since the epoch: a clock that shows less is wrong."""


def python(_: Request) -> Iterator[Finding]:
    """The interpreter that runs Easel."""
    found = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    yield Finding("Python", "ok", found)  # an older one could not have installed Easel
    yield Finding("Easel", "ok", __version__)


def environment(_: Request) -> Iterator[Finding]:
    """Whether Easel has a virtual environment of its own."""
    if sys.prefix != sys.base_prefix:
        yield Finding("environment", "ok", f"virtual environment {sys.prefix}")
    else:
        yield Finding(
            "environment",
            "warn",
            f"no virtual environment: packages go into {sys.prefix}",
            "make one: python3 -m venv .venv && .venv/bin/pip install easel-comfy",
        )


def clock(_: Request) -> Iterator[Finding]:
    """Whether the clock can be right: times of tasks and TLS certificates depend on it."""
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if time.time() < _RELEASED:
        yield Finding("clock", "fail", shown, "set the clock (timedatectl set-ntp true)")
    else:
        yield Finding("clock", "ok", shown)


def gpu(_: Request) -> Iterator[Finding]:
    """What the driver's own tool says. What torch can use is looked at with ComfyUI."""
    tool = shutil.which("nvidia-smi")
    without = "nothing for the built-in engine; ComfyUI needs one, or its flag --cpu"
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        yield Finding("GPU", "ok", "Apple silicon")
        return
    if tool is None:
        other = shutil.which("rocm-smi")
        if other:
            yield Finding("GPU", "ok", f"AMD ({other} is installed)")
        else:
            yield Finding("GPU", "warn", "none found (no nvidia-smi, no rocm-smi)", without)
        return
    fields = "--query-gpu=name,memory.total,memory.free,driver_version"
    try:
        done = subprocess.run(
            [tool, fields, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("GPU", "warn", f"{tool} does not answer: {error}", "look at the driver")
        return
    if done.returncode != 0 or not done.stdout.strip():
        said = " ".join((done.stdout + done.stderr).split())[:200]
        yield Finding("GPU", "warn", f"nvidia-smi: {said}", "look at the driver (dmesg, reboot)")
        return
    for line in done.stdout.strip().splitlines():
        name, total, free, driver = (part.strip() for part in line.split(","))
        yield Finding("GPU", "ok", f"{name}, {total} ({free} free), driver {driver}")


def frontend(_: Request) -> Iterator[Finding]:
    """The official front end, which the built-in engine serves at its root."""
    try:
        version = importlib.metadata.version("comfyui-frontend-package")
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "front end",
            "warn",
            "not installed: the built-in engine has no web page",
            "pip install 'easel-comfy[frontend]'",
        )
    else:
        yield Finding("front end", "ok", f"comfyui-frontend-package {version}")


def ports(_: Request) -> Iterator[Finding]:
    """The ports that agent and engine take by default."""
    for port, what in ((9000, "agent"), (8188, "engine")):
        name = f"port {port}"
        if _free(port):
            yield Finding(name, "ok", f"free for the {what}")
        elif agent_answers("127.0.0.1", port):
            yield Finding(name, "ok", "an Easel agent answers there")
        else:
            yield Finding(
                name,
                "warn",
                f"taken by {_holder(port)}",
                f"start the {what} with another --port",
            )


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    """Name the process that listens, as far as the system tells."""
    try:
        for connection in psutil.net_connections("inet"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr.port == port
                and connection.pid
            ):
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        pass
    return "another program"
