"""What goes wrong between Easel and an engine, injected one by one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from easel.comfy.client import ComfyClient
from easel.comfy.connection import Connection
from easel.comfy.events import (
    Event,
    Executing,
    ExecutionSuccess,
    Preview,
    Progress,
    ProgressState,
)
from easel.comfy.run import Run
from easel.errors import (
    EngineDied,
    EngineProtocolError,
    EngineSilent,
    EngineUnavailable,
    PromptLost,
)
from tests.comfy.replay import Replay, play
from tests.waiting import until


@contextlib.asynccontextmanager
async def connected(
    server: Replay, *, timeout: float = 5.0, **settings: Any
) -> AsyncIterator[Connection]:
    """Connect to a server with short patience."""
    settings = {"poll_interval": 0.2, "connect_timeout": 5.0, **settings}
    async with server, ComfyClient(server.url, timeout=timeout) as client:
        connection = Connection(client, **settings)
        await connection.open(5)
        try:
            yield connection
        finally:
            await connection.close()


async def ended(run: Run) -> str:
    """The status a run ends with."""
    async with asyncio.timeout(20):
        return (await run.outcome()).status


async def heard(run: Run) -> list[Event]:
    async with asyncio.timeout(20):
        return [event async for event in run]


# The socket.


async def test_a_cut_socket_is_opened_again_and_the_rest_is_heard() -> None:
    server = Replay()
    gate = server.gate("executed")
    async with connected(server) as connection:
        run = await connection.submit(play("b_sd_txt2img"))
        await asyncio.wait_for(gate.reached.wait(), 10)
        server.cut()
        await until(reopened(server, 2), timeout=10)
        gate.opened.set()
        events = await heard(run)
        assert await ended(run) == "success"
        # Posted with the first id, so only that one hears the rest; a new one for the next prompts.
        assert server.seen_ids[0] == server.seen_ids[1]
        assert any(isinstance(event, ExecutionSuccess) for event in events)
        await until(reopened(server, 3), timeout=10)
        assert server.seen_ids[2] != server.seen_ids[1]
        await connection.wait_connected(5)
        assert await ended(await connection.submit(play("a_model_free"))) == "success"


def reopened(server: Replay, times: int) -> Any:
    """Whether the server has seen so many sockets and the last one is there."""

    async def look() -> bool:
        return len(server.seen_ids) >= times and server.seen_ids[-1] in server.sockets

    return look


async def test_executing_without_a_prompt_id_after_a_reconnect_goes_to_the_running_prompt() -> None:
    server = Replay()
    gate = server.gate("executed")
    async with connected(server) as connection:
        run = await connection.submit(play("b_sd_txt2img"))
        await asyncio.wait_for(gate.reached.wait(), 10)
        server.cut()
        await until(reopened(server, 2), timeout=10)
        gate.opened.set()
        events = await heard(run)
        nameless = [event for event in events if event.prompt_id is None]
        assert [type(event) for event in nameless] == [Executing]


class LateCleanUp(Replay):
    """Notices the end of the first socket late: its clean-up makes the second one deaf."""

    def __init__(self) -> None:
        super().__init__()
        self.clean_up = asyncio.Event()
        self.cleaned_up = asyncio.Event()

    async def ws(self, request: web.Request) -> web.WebSocketResponse:
        first = not self.seen_ids
        try:
            return await super().ws(request)
        finally:
            if first:
                task = asyncio.create_task(self._clean_up(request.query["clientId"]))
                self._tasks.append(task)

    async def _clean_up(self, sid: str) -> None:
        await self.clean_up.wait()
        self.sockets.pop(sid, None)
        self.cleaned_up.set()


async def test_a_socket_made_deaf_by_the_one_before_is_opened_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("easel.comfy.following.DOUBT_PAUSE", 0.3)
    server = LateCleanUp()
    gate = server.gate("executed")
    async with connected(server) as connection:
        run = await connection.submit(play("b_sd_txt2img"))
        await asyncio.wait_for(gate.reached.wait(), 10)
        server.cut()
        await until(reopened(server, 2), timeout=10)
        server.clean_up.set()
        await asyncio.wait_for(server.cleaned_up.wait(), 5)
        assert not server.sockets
        await until(reopened(server, 3), timeout=10)
        gate.opened.set()
        assert any(isinstance(event, ExecutionSuccess) for event in await heard(run))
        assert await ended(run) == "success"


async def test_a_deaf_socket_loses_no_end_and_is_replaced() -> None:
    server = Replay()
    async with connected(server) as connection:
        server.sockets.clear()  # what a late clean-up does
        gate = server.gate("progress")
        run = await connection.submit(play("b_sd_txt2img"))
        await until(reopened(server, 2), timeout=10)
        gate.opened.set()
        assert await ended(run) == "success"


class Mute(Replay):
    """Opens sockets and does not greet."""

    async def greet(self, socket: web.WebSocketResponse, sid: str) -> None:
        return


async def test_no_greeting_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easel.comfy.event_socket.GREETING_TIMEOUT", 0.2)
    async with Mute() as server, ComfyClient(server.url) as client:
        with pytest.raises(EngineSilent, match="greet"):
            await Connection(client).open(1)


async def test_nothing_there_is_unavailable() -> None:
    async with Replay() as server:
        url = server.url
    async with ComfyClient(url) as client:
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await Connection(client).open(0.3)
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await client.queue()


class NoSockets(Replay):
    async def ws(self, request: web.Request) -> web.WebSocketResponse:
        raise web.HTTPForbidden


async def test_a_refused_socket_is_told() -> None:
    async with NoSockets() as server, ComfyClient(server.url) as client:
        with pytest.raises(EngineProtocolError, match="403"):
            await Connection(client).open(0.5)


class Garbage(Replay):
    """Sends nonsense before every message, and every message twice."""

    async def deliver(self, sid: str | None, kind: str, payload: str | bytes) -> None:
        for nonsense in ("", "{", "[]", '{"type":7}', '{"type":"executing","data":[]}', "\udcff"):
            with contextlib.suppress(UnicodeEncodeError):
                await super().deliver(sid, kind, nonsense)
        for frame in (b"", b"\0\0\0\1", b"\0\0\0\4\xff\xff\xff\xff{}", b"\0\0\0\x09abcdefgh"):
            await super().deliver(sid, kind, frame)
        await super().deliver(sid, kind, payload)
        await super().deliver(sid, kind, payload)


async def test_garbage_and_repeated_messages_do_no_harm() -> None:
    async with connected(Garbage()) as connection:
        for name in ("m2_preview_with_metadata", "a_model_free"):
            run = await connection.submit(play(name))
            assert [e.node for e in await heard(run) if isinstance(e, Executing)][-1] is None
            assert await ended(run) == "success"
        assert connection.in_flight == 0


class OddShapes(Replay):
    """Sends ids as numbers, steps as strings and fractions, fields nobody knows."""

    async def say(self, sid: str | None, kind: str, data: Any) -> None:
        if kind == "progress":
            data = {**data, "node": int(data["node"]), "value": str(data["value"] - 0.5), "new": 1}
        await super().say(sid, kind, data)


async def test_odd_shapes_are_read_where_they_can_be() -> None:
    async with connected(OddShapes()) as connection:
        run = await connection.submit(play("b_sd_txt2img"))
        steps = [event for event in await heard(run) if isinstance(event, Progress)]
        assert [(e.node, e.value, e.max) for e in steps] == [
            ("3", step - 0.5, 4.0) for step in range(1, 5)
        ]


class StatesOnly(Replay):
    """A node of the V3 kind: steps only in progress_state."""

    async def say(self, sid: str | None, kind: str, data: Any) -> None:
        if kind != "progress":
            await super().say(sid, kind, data)


async def test_steps_told_only_in_progress_state_are_seen() -> None:
    server = StatesOnly()
    gate = server.gate("executed")
    async with connected(server) as connection:
        run = await connection.submit(play("b_sd_txt2img"))
        async with asyncio.timeout(10):
            async for event in run:
                if isinstance(event, ProgressState):
                    node = event.nodes["3"]
                    break
        assert (node.value, node.max, node.state) == (4, 4, "finished")
        gate.opened.set()
        assert await ended(run) == "success"


async def test_a_run_nobody_reads_costs_bounded_memory_and_loses_no_step() -> None:
    class Flood(Replay):
        async def before(self, prompt_id: str, kind: str) -> None:
            if kind == "executed":
                sid = next(iter(self.sockets))
                for step in range(3000):
                    data = {"value": step, "max": 3000, "node": "3", "prompt_id": prompt_id}
                    await self.say(sid, "progress", data)
                    await self.deliver(sid, "binary", b"\0\0\0\1\0\0\0\1" + bytes(20_000))

    async with connected(Flood()) as connection:
        run = await connection.submit(play("b_sd_txt2img"))
        assert await ended(run) == "success"
        events = await heard(run)
        assert len(events) < 600
        assert sum(isinstance(event, Preview) for event in events) < 300
        assert [e.value for e in events if isinstance(e, Progress)][-1] == 2999
        assert any(isinstance(event, ExecutionSuccess) for event in events)


# The end.


class NoEnd(Replay):
    """Loses the messages that tell the end."""

    async def say(self, sid: str | None, kind: str, data: Any) -> None:
        over = kind == "execution_success" or (kind == "executing" and data["node"] is None)
        if not over:
            await super().say(sid, kind, data)


async def test_an_end_that_is_not_told_is_found() -> None:
    async with connected(NoEnd()) as connection:
        run = await connection.submit(play("a_model_free"))
        assert await ended(run) == "success"


class NoLastMark(Replay):
    """Tells success and then nothing."""

    async def say(self, sid: str | None, kind: str, data: Any) -> None:
        if not (kind == "executing" and data["node"] is None):
            await super().say(sid, kind, data)


async def test_success_without_the_last_mark_is_enough() -> None:
    async with connected(NoLastMark(), poll_interval=60) as connection:
        assert await ended(await connection.submit(play("a_model_free"))) == "success"


async def test_the_next_prompts_beginning_ends_the_one_before() -> None:
    async with connected(NoEnd(), poll_interval=60) as connection:
        first = await connection.submit(play("a_model_free"))
        second = await connection.submit(play("a_model_free"))
        assert await ended(first) == "success"
        assert not second.over


class LateHistory(Replay):
    """Tells the end before the prompt has left the queue."""

    async def record(self, prompt_id: str, entry: dict[str, Any]) -> None:
        sid = self.running[0][3]["client_id"]
        await self.say(sid, "executing", {"node": None, "prompt_id": prompt_id})
        for _ in range(2):
            asked = self.requests.count("GET /queue")
            await until(self.asked_since(asked), timeout=10, pause=0.01)
        await super().record(prompt_id, entry)

    def asked_since(self, before: int) -> Any:
        async def look() -> bool:
            return self.requests.count("GET /queue") > before

        return look


async def test_a_history_that_comes_late_is_waited_for() -> None:
    async with connected(LateHistory()) as connection:
        assert await ended(await connection.submit(play("a_model_free"))) == "success"


class HistoryBetween(Replay):
    """Finishes the prompt between two questions, whichever comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.held: tuple[str, dict[str, Any]] | None = None
        self.recorded = asyncio.Event()

    async def record(self, prompt_id: str, entry: dict[str, Any]) -> None:
        self.held = (prompt_id, entry)
        await self.recorded.wait()

    async def say(self, sid: str | None, kind: str, data: Any) -> None:
        if kind not in ("executing", "execution_success") or data.get("node"):
            await super().say(sid, kind, data)

    async def get_queue(self, request: web.Request) -> web.StreamResponse:
        response = await super().get_queue(request)
        await self._finish()
        return response

    async def get_history(self, request: web.Request) -> web.StreamResponse:
        response = await super().get_history(request)
        await self._finish()
        return response

    async def _finish(self) -> None:
        if self.held:
            await super().record(*self.held)
            self.held = None
            self.recorded.set()


