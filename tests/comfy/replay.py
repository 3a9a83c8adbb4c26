"""A small ComfyUI that plays recorded prompts over real HTTP and real sockets, for faults that a sound engine does not have.

Its rules are ComfyUI's own: one worker, messages to the socket of the prompt's client id, one socket per id, and the
clean-up of a socket that ends late removes the entry of a later one of the same id. Faults are small subclasses.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import WSMsgType, web

from easel.workflow.types import Prompt
from tests.conftest import FIXTURES

TYPES = {"1": "image/jpeg", "2": "image/png"}


@dataclass(frozen=True)
class Recording:
    """One recorded prompt: what client A heard, and what the history said."""

    prompt_id: str
    prompt: Prompt
    messages: list[dict[str, Any] | bytes]
    """From execution_start to ``executing`` null, without ``status``."""
    history: dict[str, Any]


@functools.cache
def recording(name: str) -> Recording:
    """Load the first prompt of a scenario."""
    scenario = json.loads((FIXTURES / "scenarios" / f"{name}.json").read_text())
    posts = [e for e in scenario["http"] if e["method"] == "POST" and e["path"] == "/prompt"]
    post = next(e for e in posts if e["status"] == 200)
    prompt_id = post["response_json"]["prompt_id"]
    messages: list[dict[str, Any] | bytes] = []
    frames = 0
    for message in scenario["clients"]["A"]["messages"]:
        if message["dir"] != "server->client":
            continue
        if message["type"] == "binary":
            messages.append((FIXTURES / "binary" / f"{name}-A-{frames:02}.bin").read_bytes())
            frames += 1
        elif message["data"]["type"] in ("status", "feature_flags"):
            continue
        elif message["data"]["data"].get("prompt_id", prompt_id) == prompt_id:
            messages.append(message["data"])
    told = [
        e["response_json"][prompt_id]
        for e in scenario["http"]
        if e["path"].startswith("/history/") and prompt_id in (e.get("response_json") or {})
    ]
    history = told[-1] if told else _history(prompt_id, post["request_json"]["prompt"], messages)
    return Recording(prompt_id, post["request_json"]["prompt"], messages, history)


def _history(prompt_id: str, prompt: Prompt, messages: list[Any]) -> dict[str, Any]:
    """What ComfyUI would have answered, for scenarios in which nobody asked."""
    texts = [m for m in messages if isinstance(m, dict)]
    landmarks = [[m["type"], m["data"]] for m in texts if m["type"].startswith("execution_")]
    success = any(kind == "execution_success" for kind, _ in landmarks)
    return {
        "prompt": [0, prompt_id, prompt, {}, []],
        "outputs": {
            m["data"]["node"]: m["data"]["output"] for m in texts if m["type"] == "executed"
        },
        "status": {
            "status_str": "success" if success else "error",
            "completed": success,
            "messages": landmarks,
        },
        "meta": {},
    }


def play(name: str) -> Prompt:
    """Return a prompt that makes `Replay` play a scenario."""
    return {"1": {"class_type": "Play", "inputs": {"scenario": name}}}


@dataclass
class Gate:
    """A place where the play waits."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)


