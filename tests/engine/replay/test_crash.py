"""``p_crash_in_node``: the engine's process dies in a node."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp

from tests.engine.engines import PROBES
from tests.engine.replay import compare, normalise
from tests.engine.replay.player import Player
from tests.engine.replay.recording import load
from tests.engine.replay.scenarios import Setup
from tests.engine.server.test_serve import process


async def test_the_engine_dies_in_a_node(tmp_path: Path) -> None:
    recording = load("p_crash_in_node")
    client = recording.clients[0]
    async with (
        process(str(tmp_path), "0", PROBES) as (child, line),
        aiohttp.ClientSession() as session,
    ):
        player = Player(recording, line.split()[-1], session)
        await player.open(client)
        answers = [await player.ask(exchange) for exchange in recording.exchanges]
        assert await asyncio.wait_for(child.wait(), 15) == recording.extra["exit_code"] == 77
        listener = player.all["A"]
        async with asyncio.timeout(10):
            while not listener.over:
                listener.news.clear()
                await listener.news.wait()
        await asyncio.gather(*player.tasks)
        assert listener.socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE
    names = {ours: theirs for theirs, ours in player.names.items()}
    setup = Setup(status_apart=True)
    theirs = compare.stream(client.messages, setup, {})
    ours = compare.stream(listener.received, setup, names)
    # what was said in the process's last moment, milliseconds before the end, may not have left it
    first = compare.difference(
        compare.pick(theirs, "rest")[: len(ours)], compare.pick(ours, "rest")
    )
    assert first is None or "messages recorded" in first, first
    assert [kind for kind, _ in ours].count("progress") == 5
    assert all(answer.status == 200 for answer in answers)


def test_a_recorded_traceback_is_not_compared() -> None:
    error: dict[str, Any] = {"traceback": ["a", "b"], "node_id": "1"}
    assert normalise.value(error) == {"traceback": ["..."], "node_id": "1"}
    json.dumps(normalise.value(error))