async def test_an_end_between_two_questions_is_no_loss() -> None:
    async with connected(HistoryBetween()) as connection:
        assert await ended(await connection.submit(play("a_model_free"))) == "success"


async def test_a_cleared_history_leaves_what_the_socket_told() -> None:
    class Cleared(Replay):
        async def record(self, prompt_id: str, entry: dict[str, Any]) -> None:
            self.running = []

    async with connected(Cleared()) as connection:
        run = await connection.submit(play("a_model_free"))
        outcome = await run.outcome()
        assert outcome.status == "success"
        assert list(outcome.outputs) == ["4"]
        failed = await (await connection.submit(play("e_execution_error"))).outcome()
        assert failed.status == "failed"


async def test_an_engine_that_forgot_the_prompt_has_lost_it() -> None:
    server = Replay()
    gate = server.gate("progress")
    async with connected(server) as connection:
        running = await connection.submit(play("b_sd_txt2img"))
        waiting = await connection.submit(play("a_model_free"))
        await asyncio.wait_for(gate.reached.wait(), 10)
        await server.hang_up()
        server.forget()
        await server.listen()
        for run in (running, waiting):
            outcome = await asyncio.wait_for(run.outcome(), 20)
            assert outcome.status == "lost"
            assert isinstance(outcome.error, PromptLost)
        await connection.wait_connected(5)
        assert await ended(await connection.submit(play("a_model_free"))) == "success"