class Replay:
    """The server. Use as an async context manager; `url` is where it listens."""

    def __init__(self) -> None:
        self.url = ""
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.seen_ids: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.flags: dict[str, Any] = {}
        self.running: list[list[Any]] = []
        self.pending: list[list[Any]] = []
        self.history: dict[str, dict[str, Any]] = {}
        self.interrupted: set[str] = set()
        self.gates: dict[str, Gate] = {}
        self.files: dict[str, bytes] = {}
        self._work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None
        self._port = 0

    def gate(self, kind: str) -> Gate:
        """Make the play wait before the next message of this type."""
        return self.gates.setdefault(kind, Gate())

    async def __aenter__(self) -> Self:
        await self.listen()
        self._tasks.append(asyncio.create_task(self._worker()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.hang_up()

    async def listen(self) -> None:
        """Begin to listen, on the port of before if there was one."""
        app = web.Application(client_max_size=1 << 26, middlewares=[self._note])
        app.router.add_get("/ws", self.ws)
        app.router.add_post("/prompt", self.post_prompt)
        app.router.add_get("/prompt", self.get_prompt)
        app.router.add_get("/queue", self.get_queue)
        app.router.add_post("/queue", self.post_queue)
        app.router.add_get("/history/{id}", self.get_history)
        app.router.add_post("/interrupt", self.interrupt)
        app.router.add_get("/system_stats", self.system_stats)
        app.router.add_get("/object_info", self.object_info)
        app.router.add_get("/object_info/{name}", self.object_info)
        app.router.add_get("/view", self.view)
        app.router.add_post("/upload/image", self.upload)
        app.router.add_post("/free", self.free)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def hang_up(self) -> None:
        """Stop listening and drop every connection, as a killed process does."""
        self.cut()
        if self._runner is not None:
            await self._runner.cleanup()

    def forget(self) -> None:
        """Lose queue and history, as a restarted process does."""
        for task in self._tasks:
            task.cancel()
        self.running, self.pending, self.history = [], [], {}
        self._tasks = [asyncio.create_task(self._worker())]

    def cut(self) -> None:
        """Cut all sockets without a closing handshake."""
        for socket in list(self.sockets.values()):
            transport = socket._req.transport if socket._req is not None else None
            if transport is not None:
                transport.abort()
        self.sockets.clear()

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        response: web.StreamResponse = await handler(request)
        return response

    # The worker.

    async def _worker(self) -> None:
        while True:
            while not self.pending:
                self._work.clear()
                await self._work.wait()
            item = self.pending.pop(0)
            self.running = [item]
            await self.status()
            await self.execute(item)

    async def execute(self, item: list[Any]) -> None:
        """Play one prompt and record it."""
        _, prompt_id, prompt, extra_data, _ = item
        name = prompt["1"]["inputs"].get("scenario", "a_model_free")
        record = recording(name)
        entry = json.loads(json.dumps(record.history).replace(record.prompt_id, prompt_id))
        sid = extra_data.get("client_id")
        last: dict[str, Any] | None = None
        for message in record.messages:
            if isinstance(message, bytes):
                await self.deliver(sid, "binary", message.replace(*_ids(record, prompt_id)))
                continue
            data = json.loads(json.dumps(message["data"]).replace(record.prompt_id, prompt_id))
            if message["type"] == "executing" and data["node"] is None:
                last = data
                break
            await self.before(prompt_id, message["type"])
            if prompt_id in self.interrupted:
                data = {"prompt_id": prompt_id, "node_id": "3", "node_type": "X", "executed": []}
                entry["status"] = {
                    "status_str": "error",
                    "completed": False,
                    "messages": [["execution_interrupted", data]],
                }
                entry["outputs"] = {}
                await self.say(sid, "execution_interrupted", data)
                break
            await self.say(sid, message["type"], data)
        await self.record(prompt_id, entry)
        await self.status()
        await self.before(prompt_id, "end")
        await self.say(sid, "executing", last or {"node": None, "prompt_id": prompt_id})

    async def before(self, prompt_id: str, kind: str) -> None:
        """Called before each message of a prompt."""
        gate = self.gates.get(kind)
        if gate is not None:
            gate.reached.set()
            await gate.opened.wait()

    async def record(self, prompt_id: str, entry: dict[str, Any]) -> None:
        """Move a prompt from the queue to the history, in one step."""
        self.running = []
        self.history[prompt_id] = entry

    async def status(self) -> None:
        """Tell every socket the length of the queue."""
        data = {"status": {"exec_info": {"queue_remaining": len(self.running) + len(self.pending)}}}
        for sid in list(self.sockets):
            await self.say(sid, "status", data)

    async def say(self, sid: str | None, kind: str, data: Any) -> None:
        """Send a text message."""
        await self.deliver(sid, kind, json.dumps({"type": kind, "data": data}))

    async def deliver(self, sid: str | None, kind: str, payload: str | bytes) -> None:
        """Send to the socket of an id, if there is one."""
        socket = self.sockets.get(sid or "")
        if socket is not None:
            with contextlib.suppress(ConnectionError):
                if isinstance(payload, bytes):
                    await socket.send_bytes(payload)
                else:
                    await socket.send_str(payload)

    # Routes.

    async def ws(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        sid = request.query.get("clientId", "made-here")
        self.seen_ids.append(sid)
        self.sockets[sid] = socket
        try:
            await self.greet(socket, sid)
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    self.flags = json.loads(message.data)["data"]
                    await self.say(sid, "feature_flags", self.flags)
        finally:
            self.sockets.pop(sid, None)  # as ComfyUI does, whoever is there now
        return socket

    async def greet(self, socket: web.WebSocketResponse, sid: str) -> None:
        status = {"exec_info": {"queue_remaining": len(self.running) + len(self.pending)}}
        await socket.send_json({"type": "status", "data": {"status": status, "sid": sid}})
        if self.running and self.running[0][3].get("client_id") == sid:
            await socket.send_json({"type": "executing", "data": {"node": "3"}})

    async def post_prompt(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.bodies.append(body)
        if "1" not in body["prompt"]:
            error = {
                "type": "prompt_no_outputs",
                "message": "Prompt has no outputs",
                "details": "",
                "extra_info": {},
            }
            return web.json_response({"error": error, "node_errors": {}}, status=400)
        extra_data = {**body["extra_data"], "client_id": body["client_id"]}
        number = len(self.bodies)
        self.pending.append([number, body["prompt_id"], body["prompt"], extra_data, ["1"]])
        await self.status()
        self._work.set()
        answer = {"prompt_id": body["prompt_id"], "number": number, "node_errors": {}}
        return web.json_response(answer)

    async def get_prompt(self, request: web.Request) -> web.StreamResponse:
        remaining = len(self.running) + len(self.pending)
        return web.json_response({"exec_info": {"queue_remaining": remaining}})

    async def get_queue(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"queue_running": self.running, "queue_pending": self.pending})

    async def post_queue(self, request: web.Request) -> web.StreamResponse:
        doomed = (await request.json()).get("delete", [])
        before = len(self.pending)
        self.pending = [item for item in self.pending if item[1] not in doomed]
        if len(self.pending) != before:
            await self.status()
        return web.Response()

    async def get_history(self, request: web.Request) -> web.StreamResponse:
        prompt_id = request.match_info["id"]
        entry = self.history.get(prompt_id)
        return web.json_response({} if entry is None else {prompt_id: entry})

    async def interrupt(self, request: web.Request) -> web.StreamResponse:
        prompt_id = (await request.json())["prompt_id"]
        if any(item[1] == prompt_id for item in self.running):
            self.interrupted.add(prompt_id)
            for gate in self.gates.values():
                gate.opened.set()
        return web.Response()

    async def system_stats(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"system": {"comfyui_version": "0.3.64"}, "devices": []})

    async def object_info(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("name")
        info: dict[str, Any] = {"Play": {"input": {}}}
        return web.json_response(info if name in (None, "Play") else {})

    async def view(self, request: web.Request) -> web.StreamResponse:
        data = self.files.get(request.query["filename"])
        if data is None:
            return web.Response(status=404)
        return web.Response(body=data, content_type="image/png")

    async def upload(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        image = form["image"]
        assert isinstance(image, web.FileField)
        self.files[image.filename] = image.file.read()
        return web.json_response(
            {"name": image.filename, "subfolder": form["subfolder"], "type": form["type"]}
        )

    async def free(self, request: web.Request) -> web.StreamResponse:
        return web.Response()


def _ids(record: Recording, prompt_id: str) -> tuple[bytes, bytes]:
    return record.prompt_id.encode(), prompt_id.encode()


@contextlib.asynccontextmanager
async def serving(server: Replay) -> AsyncIterator[Replay]:
    """Run a server for a block."""
    async with server:
        yield server
