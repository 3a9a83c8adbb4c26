"""Agents and platforms that a command starts for itself, and stops again however it ends."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile

from easel.errors import ConfigurationError, EngineUnavailable

START_TIMEOUT = 60.0
"""Seconds until what was started answers; about two are usual."""


def choose_port(host: str, port: int) -> int:
    """Return the port if it is free, else a free one."""
    for wanted in (port, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, wanted))
            found: int = probe.getsockname()[1]
            return found
    raise ConfigurationError(f"no free port on {host}")


def answers(url: str) -> bool:
    """Tell whether a GET on the URL answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own http URL
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError, http.client.HTTPException):
        return False


def agent(
    url: str, port: int, data_dir: Path
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Run an agent with the built-in engine until the block ends. Raises EngineUnavailable."""
    command = ["agent", "--engine", "builtin", "--pack", "demo", "--pack", "pretend"]
    command += ["--port", str(port), "--data-dir", str(data_dir)]
    return running(command, f"{url}/system_stats")


def platform(
    url: str, port: int, home: Path
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Run a platform until the block ends. Raises EngineUnavailable."""
    return running(["up", "--port", str(port), "--home", str(home)], f"{url}/readyz")


@contextlib.contextmanager
def running(arguments: Sequence[str], ready: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run an `easel` command that serves until the block ends; ``ready`` answers 200 when it does.

    Raises EngineUnavailable with the last log lines when it does not come up.
    """
    # It ends when the pipe to it is closed, however we end.
    command = [sys.executable, "-m", "easel", *arguments, "--with-parent"]
    with TemporaryFile() as log:
        # A session of its own: Ctrl-C reaches this process alone, which then stops the other in order.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not answers(ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    lines = log.read().decode(errors="replace").splitlines()
                    raise EngineUnavailable(
                        f"`easel {arguments[0]}` did not start", log=lines[-20:]
                    )
                time.sleep(0.05)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