async def test_an_engine_that_stays_away_loses_its_prompts() -> None:
    server = Replay()
    gate = server.gate("progress")
    async with connected(server, silent_timeout=0.3) as connection:
        run = await connection.submit(play("b_sd_txt2img"))
        await asyncio.wait_for(gate.reached.wait(), 10)
        await server.hang_up()
        outcome = await asyncio.wait_for(run.outcome(), 20)
        assert outcome.status == "lost"
        assert isinstance(outcome.error, EngineUnavailable)


async def test_what_died_is_told_to_all_runs_at_once() -> None:
    server = Replay()
    gate = server.gate("progress")
    async with connected(server, poll_interval=60) as connection:
        runs = [await connection.submit(play("b_sd_txt2img")) for _ in range(3)]
        await asyncio.wait_for(gate.reached.wait(), 10)
        assert connection.stalled_for() is not None
        connection.lose(EngineDied("the engine's process was ended by SIGKILL", log=["last words"]))
        for run in runs:
            outcome = await asyncio.wait_for(run.outcome(), 1)
            assert isinstance(outcome.error, EngineDied)
            assert outcome.error.log == ["last words"]
        assert connection.stalled_for() is None
        gate.opened.set()


# HTTP.


class Hung(Replay):
    """Stops answering HTTP while its socket goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.answers.set()

    async def get_queue(self, request: web.Request) -> web.StreamResponse:
        await self.answers.wait()
        return await super().get_queue(request)

    async def get_history(self, request: web.Request) -> web.StreamResponse:
        await self.answers.wait()
        return await super().get_history(request)


async def test_a_hung_engine_is_asked_again() -> None:
    server = Hung()
    gate = server.gate("executed")
    async with connected(server, timeout=0.3, silent_timeout=30) as connection:
        run = await connection.submit(play("b_sd_txt2img"))
        await asyncio.wait_for(gate.reached.wait(), 10)
        server.answers.clear()
        gate.opened.set()
        asked = len(server.requests)
        await until(more_requests(server, asked + 2), timeout=10)
        assert not run.over
        server.answers.set()
        assert await ended(run) == "success"


def more_requests(server: Replay, count: int) -> Any:
    async def look() -> bool:
        return len(server.requests) > count

    return look


async def test_an_engine_that_hangs_for_good_loses_its_prompts() -> None:
    server = Hung()
    async with connected(server, timeout=0.2, silent_timeout=0.3) as connection:
        server.answers.clear()
        run = await connection.submit(play("a_model_free"))
        outcome = await asyncio.wait_for(run.outcome(), 20)
        assert outcome.status == "lost"
        assert isinstance(outcome.error, EngineSilent)


class Failing(Replay):
    """Answers the first questions after an end with 500 and with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.bad = [
            web.Response(status=500, text="500 Internal Server Error"),
            web.Response(status=200, text="<html>a proxy's page</html>"),
            web.Response(status=503),
            web.json_response([1, 2]),
        ]

    async def get_history(self, request: web.Request) -> web.StreamResponse:
        return self.bad.pop() if self.bad else await super().get_history(request)


