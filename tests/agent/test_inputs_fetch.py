"""Fetching from real servers, most of them hostile."""

from __future__ import annotations

import asyncio
import contextlib
import gzip

import pytest
from aiohttp import web
from yarl import URL

from easel.errors import InputRejected
from tests.agent.web import FakeNames, fetched, serve, serve_raw, settings


async def answer(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"content of " + request.path.encode())


async def rejected(url: str, **changes: object) -> str:
    with pytest.raises(InputRejected) as caught:
        await fetched(url, settings(**changes))
    return caught.value.message


async def test_a_file_is_fetched() -> None:
    async with serve(answer) as base:
        assert await fetched(f"{base}/a/b.png?c=d#e") == b"content of /a/b.png"


async def test_nothing_of_the_machine_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append({name.lower(): value for name, value in request.headers.items()})
        response = web.Response(status=302, headers={"Location": "/next"})
        response.set_cookie("session", "secret")
        return response if request.path == "/" else web.Response(body=b"x")

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with serve(handler) as base:
        assert await fetched(f"{base}/") == b"x"
    for headers in seen:
        assert headers["accept-encoding"] == "identity"
        assert not {"cookie", "authorization", "referer"} & headers.keys()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(status: int) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/end":
            return web.Response(body=b"here")
        return web.Response(status=status, headers={"Location": "../end"})

    async with serve(handler) as base:
        assert await fetched(f"{base}/start/x") == b"here"


async def test_too_many_redirects() -> None:
    hops = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal hops
        hops += 1
        return web.Response(status=302, headers={"Location": f"/{hops}"})

    async with serve(handler) as base:
        assert "more than 3 times" in await rejected(f"{base}/", max_redirects=3)
    assert hops == 4


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.2:{port}/",
        "http://[::ffff:127.0.0.2]:{port}/",
        "//127.0.0.2:{port}/",
        "http://2130706434:{port}/",
        "http://0x7f.2:{port}/",
        "http://0177.0.0.2:{port}/",
        "http://127.2:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://user:pw@127.0.0.1:{port}/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/",
        "http://[",
        "",
    ],
)
async def test_redirects_into_the_network_are_refused(target: str) -> None:
    reached: list[str] = []

    async def inner(request: web.Request) -> web.StreamResponse:
        reached.append(request.path)
        return web.Response(body=b"secret")

    async with serve(inner, "127.0.0.2") as inside:
        location = target.format(port=inside.rpartition(":")[2])

        async def handler(request: web.Request) -> web.StreamResponse:
            return web.Response(status=302, headers={"Location": location})

        async with serve(handler) as base:
            await rejected(f"{base}/")
    assert reached == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.2", "2130706434", "0x7f000002", "0177.0.0.2", "127.2", "[::ffff:127.0.0.2]", "[::1]"],
)
async def test_every_writing_of_a_private_address(host: str) -> None:
    async with serve(answer, "127.0.0.2") as inside:
        message = await rejected(f"http://{host}:{inside.rpartition(':')[2]}/")
    assert "not a public address" in message


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]"])
async def test_odd_writings_of_an_allowed_address(host: str) -> None:
    async with serve(answer) as base:
        port = base.rpartition(":")[2]
        assert await fetched(f"http://{host}:{port}/x") == b"content of /x"


async def test_a_name_that_leads_inside_is_refused() -> None:
    names = FakeNames(inside_test=[["127.0.0.2", "10.0.0.8", "fd00:ec2::254"]])
    async with serve(answer, "127.0.0.2") as base:
        with pytest.raises(InputRejected, match="not a public address"):
            await fetched(f"http://inside.test:{base.rpartition(':')[2]}/", lookup=names)


async def test_only_the_allowed_addresses_of_a_name_are_used() -> None:
    names = FakeNames(mixed_test=[["127.0.0.2", "127.0.0.1"]])
    async with serve(answer) as base:
        url = f"http://mixed.test:{base.rpartition(':')[2]}/x"
        assert await fetched(url, lookup=names) == b"content of /x"


async def test_a_name_is_asked_for_once_a_connection() -> None:
    """DNS rebinding: the second answer, which leads inside, is never used."""
    names = FakeNames(rebind_test=[["127.0.0.1"], ["127.0.0.2"]])
    async with serve(answer) as base:
        url = f"http://rebind.test:{base.rpartition(':')[2]}/x"
        assert await fetched(url, lookup=names) == b"content of /x"
    assert names.asked == ["rebind.test"]


