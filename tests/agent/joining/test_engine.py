"""An engine that dies, is restarted, or is not there: what becomes of the gateway's tasks."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from easel.link.messages import Finished, Refresh, Report, Returned, Started
from tests.agent.agents import Agent, agent_of, crash, noop, sleep, supervised
from tests.agent.joining.gateways import Gateway, gateway, joining
from tests.waiting import until


@contextlib.asynccontextmanager
async def looked_after(folder: Path) -> AsyncIterator[tuple[Gateway, Agent]]:
    """Run an agent with an engine in a process of its own, and its gateway."""
    storage = folder / "storage"
    storage.mkdir()
    async with (
        gateway() as at,
        agent_of(folder / "agent", supervised(folder), **joining(at, storage=storage)) as agent,
    ):
        await at.ready()
        yield at, agent


async def test_an_engine_that_dies_gives_its_tasks_back(tmp_path: Path) -> None:
    """The one that ran counts, the one behind it does not; the agent tries neither again by itself."""
    async with looked_after(tmp_path) as (at, agent):
        guilty = await at.assign(crash(0.5))
        await at.heard(Started, guilty.uid)
        innocent = await at.assign(sleep(60))

        async def both() -> bool:
            async with agent.http.get("/queue") as answer:
                return len((await answer.json())["queue_pending"]) == 1

        await until(both, pause=0.01)
        back = await at.heard(Returned, guilty.uid)
        assert back.counted
        assert back.error is not None
        assert back.error["code"] == "engine_died"
        assert back.reason == back.error["message"]
        spared = await at.heard(Returned, innocent.uid)
        assert not spared.counted
        # That the engine is gone is said before: nobody gives it what has just come back.
        said = [one for one in at.said if isinstance(one, Report | Returned)]
        before = said[said.index(back) - 1]
        assert isinstance(before, Report)
        assert not before.engine.ready
        assert before.engine.error is not None
        assert before.engine.error["code"] == "engine_died"

        await at.ready()
        report = at.all(Report)[-1]
        assert (report.engine.state, report.engine.starts) == ("ready", 2)
        assert (await at.ended(await at.assign(noop()))).state == "succeeded"
        assert len(at.all(Finished)) == 1


async def test_a_restart_on_demand_counts_for_nobody(tmp_path: Path) -> None:
    async with looked_after(tmp_path) as (at, _agent):
        assign = await at.assign(sleep(60))
        await at.heard(Started, assign.uid)
        await at.say(Refresh(restart=True, reason="was restarted by the operator"))
        back = await at.heard(Returned, assign.uid)
        assert not back.counted
        assert "was restarted by the operator" in back.reason
        await at.ready()
        assert (await at.ended(await at.assign(noop()))).state == "succeeded"


async def test_what_is_known_of_nodes_is_forgotten_on_demand(tmp_path: Path) -> None:
    async with looked_after(tmp_path) as (at, agent):
        link = agent.running.state.link
        before = await link.object_info(10)
        assert before is await link.object_info(10)
        await at.say(Refresh())
        # What is said next is heard next.
        await at.ended(await at.assign(noop()))
        assert await link.object_info(10) is not before
