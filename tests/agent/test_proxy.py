"""What is not the agent's own goes through unchanged, both ways, streamed; and whose pages may ask."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import WSMsgType, web
from yarl import URL

from easel.agent.command import EngineChoice
from easel.agent.serve import running_agent
from easel.settings import AgentSettings
from tests.agent.agents import QUICK, Agent, agent, agent_of, noop, picture, supervised
from tests.agent.web import serve
from tests.servers import free_port
from tests.waiting import until


@contextlib.asynccontextmanager
async def before(handler: Any, folder: Path, **changes: Any) -> AsyncIterator[str]:
    """Run an agent before a server of the test's own and yield the agent's URL."""
    async with serve(handler) as url:
        settings = AgentSettings(
            **{"port": 0, "data_dir": folder / "agent", "supervision": QUICK, **changes}
        )
        async with running_agent(settings, EngineChoice(url, None)) as running:
            yield running.url


async def echo(request: web.Request) -> web.Response:
    """Tell what came."""
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "path": request.raw_path,
            "headers": [[name, value] for name, value in request.headers.items()],
            "body": body.decode("latin-1"),
        },
        headers={"X-Answer": "1", "Connection": "X-Hop", "X-Hop": "1"},
    )


@pytest.mark.parametrize(
    "path",
    [
        "/plain?a=1&a=2&b=%20+%2B",
        "/api/userdata/workflows%2Fmy%20flow.json?overwrite=true",
        "/view?filename=%C3%A4%26.png&subfolder=a%2Fb",
        "//double//slashes",
        "/dots/%2e%2e/x",
        "/dots/../x",
        "/semi;colon=1?q",
        "/caf%E9?x=%E9",
    ],
)
async def test_paths_are_passed_on_as_they_are(tmp_path: Path, path: str) -> None:
    async with before(echo, tmp_path) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(url).port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        raw = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert raw.startswith(b"HTTP/1.1 200")
    assert json.loads(raw.partition(b"\r\n\r\n")[2])["path"] == path


@pytest.mark.parametrize("target", ["@{host}/x", "http://{host}/x", ".{host}/x", "*"])
async def test_the_caller_does_not_choose_the_host(tmp_path: Path, target: str) -> None:
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.raw_path)
        return web.Response(text="the operator's network")

    async with serve(elsewhere) as other, before(echo, tmp_path) as url:
        target = target.format(host=URL(other).authority)
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(url).port)
        writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        raw = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert raw[9:12] == b"400"
    assert not asked


async def test_headers_between_neighbours_stay_between_them(tmp_path: Path) -> None:
    async with before(echo, tmp_path) as url, aiohttp.ClientSession() as http:
        sent = {
            "Connection": "keep-alive, X-Private",
            "X-Private": "1",
            "TE": "trailers",
            "Proxy-Authorization": "Basic x",
            "X-Kept": "yes",
            "Cookie": "a=b; c=d",
            "Accept-Encoding": "br",
            "Comfy-User": "ann",
        }
        async with http.post(url + "/x", data=b"body", headers=sent) as answer:
            told = await answer.json()
            assert answer.headers["X-Answer"] == "1"
            assert "X-Hop" not in answer.headers
    got = {name.lower(): value for name, value in told["headers"]}
    assert told["body"] == "body"
    assert got["x-kept"] == "yes"
    assert got["cookie"] == "a=b; c=d"
    assert got["accept-encoding"] == "br"
    assert got["comfy-user"] == "ann"
    assert not {"x-private", "te", "proxy-authorization"} & set(got)


async def test_statuses_without_a_body(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=int(request.path[1:]), headers={"ETag": '"x"', "Location": "/y"})

    async with before(handler, tmp_path) as url, aiohttp.ClientSession() as http:
        for status in (204, 304, 302, 404, 503):
            for _ in range(2):  # the connection is fit for another request
                async with http.get(f"{url}/{status}", allow_redirects=False) as answer:
                    assert answer.status == status
                    assert answer.headers["ETag"] == '"x"'
                    assert await answer.read() == b""


async def test_a_compressed_answer_stays_compressed(tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.Response:
        response = web.Response(text="x" * 10_000)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with (
        before(handler, tmp_path) as url,
        aiohttp.ClientSession(auto_decompress=False) as http,
        http.get(url + "/x", headers={"Accept-Encoding": "gzip"}) as answer,
    ):
        assert answer.headers["Content-Encoding"] == "gzip"
        assert len(await answer.read()) < 1000


SIZE = 200 * 1024 * 1024
PIECE = 256 * 1024


async def test_large_files_pass_through_without_piling_up(tmp_path: Path) -> None:
    """200 MB up and down; the agent is the test's own process, and it does not grow by anything like that."""
    taken = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal taken
        async for chunk in request.content.iter_any():
            taken += len(chunk)
        response = web.StreamResponse()
        response.content_length = SIZE
        await response.prepare(request)
        for _ in range(SIZE // PIECE):
            await response.write(bytes(PIECE))
        return response

    async def body() -> AsyncIterator[bytes]:
        for _ in range(SIZE // PIECE):
            yield bytes(PIECE)

    process = psutil.Process(os.getpid())
    async with before(handler, tmp_path) as url, aiohttp.ClientSession() as http:
        begin = process.memory_info().rss
        most, got = begin, 0
        async with http.post(url + "/x", data=body()) as answer:
            assert answer.content_length == SIZE
            async for chunk in answer.content.iter_any():
                got += len(chunk)
                most = max(most, process.memory_info().rss)
    assert (taken, got) == (SIZE, SIZE)
    assert most - begin < 60 * 1024 * 1024


async def test_an_answer_that_breaks_off_is_seen_to_break_off(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 1000
        await response.prepare(request)
        await response.write(b"x" * 10)
        assert request.transport is not None
        request.transport.abort()
        return response

    async with before(handler, tmp_path) as url, aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientError):
            async with http.get(url + "/x") as answer:
                await answer.read()


async def test_an_answer_comes_as_it_is_written(tmp_path: Path) -> None:
    """The first piece arrives while the second has not been written."""
    go_on = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await go_on.wait()
        await response.write(b"second")
        return response

    async with (
        before(handler, tmp_path) as url,
        aiohttp.ClientSession() as http,
        http.get(url + "/x") as answer,
    ):
        assert await asyncio.wait_for(answer.content.readany(), 10) == b"first"
        go_on.set()
        assert await answer.content.read() == b"second"


async def test_a_caller_that_leaves_is_gone_for_the_engine_too(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return response

    async with before(handler, tmp_path) as url, aiohttp.ClientSession() as http:
        async with http.get(url + "/x") as answer:
            await answer.content.readany()
            answer.close()
        await asyncio.wait_for(left.wait(), 10)


async def test_ranges_and_heads_of_comfyuis_files(served: Agent) -> None:
    nodes = await served.run(picture())
    url = nodes["2"]["images"][0]["url"]
    for path in (url, "/view?filename=test_00001_.png"):
        async with served.http.get(path) as whole:
            data = await whole.read()
            etag = whole.headers.get("ETag")
        async with served.http.get(path, headers={"Range": "bytes=10-19"}) as part:
            assert part.status == 206
            assert await part.read() == data[10:20]
        async with served.http.head(path) as head:
            assert head.status == 200
            assert int(head.headers["Content-Length"]) == len(data)
        if etag:
            async with served.http.get(path, headers={"If-None-Match": etag}) as same:
                assert same.status == 304


async def test_userdata_keeps_its_encoded_slash(served: Agent) -> None:
    url = URL(served.url + "/api/userdata/workflows%2Fmine%20%26.json", encoded=True)
    async with served.http.post(url, data=b'{"a": 1}') as answer:
        assert answer.status == 200, await answer.text()
    async with served.http.get(url) as answer:
        assert await answer.read() == b'{"a": 1}'


# WebSockets.


async def socket_echo(request: web.Request) -> web.StreamResponse:
    """Send everything back; `close 4001` closes with that code."""
    socket = web.WebSocketResponse(protocols=("second",), max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            if message.data.startswith("close "):
                await socket.close(code=int(message.data[6:]))
            else:
                await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    if request.path == "/probe":
        closed.append(socket.close_code)
    return socket


closed: list[int | None] = []


async def test_sockets_both_ways(tmp_path: Path) -> None:
    closed.clear()
    async with before(socket_echo, tmp_path) as url, aiohttp.ClientSession() as http:
        async with http.ws_connect(
            url + "/ws?clientId=1", protocols=("first", "second"), max_msg_size=0
        ) as socket:
            assert socket.protocol == "second"
            await socket.send_str("text ✓")
            assert await socket.receive_str(timeout=10) == "text ✓"
            large = os.urandom(5_000_000)
            await socket.send_bytes(large)
            assert await socket.receive_bytes(timeout=10) == large
            await socket.send_str("close 4001")
            message = await socket.receive(timeout=10)
            assert (message.type, message.data) == (WSMsgType.CLOSE, 4001)
        async with http.ws_connect(url + "/probe") as socket:
            await socket.send_str("x")
            await socket.receive_str(timeout=10)
            await socket.close(code=4002)

        async def told() -> bool:
            return closed == [4002]

        await until(told, timeout=10)


async def test_a_refused_socket_is_refused_with_the_same_status(tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({}, status=418)

    async with before(handler, tmp_path) as url, aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await http.ws_connect(url + "/ws")
        assert caught.value.status == 418


async def test_comfyuis_own_socket_and_prompt_through_the_agent(served: Agent) -> None:
    async with served.http.ws_connect("/ws?clientId=me") as socket:
        assert (await socket.receive_json(timeout=10))["type"] == "status"
        async with served.http.post(
            "/prompt", json={"prompt": noop("x"), "client_id": "me"}
        ) as answer:
            assert answer.status == 200
        kinds = set()
        while "execution_success" not in kinds:
            kinds.add((await socket.receive_json(timeout=10))["type"])
        assert {"execution_start", "executed"} <= kinds


# Without an engine.


@pytest.mark.parametrize("path", ["/prompt", "/api/prompt"])
async def test_a_prompt_that_would_break_comfyui_does_not_reach_it(
    tmp_path: Path, path: str
) -> None:
    good = {"prompt": noop(), "client_id": "c", "extra_data": {"x": "ä"}}
    async with before(echo, tmp_path) as url, aiohttp.ClientSession(url) as http:
        for odd in ({**good, "client_id": ["c"]}, {**good, "extra_data": None}, [1]):
            async with http.post(path, json=odd) as answer:
                assert answer.status == 400
                said = await answer.json()
                assert set(said["error"]) == {"type", "message", "details", "extra_info"}
                assert said["node_errors"] == {}
        async with http.post(path, json=good) as answer:
            assert answer.status == 200
            assert json.loads((await answer.json())["body"].encode("latin-1")) == good


async def test_no_engine(tmp_path: Path) -> None:
    settings = AgentSettings(port=0, data_dir=tmp_path, supervision=QUICK)
    choice = EngineChoice(f"http://127.0.0.1:{free_port()}", None)
    async with running_agent(settings, choice) as running, aiohttp.ClientSession() as http:
        async with http.get(running.url + "/queue") as answer:
            body = await answer.json()
            assert answer.status == 503
        assert body["error"]["type"] == "engine_unavailable"
        assert body["error"]["message"]
        assert body["node_errors"] == {}
        assert body["hint"]
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await http.ws_connect(running.url + "/ws")
        assert caught.value.status == 503
        async with http.get(running.url + "/api/agent") as answer:
            assert answer.status == 503
            assert (await answer.json())["engine"]["ready"] is False


async def test_the_engine_comes_back(tmp_path: Path) -> None:
    async with agent_of(tmp_path / "agent", supervised(tmp_path)) as served:
        process = served.running.state.link.process
        assert process is not None
        await process.restart("for the test")

        async def answers() -> bool:
            async with served.http.get("/queue") as answer:
                return answer.status == 200

        await until(answers)
        assert await served.run(noop())


# Whose pages.

FOREIGN = "https://evil.example"


@pytest.mark.parametrize("path", ["/api/run", "/api/status?id=x", "/queue", "/prompt", "/"])
@pytest.mark.parametrize(
    "origin", [FOREIGN, "null", "http://127.0.0.1:1", "file://", "x", "http://[::1"]
)
async def test_other_pages_are_refused(served: Agent, path: str, origin: str) -> None:
    for method in ("GET", "POST", "OPTIONS", "DELETE"):
        async with served.http.request(method, path, headers={"Origin": origin}) as answer:
            assert answer.status == 403
            assert (await answer.json())["code"] == "origin_refused"
            assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("path", ["/ws", "/api/run/ws"])
async def test_sockets_of_other_pages_are_refused(served: Agent, path: str) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await served.http.ws_connect(path, headers={"Origin": FOREIGN})
    assert caught.value.status == 403
    async with served.http.ws_connect(path, headers={"Origin": served.url}):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
async def test_the_agents_own_page_under_each_of_its_names(served: Agent, host: str) -> None:
    authority = f"{host}:{served.running.port}"
    headers = {"Host": authority, "Origin": f"http://{authority.lower()}"}
    for path in ("/api/run", "/prompt"):
        body = noop() if path == "/api/run" else {"prompt": noop()}
        async with served.http.post(path, json=body, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
    mixed = {"Host": authority, "Origin": f"http://other.local:{served.running.port}"}
    async with served.http.post("/api/run", json=noop(), headers=mixed) as answer:
        assert answer.status == 403


async def test_default_ports_need_not_be_named(served: Agent) -> None:
    for host, origin in (
        ("easel.example", "https://easel.example"),
        ("easel.example:443", "https://easel.example"),
        ("easel.example", "http://easel.example:80"),
    ):
        headers = {"Host": host, "Origin": origin}
        async with served.http.get("/queue", headers=headers) as answer:
            assert answer.status == 200, (host, origin)


async def test_pages_that_are_allowed(tmp_path: Path) -> None:
    async with agent(tmp_path, cors_origins=("https://app.example",)) as served:
        headers = {"Origin": "https://app.example"}
        ask = {
            **headers,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type, task-id",
        }
        before_ = await served.executed()
        for path in ("/api/run", "/prompt"):
            async with served.http.options(path, headers=ask) as answer:
                assert answer.status == 204
                assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
                assert answer.headers["Access-Control-Allow-Headers"] == "content-type, task-id"
                assert "POST" in answer.headers["Access-Control-Allow-Methods"]
                assert "Access-Control-Allow-Credentials" not in answer.headers
        assert await served.executed() == before_
        async with served.http.post("/api/run", json=noop(), headers=headers) as answer:
            assert answer.status == 200
            assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
            assert "task-id" in answer.headers["Access-Control-Expose-Headers"]
            assert answer.headers["Vary"] == "Origin"
        for extra in ({}, {"task-id": "../x"}):
            async with served.http.post(
                "/api/run", data=b"{", headers={**headers, **extra}
            ) as answer:
                assert answer.status == 400
                assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        async with served.http.get("/object_info/SaveImage", headers=headers) as answer:
            assert answer.headers.getall("Access-Control-Allow-Origin") == ["https://app.example"]
        async with served.http.ws_connect("/ws", headers=headers) as socket:
            assert (await socket.receive_json())["type"] == "status"
        async with served.http.get("/queue", headers={"Origin": FOREIGN}) as answer:
            assert answer.status == 403


async def test_all_pages(tmp_path: Path) -> None:
    async with (
        agent(tmp_path, cors_origins=("*",)) as served,
        served.http.get("/queue", headers={"Origin": FOREIGN}) as answer,
    ):
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize("path", ["/api/run", "/api/status", "/prompt", "/"])
async def test_options_without_a_page(served: Agent, path: str) -> None:
    async with served.http.options(path) as answer:
        assert answer.status == 204
        assert "GET" in answer.headers["Allow"]
        assert not any(name.lower().startswith("access-control") for name in answer.headers)