async def test_bad_answers_are_asked_for_again() -> None:
    async with connected(Failing()) as connection:
        assert await ended(await connection.submit(play("a_model_free"))) == "success"


class BadPost(Replay):
    answer: dict[str, Any]

    async def post_prompt(self, request: web.Request) -> web.StreamResponse:
        return web.Response(**self.answer)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"status": 500, "text": "Server got itself in trouble"}, EngineProtocolError),
        ({"status": 400, "text": "no JSON"}, EngineProtocolError),
        ({"status": 200, "text": "<html>"}, EngineProtocolError),
        ({"status": 200, "text": "{}"}, EngineProtocolError),
        ({"status": 302, "text": "elsewhere"}, EngineProtocolError),
        ({"status": 503, "text": "later"}, EngineUnavailable),
    ],
)
async def test_a_post_answered_oddly_raises(answer: dict[str, Any], error: type[Exception]) -> None:
    server = BadPost()
    async with connected(server) as connection:
        server.answer = answer
        with pytest.raises(error):
            await connection.submit(play("a_model_free"))
        assert connection.in_flight == 0


class CutPost(Replay):
    """Drops the connection of the first posts, before or after taking the prompt."""

    def __init__(self, cuts: int, *, takes: bool) -> None:
        super().__init__()
        self.cuts = cuts
        self.takes = takes

    async def post_prompt(self, request: web.Request) -> web.StreamResponse:
        if self.cuts == 0:
            return await super().post_prompt(request)
        self.cuts -= 1
        if self.takes:
            await super().post_prompt(request)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


