"""The defects of the Function Compute reference agent, by the numbers of the list in the design notes: each is absent.

Number 20 is about its watchdog (busy loop, readers that spin, a process that is not waited for): tests/comfy/test_process.py
has the supervision, here is only that the engine is really ended and started. Number 21's second half (one shared /tmp for
all instances) is of its container image, which Easel does not have; the first half is the port that is taken.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from PIL import Image

from easel.agent.serve import running_agent
from easel.errors import ConfigurationError
from easel.settings import AgentSettings
from tests.agent.agents import (
    Agent,
    agent,
    agent_of,
    crash,
    node,
    noop,
    picture,
    sleep,
    steps,
    supervised,
    text_file,
)
from tests.agent.web import serve
from tests.waiting import until


async def test_1_prompts_that_end_at_once_are_not_missed(served: Agent) -> None:
    prompt = picture()
    for _ in range(20):  # all but the first are fully cached
        assert (await served.run(prompt))["2"]["images"]


async def test_2_a_prompt_that_waits_in_the_engine_is_not_finished(served: Agent) -> None:
    """Somebody else's prompt runs in the engine; ours has begun nothing and is not answered with nothing."""
    async with served.http.post("/prompt", json={"prompt": sleep(0.5)}) as answer:
        assert answer.status == 200
    assert (await served.run(picture()))["2"]["images"]


async def test_3_runs_at_the_same_time_do_not_starve_each_other(served: Agent) -> None:
    texts = [f"number {n}" for n in range(12)]
    answers = await asyncio.gather(*(served.run(noop(text)) for text in texts))
    assert [nodes["1"]["images"][0]["text"] for nodes in answers] == texts


async def test_4_a_failure_is_no_success(served: Agent) -> None:
    bad = node("EaselFail", message="broken", exception="KeyError", steps=0, salt=0)
    status, body = await served.post({"1": bad}, task_id="fails")
    assert status == 500
    assert (body["message"], body["code"]) == ("CallComfyUIPromptError", "execution_failed")
    assert body["node_id"] == "1"
    assert "broken" in body["error"]
    assert body["traceback"]
    await served.submit(sleep(60), "stopped")
    await served.runs("stopped")
    async with served.http.post("/interrupt") as answer:
        assert answer.status == 200
    assert (await served.settled("stopped"))["state"] == "cancelled"


async def test_5_cached_nodes_are_complete(served: Agent) -> None:
    prompt = picture()
    await served.run(prompt)
    for progress in (await served.run(prompt)).values():
        assert progress["value"] == progress["max"] > 0


async def test_6_no_kind_of_output_is_lost(served: Agent) -> None:
    prompt = {
        "1": node("EmptyImage", width=8, height=8, batch_size=2, color=1),
        "2": node("PreviewImage", images=["1", 0]),
        "3": node("EaselText", text="said", announce=False),
        "4": text_file("glb", result_key="3d", extension=".glb")["1"],
        "5": node("EaselAudio", frequency=1.0, seconds=0.01, filename_prefix="a", folder="temp"),
    }
    nodes = await served.run(prompt)
    assert {key: len(nodes[key]["images"]) for key in "2345"} == {"2": 2, "3": 1, "4": 1, "5": 1}


def data_uri() -> str:
    sink = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(sink, "PNG")
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()


async def test_7_inputs_are_brought_or_refused(served: Agent) -> None:
    """A short plain name is a name; a ``data:`` URI works, in LoadImageMask too; content is stored once; failures refuse."""
    form = aiohttp.FormData()
    form.add_field("image", base64.b64decode(data_uri().partition(",")[2]), filename="mine.png")
    async with served.http.post("/upload/image", data=form) as answer:
        assert answer.status == 200
    for image in ("mine.png", data_uri()):
        nodes = await served.run(
            {
                "1": node("LoadImage", image=image),
                "2": node("LoadImageMask", image=image, channel="red"),
                "3": node("PreviewImage", images=["1", 0]),
                "4": node("MaskPreview", mask=["2", 0]),
            },
            "?output_base64=true",
        )
        with Image.open(io.BytesIO(base64.b64decode(nodes["3"]["results"][0]))) as shown:
            assert shown.size == (9, 7)
    stored = [name for name in served.files() if "/input/easel" in name]
    assert len(stored) == 1
    status, body = await served.post(
        {"1": node("LoadImage", image="nope.png"), "3": node("PreviewImage", images=["1", 0])}
    )
    assert status == 400, body


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/x.png",
        "http://[::1]/x.png",
        "http://localhost:1/x.png",
        "http://0/x.png",
        "file:///etc/passwd",
        "http://100.100.100.200/latest/meta-data",
    ],
)
async def test_8_addresses_that_are_not_fetched(served: Agent, url: str) -> None:
    prompt = {"1": node("LoadImage", image=url), "3": node("PreviewImage", images=["1", 0])}
    status, body = await served.post(prompt)
    assert (status, body["code"]) == (400, "input_rejected")


@pytest.mark.parametrize("status", [404, 500])
async def test_8_an_error_page_is_no_picture(served: Agent, status: int) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, body=base64.b64decode(data_uri().partition(",")[2]))

    async with serve(handler) as url:
        image = node("LoadImage", image=f"{url}/x.png")
        code, body = await served.post({"1": image, "3": node("PreviewImage", images=["1", 0])})
    assert (code, body["code"], body["node_id"]) == (400, "input_rejected", "1")


