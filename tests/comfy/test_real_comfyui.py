"""Client and supervision against the real ComfyUI (`EASEL_COMFYUI`, `EASEL_COMFYUI_PYTHON`)."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from easel.comfy.answers import FileRef
from easel.comfy.events import Executed, Executing, Preview, Progress
from easel.comfy.process import EngineProcess
from easel.errors import (
    ConfigurationError,
    EngineDied,
    EngineSilent,
    ExecutionFailed,
    FileNotFound,
    InvalidPrompt,
)
from easel.settings import SupervisionSettings
from easel.workflow.types import Prompt
from tests.comfy.supervised import Instance, heard, stepping, supervised
from tests.e2e.conftest import endless, text_to_image
from tests.servers import free_port

pytestmark = [pytest.mark.real_comfyui, pytest.mark.asyncio(loop_scope="module")]
seeds = itertools.count(700_000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def instance(comfyui: tuple[Path, str], comfyui_base: Path) -> AsyncIterator[Instance]:
    folder, python = comfyui
    port = free_port()
    command = [
        *(python, "main.py", "--cpu", "--port", str(port)),
        *("--base-directory", str(comfyui_base)),
        *("--database-url", f"sqlite:///{comfyui_base / 'comfyui.db'}"),
        *("--preview-method", "latent2rgb"),
    ]
    settings = SupervisionSettings(silent_timeout=6, probe_interval=0.5, restart_backoff=0.1)
    async with supervised(command, f"http://127.0.0.1:{port}", settings, folder) as instance:
        yield instance


async def test_text_to_image_with_previews(instance: Instance, tmp_path: Path) -> None:
    connection = instance.connection
    run = await connection.submit(text_to_image(next(seeds)))
    events = await heard(run)
    assert len([event for event in events if isinstance(event, Progress)]) == 4
    previews = [event for event in events if isinstance(event, Preview)]
    assert {(event.prompt_id, event.node_id, event.image_type) for event in previews} == {
        (run.prompt_id, "3", "image/jpeg")
    }
    assert len(previews) == 4
    assert isinstance(events[-1], Executing)
    outcome = await run.outcome()
    assert outcome.status == "success"
    assert [event.output for event in events if isinstance(event, Executed)] == [
        outcome.outputs["9"]
    ]
    (image,) = outcome.outputs["9"]["images"]
    size = await connection.client.download(FileRef(**image), tmp_path / "image.png")
    data = (tmp_path / "image.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) == size


async def test_a_cached_prompt(instance: Instance) -> None:
    prompt = text_to_image(next(seeds))
    first = await (await instance.connection.submit(prompt)).outcome()
    second = await (await instance.connection.submit(prompt)).outcome()
    assert set(second.cached) == set(prompt)
    assert second.outputs == first.outputs


async def test_what_it_refuses_and_what_fails(instance: Instance) -> None:
    connection = instance.connection
    bad = text_to_image(next(seeds))
    bad["3"]["inputs"]["steps"] = "many"
    with pytest.raises(InvalidPrompt) as raised:
        await connection.submit(bad)
    assert (raised.value.node_id, raised.value.input_name) == ("3", "steps")
    file = await connection.client.upload("broken.png", b"no picture")
    prompt: Prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": file.filename}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    outcome = await (await connection.submit(prompt)).outcome()
    assert outcome.status == "failed"
    assert isinstance(outcome.error, ExecutionFailed)
    assert outcome.error.node_type == "LoadImage"
    assert "UnidentifiedImageError" in (outcome.error.exception_type or "")


async def test_files_and_facts(instance: Instance, tmp_path: Path) -> None:
    client = instance.connection.client
    assert (await client.system_stats())["system"]["comfyui_version"]
    assert set(await client.object_info("KSampler")) == {"KSampler"}
    assert await client.object_info("NoSuchNode") == {}
    source = tmp_path / "note.txt"
    source.write_bytes(b"four bytes and more")
    file = await client.upload("nöte 1.txt", source, subfolder="tests/deep")
    assert file.subfolder == "tests/deep"
    async with client.view(file) as stream:
        assert stream.length == 19
        assert await stream.read() == b"four bytes and more"
    with pytest.raises(FileNotFound):
        await client.download(FileRef("missing.png"), tmp_path / "missing.png")
    await client.free()


async def test_cancelling_what_waits_and_what_runs(instance: Instance) -> None:
    connection = instance.connection
    running = await connection.submit(endless(next(seeds)))
    waiting = await connection.submit(endless(next(seeds)))
    behind = await connection.submit(text_to_image(next(seeds)))
    await stepping(running)
    assert await waiting.cancel()
    assert (await waiting.outcome()).status == "cancelled"
    assert await running.cancel()
    assert (await running.outcome()).status == "interrupted"
    assert (await behind.outcome()).status == "success"
    assert not await behind.cancel()


async def test_cancelling_at_once(instance: Instance) -> None:
    """Wherever the prompt is just then: waiting, begun, or in between."""
    for _ in range(10):
        run = await instance.connection.submit(endless(next(seeds)))
        assert await run.cancel()
        outcome = await asyncio.wait_for(run.outcome(), 60)
        assert outcome.status in ("cancelled", "interrupted")


async def test_a_cut_socket_is_opened_again_and_the_rest_is_heard(instance: Instance) -> None:
    connection = instance.connection
    run = await connection.submit(text_to_image(next(seeds), steps=30, side=128))
    await stepping(run)
    socket = connection._socket._socket
    assert socket is not None
    transport = socket._response.connection and socket._response.connection.transport
    assert transport is not None
    transport.abort()
    events = await heard(run)
    assert [event for event in events if isinstance(event, Executing) and event.prompt_id is None]
    assert [event.value for event in events if isinstance(event, Progress)][-1] == 30
    assert (await run.outcome()).status == "success"


async def test_killed_in_mid_prompt(instance: Instance) -> None:
    run = await instance.connection.submit(endless(next(seeds)))
    behind = await instance.connection.submit(text_to_image(next(seeds)))
    await stepping(run)
    starts = instance.process.starts
    assert instance.process.pid is not None
    os.kill(instance.process.pid, signal.SIGKILL)
    for lost in (run, behind):
        outcome = await asyncio.wait_for(lost.outcome(), 5)
        assert outcome.status == "lost"
        assert isinstance(outcome.error, EngineDied)
        assert outcome.error.log
    await instance.recovered(starts + 1, text_to_image(next(seeds)))


async def test_stopped_in_mid_prompt(instance: Instance) -> None:
    run = await instance.connection.submit(endless(next(seeds)))
    await stepping(run)
    starts, pid = instance.process.starts, instance.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    outcome = await asyncio.wait_for(run.outcome(), 30)
    assert outcome.status == "lost"
    assert isinstance(outcome.error, EngineSilent)
    assert "has not answered" in str(outcome.error)
    await instance.recovered(starts + 1, text_to_image(next(seeds)))


async def test_a_taken_port_is_told(
    instance: Instance, comfyui: tuple[Path, str], comfyui_base: Path
) -> None:
    """A second ComfyUI on the port would need 15 s to find out, and wipe the first one's temp folder."""
    second = EngineProcess(instance.process.command, url=instance.process.url, cwd=comfyui[0])
    with pytest.raises(ConfigurationError, match="listens"):
        await second.start()