async def test_a_redirect_is_resolved_and_checked_anew() -> None:
    names = FakeNames(rebind_test=[["127.0.0.1"], ["127.0.0.2"]])

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "/again"})

    async with serve(handler) as base:
        with pytest.raises(InputRejected, match="not a public address"):
            await fetched(f"http://rebind.test:{base.rpartition(':')[2]}/x", lookup=names)
    assert names.asked == ["rebind.test", "rebind.test"]


async def test_names_go_through_the_systems_resolver() -> None:
    async with serve(answer) as base:
        url = f"http://localhost:{base.rpartition(':')[2]}/x"
        assert await fetched(url) == b"content of /x"
        assert "not a public address" in await rejected(url, allow_private=())


async def test_unknown_host() -> None:
    with pytest.raises(InputRejected, match="not known"):
        await fetched("http://nowhere.test/", lookup=FakeNames())


async def test_a_host_name_that_cannot_be_encoded() -> None:
    await rejected("http://" + "a" * 70 + ".test/")
    await rejected("http://..test/")


async def test_nobody_listens() -> None:
    async with serve(answer) as base:
        pass
    assert "cannot be reached" in await rejected(f"{base}/")


@pytest.mark.parametrize("status", [201, 204, 206, 304, 400, 401, 403, 404, 410, 500, 503])
async def test_other_statuses(status: int) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    async with serve(handler) as base:
        assert str(status) in await rejected(f"{base}/")


async def test_a_long_file_is_refused_by_its_announced_length() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * 2000)

    async with serve(handler) as base:
        assert "larger than 1000 bytes" in await rejected(f"{base}/", max_bytes=1000)
        assert len(await fetched(f"{base}/", settings(max_bytes=2000))) == 2000


async def test_an_endless_file_is_cut_off() -> None:
    ended = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 10_000)
        finally:
            ended.set()

    async with serve(handler) as base:
        assert "larger" in await rejected(f"{base}/", max_bytes=300_000)
        async with asyncio.timeout(10):
            await ended.wait()


async def test_a_server_that_says_less_than_it_sends() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + b"0123456789" * 50_000)
        await writer.drain()

    async with serve_raw(handler) as base:
        with contextlib.suppress(InputRejected):
            assert await fetched(f"{base}/") == b"01234"


async def test_a_server_that_says_more_than_it_sends() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n01234")
        await writer.drain()

    async with serve_raw(handler) as base:
        assert "ended the file early" in await rejected(f"{base}/")


async def test_a_chunked_body_cut_off() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n")
        await writer.drain()

    async with serve_raw(handler) as base:
        assert "ended the file early" in await rejected(f"{base}/")


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\0\1\2\3\4",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 banana\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_http(reply: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        await writer.drain()

    async with serve_raw(handler) as base:
        await rejected(f"{base}/")


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"])
async def test_a_server_that_drips(start: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        for byte in start or b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 5000:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)
        await reader.read()

    async with serve_raw(handler) as base:
        assert "within 0.3 s" in await rejected(f"{base}/", fetch_timeout=0.3)


async def test_compressed_content_is_refused() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(
            body=gzip.compress(b"\0" * 10_000_000), headers={"Content-Encoding": "gzip"}
        )

    async with serve(handler) as base:
        assert "compressed" in await rejected(f"{base}/", max_bytes=100_000)


async def test_an_empty_file() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"")

    async with serve(handler) as base:
        assert "empty" in await rejected(f"{base}/")


async def test_tls_spoken_to_a_server_without() -> None:
    async with serve(answer) as base:
        assert "TLS" in await rejected(base.replace("http:", "https:"))


@pytest.mark.parametrize("host", ["１２７.0.0.2", "127。0。0。2", "127.0.0.②", "ⓛocalhost.test"])
async def test_hosts_in_other_scripts(host: str) -> None:
    names = FakeNames(localhost_test=[["127.0.0.2"]])
    reached: list[str] = []

    async def inner(request: web.Request) -> web.StreamResponse:
        reached.append(request.path)
        return web.Response(body=b"secret")

    async with serve(inner, "127.0.0.2") as base:
        with pytest.raises(InputRejected):
            await fetched(f"http://{host}:{base.rpartition(':')[2]}/", lookup=names)
    assert reached == []


async def test_the_connection_itself_is_checked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the checks before it passed by, no connection would be made all the same."""
    monkeypatch.setattr("easel.agent.fetch.check_url", lambda text, policy: URL(text))
    reached: list[str] = []

    async def inner(request: web.Request) -> web.StreamResponse:
        reached.append(request.path)
        return web.Response(body=b"secret")

    async with serve(inner, "127.0.0.2") as base:
        await rejected(f"{base}/")
    assert reached == []
