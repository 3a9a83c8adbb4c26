"""Recorded prompts played over real sockets: what a run hears and how it ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from easel.comfy.client import ComfyClient
from easel.comfy.connection import Connection
from easel.comfy.events import (
    Event,
    Executed,
    Executing,
    ExecutionCached,
    ExecutionFailure,
    ExecutionInterrupted,
    ExecutionStart,
    ExecutionSuccess,
    Preview,
    Progress,
    ProgressState,
    ProgressText,
    Unknown,
)
from easel.comfy.run import Run
from easel.errors import EngineUnavailable, ExecutionFailed, InvalidPrompt, TaskCancelled
from tests.comfy.replay import Replay, play, recording


@pytest.fixture
async def server() -> AsyncIterator[Replay]:
    async with Replay() as server:
        yield server


@pytest.fixture
async def connection(server: Replay) -> AsyncIterator[Connection]:
    async with ComfyClient(server.url) as client, Connection(client) as connection:
        yield connection


async def heard(run: Run) -> list[Event]:
    """All events of a run."""
    async with asyncio.timeout(20):
        return [event async for event in run]


async def test_a_prompt_is_heard_from_start_to_end(connection: Connection) -> None:
    run = await connection.submit(play("a_model_free"))
    events = [event for event in await heard(run) if not isinstance(event, ProgressState)]
    assert [type(event) for event in events] == [
        ExecutionStart,
        ExecutionCached,
        *[Executing] * 4,
        Executed,
        ExecutionSuccess,
        Executing,
    ]
    assert [event.node for event in events if isinstance(event, Executing)] == [
        "1",
        "2",
        "3",
        "4",
        None,
    ]
    assert {event.prompt_id for event in events} == {run.prompt_id}
    outcome = await run.outcome()
    assert outcome.status == "success"
    assert outcome.error is None
    assert outcome.outputs == recording("a_model_free").history["outputs"]
    assert outcome.meta["4"]["real_node_id"] == "4"
    assert outcome.started is not None
    assert outcome.ended is not None
    assert outcome.started < outcome.ended


async def test_the_ordinary_end_costs_one_question(server: Replay, connection: Connection) -> None:
    run = await connection.submit(play("a_model_free"))
    await run.outcome()
    assert Counter(server.requests) == Counter(
        ["GET /ws", "POST /prompt", f"GET /history/{run.prompt_id}"]
    )


async def test_the_body_is_built_here(server: Replay, connection: Connection) -> None:
    run = await connection.submit(
        play("a_model_free"), extra_data={"extra_pnginfo": {"workflow": {}}}, targets=["1"]
    )
    await run.outcome()
    (body,) = server.bodies
    assert body == {
        "prompt": play("a_model_free"),
        "client_id": server.seen_ids[0],
        "prompt_id": run.prompt_id,
        "extra_data": {"extra_pnginfo": {"workflow": {}}},
        "partial_execution_targets": ["1"],
    }
    assert server.flags == {"supports_preview_metadata": True}


@pytest.mark.parametrize("name", ["m_preview_latent2rgb", "m2_preview_with_metadata"])
async def test_previews_reach_their_prompt_with_and_without_metadata(
    connection: Connection, name: str
) -> None:
    events = await heard(await connection.submit(play(name)))
    previews = [event for event in events if isinstance(event, Preview)]
    assert len(previews) == 4
    assert all(event.data.startswith(b"\xff\xd8") for event in previews)
    assert {event.node_id for event in previews} == ({"3"} if name.startswith("m2") else {None})
    steps = [event for event in events if isinstance(event, Progress)]
    assert [(event.node, event.value, event.max) for event in steps] == [
        ("3", float(step), 4.0) for step in range(1, 5)
    ]


async def test_results_on_the_socket_arrive_whole(connection: Connection) -> None:
    events = await heard(await connection.submit(play("h_save_image_websocket")))
    pictures = [event for event in events if isinstance(event, Preview)]
    assert [event.image_type for event in pictures] == ["image/png", "image/png"]
    assert all(event.data.startswith(b"\x89PNG") for event in pictures)


async def test_texts_and_custom_messages_break_nothing(connection: Connection) -> None:
    run = await connection.submit(play("o_custom_node_events"))
    events = await heard(run)
    assert [event.text for event in events if isinstance(event, ProgressText)] == ["héllo"]
    assert (await run.outcome()).status == "success"
    assert [event.kind for event in events if isinstance(event, Unknown)] == [
        "probe.custom_event"
    ] * 2


async def test_cached_nodes_are_told(connection: Connection) -> None:
    run = await connection.submit(play("c3_partly_cached"))
    outcome = await run.outcome()
    cached = [event.nodes for event in await heard(run) if isinstance(event, ExecutionCached)]
    assert cached == [outcome.cached]
    assert outcome.cached


async def test_a_failing_node_is_named(connection: Connection) -> None:
    run = await connection.submit(play("e_execution_error"))
    events = await heard(run)
    outcome = await run.outcome()
    assert outcome.status == "failed"
    assert isinstance(outcome.failure, ExecutionFailure)
    assert any(isinstance(event, ExecutionFailure) for event in events)
    with pytest.raises(ExecutionFailed, match=r"node 1 \(LoadImage\) failed") as raised:
        outcome.raise_for_status()
    assert raised.value.node_id == "1"
    assert raised.value.exception_type == outcome.failure.exception_type
    assert raised.value.traceback


async def test_outputs_of_a_prompt_that_failed_later_are_kept(connection: Connection) -> None:
    run = await connection.submit(play("e2_error_after_partial_output"))
    outcome = await run.outcome()
    assert outcome.status == "failed"
    assert outcome.outputs


async def test_a_running_prompt_is_cancelled(server: Replay, connection: Connection) -> None:
    gate = server.gate("progress")
    run = await connection.submit(play("b_sd_txt2img"))
    await asyncio.wait_for(gate.reached.wait(), 10)
    assert await run.cancel()
    outcome = await run.outcome()
    assert outcome.status == "interrupted"
    assert isinstance(outcome.error, TaskCancelled)
    assert any(isinstance(event, ExecutionInterrupted) for event in await heard(run))
    assert not await run.cancel()


async def test_a_waiting_prompt_is_cancelled_and_its_neighbours_run(
    server: Replay, connection: Connection
) -> None:
    gate = server.gate("progress")
    first = await connection.submit(play("b_sd_txt2img"))
    second = await connection.submit(play("a_model_free"))
    await asyncio.wait_for(gate.reached.wait(), 10)
    assert await second.cancel()
    outcome = await second.outcome()
    assert outcome.status == "cancelled"
    assert isinstance(outcome.error, TaskCancelled)
    assert await heard(second) == []
    assert second.prompt_id not in {item[1] for item in server.pending}
    gate.opened.set()
    assert (await first.outcome()).status == "success"


async def test_each_prompt_hears_its_own(server: Replay, connection: Connection) -> None:
    names = ["a_model_free", "b_sd_txt2img", "e_execution_error", "h_save_image_websocket"] * 3
    runs = [await connection.submit(play(name)) for name in names]
    for name, run in zip(names, runs, strict=True):
        events = await heard(run)
        assert {event.prompt_id for event in events} <= {run.prompt_id, None}
        expected = "failed" if name.startswith("e_") else "success"
        assert (await run.outcome()).status == expected
    assert connection.in_flight == 0


async def test_what_comfyui_refuses_is_told_in_its_words(connection: Connection) -> None:
    with pytest.raises(InvalidPrompt, match="Prompt has no outputs") as raised:
        await connection.submit({})
    assert raised.value.error["type"] == "prompt_no_outputs"
    assert connection.in_flight == 0


async def test_closing_ends_the_runs(server: Replay) -> None:
    gate = server.gate("progress")
    async with ComfyClient(server.url) as client:
        async with Connection(client) as connection:
            run = await connection.submit(play("b_sd_txt2img"))
            await asyncio.wait_for(gate.reached.wait(), 10)
        outcome = await run.outcome()
        assert outcome.status == "lost"
        assert isinstance(outcome.error, EngineUnavailable)
        with pytest.raises(EngineUnavailable):
            await connection.submit(play("a_model_free"))
