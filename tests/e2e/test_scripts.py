"""ComfyUI's own example clients, unmodified, against the built-in engine and the real one behind the agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.conftest import CHECKPOINT, comfyui_command
from tests.platforms import register, running_platform
from tests.servers import Server, free_port, running
from tests.waiting import until

PORT = 8188
"""Written in the scripts."""

NAME = "v1-5-pruned-emaonly.safetensors"
"""The checkpoint the scripts ask for."""

pytestmark = pytest.mark.real_comfyui


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="session",
    params=["engine", "agent-builtin", "agent-comfyui", "service-builtin", "service-comfyui"],
)
async def server(
    request: pytest.FixtureRequest,
    comfyui: tuple[Path, str],
    comfyui_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Server]:
    """Something that speaks ComfyUI's API on port 8188."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"port {PORT}, written in the scripts, is taken on this machine")
    folder = tmp_path_factory.mktemp("scripts")
    if request.param.startswith("service"):
        async with _forwarded(folder, request.param, comfyui, comfyui_base) as found:
            yield found
        return
    base = folder / "engine"
    if request.param == "agent-builtin":
        base = folder / "agent" / "engine"
    checkpoints = base / "models" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / NAME).write_bytes(b"")
    command = [sys.executable, "-m", "easel"]
    packs = ["--pack", "pretend"]
    if request.param == "engine":
        command += ["engine", "--port", str(PORT), "--data-dir", str(base), *packs]
    else:
        command += ["agent", "--port", str(PORT), "--data-dir", str(folder / "agent")]
        if request.param == "agent-builtin":
            command += ["--engine", "builtin", *packs]
        else:
            link = comfyui_base / "models" / "checkpoints" / NAME
            if not link.exists():
                link.symlink_to(CHECKPOINT)
            code, _ = comfyui
            nodes = comfyui_base / "custom_nodes" / "websocket_image_save.py"
            if not nodes.exists():
                nodes.symlink_to(code / "custom_nodes" / "websocket_image_save.py")
            command += ["--", *comfyui_command(comfyui, comfyui_base, free_port())]
    async with running(
        f"http://127.0.0.1:{PORT}", "/system_stats", command, folder / "log", timeout=180
    ) as found:
        yield found


@contextlib.asynccontextmanager
async def _forwarded(
    folder: Path, kind: str, comfyui: tuple[Path, str], base: Path
) -> AsyncIterator[Server]:
    """A standard service, at the scripts' port by `easel forward`."""
    storage = folder / "storage"
    (storage / "models" / "checkpoints").mkdir(parents=True)
    checkpoint = storage / "models" / "checkpoints" / NAME
    scenario: dict[str, Any] = {"storage": str(storage), "packs": ["pretend"]}
    if kind == "service-comfyui":
        checkpoint.symlink_to(base / "models" / "checkpoints" / CHECKPOINT)
        (storage / "custom_nodes").mkdir()
        nodes = comfyui[0] / "custom_nodes" / "websocket_image_save.py"
        (storage / "custom_nodes" / nodes.name).symlink_to(nodes)
    else:
        checkpoint.write_bytes(b"")
    async with running_platform(folder / "platform") as platform:
        if kind == "service-comfyui":
            await register(platform, comfyui)
            scenario |= {"engine": "comfyui:real", "packs": None}
        await platform.deploy("scripts", **scenario)
        command = [sys.executable, "-m", "easel", "forward", "scripts", "--port", str(PORT)]
        command += ["--home", str(platform.home)]
        log = folder / "forward.log"
        async with running(f"http://127.0.0.1:{PORT}", "/system_stats", command, log) as found:
            yield found


@pytest.mark.parametrize(
    "script",
    [
        "basic_api_example.py",
        "websockets_api_example.py",
        "websockets_api_example_ws_images.py",
    ],
)
async def test_example_client(server: Server, comfyui: tuple[Path, str], script: str) -> None:
    path = comfyui[0] / "script_examples" / script
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(path),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 300)
    assert process.returncode == 0, output.decode()

    def succeeded() -> bool:
        with urllib.request.urlopen(f"{server.url}/history") as response:
            history = json.loads(response.read())
        with urllib.request.urlopen(f"{server.url}/prompt") as response:
            waiting = json.loads(response.read())["exec_info"]["queue_remaining"]
        if waiting:
            return False
        assert history
        assert {entry["status"]["status_str"] for entry in history.values()} == {"success"}
        return True

    # The basic example only queues: its prompt ends after it.
    await until(lambda: asyncio.to_thread(succeeded), timeout=300)
