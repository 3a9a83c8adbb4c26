"""Plays a recorded scenario against a running engine: the same requests in the same order, with the same sockets.

A request is sent when every socket has received what it had received in the recording, so the order of things is that of the
recording however fast the engine is.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

from tests.engine.replay import normalise
from tests.engine.replay.recording import (
    Client,
    Exchange,
    Message,
    Recording,
    is_prompt,
    message_of,
)

TIMEOUT = 20.0
ENDS = ("execution_success", "execution_error", "execution_interrupted")
Body = Callable[[dict[str, str]], dict[str, Any]]
"""Makes the body of a request (from its headers) that was recorded only in words."""


@dataclass
class Answer:
    """What the engine answered to one request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Played:
    """Everything that came back, in the recording's own names for prompts and users."""

    answers: list[Answer]
    received: dict[str, list[Message]]
    names: dict[str, str]
    """This engine's ids → the recording's."""


@dataclass
class Listener:
    """One open socket and what it has received."""

    recorded: Client
    socket: aiohttp.ClientWebSocketResponse
    received: list[Message] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False

    async def listen(self) -> None:
        """Note every message until the socket closes."""
        async for message in self.socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                record = {"t": time.monotonic(), "type": "text", "data": json.loads(message.data)}
            else:
                record = {"t": time.monotonic(), "type": "binary", "binary": frame(message.data)}
            self.received.append(message_of(record))
            self.news.set()
        self.over = True
        self.news.set()

    async def until(self, reached: Callable[[], bool], what: str) -> None:
        """Wait until something is true of what was received."""
        try:
            async with asyncio.timeout(TIMEOUT):
                while not reached():
                    assert not self.over, f"socket {self.recorded.name} closed before {what}"
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError:
            kinds = [m.kind for m in self.received]
            raise AssertionError(f"{self.recorded.name} waits for {what}; got {kinds}") from None

    def milestones(self) -> int:
        """How many milestones were received."""
        return sum(m.milestone for m in self.received)

    async def reach(self, t: float) -> None:
        """Wait for what the recorded socket had received at a time."""
        seen = self.recorded.messages
        milestones = [i for i, m in enumerate(seen) if m.milestone]
        count = sum(seen[i].t < t for i in milestones)
        # an ended prompt leaves the queue and says so (`status`, `executing null`) right after its last event
        while 0 < count < len(milestones) and (
            seen[milestones[count - 1]].kind in ENDS
            or (
                seen[milestones[count]].kind == "executing"
                and seen[milestones[count]].data.get("node", "") is None
                and seen[milestones[count]].t < t + 0.02
            )
        ):
            count += 1
        await self.until(lambda: self.milestones() >= count, f"milestone {count}")
        if count:
            last = milestones[count - 1]
            steps = [m for m in seen[last + 1 :] if not m.milestone and m.t < t]
            if any(m.kind == "progress" for m in steps):
                await self.until(self.stepped, "a step of the running node")

    def stepped(self) -> bool:
        """Whether a `progress` has come since the last milestone."""
        for message in reversed(self.received):
            if message.milestone:
                return False
            if message.kind == "progress":
                return True
        return False


def frame(data: bytes) -> dict[str, Any]:
    """Take a binary frame apart as the recordings have it."""
    (event,) = struct.unpack_from(">I", data)
    if event == 1:
        return {"event": 1, "image_type": struct.unpack_from(">I", data, 4)[0]}
    (length,) = struct.unpack_from(">I", data, 4)
    head = data[8 : 8 + length].decode()
    if event == 4:
        return {"event": 4, "metadata": json.loads(head)}
    return {"event": event, "node_id": head, "text": data[8 + length :].decode()}


