"""`easel run` against an agent that does what agents rarely do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.cli.command import Result, easel, environment
from tests.servers import free_port
from tests.waiting import until

PROMPT = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "Photo"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
}
Talk = Callable[[web.WebSocketResponse, int], Awaitable[None]]


def image(name: str, node: str = "2") -> dict[str, Any]:
    return {node: {"max": 1, "value": 1, "images": [{"filename": name, "url": "/out/x.png"}]}}


def result(data: dict[str, Any]) -> dict[str, Any]:
    return {"type": "result", "state": "succeeded", "percent": 100, "data": data}


class ScriptedAgent:
    """An agent whose side of the WebSocket is a function of the test."""

    def __init__(self, talk: Talk | None) -> None:
        self.talk = talk
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.ids: list[str | None] = []
        self.cancelled: list[str] = []
        self.uploads: list[tuple[str, bytes, str]] = []
        self.starting = 0
        """How many times /object_info answers that the engine is starting."""
        self.connected = asyncio.Event()

    async def ws(self, request: web.Request) -> web.WebSocketResponse:
        assert self.talk is not None
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        self.ids.append(request.headers.get("task-id"))
        self.bodies.append(await socket.receive_json())
        self.connected.set()
        await self.talk(socket, len(self.bodies))
        await socket.close()
        return socket

    async def status(self, request: web.Request) -> web.Response:
        return web.json_response({"seeds": {"1.seed": 7}, "node_errors": {}})

    async def delete(self, request: web.Request) -> web.Response:
        self.cancelled.append(request.query["id"])
        return web.json_response({})

    async def out(self, request: web.Request) -> web.Response:
        if request.match_info["name"] == "gone":
            return web.json_response({"code": "file_not_found", "error": "gone"}, status=404)
        return web.Response(body=b"pixels")

    async def object_info(self, request: web.Request) -> web.Response:
        if self.starting:
            self.starting -= 1
            return web.json_response(
                {"code": "engine_unavailable", "error": "the engine is starting"}, status=503
            )
        return web.json_response({})

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form["image"]
        assert isinstance(file, web.FileField)
        self.uploads.append((file.filename, file.file.read(), str(form["subfolder"])))
        return web.json_response({"name": file.filename, "subfolder": "easel", "type": "input"})

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        if self.talk is not None:
            app.router.add_get("/api/run/ws", self.ws)
            app.router.add_get("/api/status", self.status)
            app.router.add_delete("/api/status", self.delete)
            app.router.add_get("/out/{name}", self.out)
            app.router.add_get("/object_info", self.object_info)
            app.router.add_post("/upload/image", self.upload)
        return app


@contextlib.asynccontextmanager
async def agent(talk: Talk | None) -> AsyncIterator[ScriptedAgent]:
    scripted = ScriptedAgent(talk)
    runner = web.AppRunner(scripted.app(), shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    scripted.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield scripted
    finally:
        await runner.cleanup()


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    path = tmp_path / "w.json"
    path.write_text(json.dumps(PROMPT))
    return path


async def run(scripted: ScriptedAgent, workflow: Path, *flags: str) -> Result:
    return await easel(
        "run", workflow.name, "--url", scripted.url, "-o", "out", *flags, cwd=workflow.parent
    )


async def test_a_result(workflow: Path) -> None:
    async def talk(socket: web.WebSocketResponse, _: int) -> None:
        for message in (
            {"type": "progress", "state": "queued", "queue_position": 2, "data": {}},
            {
                "type": "progress",
                "state": "running",
                "percent": 50,
                "current_node": "1",
                "data": {},
            },
            {"type": "preview", "data": {"image": "…"}, "new_key": 1},
            {
                "type": "progress",
                "state": "running",
                "percent": 60,
                "current_node": "9",
                "data": {},
            },
            result({**image("a.png"), "3": {"images": [{"kind": "text", "text": "hello"}]}}),
        ):
            await socket.send_json(message)

    async with agent(talk) as scripted:
        found = await run(scripted, workflow, "--json", "--task-id", "my-task")
        assert found.code == 0, found.err
        assert found.json == {
            "task_id": "my-task",
            "state": "succeeded",
            "outputs": ["out/a.png"],
            "texts": [{"node": "3", "text": "hello"}],
            "seeds": {"1.seed": 7},
            "node_errors": {},
            "error": None,
        }
        assert scripted.ids == ["my-task"]
        assert scripted.bodies[0]["prompt"] == PROMPT
        assert "waiting: position 2" in found.err
        assert " 50%  Photo (LoadImage)\n" in found.err
        assert " 60%  node 9\n" in found.err
        found = await run(scripted, workflow)
        assert found.out == "hello\nout/a-2.png\n"
        assert "seed of 1.seed: 7" in found.err
        assert (workflow.parent / "out/a-2.png").read_bytes() == b"pixels"


async def test_hostile_names_stay_in_the_folder(workflow: Path) -> None:
    names = ["../../evil.png", "/etc/x.png", "..\\w.png", ".hidden", "", "a\x00b:c?.png", "n" * 400]

    async def talk(socket: web.WebSocketResponse, _: int) -> None:
        await socket.send_json(result({str(n): image(name)["2"] for n, name in enumerate(names)}))

    async with agent(talk) as scripted:
        found = await run(scripted, workflow, "--json")
    assert found.code == 0, found.err
    outputs = [Path(path) for path in found.json["outputs"]]
    assert {path.parent for path in outputs} == {Path("out")}
    assert [path.name for path in outputs[:-1]] == [
        "evil.png",
        "x.png",
        "w.png",
        "hidden",
        "output",
        "a_b_c_.png",
    ]
    assert len(outputs[-1].name) < 200
    written = {path.name for path in (workflow.parent / "out").iterdir()}
    assert written == {path.name for path in outputs}


async def test_a_lost_connection_is_made_again(workflow: Path) -> None:
    async def talk(socket: web.WebSocketResponse, attempt: int) -> None:
        if attempt == 3:
            await socket.send_json(result({}))

    async with agent(talk) as scripted:
        found = await run(scripted, workflow)
        assert found.code == 0, found.err
        assert "the workflow gave no output" in found.err
        assert len(set(scripted.ids)) == 1
        assert scripted.bodies[0] == scripted.bodies[2]


async def test_an_agent_that_always_hangs_up(workflow: Path) -> None:
    async def talk(socket: web.WebSocketResponse, _: int) -> None:
        return

    async with agent(talk) as scripted:
        found = await run(scripted, workflow)
    assert found.code == 3
    assert "closed the connection before the task ended" in found.err
    assert "hint: look at the agent's log" in found.err


async def test_an_error_from_the_agent(workflow: Path) -> None:
    error = {
        "message": "CallComfyUIPromptError",
        "error": "node 2 (SaveImage) failed: disk full",
        "code": "engine_died",
        "log": [f"line {n}" for n in range(50)],
        "node_id": "2",
    }

    async def talk(socket: web.WebSocketResponse, _: int) -> None:
        await socket.send_json({"type": "error", "state": "failed", "data": error})

    async with agent(talk) as scripted:
        found = await run(scripted, workflow)
        assert found.code == 3
        assert found.err.startswith("error: node 2 (SaveImage) failed: disk full\n")
        assert "  | line 49\n" in found.err
        assert "line 20\n" not in found.err
        found = await run(scripted, workflow, "--json")
    assert found.json["error"]["code"] == "engine_died"
    assert found.json["error"]["node_id"] == "2"
    assert found.json["state"] == "failed"
    assert found.json["outputs"] == []


async def test_node_errors_are_listed(workflow: Path) -> None:
    details = {"message": "Value not in list", "details": "image: 'a.png' not in []"}
    error = {
        "error": "the prompt is not valid",
        "code": "invalid_prompt",
        "node_errors": {"1": {"class_type": "LoadImage", "errors": [details, {"message": "No"}]}},
    }

    async def talk(socket: web.WebSocketResponse, _: int) -> None:
        await socket.send_json({"type": "error", "data": error})

    async with agent(talk) as scripted:
        found = await run(scripted, workflow)
    assert found.code == 2
    assert "  node 1 (LoadImage): Value not in list: image: 'a.png' not in []\n" in found.err
    assert "  node 1 (LoadImage): No\n" in found.err


async def test_messages_that_are_none(workflow: Path) -> None:
    async def talk(socket: web.WebSocketResponse, _: int) -> None:
        await socket.send_bytes(b"\x00\x01")
        await socket.send_str("[]")

    async with agent(talk) as scripted:
        found = await run(scripted, workflow)
    assert found.code == 3
    assert "odd message" in found.err


async def test_an_output_that_is_gone(workflow: Path) -> None:
    data = image("a.png")
    data["2"]["images"][0]["url"] = "/out/gone"

    async def talk(socket: web.WebSocketResponse, _: int) -> None:
        await socket.send_json(result(data))

    async with agent(talk) as scripted:
        found = await run(scripted, workflow, "--json")
    assert found.code == 1
    assert found.json["error"]["code"] == "file_not_found"
    assert list((workflow.parent / "out").iterdir()) == []


async def test_not_an_agent(workflow: Path) -> None:
    async with agent(None) as scripted:
        found = await run(scripted, workflow)
        assert found.code == 3
        assert "is not an Easel agent" in found.err
        assert "easel agent --comfyui" in found.err


async def test_nobody_there(workflow: Path) -> None:
    for flags in ([], ["--set", "2.filename_prefix=x"]):
        found = await easel(
            *("run", str(workflow), "-o", str(workflow.parent / "out")),
            *("--url", f"127.0.0.1:{free_port()}", *flags),
        )
        assert found.code == 3
        assert "no agent answers at http://127.0.0.1:" in found.err
        assert "hint: start one with" in found.err


async def test_it_waits_for_an_engine_that_starts(workflow: Path) -> None:
    async def talk(socket: web.WebSocketResponse, _: int) -> None:
        await socket.send_json(result({}))

    async with agent(talk) as scripted:
        scripted.starting = 2
        found = await run(scripted, workflow, "--set", "1.image=b.png")
        assert found.code == 0, found.err
        assert found.err.count("the engine is starting") == 1
        assert scripted.bodies[0]["prompt"]["1"]["inputs"]["image"] == "b.png"


async def test_files_travel_in_the_prompt_or_ahead_of_it(workflow: Path) -> None:
    async def talk(socket: web.WebSocketResponse, _: int) -> None:
        await socket.send_json(result({}))

    small, large = workflow.parent / "small.png", workflow.parent / "large.png"
    small.write_bytes(b"x" * 10)
    large.write_bytes(b"x" * (9 << 20))
    async with agent(talk) as scripted:
        found = await run(scripted, workflow, "--input", "small.png")
        assert found.code == 0, found.err
        assert scripted.uploads == []
        value = scripted.bodies[0]["prompt"]["1"]["inputs"]["image"]
        assert value == "data:image/png;base64,eHh4eHh4eHh4eA=="
        found = await run(scripted, workflow, "--input", "large.png")
        assert found.code == 0, found.err
        (name, data, subfolder) = scripted.uploads[0]
        assert data == large.read_bytes()
        assert scripted.bodies[1]["prompt"]["1"]["inputs"]["image"] == f"{subfolder}/{name}"


async def wait_for_close(socket: web.WebSocketResponse, _: int) -> None:
    await socket.send_json(
        {"type": "progress", "state": "running", "percent": 5, "current_node": "1", "data": {}}
    )
    async for _message in socket:
        pass


async def test_a_time_out_cancels(workflow: Path) -> None:
    async with agent(wait_for_close) as scripted:
        found = await run(scripted, workflow, "--timeout", "0.3", "--task-id", "slow", "--json")
        assert found.code == 1
        assert found.json["error"]["code"] == "task_cancelled"
        assert found.json["state"] == "cancelled"
        assert scripted.cancelled == ["slow"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_cancels(workflow: Path, number: int, code: int) -> None:
    async with agent(wait_for_close) as scripted:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "easel", "run", str(workflow), "--url", scripted.url),
            *("-o", str(workflow.parent / "out"), "--task-id", "t"),
            env=environment(),
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(30):
            await scripted.connected.wait()
            process.send_signal(number)
            _, err = await process.communicate()
        assert process.returncode == code
        assert scripted.cancelled == ["t"]
        assert b"interrupted" in err
        assert b"Traceback" not in err


async def test_bars_on_a_terminal(workflow: Path) -> None:
    shown = bytearray()

    async def seen() -> bool:
        return b"5/20" in shown

    async def talk(socket: web.WebSocketResponse, _: int) -> None:
        node = {"1": {"max": 20, "value": 5}}
        running = {"state": "running", "percent": 37, "current_node": "1", "data": node}
        await socket.send_json({"type": "progress", **running})
        await until(seen, timeout=20)
        await socket.send_json(result({}))

    main, other = os.openpty()
    async with agent(talk) as scripted:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "easel", "run", str(workflow), "--url", scripted.url),
            *("-o", str(workflow.parent / "out")),
            env=environment({"COLUMNS": "120", "TERM": "xterm"}),
            stderr=other,
        )
        os.close(other)

        def read() -> None:
            with contextlib.suppress(OSError):  # the other end is closed
                while chunk := os.read(main, 4096):
                    shown.extend(chunk)

        async with asyncio.timeout(30):
            await asyncio.to_thread(read)
            await process.wait()
    os.close(main)
    assert process.returncode == 0
    text = shown.decode()
    assert "w.json" in text
    assert "37%" in text
    assert "Photo (LoadImage)" in text
    assert "100%" in text
