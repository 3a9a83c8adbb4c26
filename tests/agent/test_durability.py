"""Agents and engines that die, hang and run out: what was accepted is answered for, and the next task runs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from easel.agent.command import EngineChoice
from easel.errors import StoreFailed, TaskCancelled
from tests.agent.agents import (
    Agent,
    agent,
    agent_of,
    crash,
    node,
    noop,
    salts,
    sleep,
    steps,
    supervised,
)
from tests.engine.engines import engine
from tests.servers import Server, running_agent, running_engine
from tests.waiting import until


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Agent]:
    """An agent that looks after an engine process of its own."""
    async with agent_of(tmp_path / "agent", supervised(tmp_path)) as found:
        yield found


async def record_of(url: str, task_id: str) -> Any:
    """Ask an agent process for a task's record."""
    async with (
        aiohttp.ClientSession(url) as http,
        http.get("/api/status", params={"id": task_id, "detail": "true"}) as answer,
    ):
        return await answer.json()


async def state_of(url: str, task_id: str, *states: str) -> Any:
    """Wait until a task has one of these states."""

    async def there() -> Any:
        found = await record_of(url, task_id)
        return found if found.get("state") in states else None

    return await until(there, timeout=30, pause=0.02)


async def send(url: str, prompt: Any, **headers: str) -> int:
    """Post a prompt to an agent process."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession(url) as http,
        http.post("/api/run", json=prompt, headers=named) as answer,
    ):
        await answer.read()
        return answer.status


def kill(agent: Server) -> None:
    os.kill(agent.pid, signal.SIGKILL)


async def test_killed_agent(tmp_path: Path) -> None:
    """202 means that it will run: the next agent of this name runs it again. A blocking call's task has failed."""
    asynchronous, blocking = steps(60, 0.02), steps(50, 0.02)
    async with running_engine(tmp_path / "engine", "--pack", "demo") as engine:
        flags = ("--comfyui", engine.url)
        folder = tmp_path / "agent"
        env = {"EASEL_AGENT__NAME": "one"}
        async with running_agent(folder, *flags, env=env) as first:
            assert (
                await send(first.url, asynchronous, task_id="later", X_Fc_Invocation_Type="Async")
                == 202
            )
            await state_of(first.url, "later", "running")
            call = asyncio.ensure_future(send(first.url, blocking, task_id="now"))
            await state_of(first.url, "now", "queued", "running")

            async def counted() -> bool:
                return bool((await record_of(first.url, "later"))["nodes"]["1"]["value"] > 20)

            await until(counted, pause=0.02)
            kill(first)
            with pytest.raises(aiohttp.ClientError):
                await call
            await first.process.wait()
        async with running_agent(folder, *flags, env=env) as second:
            found = await state_of(second.url, "later", "succeeded", "failed")
            assert found["state"] == "succeeded", found
            assert found["attempt"] == 2
            found = await record_of(second.url, "now")
            assert found["state"] == "failed"
            assert found["error"]["code"] == "engine_unavailable"
            assert await send(second.url, asynchronous, task_id="later") == 200
            assert await send(second.url, blocking, task_id="now") == 503
            assert await send(second.url, noop()) == 200


async def test_a_task_whose_agents_keep_dying_is_given_up(tmp_path: Path) -> None:
    async with engine(tmp_path / "engine", "demo") as running:
        choice = EngineChoice(running.url, None)
        async with agent_of(tmp_path / "agent", choice) as first:
            await first.submit(sleep(0.1), "again")
            await first.settled("again")
            store = first.running.state.tasks._keeping._store
            left = await store.load("again")
            assert left is not None
            left.state, left.attempt, left.ended = "running", 2, None
            await store.save(left)
        async with agent_of(tmp_path / "agent", choice) as second:
            found = await second.record("again")
            assert found["state"] == "failed"
            assert found["error"]["hint"]


