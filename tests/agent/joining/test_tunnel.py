"""An engine that the gateway cannot reach, called through its agent."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
from pathlib import Path

import aiohttp
import pytest

from tests.agent.joining.gateways import Member, member


async def test_http_goes_through(joined: Member) -> None:
    async with joined.gateway.tunnelled() as url, aiohttp.ClientSession(url) as http:
        async with http.get("/system_stats") as answer:
            assert answer.status == 200
            assert "system" in await answer.json()
        # The connection is kept.
        async with http.get("/queue") as answer:
            assert answer.status == 200


async def test_a_websocket_goes_through(joined: Member) -> None:
    async with (
        joined.gateway.tunnelled() as url,
        aiohttp.ClientSession(url) as http,
        http.ws_connect("/ws?clientId=tunnelled") as socket,
    ):
        first = json.loads(await socket.receive_str(timeout=20))
        assert first["type"] == "status"
        assert first["data"]["sid"] == "tunnelled"


async def test_large_bodies_go_both_ways_unchanged(joined: Member) -> None:
    content = os.urandom(8 * 1024 * 1024)
    form = aiohttp.FormData()
    form.add_field(
        "image", io.BytesIO(content), filename="noise.bin", content_type="application/octet-stream"
    )
    async with joined.gateway.tunnelled() as url, aiohttp.ClientSession(url) as http:
        async with http.post("/upload/image", data=form) as answer:
            assert answer.status == 200, await answer.text()
            name = (await answer.json())["name"]
        async with http.get(f"/view?filename={name}&type=input") as answer:
            found = await answer.read()
    assert hashlib.sha256(found).digest() == hashlib.sha256(content).digest()


async def test_several_tunnels_at_a_time(joined: Member) -> None:
    async with joined.gateway.tunnelled() as url, aiohttp.ClientSession(url) as http:

        async def ask() -> int:
            async with http.get("/object_info") as answer:
                await answer.read()
                return answer.status

        assert await asyncio.gather(*(ask() for _ in range(12))) == [200] * 12


async def test_the_engines_end_ends_the_tunnel(joined: Member) -> None:
    async with joined.gateway.tunnelled() as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET /queue HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 20)
        assert answer.startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()


async def test_no_engine_ends_the_tunnel(tmp_path: Path) -> None:
    async with member(tmp_path) as joined:
        link = joined.agent.running.state.link
        link.client.base_url = "http://127.0.0.1:9"
        async with joined.gateway.tunnelled() as url, aiohttp.ClientSession(url) as http:
            with pytest.raises(aiohttp.ClientError):
                await asyncio.wait_for(http.get("/queue"), 20)
        link.client.base_url = joined.engine.url
