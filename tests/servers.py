"""Real engines and agents as child processes, for end-to-end tests and the benchmark."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.waiting import until


def free_port() -> int:
    """Return a port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Server:
    """A running server process."""

    url: str
    pid: int
    log: Path
    process: asyncio.subprocess.Process

    def log_text(self) -> str:
        """Return what the process has printed so far."""
        return self.log.read_text(errors="replace")


async def answers(url: str, process: asyncio.subprocess.Process, log: Path, timeout: float) -> None:
    """Wait until a GET on the URL answers 200.

    Raises AssertionError with the log when the process ends or the time is over.
    """
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:

        async def ready() -> bool:
            assert process.returncode is None, log.read_text(errors="replace")
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(url) as response:
                    return response.status == 200
            return False

        try:
            await until(ready, timeout=timeout)
        except TimeoutError:
            raise AssertionError(
                f"{url} did not answer in {timeout} s\n" + log.read_text(errors="replace")
            ) from None


@contextlib.asynccontextmanager
async def running(
    url: str,
    ready: str,
    command: list[str],
    log: Path,
    *,
    env: dict[str, str] | None = None,
    timeout: float = 60,
    stop_signal: int = signal.SIGTERM,
) -> AsyncIterator[Server]:
    """Run a command until the block ends; `ready` is the path that answers 200 when it serves."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        await answers(url + ready, process, log, timeout)
        yield Server(url, process.pid, log, process)
    finally:
        if process.returncode is None:
            process.send_signal(stop_signal)
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@contextlib.asynccontextmanager
async def running_engine(
    folder: Path, *flags: str, env: dict[str, str] | None = None
) -> AsyncIterator[Server]:
    """Run the built-in engine on a free port with its data in `folder`."""
    port = free_port()
    command = [sys.executable, "-m", "easel", "engine", "--port", str(port)]
    command += ["--data-dir", str(folder), *flags]
    async with running(
        f"http://127.0.0.1:{port}",
        "/system_stats",
        command,
        folder.with_suffix(".log"),
        env=env,
    ) as server:
        yield server


@contextlib.asynccontextmanager
async def running_agent(
    folder: Path, *flags: str, env: dict[str, str] | None = None, timeout: float = 60
) -> AsyncIterator[Server]:
    """Run the agent on a free port with its data in `folder`; `flags` name its engine.

    It is ready when its engine answers through it.
    """
    port = free_port()
    command = [sys.executable, "-m", "easel", "agent", "--port", str(port)]
    command += ["--data-dir", str(folder), *flags]
    async with running(
        f"http://127.0.0.1:{port}",
        "/system_stats",
        command,
        folder.with_suffix(".log"),
        env=env,
        timeout=timeout,
    ) as server:
        yield server