async def test_no_orphans_when_the_agent_is_killed(tmp_path: Path) -> None:
    async with running_agent(tmp_path / "agent", "--engine", "builtin", "--pack", "demo") as first:
        family = psutil.Process(first.pid).children(recursive=True)
        assert family
        assert (
            await send(first.url, sleep(60), task_id="later", X_Fc_Invocation_Type="Async") == 202
        )
        await state_of(first.url, "later", "running")
        kill(first)
        await first.process.wait()

        async def gone() -> bool:
            return not any(one.is_running() and one.status() != "zombie" for one in family)

        await until(gone, timeout=20)


async def test_sigterm_drains(tmp_path: Path) -> None:
    """The running call gets its answer; the one that waits is told; the asynchronous one is left for the next agent."""
    env = {"EASEL_AGENT__IN_ENGINE": "1", "EASEL_AGENT__NAME": "one"}
    flags = ("--engine", "builtin", "--pack", "demo")
    async with running_agent(tmp_path / "agent", *flags, env=env) as first:
        runs = asyncio.ensure_future(send(first.url, sleep(1.0), task_id="runs"))
        await state_of(first.url, "runs", "running")
        waits = asyncio.ensure_future(send(first.url, sleep(1.0), task_id="waits"))
        await state_of(first.url, "waits", "queued")
        assert await send(first.url, noop(), task_id="later", X_Fc_Invocation_Type="Async") == 202
        first.process.send_signal(signal.SIGTERM)
        assert await runs == 200
        assert await waits == 503
        assert await asyncio.wait_for(first.process.wait(), 20) == 0
    async with running_agent(tmp_path / "agent", *flags, env=env) as second:
        assert (await state_of(second.url, "later", "succeeded", "failed"))["state"] == "succeeded"
        assert (await record_of(second.url, "waits"))["state"] == "failed"


async def test_a_crash_is_its_own_tasks_only(guarded: Agent) -> None:
    """The prompt behind it, already in the engine, runs in the next one."""
    await guarded.submit(crash(0.3), "bad")
    await guarded.runs("bad")
    neighbours = [noop(f"{n}") for n in range(3)]
    answers = await asyncio.gather(*(guarded.post(one) for one in neighbours))
    assert [status for status, _ in answers] == [200] * 3
    found = await guarded.settled("bad")
    assert (found["state"], found["error"]["code"]) == ("failed", "engine_died")
    assert found["attempt"] == 1
    assert found["error"]["log"]


@pytest.mark.parametrize("kind", ["allocate", "exit"])
async def test_ends_of_the_engine(guarded: Agent, kind: str) -> None:
    bad = {
        "allocate": node("EaselAllocate", megabytes=8, outcome="killed", keep=False, salt=1),
        "exit": node("EaselCrash", how="exit", exit_code=0, seconds=0.0, salt=1),
    }
    status, body = await guarded.post({"1": bad[kind]})
    assert (status, body["code"]) == (502, "engine_died")
    assert body["message"] == "CallComfyUIPromptError"
    assert await guarded.run(noop())


async def test_too_little_memory_is_an_error_of_the_node(served: Agent) -> None:
    bad = node("EaselAllocate", megabytes=8, outcome="error", keep=False, salt=1)
    status, body = await served.post({"1": bad})
    assert (status, body["code"], body["node_id"]) == (500, "execution_failed", "1")
    assert body["exception_type"] == "MemoryError"
    assert await served.run(noop())


async def test_as_many_attempts_as_allowed(tmp_path: Path) -> None:
    async with agent_of(tmp_path / "agent", supervised(tmp_path), max_attempts=2) as guarded:
        await guarded.submit(crash(), "twice")
        found = await guarded.settled("twice")
        assert (found["error"]["code"], found["attempt"]) == ("engine_died", 2)
        assert guarded.running.state.link.process is not None
        assert await guarded.run(noop())
        assert guarded.running.state.link.process.starts == 3


@pytest.mark.parametrize("kind", ["deaf", "hang"])
async def test_a_node_that_does_not_stop(guarded: Agent, kind: str) -> None:
    """The caller is told at once; the engine is started again, for it does not stop; the neighbours run."""
    nodes = {
        "deaf": node("EaselDeaf", seconds=600.0, salt=next(salts)),
        "hang": node("EaselHang", silent=False, salt=next(salts)),
    }
    await guarded.submit({"1": nodes[kind]}, "stuck")
    await guarded.runs("stuck")
    neighbour = asyncio.ensure_future(guarded.post(noop()))
    assert await guarded.cancel("stuck") == "cancelled"
    status, body = await asyncio.wait_for(neighbour, 20)
    assert status == 200, body
    assert (await guarded.record("stuck"))["state"] == "cancelled"


