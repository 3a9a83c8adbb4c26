"""HTTP through the gateway to an instance: unchanged, streamed both ways, and what happens when either side fails."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web
from yarl import URL

from tests.agent.web import serve, serve_raw
from tests.gateway.gateways import ADMIN, PAINT, TOKEN, Gateway, gateway
from tests.servers import free_port
from tests.waiting import until

SIZE = 200 * 1024 * 1024
PIECE = 256 * 1024


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
        headers={"X-Answer": "1", "Connection": "X-Hop", "X-Hop": "1", "Set-Cookie": "mine=1"},
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
        "/?",
        "/@host/x",
    ],
)
async def test_paths_are_passed_on_as_they_are(served: Gateway, path: str) -> None:
    async with serve(echo) as url:
        served.stands(url)
        raw = await exchange(served, f"GET /api/predict/{PAINT}{path} HTTP/1.1")
    assert raw.startswith(b"HTTP/1.1 200")
    assert json.loads(raw.partition(b"\r\n\r\n")[2])["path"] == path.removesuffix("?")


async def exchange(served: Gateway, line: str, *headers: str, body: bytes = b"") -> bytes:
    """Send bytes as they are and read until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.running.port)
    head = [line, "Host: x", f"Authorization: {TOKEN}", "Connection: close", *headers]
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
    raw = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return raw


async def test_the_endpoint_itself_is_the_instances_root(served: Gateway) -> None:
    async with serve(echo) as url:
        served.stands(url)
        async with served.get("") as answer:
            assert (await answer.json())["path"] == "/"


async def test_the_instance_gets_no_token_and_no_cookie_of_ours(served: Gateway) -> None:
    sent = {
        "Connection": "keep-alive, X-Private",
        "X-Private": "1",
        "TE": "trailers",
        "Proxy-Authorization": "Basic x",
        "X-Kept": "yes",
        "Cookie": f"a=b; easel_link_{PAINT}=proof; easel_link_other=proof; c=d",
        "Accept-Encoding": "br",
        "Comfy-User": "ann",
        "Easel-Owner": "ann",
        "Origin": "http://elsewhere.example",
        "Referer": "http://elsewhere.example/page",
        "Sec-Fetch-Site": "cross-site",
        "X-Forwarded-For": "10.0.0.9",
    }
    async with serve(echo) as url:
        served.stands(url)
        async with served.call("POST", "/x", data=b"body", headers=sent) as answer:
            told = await answer.json()
            assert answer.headers["X-Answer"] == "1"
            assert answer.headers["Set-Cookie"] == "mine=1"
            assert "X-Hop" not in answer.headers
            assert len(answer.headers.getall("Date")) == 1
    got = {name.lower(): value for name, value in told["headers"]}
    assert told["body"] == "body"
    assert got["x-kept"] == "yes"
    assert got["cookie"] == "a=b; c=d"
    assert got["accept-encoding"] == "br"
    assert got["comfy-user"] == "ann"
    assert got["host"] in url
    assert got["x-forwarded-for"] == "10.0.0.9, 127.0.0.1"
    assert got["x-forwarded-prefix"] == f"/api/predict/{PAINT}"
    assert got["x-forwarded-host"] in served.origin
    assert got["x-forwarded-proto"] == "http"
    hidden = {"authorization", "easel-owner", "origin", "referer", "sec-fetch-site"}
    assert not (hidden | {"x-private", "te", "proxy-authorization", "upgrade"}) & set(got)
    assert TOKEN not in json.dumps(told)


async def test_statuses_without_a_body(served: Gateway) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=int(request.path[1:]), headers={"ETag": '"x"'})

    async with serve(handler) as url:
        served.stands(url)
        for status in (204, 304, 404, 503):
            for method in ("GET", "HEAD"):
                async with served.call(method, f"/{status}") as answer:
                    assert answer.status == status
                    assert answer.headers["ETag"] == '"x"'
                    assert await answer.read() == b""


