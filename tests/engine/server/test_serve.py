"""The engine as a process: one ready line, a clean end, no orphan."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.engine.engines import PROBES

ROOT = Path(__file__).parents[3]


@contextlib.asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run an engine and yield it with its ready line."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.engine.server.serve_once",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    try:
        line = (await asyncio.wait_for(child.stdout.readline(), 30)).decode()
        yield child, line
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_that_it_is_ready_and_stops_cleanly(tmp_path: Path, number: int) -> None:
    async with process(str(tmp_path), "0", PROBES) as (child, line):
        assert "not ComfyUI" in line
        url = line.split()[-1]
        async with aiohttp.ClientSession(url) as session:
            nodes = {
                "1": {
                    "class_type": "ProbeSleep",
                    "inputs": {"steps": 1000, "seconds": 1, "salt": 1},
                },
                "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
            }
            ws = await session.ws_connect("/ws?clientId=a")
            async with session.post("/prompt", json={"prompt": nodes, "client_id": "a"}) as answer:
                assert answer.status == 200, await answer.text()
            async with asyncio.timeout(10):
                async for message in ws:
                    if "executing" in message.data:
                        break
            child.send_signal(number)
            assert await asyncio.wait_for(child.wait(), 10) == 0
            async with asyncio.timeout(10):
                last = await ws.receive()
                while last.type is aiohttp.WSMsgType.TEXT:
                    last = await ws.receive()
            assert (last.type, last.data) == (
                aiohttp.WSMsgType.CLOSE,
                aiohttp.WSCloseCode.GOING_AWAY,
            )


async def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    async with process("--child", str(tmp_path), "0") as (parent, line):
        pid = int(line.split()[0])
        child = psutil.Process(pid)
        assert child.is_running()
        os.kill(parent.pid, signal.SIGKILL)
        gone, alive = await asyncio.to_thread(psutil.wait_procs, [child], 10)
        assert gone
        assert not alive
