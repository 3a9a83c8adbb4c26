"""Every recorded scenario of the real ComfyUI, played against the built-in engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.engine.engines import PROBES, engine
from tests.engine.replay import compare
from tests.engine.replay.player import TIMEOUT, Played, Player
from tests.engine.replay.recording import Recording, before, load, names
from tests.engine.replay.scenarios import SETUPS, Setup

ELSEWHERE = {
    "p_crash_in_node": "tests/engine/replay/test_crash.py: the engine is a process of its own",
    "e2_error_after_partial_output": "torch's own words for a wrong latent; the pretended VAE decodes any",
    "g4_reconnect_and_duplicate_ids": "tests/engine/replay/test_breakages.py",
    "g6_prompt_id_collision": "tests/engine/replay/test_breakages.py",
}
"""Scenarios with a test of their own."""


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


async def run_first(url: str, session: aiohttp.ClientSession, body: dict[str, Any]) -> None:
    """Run the prompt that the real server had run before, so that the cache holds the same."""
    body = {**body, "client_id": "before"}
    async with session.ws_connect(f"{url}/ws?clientId=before") as socket:
        async with session.post(f"{url}/prompt", json=body) as response:
            if response.status == 400:  # it deviates on purpose: nothing of it is cached
                return
            assert response.status == 200, await response.text()
        async with asyncio.timeout(TIMEOUT):
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    event = json.loads(message.data)
                    if event["type"] == "executing" and event["data"]["node"] is None:
                        return


def recording_of(name: str) -> Recording:
    """The scenario as far as it is compared."""
    return load(name).cut(SETUPS.get(name, Setup()).events_end_at)


async def play(name: str, folder: Path, session: aiohttp.ClientSession) -> tuple[Setup, Played]:
    """Prepare and play a scenario."""
    setup = SETUPS.get(name, Setup())
    base = folder / "base"
    base.mkdir()
    await asyncio.to_thread(setup.prepare, base)
    async with engine(base, PROBES, "pretend", **setup.settings) as running:
        previous = before(name)
        if previous is not None and load(name).prompts():
            await run_first(running.url, session, previous)
        player = Player(
            recording_of(name),
            running.url,
            session,
            bodies=setup.bodies,
            before_request=setup.before_request(base),
            skip=setup.skip,
        )
        return setup, await player.play()


@pytest.mark.parametrize("name", [name for name in names() if name not in ELSEWHERE])
async def test_scenario(name: str, tmp_path: Path, session: aiohttp.ClientSession) -> None:
    setup, played = await play(name, tmp_path, session)
    recording = recording_of(name)
    problems = compare.answers(recording, setup, played) + compare.events(recording, setup, played)
    assert not problems, "\n".join([name, *problems])


def test_every_scenario_is_played() -> None:
    assert len(names()) == 38
    assert set(ELSEWHERE) <= set(names())
