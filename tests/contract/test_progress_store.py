"""What every progress store keeps to, whatever it is made of (see `easel.agent.record.ProgressStore`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easel.agent.record import ProgressStore, TaskRecord, TaskRequest
from easel.agent.store import open_store
from easel.errors import InvalidTaskId, StoreFailed
from tests.contract.conftest import Folder, Place, Server, SqliteFile, opened
from tests.contract.databases import PASSWORD
from tests.contract.records import any_text, ids, record, records
from tests.contract.writer import NODES, snapshot

pytestmark = pytest.mark.timeout(120)

properties = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@contextlib.asynccontextmanager
async def writer(place: Place, what: str, owner: str, count: int) -> AsyncIterator[Process]:
    """Run tests.contract.writer until the block ends; it is ready and waits for its line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.contract.writer", what, place.settings.model_dump_json(), owner, str(count)),
        stdin=PIPE,
        stdout=PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def go(*processes: Process) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")


async def line(process: Process) -> bytes:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        return await process.stdout.readline()


@properties
@given(whole=records)
async def test_every_field_comes_back(store: ProgressStore, whole: TaskRecord) -> None:
    await store.save(whole)
    assert await store.load(whole.id) == whole


@properties
@given(names=st.lists(ids, unique=True, min_size=2, max_size=6), count=st.integers(0, 10**9))
async def test_no_two_ids_are_mixed_up(store: ProgressStore, names: list[str], count: int) -> None:
    for position, name in enumerate(names):
        await store.save(record(name, created=count + position))
    for position, name in enumerate(names):
        found = await store.load(name)
        assert found is not None
        assert (found.id, found.created) == (name, count + position)


