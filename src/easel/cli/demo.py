"""`easel demo`: agent, built-in engine and an example workflow, in one command."""

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
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

from easel.errors import ConfigurationError, EngineUnavailable

WORKFLOW = "photo-glow.json"
PHOTO = "coffee.jpg"
PRETENDED = "v1-5-pruned-emaonly-fp16.safetensors"
"""An empty file under the name that the front end's first workflow asks for; the pretend pack reads no model."""
START_TIMEOUT = 60.0
"""Seconds the agent and its engine may take to answer; about two are usual."""


def examples() -> Path:
    """Return the folder of examples: of the source tree, or of the installed package.

    Raises ConfigurationError when neither is there.
    """
    package = Path(__file__).parents[1]
    for folder in (package.parents[1] / "examples", package / "examples"):
        if (folder / WORKFLOW).is_file():
            return folder
    raise ConfigurationError(
        "the examples are not installed", hint="run from a checkout of the repository"
    )


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


@contextlib.contextmanager
def agent(url: str, port: int, data_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run an agent with the built-in engine until the block ends.

    Raises EngineUnavailable with the last log lines when it does not come up.
    """
    command = [sys.executable, "-m", "easel", "agent", "--engine", "builtin"]
    command += ["--pack", "demo", "--pack", "pretend"]
    command += ["--port", str(port), "--data-dir", str(data_dir)]
    command += ["--with-parent"]  # it ends when the pipe to it is closed, however we end
    with TemporaryFile() as log:
        # A session of its own: Ctrl-C reaches this process alone, which then stops the agent in order.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not answers(f"{url}/system_stats"):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    lines = log.read().decode(errors="replace").splitlines()
                    raise EngineUnavailable("the agent did not start", log=lines[-20:])
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


def demo(*, once: bool, host: str, port: int, data_dir: Path, output: Path) -> int:
    """Run the example and print where the result is; unless `once`, stay up until Ctrl-C. Return the exit code."""
    folder = examples()
    port = choose_port(host, port)
    url = f"http://{host}:{port}"
    print("starting the agent and the built-in engine (no ComfyUI, no GPU) ...", flush=True)
    checkpoint = data_dir / "engine" / "models" / "checkpoints" / PRETENDED
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.touch()
    with agent(url, port, data_dir) as process:
        command = [sys.executable, "-m", "easel", "run", str(folder / WORKFLOW)]
        command += ["--input", str(folder / PHOTO), "--output", str(output), "--url", url]
        code = subprocess.run(command, check=False).returncode
        if code != 0:
            return code
        print(f"\nResult: in {output.resolve()}\nWebUI:  {url}/\nAPI:    POST {url}/api/run")
        if once:
            return 0
        with contextlib.suppress(KeyboardInterrupt):
            print("Text-to-image is pretended here: no model runs. Ctrl-C ends.", flush=True)
            code = process.wait()
            print(f"the agent ended by itself (exit code {code})", file=sys.stderr)
            return code or 1
    return 0