class Player:
    """Plays one scenario."""

    def __init__(
        self,
        recording: Recording,
        url: str,
        session: aiohttp.ClientSession,
        *,
        bodies: dict[int, Body] | None = None,
        before_request: dict[int, Callable[[], Any]] | None = None,
        skip: frozenset[int] = frozenset(),
        keep_open: frozenset[str] = frozenset(),
    ) -> None:
        self.recording = recording
        self.url = url
        self.session = session
        self.bodies = bodies or {}
        self.before_request = before_request or {}
        self.skip = skip
        self.keep_open = keep_open
        self.names: dict[str, str] = {}
        """The recording's ids → this engine's."""
        self.listeners: dict[str, Listener] = {}
        """Those open now."""
        self.all: dict[str, Listener] = {}
        """Every socket that was opened."""
        self.tasks: list[asyncio.Task[None]] = []

    async def play(self) -> Played:
        """Play to the end: until every socket has received all that was recorded."""
        timeline: list[tuple[float, int, Any]] = [
            (e.t, 1, e) for e in self.recording.exchanges if e.number not in self.skip
        ]
        timeline += [(c.opened, 0, c) for c in self.recording.clients]
        timeline += [
            (c.closed, 2, c) for c in self.recording.clients if c.name not in self.keep_open
        ]
        answers: dict[int, Answer] = {}
        try:
            for t, what, item in sorted(timeline, key=lambda step: (step[0], step[1])):
                for listener in self.listeners.values():
                    await listener.reach(t)
                if what == 0:
                    await self.open(item)
                elif what == 1:
                    answers[item.number] = await self.ask(item)
                else:
                    await self.listeners[item.name].socket.close()
                    self.listeners.pop(item.name)
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
        return Played(
            [answers[i] for i in sorted(answers)],
            {name: listener.received for name, listener in self.all.items()},
            {ours: theirs for theirs, ours in self.names.items()},
        )

    async def open(self, client: Client) -> None:
        """Open a recorded socket."""
        query = f"?clientId={client.client_id}" if client.client_id else ""
        socket = await self.session.ws_connect(self.url + client.path + query)
        listener = Listener(client, socket)
        self.listeners[client.name] = listener
        self.all[client.name] = listener
        self.tasks.append(asyncio.create_task(listener.listen()))
        if client.flags is not None:
            await socket.send_json({"type": "feature_flags", "data": client.flags})
        await listener.until(lambda: listener.milestones() >= 1, "its first status")
        if client.flags is not None:
            await listener.until(lambda: listener.milestones() >= 2, "feature_flags")

    async def ask(self, exchange: Exchange) -> Answer:
        """Send a recorded request and learn the ids in its answer."""
        if exchange.number in self.before_request:
            await asyncio.to_thread(self.before_request[exchange.number])
        record = exchange.record
        headers = {
            name: content.replace("127.0.0.1:8188", self.url[7:]).replace(
                "localhost:8188", "localhost:" + self.url.rsplit(":", 1)[1]
            )
            for name, content in normalise.renamed(
                record.get("request_headers") or {}, self.names
            ).items()
        }
        arguments: dict[str, Any] = {"headers": headers}
        if exchange.number in self.bodies:
            arguments |= self.bodies[exchange.number](headers)
        elif "request_json" in record:
            arguments["json"] = normalise.renamed(record["request_json"], self.names)
        elif "request_body" in record:
            arguments["data"] = str(record["request_body"]).encode()
        path = exchange.path.replace("/../", "/")  # the recording client did so before sending
        for theirs, ours in self.names.items():
            path = path.replace(theirs, ours)
        async with self.session.request(
            exchange.method, URL(self.url + path, encoded=True), **arguments
        ) as response:
            answer = Answer(response.status, dict(response.headers), await response.read())
        self.learn(exchange, answer)
        return answer

    def learn(self, exchange: Exchange, answer: Answer) -> None:
        """Note which of our ids stands for which recorded one."""
        if answer.status != 200 or exchange.status != 200:
            return
        recorded: Any = exchange.record.get("response_json")
        if is_prompt(exchange):
            if exchange.record["request_json"].get("prompt_id") is None:
                self.names[recorded["prompt_id"]] = answer.json["prompt_id"]
        elif exchange.method == "POST" and exchange.path == "/users":
            self.names[recorded] = answer.json
        elif exchange.path.startswith("/history/") and recorded:
            self.names.update(temp_names(recorded, answer.json))


def temp_names(recorded: Any, found: Any) -> dict[str, str]:
    """Pair the random names of preview files in two histories of one prompt."""
    theirs = normalise.TEMP_NAME.findall(json.dumps(recorded))
    ours = normalise.TEMP_NAME.findall(json.dumps(found))
    return dict(zip(theirs, ours, strict=True))