async def test_a_post_broken_off_after_it_arrived_is_not_posted_again() -> None:
    server = CutPost(1, takes=True)
    async with connected(server) as connection:
        run = await connection.submit(play("a_model_free"))
        assert await ended(run) == "success"
        assert len(server.bodies) == 1


async def test_a_post_broken_off_before_it_arrived_is_posted_again_once() -> None:
    server = CutPost(1, takes=False)
    async with connected(server) as connection:
        assert await ended(await connection.submit(play("a_model_free"))) == "success"
        assert len(server.bodies) == 1
        server.cuts = 2
        with pytest.raises(EngineUnavailable):
            await connection.submit(play("a_model_free"))


async def test_a_prompt_given_up_while_it_is_posted_does_not_run() -> None:
    class Slow(Replay):
        async def post_prompt(self, request: web.Request) -> web.StreamResponse:
            response = await super().post_prompt(request)
            posted.set()
            await asyncio.sleep(60)
            return response

    posted = asyncio.Event()
    server = Slow()
    gate = server.gate("progress")
    async with connected(server) as connection:
        submitting = asyncio.create_task(connection.submit(play("b_sd_txt2img")))
        await asyncio.wait_for(posted.wait(), 10)
        await asyncio.wait_for(gate.reached.wait(), 10)
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting

        async def stopped() -> bool:
            return bool(server.interrupted)

        await until(stopped, timeout=10)
        assert connection.in_flight == 0


async def test_an_interrupt_the_engine_forgot_is_sent_again() -> None:
    class Forgetful(Replay):
        """Clears the flag when it begins a prompt, as ComfyUI does."""

        async def execute(self, item: list[Any]) -> None:
            await self.before(item[1], "begin")
            self.interrupted.discard(item[1])
            await super().execute(item)

        async def interrupt(self, request: web.Request) -> web.StreamResponse:
            self.gate("begin").opened.set()
            self.interrupted.add(json.loads(await request.text())["prompt_id"])
            interrupts.append(1)
            if len(interrupts) > 1:
                self.gate("progress").opened.set()
            return web.Response()

    interrupts: list[int] = []
    server = Forgetful()
    begin = server.gate("begin")
    server.gate("progress")
    async with connected(server) as connection:
        run = await connection.submit(play("b_sd_txt2img"))
        await asyncio.wait_for(begin.reached.wait(), 10)
        assert await run.cancel()
        assert await ended(run) == "interrupted"
        assert len(interrupts) == 2
