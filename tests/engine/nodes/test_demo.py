"""The demo pack: time, faults and outputs of every kind."""

from __future__ import annotations

import asyncio
import base64
import signal
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from easel.engine.node import Interrupted
from easel.engine.nodes.demo import faults, registry
from easel.engine.object_info import class_info
from tests.engine.nodes.local import call, context
from tests.waiting import until


def test_pack() -> None:
    assert {node_class.name for node_class in registry} == {
        "EaselSteps", "EaselSleep", "EaselFail", "EaselCrash", "EaselHang", "EaselDeaf", "EaselAllocate", "EaselText",
        "EaselAudio", "EaselFile", "EaselVideo", "EaselModel", "EaselNoop",
    }  # fmt: skip
    assert {node_class.category for node_class in registry} == {"easel/demo"}
    assert all(node_class.output_node and node_class.description for node_class in registry)


def test_object_info_is_json(tmp_path: Path) -> None:
    import msgspec

    folders = context(tmp_path).folders
    for node_class in registry:
        assert msgspec.json.encode(class_info(node_class, folders))


def test_steps(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    result = call(registry, "EaselSteps", ctx, steps=3, seconds=0.5)
    assert ctx.steps == [(1, 3, True), (2, 3, True), (3, 3, True)]
    assert ctx.slept == 1.5
    assert result.values[0].shape == (1, 64, 64, 3)
    image = np.zeros((2, 8, 8, 3), np.float32)
    assert call(registry, "EaselSteps", ctx, image=image).values[0] is image
    stopped = context(tmp_path, interrupt_after=2)
    with pytest.raises(Interrupted):
        call(registry, "EaselSteps", stopped, steps=3)
    assert len(stopped.steps) == 2


def test_waiting_nodes(tmp_path: Path) -> None:
    ctx = context(tmp_path, interrupt_after=0)
    call(registry, "EaselSleep", ctx, seconds=7.0)
    assert ctx.slept == 7
    call(registry, "EaselDeaf", ctx, seconds=0.0)
    assert ctx.slept == 7
    assert ctx.steps == []


@pytest.mark.parametrize("name", ["RuntimeError", "KeyError", "MemoryError"])
def test_fail(tmp_path: Path, name: str) -> None:
    ctx = context(tmp_path)
    with pytest.raises((RuntimeError, KeyError, MemoryError), match="no luck") as raised:
        call(registry, "EaselFail", ctx, message="no luck", exception=name, steps=2)
    assert raised.type.__name__ == name
    assert ctx.steps == [(1, 3, False), (2, 3, False)]


SCRIPT = """
import sys
from pathlib import Path
from easel.engine.nodes.demo import registry
from tests.engine.nodes.local import call, context
import threading
print("up", flush=True)
call(registry, sys.argv[1], context(Path(sys.argv[2])), **eval(sys.argv[3]))
print("alive", flush=True)
"""


async def child(tmp_path: Path, class_type: str, **inputs: Any) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SCRIPT,
        class_type,
        str(tmp_path),
        repr(inputs),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"up\n"
    return process


@pytest.mark.parametrize(
    ("class_type", "inputs", "code"),
    [
        ("EaselCrash", {"how": "exit", "exit_code": 77}, 77),
        ("EaselCrash", {"how": "SIGKILL"}, -signal.SIGKILL),
        ("EaselCrash", {"how": "SIGSEGV"}, -signal.SIGSEGV),
        ("EaselAllocate", {"outcome": "killed"}, -signal.SIGKILL),
    ],
)
async def test_ends_its_process(
    tmp_path: Path, class_type: str, inputs: dict[str, Any], code: int
) -> None:
    process = await child(tmp_path, class_type, **inputs)
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert output == b""
    assert process.returncode == code


@pytest.mark.parametrize("silent", [False, True])
async def test_hangs_until_it_is_killed(tmp_path: Path, silent: bool) -> None:
    process = await child(tmp_path, "EaselHang", silent=silent)
    seen = psutil.Process(process.pid)

    async def hung() -> bool:
        if silent:
            return seen.cpu_times().user > 0.3 + start
        return seen.status() == psutil.STATUS_SLEEPING

    start = seen.cpu_times().user
    await until(hung, timeout=30)
    assert process.returncode is None
    process.kill()
    assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGKILL


def test_allocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(faults, "_kept", kept)
    ctx = context(tmp_path)
    call(registry, "EaselAllocate", ctx, megabytes=3)
    assert not kept
    call(registry, "EaselAllocate", ctx, megabytes=3, keep=True)
    assert sum(part.nbytes for part in kept) == 3 * 2**20
    with pytest.raises(MemoryError, match="Unable to allocate 5 MiB"):
        call(registry, "EaselAllocate", ctx, megabytes=5, outcome="error")


def test_text(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    result = call(registry, "EaselText", ctx, text="é", announce=True)
    assert result.values == ("é",)
    assert result.ui == {"text": ["é"]}
    assert ctx.texts == ["é"]
    assert ctx.events == [("easel.text", {"node": "1", "text": "é"}, None)]


def test_audio(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    result = call(registry, "EaselAudio", ctx, seconds=0.1, folder="output")
    assert result.ui == {
        "audio": [{"filename": "Easel_00001_.wav", "subfolder": "audio", "type": "output"}]
    }
    with wave.open(str(ctx.folders.output / "audio" / "Easel_00001_.wav")) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (44100, 4410)


def test_file(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    data = bytes(range(256))
    result = call(
        registry,
        "EaselFile",
        ctx,
        content=base64.b64encode(data).decode(),
        encoding="base64",
        extension=".glb",
        result_key="3d",
        folder="temp",
    )
    assert result.ui == {
        "3d": [{"filename": "Easel_00001_.glb", "subfolder": "files", "type": "temp"}]
    }
    assert (ctx.folders.temp / "files" / "Easel_00001_.glb").read_bytes() == data
    for wrong in ("", "glb", "./x", ".a/b", ".é"):
        with pytest.raises(ValueError, match="not a file extension"):
            call(registry, "EaselFile", ctx, encoding="text", extension=wrong, folder="temp")
    with pytest.raises(ValueError, match="not base64"):
        call(registry, "EaselFile", ctx, content="?", encoding="base64", folder="temp")


@pytest.mark.parametrize(("kind", "suffix"), [("image/webp", "webp"), ("image/gif", "gif")])
def test_video(tmp_path: Path, kind: str, suffix: str) -> None:
    ctx = context(tmp_path)
    result = call(registry, "EaselVideo", ctx, frames=4, format=kind, folder="output")
    name = f"Easel_00001_.{suffix}"
    assert result.ui == {
        "gifs": [
            {
                "filename": name,
                "subfolder": "video",
                "type": "output",
                "format": kind,
                "frame_rate": 8.0,
            }
        ]
    }
    with Image.open(ctx.folders.output / "video" / name) as saved:
        assert saved.n_frames == 4  # type: ignore[attr-defined]
    assert [step[:2] for step in ctx.steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_model_loads_once_in_a_process(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    (ctx.folders.models / "loras" / "sub").mkdir(parents=True)
    (ctx.folders.models / "loras" / "sub" / "a.safetensors").touch()
    node_class = registry.get("EaselModel")
    assert node_class is not None
    choices = class_info(node_class, ctx.folders)["input"]["required"]["model_name"][0]
    assert choices == ["loras/sub/a.safetensors"]
    name = f"{tmp_path}/unique"
    texts: list[str] = []
    for _ in range(2):
        result = call(
            registry, "EaselModel", ctx, model_name=name, gigabytes=4.0, seconds_per_gigabyte=0.5
        )
        assert result.ui is not None
        texts += result.ui["text"]
    assert texts == [f"{name} loaded in 2 s", f"{name} was loaded already"]
    assert ctx.slept == 2


def test_noop(tmp_path: Path) -> None:
    assert call(registry, "EaselNoop", context(tmp_path), text="x").ui == {"text": ["x"]}