async def test_an_engine_that_falls_silent(guarded: Agent) -> None:
    bad = {"1": node("EaselHang", silent=True, salt=next(salts))}
    status, body = await guarded.post(bad)
    assert (status, body["code"]) == (504, "engine_silent")
    assert await guarded.run(noop())


async def test_a_cancelled_task_that_ends_well_all_the_same_leaves_no_files(served: Agent) -> None:
    """An engine that is not ours is not restarted: the node runs on, the task is over."""
    prompt = {
        "1": node("EaselDeaf", seconds=4.0, salt=next(salts)),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    await served.submit(prompt, "deaf")
    await served.runs("deaf")
    assert await served.cancel("deaf") == "cancelled"
    assert await served.run(noop())
    assert not any("outputs/deaf" in name for name in served.files())


async def test_the_longest_execution(tmp_path: Path) -> None:
    async with agent_of(
        tmp_path / "other", supervised(tmp_path / "other"), task_timeout=1
    ) as short:
        async with short.http.post("/api/run", json=sleep(60)) as answer:
            body = await answer.json()
            assert (answer.status, body["code"], body["node_id"]) == (504, "task_timeout", "1")
        deaf = {"1": node("EaselDeaf", seconds=600.0, salt=next(salts))}
        status, body = await short.post(deaf)
        assert (status, body["code"]) == (504, "task_timeout")
        # waiting in the engine behind another one does not count
        both = await asyncio.gather(short.post(sleep(0.7)), short.post(sleep(0.7)))
        assert [status for status, _ in both] == [200, 200]


async def test_the_line_is_full(tmp_path: Path) -> None:
    async with agent(tmp_path, max_waiting=2, in_engine=1) as served:
        await served.submit(sleep(60), "runs")
        await served.runs("runs")
        for number in range(2):
            await served.submit(noop(f"{number}"), f"waits-{number}")
        for headers in ({}, {"X_Fc_Invocation_Type": "Async"}):
            status, body = await served.post(noop("more"), task_id="more", **headers)
            assert (status, body["code"]) == (429, "too_many_tasks")
        assert (await served.record("more"))["code"] == "task_not_found"
        assert (await served.record("waits-1"))["queue_position"] == 1
        await served.cancel("runs")
        assert (await served.settled("waits-1"))["state"] == "succeeded"
        assert await served.run(noop("more"), task_id="more")


@asynccontextmanager
async def failing(served: Agent) -> AsyncIterator[None]:
    """The store fails until the block ends: its folder is no folder any more."""
    folder = served.data / "tasks"
    away = folder.with_name("away")
    await asyncio.to_thread(folder.rename, away)
    await asyncio.to_thread(folder.write_bytes, b"")
    try:
        yield
    finally:
        await asyncio.to_thread(folder.unlink)
        await asyncio.to_thread(away.rename, folder)


async def test_a_store_that_fails_refuses_and_recovers(served: Agent) -> None:
    await served.run(noop(), task_id="before")
    async with failing(served):
        status, body = await served.post(noop(), task_id="later", X_Fc_Invocation_Type="Async")
        assert (status, body["code"]) == (500, "store_failed")
        assert body["message"] == "LoadProgressError"
        status, body = await served.post(noop(), task_id="now")
        assert (status, body["code"]) == (500, "store_failed")
        assert (await served.record("before"))["code"] == "store_failed"
        assert await served.engine_idle()
    assert (await served.record("before"))["state"] == "succeeded"
    assert await served.run(noop(), task_id="now")
    assert (await served.record("later"))["code"] == "task_not_found"


async def test_the_store_fails_while_a_task_runs(served: Agent) -> None:
    """Its caller gets the answer; its status is known meanwhile, and stored when the store is back."""
    prompt = sleep(0.5)
    call = asyncio.ensure_future(served.post(prompt, task_id="runs"))
    await served.runs("runs")
    async with failing(served):
        status, nodes = await call
        assert status == 200
        assert (await served.record("runs"))["state"] == "succeeded"
        assert await served.post(prompt, task_id="runs") == (200, nodes)
    keeping = served.running.state.tasks._keeping

    async def stored() -> bool:
        found = await keeping._store.load("runs")
        return found is not None and found.state == "succeeded"

    await until(stored, timeout=10)
    assert not keeping._unsaved


async def test_a_database_that_is_gone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'db' / 'tasks.db'}"
    (tmp_path / "db").mkdir()
    async with agent(tmp_path, store=url) as served:
        nodes = await served.run(noop(), task_id="kept")
        store = served.running.state.tasks._keeping._store
        call = asyncio.ensure_future(served.post(sleep(0.3), task_id="runs"))
        await served.runs("runs")

        async def broken(*_: object) -> None:
            raise StoreFailed("the database does not answer")

        store.save = broken  # type: ignore[method-assign, assignment]
        assert (await call)[0] == 200
        assert (await served.record("runs"))["state"] == "succeeded"
        del store.save
        assert await served.run(noop(), task_id="kept") == nodes


