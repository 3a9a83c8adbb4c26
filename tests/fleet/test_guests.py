"""Rows of agents that joined by themselves: kept while they are connected, whatever their engines do, and gone when they are."""

from __future__ import annotations

import pytest

from easel.services.model import Instance, InstanceStatus
from easel.services.status import LINK_LOST
from tests.fleet.stage import SETTINGS, Stage


async def stage_with(known: dict[str, bool], status: InstanceStatus, reason: str = "") -> Stage:
    stage = Stage(engine_ready=known.get)
    await stage.deploy(instances=0)
    await stage.settle()
    guest = Instance(
        id="guest",
        service="draw",
        revision=1,
        runtime="joined",
        status=status,
        created=stage.now,
        updated=stage.now,
        reason=reason,
    )
    await stage.store.add_instance(guest)
    await stage.settle(agents=False)
    return stage


@pytest.mark.parametrize("status", ["starting", "unready"])
async def test_an_engine_that_starts_for_long_is_nobodys_loss(status: InstanceStatus) -> None:
    stage = await stage_with({"guest": False}, status, reason="engine_died")
    await stage.later(SETTINGS.orphan_timeout * 10)
    (row,) = await stage.instances()
    assert row.target == "running"


@pytest.mark.parametrize("status", ["starting", "unready", "ready"])
async def test_one_that_left_unseen_does_not_count_and_disappears(status: InstanceStatus) -> None:
    """It left while no platform ran: nobody noted it in its row."""
    known: dict[str, bool] = {}
    stage = await stage_with(known, status)
    (row,) = await stage.instances()
    assert (row.status != "ready", row.reason) == (True, LINK_LOST)
    await stage.later(SETTINGS.orphan_timeout - 1)
    assert len(await stage.instances()) == 1
    await stage.later(2)
    assert await stage.instances() == []


async def test_how_long_its_engine_was_ill_does_not_shorten_the_patience_with_its_link() -> None:
    known = {"guest": False}
    stage = await stage_with(known, "unready", reason="engine_died")
    await stage.later(SETTINGS.orphan_timeout * 3)
    del known["guest"]
    await stage.settle(agents=False)
    await stage.later(SETTINGS.orphan_timeout - 1)
    assert len(await stage.instances()) == 1
    await stage.later(2)
    assert await stage.instances() == []