async def test_a_not_modified_with_a_length_is_passed_on(served: Gateway) -> None:
    async def raw(reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 304 Not Modified\r\nContent-Length: 70\r\nETag: "x"\r\n\r\n')

    async with serve_raw(raw) as url:
        served.stands(url)
        async with served.get("/x") as answer:
            assert (answer.status, await answer.read()) == (304, b"")


async def test_redirects_stay_below_the_service(served: Gateway) -> None:
    async def handler(request: web.Request) -> web.Response:
        base = f"http://{request.host}"
        return web.Response(
            status=302, headers={"Location": request.query["to"].replace("$", base)}
        )

    async with serve(handler) as url:
        served.stands(url)
        for to, seen in (
            ("/y?z", f"/api/predict/{PAINT}/y?z"),
            ("$/y", f"/api/predict/{PAINT}/y"),
            ("y", "y"),
            ("https://elsewhere.example/", "https://elsewhere.example/"),
            ("//elsewhere.example/", "//elsewhere.example/"),
        ):
            async with served.get("/x", params={"to": to}, allow_redirects=False) as answer:
                assert (answer.status, answer.headers["Location"]) == (302, seen)


async def test_an_instance_cannot_set_our_cookies(served: Gateway) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(headers={"Set-Cookie": "easel_link_other=forged; Path=/"})

    async with serve(handler) as url:
        served.stands(url)
        async with served.get("/x") as answer:
            assert "Set-Cookie" not in answer.headers


async def test_a_compressed_answer_stays_compressed(served: Gateway) -> None:
    async def handler(_: web.Request) -> web.Response:
        response = web.Response(text="x" * 10_000)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with serve(handler) as url, aiohttp.ClientSession(auto_decompress=False) as http:
        served.stands(url)
        headers = {"Authorization": TOKEN, "Accept-Encoding": "gzip"}
        async with http.get(served.url + "/x", headers=headers) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert len(await answer.read()) < 1000


async def test_large_files_pass_through_without_piling_up(served: Gateway) -> None:
    """200 MB up and down; the gateway is the test's own process, and it does not grow by anything like that."""
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
    async with serve(handler) as url:
        served.stands(url)
        begin = process.memory_info().rss
        most, got = begin, 0
        async with served.call("POST", "/x", data=body()) as answer:
            assert answer.content_length == SIZE
            async for chunk in answer.content.iter_any():
                got += len(chunk)
                most = max(most, process.memory_info().rss)
    assert (taken, got) == (SIZE, SIZE)
    assert most - begin < 60 * 1024 * 1024


async def test_a_slow_reader_holds_the_instance_up(served: Gateway) -> None:
    written = 0
    stuck = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(SIZE // PIECE):
            try:
                async with asyncio.timeout(1):
                    await response.write(bytes(PIECE))
            except TimeoutError:
                stuck.set()
                raise
            written += PIECE
        return response

    async with serve(handler) as url:
        served.stands(url)
        reader, writer = await asyncio.open_connection("127.0.0.1", served.running.port, limit=1024)
        writer.write(
            f"GET /api/predict/{PAINT}/x HTTP/1.1\r\nHost: x\r\nAuthorization: {TOKEN}\r\n\r\n".encode()
        )
        await asyncio.wait_for(stuck.wait(), 20)
        writer.transport.abort()
        del reader
    assert written < SIZE / 4


async def test_an_answer_that_breaks_off_is_seen_to_break_off(served: Gateway) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if "length" in request.query:
            response.content_length = 1000
        await response.prepare(request)
        await response.write(b"x" * 10)
        assert request.transport is not None
        request.transport.abort()
        return response

    async with serve(handler) as url:
        served.stands(url)
        for path in ("/x", "/x?length"):
            with pytest.raises(aiohttp.ClientError):
                async with served.get(path) as answer:
                    await answer.read()


async def test_an_answer_comes_as_it_is_written(served: Gateway) -> None:
    """The first piece arrives while the second has not been written."""
    go_on = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await go_on.wait()
        await response.write(b"second")
        return response

    async with serve(handler) as url:
        served.stands(url)
        async with served.get("/x") as answer:
            assert await asyncio.wait_for(answer.content.readany(), 10) == b"first"
            go_on.set()
            assert await answer.content.read() == b"second"


@pytest.mark.parametrize("begun", [True, False])
async def test_a_caller_that_leaves_is_gone_for_the_instance_too(
    served: Gateway, begun: bool
) -> None:
    came, left = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if begun:
            await response.prepare(request)
            await response.write(b"x")
        came.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return response

    async with serve(handler) as url:
        served.stands(url)
        call = asyncio.ensure_future(ended(served.get("/x")))
        await asyncio.wait_for(came.wait(), 10)
        call.cancel()
        await asyncio.wait_for(left.wait(), 10)
        await until(lambda: counted(served, 'status="499"'), timeout=10)


async def ended(call: Any) -> bytes:
    async with call as answer:
        content: bytes = await answer.read()
        return content


async def counted(served: Gateway, text: str) -> bool:
    """Tell whether the requests that were counted have this."""
    read = await asyncio.to_thread(served.state.metrics.text)
    return any(
        text in line
        for line in read.decode().splitlines()
        if line.startswith("easel_requests_total")
    )


async def test_a_caller_that_leaves_in_the_middle_of_its_body(served: Gateway) -> None:
    left = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        try:
            await request.read()
        finally:
            left.set()
        return web.Response()

    async with serve(handler) as url:
        served.stands(url)
        _, writer = await asyncio.open_connection("127.0.0.1", served.running.port)
        head = f"POST /api/predict/{PAINT}/x HTTP/1.1\r\nHost: x\r\nAuthorization: {TOKEN}\r\n"
        writer.write(head.encode() + b"Content-Length: 1000000\r\n\r\n" + b"x" * 100_000)
        await writer.drain()
        writer.transport.abort()
        await asyncio.wait_for(left.wait(), 10)
        await until(lambda: counted(served, 'status="499"'), timeout=10)


async def test_no_instance(served: Gateway) -> None:
    async with served.get("/x") as answer:
        assert (answer.status, await answer.text()) == (503, "no healthy upstream")
        assert "Retry-After" in answer.headers
    for headers in ({"Accept": "application/json"}, {"Comfy-User": ""}):
        async with served.call("POST", "/prompt", json={"prompt": {}}, headers=headers) as answer:
            told = await answer.json()
            assert (answer.status, told["message"]) == (503, "no healthy upstream")
            assert told["node_errors"] == {}
            assert told["error"]["message"] == "no healthy upstream"


async def test_an_instance_that_cannot_be_reached_is_passed_over(served: Gateway) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    async with serve(echo) as url:
        served.stands(gone)
        async with served.call("POST", "/x", data=b"y") as answer:
            assert (answer.status, await answer.text()) == (503, "no healthy upstream")
        served.stands(gone, url, gone)
        for number in range(8):
            headers = {"Easel-Owner": f"owner-{number}"}
            async with served.get("/x", headers=headers) as answer:
                assert answer.status == 200
        async with served.call("POST", "/prompt", json={"prompt": {}}) as answer:
            assert (await answer.json())["body"] == '{"prompt": {}}'


async def test_a_caller_stays_with_its_instance(served: Gateway) -> None:
    async def one(_: web.Request) -> web.Response:
        return web.Response(text="one")

    async def two(_: web.Request) -> web.Response:
        return web.Response(text="two")

    async with serve(one) as first, serve(two) as second:
        seen: dict[str, set[str]] = {}
        for urls in ((first, second), (first, second)):
            served.stands(*urls)
            for number in range(16):
                owner = f"owner-{number}"
                async with served.get("/x", headers={"Easel-Owner": owner}) as answer:
                    seen.setdefault(owner, set()).add(await answer.text())
    assert all(len(answers) == 1 for answers in seen.values())
    assert set().union(*seen.values()) == {"one", "two"}


async def test_an_instance_that_hangs_up_without_an_answer(served: Gateway) -> None:
    async def handler(reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with serve_raw(handler) as url:
        served.stands(url)
        async with served.call("POST", "/x", data=b"y") as answer:
            assert (answer.status, (await answer.json())["code"]) == (502, "upstream_failed")


async def test_an_instance_that_talks_nonsense(served: Gateway) -> None:
    async def handler(reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/9 hello\r\n\r\n")

    async with serve_raw(handler) as url:
        served.stands(url)
        async with served.get("/x") as answer:
            assert answer.status == 502


async def test_time_limits(tmp_path: Path) -> None:
    async def silent(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with serve(silent) as url, gateway(tmp_path / "a", answer_timeout=0.2) as served:
        served.stands(url)
        async with served.get("/x") as answer:
            assert (answer.status, (await answer.json())["code"]) == (504, "upstream_timeout")
        await served.change(keepalive_ms=100)
        async with served.get("/x") as answer:
            assert (answer.status, (await answer.json())["code"]) == (408, "request_timeout")


async def test_a_body_that_stops_coming(tmp_path: Path) -> None:
    async with serve(echo) as url, gateway(tmp_path, idle_timeout=0.2) as served:
        served.stands(url)
        for path in ("/prompt", "/x"):
            raw = await exchange(
                served,
                f"POST /api/predict/{PAINT}{path} HTTP/1.1",
                "Content-Length: 100",
                body=b"x",
            )
            assert raw.startswith(b"HTTP/1.1 408")


async def test_an_answer_that_stops_coming_is_broken_off(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        await asyncio.Event().wait()
        return response

    async with serve(handler) as url, gateway(tmp_path, idle_timeout=0.2) as served:
        served.stands(url)
        with pytest.raises(aiohttp.ClientError):
            async with served.get("/x") as answer:
                await answer.read()


@pytest.mark.parametrize("path", ["/prompt", "/api/prompt", "/%70rompt"])
async def test_prompts_that_would_break_the_engine_do_not_reach_it(
    tmp_path: Path, path: str
) -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({})

    bad: list[tuple[Any, int]] = [
        (b"no json", 400),
        (b'{"prompt": {}, "client_id": []}', 400),
        (b'{"prompt": {"1": {"class_type": "X"}}}', 400),
        (b'{"x": "' + b"x" * 300_000 + b'"}', 413),
    ]
    async with serve(handler) as url, gateway(tmp_path, max_body_bytes=200_000) as served:
        served.stands(url)
        target = URL(served.url + path, encoded=True)
        for body, status in bad:
            for data in (body, pieces(body)):
                headers = {"Authorization": TOKEN}
                async with served.http.post(target, data=data, headers=headers) as answer:
                    told = await answer.json()
                    assert answer.status == status
                    assert set(told["error"]) == {"type", "message", "details", "extra_info"}
                    assert "node_errors" in told
        assert asked == []
        async with served.http.post(
            target, data=b'{"prompt": {}}', headers={"Authorization": TOKEN}
        ) as answer:
            assert answer.status == 200
        assert len(asked) == 1


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(body), 60_000):
        yield body[begin : begin + 60_000]


@pytest.mark.parametrize("target", ["@{host}/x", "http://{host}/x", ".{host}/x", "*"])
async def test_the_caller_does_not_choose_the_host(served: Gateway, target: str) -> None:
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.raw_path)
        return web.Response(text="the operator's network")

    async with serve(elsewhere) as other, serve(echo) as url:
        served.stands(url)
        for line in (
            f"GET {target.format(host=URL(other).authority)} HTTP/1.1",
            f"GET /api/predict/{PAINT}{target.format(host=URL(other).authority)} HTTP/1.1",
        ):
            raw = await exchange(served, line)
            assert raw[9:12] in (b"200", b"400", b"401", b"404")
    assert not asked


async def test_the_admin_token_does_not_open_services(served: Gateway) -> None:
    async with served.http.get(served.url + "/x", headers={"Authorization": ADMIN}) as answer:
        assert answer.status == 401


async def test_pipelined_requests_are_answered_in_order(served: Gateway) -> None:
    async with serve(echo) as url:
        served.stands(url)
        lines = [
            f"GET /api/predict/{PAINT}/{n} HTTP/1.1\r\nHost: x\r\nAuthorization: {TOKEN}\r\n"
            + ("Connection: close\r\n" if n == 2 else "")
            for n in range(3)
        ]
        reader, writer = await asyncio.open_connection("127.0.0.1", served.running.port)
        writer.write("\r\n".join([*lines, ""]).encode())
        raw = (await asyncio.wait_for(reader.read(), 10)).decode()
        writer.close()
    places = [raw.index(f'"path": "/{n}"') for n in range(3)]
    assert places == sorted(places)