async def test_9_the_platforms_task_id_is_the_tasks(served: Agent) -> None:
    headers = {"X-Fc-Async-Task-Id": "fc-task", "X-Fc-Invocation-Type": "Async"}
    async with served.http.post("/api/run", json=noop(), headers=headers) as answer:
        assert answer.status == 202
        assert answer.headers["task-id"] == "fc-task"
        assert await answer.read() == b""
    assert (await served.settled("fc-task"))["state"] == "succeeded"


async def test_10_ids_do_not_leave_the_folder(served: Agent) -> None:
    (served.data.parent / "secret").write_text('{"id": "x"}')
    for bad in ("../../secret", "../secret", "/etc/passwd", "..%2fsecret", "\0"):
        async with served.http.get("/api/status", params={"id": bad}) as answer:
            assert answer.status == 404
            assert "secret" not in (await answer.text()).replace(bad, "")
    before = served.files()
    status, _ = await served.post(noop(), task_id="../startup.sh")
    assert status == 400
    assert served.files() == before


async def test_11_records_are_readable_files_that_readers_never_see_half(served: Agent) -> None:
    await served.submit(steps(200, 0.002), "watched")
    seen = 0
    while (await served.record("watched")).get("state") not in ("succeeded", "failed"):
        for path in (served.data / "tasks").rglob("*.json"):
            json.loads(path.read_text())
            assert path.stat().st_mode & 0o777 & ~0o644 == 0
            assert path.stat().st_mode & 0o400
            seen += 1
    assert seen


async def test_12_ends_are_stored(served: Agent) -> None:
    await served.submit(sleep(60), "stored")
    found = await served.record("stored")
    assert found["state"] in ("queued", "running"), "known before its first event"
    await served.cancel("stored")
    async with served.http.get("/api/status?id=stored") as answer:
        assert answer.headers["task-status"] == "cancelled"
        assert (await answer.json())["code"] == "task_cancelled"
    await served.run(noop("kept"), task_id="good")
    async with served.http.get("/api/status?id=good") as answer:
        assert answer.headers["task-status"] == "succeeded"
        assert (await answer.json())["1"]["images"][0]["text"] == "kept"


async def test_13_odd_names_and_padding(served: Agent) -> None:
    prompt = text_file("a", filename_prefix="odd & sub/ä #1+%41?x=y", extension=".txt")
    nodes = await served.run(prompt, "?output_base64=true")
    assert nodes["1"]["results"] == ["YQ=="]
    async with served.http.get(nodes["1"]["images"][0]["url"]) as answer:
        assert await answer.read() == b"a"


async def test_14_and_15_progress_of_zero_previews_and_odd_numbers(served: Agent) -> None:
    """``progress_state``, binary previews and float steps are what this engine sends; none breaks a run."""
    async with served.http.ws_connect("/api/run/ws?preview=true") as socket:
        await socket.send_json(steps(5, preview=True))
        told = [json.loads(message.data) async for message in socket]
    assert told[-1]["type"] == "result"
    assert all(0 <= message["percent"] <= 100 for message in told)


async def test_16_validation_is_400_with_comfyuis_node_errors(served: Agent) -> None:
    prompt = {"1": node("SaveImage", filename_prefix="x")}
    status, body = await served.post(prompt)
    assert status == 400
    assert body["node_errors"]["1"]["errors"][0]["type"] == "required_input_missing"
    assert body["node_errors"]["1"]["class_type"] == "SaveImage"


async def test_17_options_and_origins(served: Agent) -> None:
    async with served.http.options("/api/run") as answer:
        assert answer.status == 204
    async with served.http.post(
        "/api/run", json=noop(), headers={"Origin": "https://evil.example"}
    ) as answer:
        assert answer.status == 403
        assert "Access-Control-Allow-Origin" not in answer.headers
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await served.http.ws_connect("/api/run/ws", headers={"Origin": "https://evil.example"})
    assert await served.executed() == 0


async def test_18_a_caller_that_leaves_stops_its_prompt(served: Agent) -> None:
    call = asyncio.ensure_future(served.post(sleep(600), task_id="left"))
    await served.runs("left")
    call.cancel()
    assert (await served.settled("left"))["state"] == "cancelled"
    await until(served.engine_idle)


async def test_19_a_body_has_a_limit(tmp_path: Path) -> None:
    async with agent(tmp_path, max_body_bytes=1000) as served:
        status, body = await served.post(b" " * 1001)
        assert (status, body["code"]) == (413, "body_too_large")
        assert await served.run(noop())


async def test_20_a_dead_engine_is_started_again(tmp_path: Path) -> None:
    async with agent_of(tmp_path / "agent", supervised(tmp_path)) as guarded:
        status, _ = await guarded.post(crash())
        assert status == 502
        assert await guarded.run(noop())


async def test_21_a_port_that_is_taken_is_said(served: Agent, tmp_path: Path) -> None:
    settings = AgentSettings(port=served.running.port, data_dir=tmp_path / "other")
    choice: Any = supervised(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot listen"):
        async with running_agent(settings, choice):
            pass