async def test_a_late_event_does_not_touch_the_end(served: Agent) -> None:
    """A prompt begins in the engine while the end of its task is on its way to a slow store."""
    tasks = served.running.state.tasks
    await served.submit(sleep(30), "before")
    await served.runs("before")
    await served.submit(sleep(30), "late")
    late = tasks.get("late")
    assert late is not None

    async def posted() -> bool:
        return late.run is not None

    await until(posted, timeout=10)
    store = tasks._keeping._store
    save, go_on = store.save, asyncio.Event()

    async def slow(record: Any) -> None:
        await go_on.wait()
        await save(record)

    store.save = slow  # type: ignore[method-assign]
    end = asyncio.ensure_future(tasks.finish(late, TaskCancelled("enough")))
    before = asyncio.ensure_future(served.cancel("before"))

    async def begun() -> bool:
        return late.run is not None and late.run.started

    await until(begun, timeout=20)
    go_on.set()
    await end
    await before
    assert (await served.record("late"))["state"] == "cancelled"


async def test_a_late_snapshot_never_overwrites_the_end(served: Agent) -> None:
    """Progress is on its way to a slow store when the task ends."""
    keeping = served.running.state.tasks._keeping
    store = keeping._store
    original = store.create
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(record: Any) -> Any:
        if record.state == "running":
            begun.set()
            await go_on.wait()
        return await original(record)

    store.create = slow  # type: ignore[method-assign]
    call = asyncio.ensure_future(served.http.post("/api/run", json=steps(30, 0.02)))
    await asyncio.wait_for(begun.wait(), 10)  # the id was drawn, so the first snapshot creates it

    async def ending() -> bool:
        return any(task.ending is not None for task in served.running.state.tasks._tasks.values())

    await until(ending, pause=0.01)
    go_on.set()
    async with await call as answer:
        assert answer.status == 200
        task_id = answer.headers["task-id"]
    found = await store.load(task_id)
    assert found is not None
    assert found.state == "succeeded"
    assert found.percent == 100


async def test_a_delete_whose_caller_leaves_still_ends_the_task(served: Agent) -> None:
    """The end is written though the call that began it was cut off while the store was slow."""
    store = served.running.state.tasks._keeping._store
    original = store.save
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(record: Any) -> None:
        if record.state == "cancelled":
            begun.set()
            await go_on.wait()
        await original(record)

    store.save = slow  # type: ignore[method-assign]
    await served.submit(sleep(60), "cut")
    await served.runs("cut")
    call = asyncio.ensure_future(served.http.delete("/api/status", params={"id": "cut"}))
    await asyncio.wait_for(begun.wait(), 10)
    call.cancel()
    go_on.set()
    assert (await served.settled("cut"))["state"] == "cancelled"

    async def forgotten() -> bool:
        return not served.running.state.tasks._tasks

    await until(forgotten, pause=0.01)
    assert await served.run(noop())
