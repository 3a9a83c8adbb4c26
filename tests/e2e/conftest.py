"""One end-to-end suite over two engines: the built-in one always, the real ComfyUI where it is given.

The real one is named by `EASEL_COMFYUI` (its folder) and `EASEL_COMFYUI_PYTHON` (its interpreter), which
`make test-comfyui` sets.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio

from tests.servers import Server, free_port, running_agent

CHECKPOINT = "tiny.safetensors"


@dataclass(frozen=True, slots=True)
class Target:
    """An agent with its engine, ready to run text-to-image."""

    agent: Server
    kind: str
    data: Path
    """The engine's base directory."""

    @property
    def url(self) -> str:
        """The agent's URL."""
        return self.agent.url

    def engine_process(self) -> psutil.Process:
        """The engine's own process, below the agent (a launcher may stand in between)."""
        mark = "main.py" if self.kind == "comfyui" else "engine"
        found = [
            child
            for child in psutil.Process(self.agent.pid).children(recursive=True)
            if any(mark in part for part in child.cmdline()) and not child.children()
        ]
        assert len(found) == 1, [child.cmdline() for child in found]
        return found[0]


def text_to_image(
    seed: int, *, steps: int = 4, side: int = 64, text: str = "a cat"
) -> dict[str, Any]:
    """Return the ordinary text-to-image prompt."""
    return {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": seed,
                "steps": steps,
                "cfg": 7.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "5": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": side, "height": side, "batch_size": 1},
        },
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "e2e"}},
    }


def endless(seed: int) -> dict[str, Any]:
    """Return a text-to-image prompt that runs until it is stopped, reporting steps."""
    return text_to_image(seed, steps=10_000, side=128)


SUPERVISION = {
    "EASEL_AGENT__SUPERVISION__SILENT_TIMEOUT": "8",
    "EASEL_AGENT__SUPERVISION__PROBE_INTERVAL": "0.5",
    "EASEL_AGENT__SUPERVISION__RESTART_BACKOFF": "0.1",
}
"""Quick to notice a hung engine, so that the tests need not wait long."""


@pytest.fixture(scope="session")
def comfyui() -> tuple[Path, str]:
    """Folder and interpreter of a real ComfyUI."""
    folder, python = os.environ.get("EASEL_COMFYUI"), os.environ.get("EASEL_COMFYUI_PYTHON")
    if not folder or not python:
        pytest.skip(
            "no real ComfyUI given: make test-comfyui COMFYUI=<folder> PYTHON=<interpreter>"
        )
    return Path(folder), python


@pytest.fixture(scope="session")
def comfyui_base(comfyui: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory for the real ComfyUI with a small random checkpoint."""
    base = tmp_path_factory.mktemp("comfyui")
    for name in ("models/checkpoints", "custom_nodes", "input", "output", "user"):
        (base / name).mkdir(parents=True)
    folder, python = comfyui
    made = subprocess.run(
        [
            python,
            str(Path(__file__).with_name("make_checkpoint.py")),
            str(folder),
            str(base / "models" / "checkpoints" / CHECKPOINT),
        ],
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert made.returncode == 0, made.stderr.decode()
    return base


def comfyui_command(comfyui: tuple[Path, str], base: Path, port: int) -> list[str]:
    """Return the command that starts the real ComfyUI on a port."""
    folder, python = comfyui
    return [
        python,
        str(folder / "main.py"),
        "--cpu",
        "--port",
        str(port),
        "--base-directory",
        str(base),
        "--database-url",
        f"sqlite:///{base}/comfyui.db",
        "--preview-method",
        "latent2rgb",
    ]


@pytest_asyncio.fixture(
    scope="session",
    loop_scope="session",
    params=["builtin", pytest.param("comfyui", marks=pytest.mark.real_comfyui)],
)
async def target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Target]:
    """An agent over each engine, shared by the tests of the session."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "comfyui":
        comfyui: tuple[Path, str] = request.getfixturevalue("comfyui")
        data: Path = request.getfixturevalue("comfyui_base")
        flags = ["--", *comfyui_command(comfyui, data, free_port())]
    else:
        data = folder / "agent" / "engine"
        checkpoints = data / "models" / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / CHECKPOINT).write_bytes(b"")
        flags = ["--engine", "builtin", "--pack", "demo", "--pack", "pretend"]
    env = {**SUPERVISION, "EASEL_ENGINE__PREVIEWS": "true"}
    async with running_agent(folder / "agent", *flags, env=env, timeout=180) as agent:
        yield Target(agent, request.param, data)


@pytest_asyncio.fixture
async def http(target: Target) -> AsyncIterator[aiohttp.ClientSession]:
    """A client session whose base is the agent."""
    async with aiohttp.ClientSession(
        target.url, timeout=aiohttp.ClientTimeout(total=120)
    ) as session:
        yield session
