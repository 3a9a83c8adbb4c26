"""What becomes of task stores whose process, callers or database fail."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest

from easel.errors import StoreFailed
from easel.tasks.model import FINISHED, Lease, Progress
from easel.tasks.store import TaskStore
from tests.contract.task_stores import Clock, TaskPlace, new
from tests.contract.test_task_store import LEASE, claimed, ending, kinds


@pytest.mark.parametrize("lines", [1, 60, 300])
async def test_what_was_accepted_survives_a_kill(task_place: TaskPlace, lines: int) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.contract.task_writer",
        task_place.url or "-",
        str(task_place.home),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    said: list[bytes] = []
    async with asyncio.timeout(40):
        while len(said) < lines:
            said.append(await process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        said += (await process.stdout.read()).splitlines(keepends=True)
        await process.wait()
    heard = [line.decode().split() for line in said if line.endswith(b"\n")]
    assert len(heard) >= lines
    async with task_place.opened() as tasks:
        for what, task_id in heard:
            task = await tasks.get("service", "owner", task_id)
            if what == "claimed":
                assert task.attempt == 1
            elif what == "finished":
                assert task.state == "succeeded"
        # Nothing is half there: every task has its events, and those that wait their bodies.
        for task in await tasks.page("service", limit=10**6):
            shape = {"queued": 1, "assigned": 2, "succeeded": 3}
            assert len(await kinds(tasks, task.uid)) == shape[task.state]
        while (found := await tasks.claim("service", "i", lease_ms=LEASE)) is not None:
            assert found.body.outputs == ["3"]


async def test_reopened_it_is_all_there(task_place: TaskPlace, clock: Clock) -> None:
    async with task_place.opened() as tasks:
        lease = (await tasks.put(new()), await claimed(tasks))[1].lease
        await tasks.put(new("waits"))
    async with task_place.opened() as tasks:
        assert await tasks.renew([lease], lease_ms=LEASE) == ([], [])
        await tasks.start(lease, clock.now)
        await tasks.finish(lease, ending())
        assert (await claimed(tasks)).task.id == "waits"


async def test_a_caller_that_is_cancelled_harms_nobody(tasks: TaskStore) -> None:
    calls = [asyncio.ensure_future(tasks.put(new(f"task-{n}"))) for n in range(40)]
    await asyncio.sleep(0)
    for n, call in enumerate(calls):
        if n % 3 == 0:
            call.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for n, outcome in enumerate(outcomes):
        if n % 3:
            assert isinstance(outcome, tuple)
            assert (await tasks.get("service", "owner", f"task-{n}")) == outcome[0]
    counts = await tasks.counts("service")
    assert counts["queued"] == len(await tasks.page("service", limit=100))
    await tasks.put_within(new("more"), counts["queued"] + 1)


async def calls(tasks: TaskStore, lease: Lease) -> None:
    """Call everything; each call raises StoreFailed."""
    said = Progress(percent=1, current_node=None, nodes={})
    for call in (
        tasks.put(new("x")),
        tasks.put_within(new("y"), 5),
        tasks.claim("service", "i1", lease_ms=LEASE),
        tasks.start(lease, 5),
        tasks.renew([lease], lease_ms=LEASE),
        tasks.progress(lease, said, event=True),
        tasks.finish(lease, ending()),
        tasks.give_back(lease, "why", counted=True, max_delivery=5),
        tasks.cancel("service", "owner", "task"),
        tasks.get("service", "owner", "task"),
        tasks.get_uid(lease.uid),
        tasks.page("service"),
        tasks.events(lease.uid),
        tasks.position(lease.uid),
        tasks.counts("service"),
        tasks.held(),
        tasks.sweep(max_delivery=5),
        tasks.forget("service", ended_before=5),
        tasks.forget_service("service"),
    ):
        with pytest.raises(StoreFailed) as caught:
            async with asyncio.timeout(40):
                await call
        assert "pa55" not in str(caught.value)


async def test_after_close_every_call_says_so(task_place: TaskPlace) -> None:
    async with task_place.opened() as tasks:
        await tasks.put(new())
        lease = (await claimed(tasks)).lease
    await calls(tasks, lease)


async def test_a_server_that_is_gone_and_comes_back(task_place: TaskPlace) -> None:
    if task_place.server is None:
        pytest.skip("SQLite has no server")
    async with task_place.opened() as tasks:
        await tasks.put(new())
        lease = (await claimed(tasks)).lease
        await asyncio.to_thread(task_place.server.stop)
        try:
            await calls(tasks, lease)
        finally:
            await asyncio.to_thread(task_place.server.start)
        await tasks.finish(lease, ending())
        assert (await tasks.get("service", "owner", "task")).state in FINISHED