@properties
@given(name=any_text)
async def test_an_id_works_or_is_refused(store: ProgressStore, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        for call in (store.load(name), store.save(record(name)), store.create(record(name))):
            with pytest.raises(InvalidTaskId):
                await call
    else:
        await store.create(record(name))
        found = await store.load(name)
        assert found is not None
        assert found.id == name


async def test_an_unknown_id_is_none(store: ProgressStore) -> None:
    assert await store.load("nobody") is None


async def test_many_are_saved_at_once(store: ProgressStore) -> None:
    await store.create(record("many-0", state="running"))
    records = [record(f"many-{n}", state="succeeded", percent=float(n)) for n in range(50)]
    await store.save_all(records)
    await store.save_all([])
    assert [await store.load(f"many-{n}") for n in range(50)] == records
    assert await store.unfinished(records[0].owner) == []


async def test_create_keeps_the_first(store: ProgressStore) -> None:
    first = record("task", owner="one", seeds={"3.seed": 2**64 - 1})
    assert await store.create(first) is None
    assert await store.create(record("task", owner="two")) == first
    assert await store.load("task") == first
    assert await store.create(first) == first


async def test_of_many_concurrent_creates_one_wins(place: Place) -> None:
    async with opened(place) as one, opened(place) as two:
        outcomes = await asyncio.gather(
            *(
                store.create(record("task", owner=f"agent-{n}"))
                for n, store in enumerate([one, two] * 10)
            )
        )
        winners = [n for n, outcome in enumerate(outcomes) if outcome is None]
        assert len(winners) == 1
        holder = await one.load("task")
        assert holder is not None
        assert holder.owner == f"agent-{winners[0]}"
        assert all(outcome == holder for outcome in outcomes if outcome is not None)


async def test_of_two_processes_that_create_one_wins(place: Place) -> None:
    count = 60
    async with (
        opened(place) as store,
        writer(place, "create", "left", count) as left,
        writer(place, "create", "right", count) as right,
    ):
        go(left, right)
        won = {"left": json.loads(await line(left)), "right": json.loads(await line(right))}
        assert sorted(won["left"] + won["right"]) == list(range(count))
        for owner, numbers in won.items():
            for n in numbers:
                found = await store.load(f"race-{n}")
                assert found is not None
                assert found.owner == owner
        assert len(await store.unfinished("left")) == len(won["left"])
        assert len(await store.unfinished("right")) == len(won["right"])


async def test_two_agents_may_open_at_once(place: Place) -> None:
    stores = [open_store(place.settings) for _ in range(6)]
    try:
        await asyncio.gather(*(store.open() for store in stores))
        for n, store in enumerate(stores):
            assert await store.create(record(f"task-{n}")) is None
        assert len(await stores[0].unfinished("agent-1")) == 6
    finally:
        for store in stores:
            await store.close()


async def test_the_last_save_wins_even_when_nobody_waits(store: ProgressStore) -> None:
    task = record("task", state="running")
    await store.create(task)
    saves = []
    for percent in range(100):
        task.percent = percent  # the snapshot is taken when save is called
        saves.append(asyncio.ensure_future(store.save(task)))
        await asyncio.sleep(0)
        if percent % 3 == 0:
            saves[-1].cancel()
    task.percent = 100
    await store.save(task)
    await asyncio.gather(*saves, return_exceptions=True)
    found = await store.load("task")
    assert found is not None
    assert found.percent == 100


async def test_readers_never_see_half(place: Place) -> None:
    async with opened(place) as store, writer(place, "save", "w", 150) as process:
        go(process)
        seen = set()
        while await line(process):
            found = await store.load("shared")
            assert found is not None
            values = {node.value for node in found.nodes.values()}
            assert len(values) == 1
            assert len(found.nodes) == NODES
            seen |= values
        assert len(seen) > 1


async def test_a_killed_writer_leaves_readable_records(place: Place) -> None:
    for round_ in range(3):
        async with opened(place) as store, writer(place, "save", "w", 10**6) as process:
            go(process)
            for _ in range(10 + 7 * round_):
                said = await line(process)
            process.kill()
            await process.wait()
            found = await store.load("shared")
            assert found is not None
            (value,) = {node.value for node in found.nodes.values()}
            assert value >= int(said)
            assert found.nodes == snapshot("w", int(value))
            assert [task.id for task in await store.unfinished("w")] == ["shared"]
            await store.save(record("shared", owner="w", state="failed"))
            assert await store.unfinished("w") == []


async def test_unfinished_is_in_order_and_by_owner(store: ProgressStore) -> None:
    await store.create(record("late", created=30))
    await store.create(record("early", created=10, state="running"))
    await store.create(record("other", created=5, owner="agent-2"))
    await store.create(record("AGENT", created=6, owner="AGENT-1"))
    await store.create(record("done", created=1))
    await store.save(record("done", created=1, state="succeeded"))
    await store.create(record("born done", created=2, state="cancelled"))
    await store.save(record("saved only", created=20))
    names = [task.id for task in await store.unfinished("agent-1")]
    assert names == ["early", "saved only", "late"]
    assert [task.id for task in await store.unfinished("agent-2")] == ["other"]
    assert [task.id for task in await store.unfinished("AGENT-1")] == ["AGENT"]
    assert await store.unfinished("nobody") == []


async def test_a_task_changes_hands_and_state(store: ProgressStore) -> None:
    await store.create(record("task", owner="one"))
    await store.save(record("task", owner="two"))
    assert await store.unfinished("one") == []
    assert [task.id for task in await store.unfinished("two")] == ["task"]
    await store.save(record("task", owner="two", state="failed"))
    assert await store.unfinished("two") == []
    await store.save(record("task", owner="two", state="queued", attempt=1))
    assert [task.attempt for task in await store.unfinished("two")] == [1]


@properties
@given(owner=st.text(max_size=300))
async def test_any_owner(store: ProgressStore, owner: str) -> None:
    await store.save(record("task of " + owner, owner=owner))
    assert [task.owner for task in await store.unfinished(owner)] == [owner]


async def test_a_conflict_does_not_hide_the_holders_task(store: ProgressStore) -> None:
    await store.create(record("task", owner="one"))
    await store.create(record("task", owner="one", signature="other"))
    await store.create(record("task", owner="two"))
    assert [task.id for task in await store.unfinished("one")] == ["task"]
    assert await store.unfinished("two") == []


async def test_reopened_it_is_all_there(place: Place) -> None:
    kept = record("task", request=TaskRequest(prompt={"1": {"class_type": "A", "inputs": {}}}))
    async with opened(place) as store:
        await store.create(kept)
    async with opened(place) as store:
        assert await store.load("task") == kept
        assert await store.unfinished("agent-1") == [kept]
        assert await store.create(record("task")) == kept


async def test_close_finishes_and_may_come_twice(place: Place) -> None:
    async with opened(place) as store:
        saves = [asyncio.ensure_future(store.save(record(f"task-{n}"))) for n in range(50)]
        await asyncio.sleep(0)
        await store.close()
        await asyncio.gather(*saves)
        await store.close()
        for call in (
            store.load("task-1"),
            store.save(record("x")),
            store.create(record("x")),
            store.unfinished("agent-1"),
        ):
            with pytest.raises(StoreFailed, match="closed"):
                await call
    async with opened(place) as store:
        assert len(await store.unfinished("agent-1")) == 50


async def test_a_store_may_be_closed_unopened(place: Place) -> None:
    await open_store(place.settings).close()


async def test_a_big_record(store: ProgressStore) -> None:
    big = record("big", nodes=snapshot("x" * 20_000, 1), state="running")  # 4 MB
    await store.create(record("big"))
    await store.save(big)
    assert await store.load("big") == big


async def test_it_fails_aloud_and_recovers(place: Place) -> None:
    async with opened(place) as store:
        await store.create(record("before"))
        place.stop()
        try:
            for call in (store.save(record("x")), store.create(record("y"))):
                with pytest.raises(StoreFailed) as caught:
                    await call
                assert caught.value.hint
                assert "pa55" not in str(caught.value)
            if not isinstance(place, SqliteFile):
                for read in (store.load("before"), store.unfinished("agent-1")):
                    with pytest.raises(StoreFailed):
                        await read
        finally:
            place.start()
        assert await store.create(record("after")) is None
        assert {task.id for task in await store.unfinished("agent-1")} == {"before", "after"}


async def test_a_damaged_record_is_logged_and_replaced(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(place) as store:
        await store.create(record("torn"))
        await store.create(record("whole"))
        place.damage("torn")
        assert await store.load("torn") is None
        assert "is not a task record" in caplog.text
        assert [task.id for task in await store.unfinished("agent-1")] == ["whole"]
        new = record("torn", owner="two")
        assert await store.create(new) is None
        assert await store.load("torn") == new
        assert await store.create(record("torn")) == new


async def test_a_value_without_json_form_is_refused(store: ProgressStore) -> None:
    with pytest.raises(StoreFailed, match="cannot be stored"):
        await store.save(record("x", error={"what": object()}))


async def test_what_it_makes_is_private(place: Place) -> None:
    if isinstance(place, Server):
        pytest.skip("a server keeps its files itself")
    root = place.folder if isinstance(place, Folder) else place.settings.data_dir / "nested"
    old = os.umask(0)
    try:
        async with opened(place) as store:
            await store.create(record("task"))
            await store.save(record("task", state="running"))
            paths = [root, *root.rglob("*")]
            assert len(paths) > 3
            for path in paths:
                assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    finally:
        os.umask(old)


def test_the_password_is_one_that_would_be_noticed() -> None:
    assert "pa55" in PASSWORD
