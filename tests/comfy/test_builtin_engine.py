"""Client and supervision against the built-in engine and its demo nodes."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from easel.comfy.answers import FileRef
from easel.comfy.events import Preview, Progress, ProgressState
from easel.errors import EngineDied, EngineSilent, ExecutionFailed, InvalidPrompt
from easel.settings import SupervisionSettings
from easel.workflow.types import Prompt
from tests.comfy.supervised import Instance, heard, stepping, supervised
from tests.servers import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")
salts = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def instance(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Instance]:
    port = free_port()
    command = [
        *(sys.executable, "-m", "easel", "engine", "--port", str(port), "--previews"),
        *("--data-dir", str(tmp_path_factory.mktemp("engine")), "--pack", "demo"),
    ]
    settings = SupervisionSettings(
        silent_timeout=2, stall_timeout=3, probe_interval=0.2, restart_backoff=0.1, stop_grace=3
    )
    async with supervised(command, f"http://127.0.0.1:{port}", settings) as instance:
        yield instance


def demo(name: str, **inputs: Any) -> Prompt:
    """One demo node, never cached."""
    return {"1": {"class_type": name, "inputs": {"salt": next(salts), **inputs}}}


def steps(count: int, seconds: float, **inputs: Any) -> Prompt:
    return demo("EaselSteps", steps=count, seconds=seconds, **{"preview": False, **inputs})


def picture(color: int) -> Prompt:
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": color},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}},
    }


async def test_steps_and_previews(instance: Instance) -> None:
    run = await instance.connection.submit(steps(5, 0.01, preview=True))
    events = await heard(run)
    assert [event.value for event in events if isinstance(event, Progress)] == [1, 2, 3, 4, 5]
    previews = [event for event in events if isinstance(event, Preview)]
    assert {(event.prompt_id, event.node_id) for event in previews} == {(run.prompt_id, "1")}
    assert len(previews) == 5
    states = [event for event in events if isinstance(event, ProgressState)]
    assert states[-1].nodes["1"].value == 5
    assert (await run.outcome()).status == "success"


async def test_many_at_once_each_get_their_own(instance: Instance, tmp_path: Path) -> None:
    connection = instance.connection

    async def one(color: int) -> None:
        outcome = await (await connection.submit(picture(color))).outcome()
        assert outcome.status == "success"
        (image,) = outcome.outputs["2"]["images"]
        path = tmp_path / f"{color}.png"
        assert await connection.client.download(FileRef(**image), path) > 0

    async with asyncio.timeout(50), asyncio.TaskGroup() as group:
        for color in range(40):
            group.create_task(one(color))
    assert connection.in_flight == 0
    assert len(list(tmp_path.iterdir())) == 40


async def test_a_large_prompt(instance: Instance) -> None:
    """Two megabytes: a long text in the title of a node."""
    prompt = picture(77)
    next(iter(prompt.values()))["_meta"] = {"title": "x" * 2_000_000}
    run = await instance.connection.submit(prompt)
    assert (await run.outcome()).status == "success"


async def test_a_failing_node(instance: Instance) -> None:
    run = await instance.connection.submit(
        demo("EaselFail", message="on purpose", exception="ValueError", steps=2)
    )
    outcome = await run.outcome()
    assert outcome.status == "failed"
    assert isinstance(outcome.error, ExecutionFailed)
    assert str(outcome.error) == "node 1 (EaselFail) failed: on purpose"
    assert outcome.error.exception_type == "ValueError"


async def test_a_refused_prompt(instance: Instance) -> None:
    with pytest.raises(InvalidPrompt) as raised:
        await instance.connection.submit(demo("EaselSteps", steps="many", seconds=1, preview=True))
    assert (raised.value.node_id, raised.value.input_name) == ("1", "steps")


async def test_cancelling_what_waits_runs_and_does_not_listen(instance: Instance) -> None:
    connection = instance.connection
    running = await connection.submit(steps(10_000, 0.01))
    waiting = await connection.submit(steps(10_000, 0.01))
    await stepping(running)
    assert await waiting.cancel()
    assert (await waiting.outcome()).status == "cancelled"
    assert await running.cancel()
    assert (await running.outcome()).status == "interrupted"
    deaf = await connection.submit(
        {
            **demo("EaselDeaf", seconds=0.5),
            "2": {
                "class_type": "EaselSteps",
                "inputs": {
                    "steps": 10_000,
                    "seconds": 0.01,
                    "preview": False,
                    "salt": 0,
                    "image": ["1", 0],
                },
            },
        }
    )
    assert await deaf.cancel()
    assert (await deaf.outcome()).status in ("interrupted", "cancelled")


async def test_cancelling_at_once(instance: Instance) -> None:
    for _ in range(30):
        run = await instance.connection.submit(steps(10_000, 0.01))
        assert await run.cancel()
        outcome = await asyncio.wait_for(run.outcome(), 20)
        assert outcome.status in ("cancelled", "interrupted")


async def test_a_crash_in_mid_prompt(instance: Instance) -> None:
    starts = instance.process.starts
    run = await instance.connection.submit(
        demo("EaselCrash", how="exit", exit_code=77, seconds=0.1)
    )
    behind = await instance.connection.submit(picture(1))
    for lost in (run, behind):
        outcome = await asyncio.wait_for(lost.outcome(), 10)
        assert outcome.status == "lost"
        assert isinstance(outcome.error, EngineDied)
        assert "exit code 77" in str(outcome.error)
    await instance.recovered(starts + 1, picture(2))


async def test_a_hanging_node(instance: Instance) -> None:
    starts = instance.process.starts
    run = await instance.connection.submit(demo("EaselHang", silent=False))
    outcome = await asyncio.wait_for(run.outcome(), 20)
    assert outcome.status == "lost"
    assert isinstance(outcome.error, EngineSilent)
    assert "has not moved" in str(outcome.error)
    await instance.recovered(starts + 1, picture(3))


async def test_a_node_that_silences_the_engine(instance: Instance) -> None:
    starts = instance.process.starts

    async def submitted() -> None:
        run = await instance.connection.submit(demo("EaselHang", silent=True))
        (await run.outcome()).raise_for_status()

    # It may hang before it has answered the post.
    with pytest.raises(EngineSilent, match="has not answered"):
        await asyncio.wait_for(submitted(), 20)
    await instance.recovered(starts + 1, picture(4))


async def test_draining(instance: Instance) -> None:
    run = await instance.connection.submit(steps(10, 0.03))
    assert await instance.process.drain(10)
    assert (await run.outcome()).status == "success"
    endless = await instance.connection.submit(steps(10_000, 0.01))
    assert not await instance.process.drain(0.3)
    await endless.cancel()
    assert (await endless.outcome()).status in ("interrupted", "cancelled")
