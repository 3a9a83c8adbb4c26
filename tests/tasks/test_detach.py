"""An agent's connection is cut: what it did is not lost, and others' words about its task are heard."""

from __future__ import annotations

import pytest

from easel.errors import LeaseLost, StoreFailed
from easel.tasks.model import Lease, Progress
from easel.workflow.progress import NodeProgress
from tests.tasks.conftest import Bench, new


async def assigned(bench: Bench) -> Lease:
    await bench.tasks.submit(new("a"), 10)
    found = await bench.tasks.claim("paint", "i1")
    assert found is not None
    return found.lease


HALF = Progress(percent=50, current_node="1", nodes={"1": NodeProgress(max=2, value=1)})


async def test_what_was_not_stored_yet_is_stored(bench: Bench) -> None:
    lease = await assigned(bench)
    await bench.tasks.start(lease, bench.clock.now)
    await bench.tasks.progress(lease, HALF, border=False)
    await bench.tasks.detach(lease)
    kept = await bench.tasks.store.get_uid(lease.uid)
    assert (kept.state, kept.percent) == ("running", 50)
    assert bench.tasks._live == {}


async def test_watchers_see_what_the_store_says_from_then_on(bench: Bench) -> None:
    """Another process may have the agent by now."""
    lease = await assigned(bench)
    async with bench.tasks.watch(lease.uid) as watch:
        await bench.tasks.start(lease, bench.clock.now)
        await bench.tasks.detach(lease)
        await bench.tasks.store.progress(lease, HALF, event=False)
        assert await watch.wait(10)
        assert (watch.task.state, watch.task.percent) == ("running", 50)
        await bench.tasks.hold(lease)
        await bench.tasks.progress(
            lease, Progress(percent=60, current_node="1", nodes={}), border=False
        )
        assert await watch.wait(10)
        assert watch.task.percent == 60


async def test_it_is_let_go_though_the_store_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await assigned(bench)
    await bench.tasks.start(lease, bench.clock.now)

    async def fail(lease: Lease, at: int) -> None:
        raise StoreFailed("no")

    monkeypatch.setattr(bench.tasks.store, "start", fail)
    with pytest.raises(StoreFailed):
        await bench.tasks.detach(lease)
    assert bench.tasks._live == {}


async def test_another_lease_is_left_alone(bench: Bench) -> None:
    lease = await assigned(bench)
    await bench.tasks.detach(Lease(uid=lease.uid, token="another"))
    await bench.tasks.start(lease, bench.clock.now)
    await bench.tasks.detach(lease)
    with pytest.raises(LeaseLost):
        await bench.tasks.progress(lease, HALF, border=False)
