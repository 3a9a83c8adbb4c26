"""The same id is the same task: joined while it runs, answered when it is over, refused with another body."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import aiohttp
import pytest

from easel.agent.command import EngineChoice
from tests.agent.agents import Agent, agent, agent_of, noop, picture, sleep, steps
from tests.engine.engines import engine
from tests.waiting import until


async def test_fifty_at_once_are_one_execution(served: Agent) -> None:
    prompt = picture()
    answers = await asyncio.gather(
        *(served.post(prompt, "?output_base64=true", task_id="one") for _ in range(50))
    )
    assert [status for status, _ in answers] == [200] * 50
    assert all(body == answers[0][1] for _, body in answers)
    assert answers[0][1]["2"]["results"]
    assert await served.executed() == 1


async def test_another_body_is_a_conflict_while_it_runs_and_afterwards(served: Agent) -> None:
    await served.submit(sleep(30), "taken")
    status, body = await served.post(noop(), task_id="taken")
    assert (status, body["code"]) == (409, "task_conflict")
    assert await served.cancel("taken") == "cancelled"
    status, body = await served.post(noop(), task_id="taken")
    assert (status, body["code"]) == (409, "task_conflict")
    assert await served.run(noop(), task_id="free")


async def test_a_finished_id_is_answered_from_the_store_also_by_the_next_agent(
    tmp_path: Path,
) -> None:
    prompt = picture()
    async with engine(tmp_path / "engine", "demo") as running:
        choice = EngineChoice(running.url, None)
        async with agent_of(tmp_path / "agent", choice) as first:
            nodes = await first.run(prompt, "?output_base64=true", task_id="kept")
            assert await first.run(prompt, "?output_base64=true", task_id="kept") == nodes
        async with agent_of(tmp_path / "agent", choice) as second:
            assert await second.run(prompt, "?output_base64=true", task_id="kept") == nodes
            status, body = await second.post(noop(), task_id="kept")
            assert (status, body["code"]) == (409, "task_conflict")
            assert await second.executed() == 1


async def test_a_failure_is_answered_again(served: Agent) -> None:
    prompt = {
        "1": {
            "class_type": "EaselFail",
            "inputs": {"message": "no", "exception": "ValueError", "steps": 0, "salt": 0},
        }
    }
    first = await served.post(prompt, task_id="fails")
    assert first[0] == 500
    assert await served.post(prompt, task_id="fails") == first
    assert await served.executed() == 1


async def test_who_joins_keeps_the_task_when_the_first_leaves(served: Agent) -> None:
    prompt = sleep(0.5)
    first = asyncio.ensure_future(served.post(prompt, task_id="shared"))
    await served.runs("shared")
    second = asyncio.ensure_future(served.post(prompt, task_id="shared"))

    async def joined() -> bool:
        task = served.running.state.tasks.get("shared")
        return task is not None and len(task.listeners) == 2

    await until(joined, pause=0.01)
    first.cancel()
    status, body = await second
    assert status == 200, body


async def test_the_first_leaves_while_its_files_are_fetched(tmp_path: Path) -> None:
    """The call that began to prepare the task leaves; the one that joined gets the answer all the same."""
    from aiohttp import web
    from PIL import Image

    from tests.agent.web import serve

    asked, go_on = asyncio.Event(), asyncio.Event()
    Image.new("RGB", (8, 8)).save(tmp_path / "it.png")

    async def slow(_: web.Request) -> web.StreamResponse:
        asked.set()
        await go_on.wait()
        return web.FileResponse(tmp_path / "it.png")

    async with agent(tmp_path) as served, serve(slow) as url:
        prompt = {
            "1": {"class_type": "LoadImage", "inputs": {"image": f"{url}/it.png"}},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }
        first = asyncio.ensure_future(served.post(prompt, task_id="shared"))
        await asyncio.wait_for(asked.wait(), 10)
        second = asyncio.ensure_future(served.post(prompt, task_id="shared"))
        tasks = served.running.state.tasks

        async def joined() -> bool:
            return len(tasks._tasks["shared"].listeners) == 2

        await until(joined, pause=0.01)
        first.cancel()
        go_on.set()
        status, body = await second
        assert status == 200, body
        # and when everybody leaves, nothing is prepared any more
        asked.clear()
        go_on.clear()
        prompt["1"]["inputs"]["image"] = f"{url}/other.png"  # type: ignore[index]
        alone = asyncio.ensure_future(served.post(prompt, task_id="alone"))
        await asyncio.wait_for(asked.wait(), 10)
        alone.cancel()

        async def forgotten() -> bool:
            return not tasks._tasks

        await until(forgotten, pause=0.01)
        assert (await served.record("alone"))["code"] == "task_not_found"
        assert await served.run(noop())


async def test_an_async_call_that_joins_makes_the_task_outlive_its_callers(served: Agent) -> None:
    prompt = sleep(0.5)
    first = asyncio.ensure_future(served.post(prompt, task_id="both"))
    await served.runs("both")
    await served.submit(prompt, "both")
    stored = await served.running.state.tasks._keeping._store.load("both")
    assert stored is not None
    assert stored.request is not None, "202 was answered, but the task would not survive the agent"
    first.cancel()
    assert (await served.settled("both"))["state"] == "succeeded"


async def test_ids_that_the_agent_draws(served: Agent) -> None:
    drawn = set()
    for _ in range(3):
        async with served.http.post("/api/run", json=noop()) as answer:
            assert answer.headers["task-status"] == "succeeded"
            drawn.add(answer.headers["task-id"])
    assert len(drawn) == 3
    for task_id in drawn:
        uuid.UUID(task_id)
        assert (await served.record(task_id))["state"] == "succeeded"


@pytest.mark.parametrize(
    ("headers", "used"),
    [
        ({"task-id": "a", "X-Fc-Async-Task-Id": "b", "X-Fc-Request-Id": "c"}, "a"),
        ({"X-Fc-Async-Task-Id": "b", "X-Fc-Request-Id": "c"}, "b"),
        ({"X-Fc-Request-Id": "1-6543-abc.def"}, "1-6543-abc.def"),
        ({"TASK-ID": "A_-.9"}, "A_-.9"),
        ({"task-id": "x" * 128}, "x" * 128),
    ],
)
async def test_which_header_names_the_task(
    served: Agent, headers: dict[str, str], used: str
) -> None:
    async with served.http.post("/api/run", json=noop(), headers=headers) as answer:
        assert answer.status == 200
        assert answer.headers["task-id"] == used
    assert (await served.record(used))["state"] == "succeeded"


BAD_IDS = ["../x", "..", ".hidden", "a/b", "a b", "x" * 129, "%2e%2e", "ä", "a:b", "~x", "a\\b"]


@pytest.mark.parametrize("bad", BAD_IDS)
async def test_ids_that_are_none(served: Agent, bad: str) -> None:
    before = served.files()
    for headers in ({}, {"X-Fc-Invocation-Type": "Async"}):
        async with served.http.post(
            "/api/run", json=noop(), headers={**headers, "task-id": bad}
        ) as answer:
            assert answer.status == 400
            assert (await answer.json())["code"] == "invalid_task_id"
    async with served.http.ws_connect("/api/run/ws", headers={"task-id": bad}) as socket:
        await socket.send_json(noop())
        said = await socket.receive_json()
        assert (said["type"], said["data"]["code"]) == ("error", "invalid_task_id")
    for method in ("GET", "DELETE"):
        async with served.http.request(method, "/api/status", params={"id": bad}) as answer:
            assert 400 <= answer.status < 500
            assert (await answer.json())["code"] in ("task_not_found", "invalid_task_id")
    assert served.files() == before
    assert await served.run(noop())


async def test_the_same_request_id_of_the_platform_with_other_bodies(served: Agent) -> None:
    """Function Compute gives each call an id of its own; one that is used twice is a conflict, not a mix-up."""
    assert await served.run(noop("a"), X_Fc_Request_Id="platform-1")
    assert await served.run(noop("b"), X_Fc_Request_Id="platform-2")
    status, body = await served.post(noop("b"), X_Fc_Request_Id="platform-1")
    assert (status, body["code"]) == (409, "task_conflict")


async def test_two_watchers_of_one_task_and_one_of_them_leaves(served: Agent) -> None:
    prompt = steps(20, 0.05)
    headers = {"task-id": "watched"}
    async with (
        served.http.ws_connect("/api/run/ws", headers=headers) as one,
        aiohttp.ClientSession(served.url) as other,
    ):
        await one.send_json(prompt)
        await one.receive_json()
        await served.runs("watched")
        async with other.post(
            "/api/run", json=prompt, headers={**headers, "Accept": "text/event-stream"}
        ) as stream:
            assert (await stream.content.readline()) == b"event: progress\n"
            await one.send_json({"type": "close"})
            assert b"event: result\n" in await stream.content.read()
    assert await served.executed() == 1
