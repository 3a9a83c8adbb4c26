"""Outputs that agents send: who may, under which names, and that only whole files are ever there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio

from easel.errors import FileNotFound
from easel.link import messages
from easel.link.messages import Assign
from tests.fleet.links import LIMIT, Gateway, joined, running_gateway
from tests.waiting import until

TOKEN = "join-draw"


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with running_gateway(tmp_path / "gateway") as running:
        await running.service()
        await running.service("other")
        yield running


async def put(
    gateway: Gateway,
    folder: str,
    name: str,
    *,
    lease: str,
    data: bytes | AsyncIterator[bytes] = b"picture",
    token: str = TOKEN,
) -> int:
    path = f"{messages.FILES_PATH}/{quote(folder, safe='')}/{quote(name, safe='')}"
    headers = {"Authorization": f"Bearer {token}", messages.LEASE_HEADER: lease}
    async with (
        aiohttp.ClientSession() as http,
        http.put(gateway.url + path, data=data, headers=headers) as answer,
    ):
        await answer.read()
        return answer.status


async def test_a_file_arrives(gateway: Gateway) -> None:
    async with joined(gateway) as agent:
        await gateway.submit()
        given = await agent.hears(Assign)
        for data in (b"", b"one", b"another"):
            assert await put(gateway, given.folder, "a b%.png", lease=given.lease, data=data) == 201
            found = await gateway.files.find(given.folder, "a b%.png")
            assert found.path.read_bytes() == data
        assert [one.name for one in found.path.parent.iterdir()] == ["a b%.png"]


async def test_only_who_holds_the_task_may_send(gateway: Gateway) -> None:
    token = await gateway.instance("i1")
    async with joined(gateway) as agent:
        await gateway.submit()
        given = await agent.hears(Assign)
        sent = {
            "no token": await put(gateway, given.folder, "x", lease=given.lease, token=""),
            "wrong token": await put(gateway, given.folder, "x", lease=given.lease, token="no"),
            "other service": await put(
                gateway, given.folder, "x", lease=given.lease, token="join-other"
            ),
            "other instance": await put(gateway, given.folder, "x", lease=given.lease, token=token),
            "other lease": await put(gateway, given.folder, "x", lease="0"),
            "other folder": await put(gateway, given.uid + ".2.0", "x", lease=given.lease),
            "no task": await put(gateway, "0.1.0", "x", lease=given.lease),
        }
        assert sent == {
            "no token": 401,
            "wrong token": 401,
            "other service": 409,
            "other instance": 409,
            "other lease": 409,
            "other folder": 409,
            "no task": 409,
        }
        await agent.finish(given)
        await agent.acknowledged()
        assert await put(gateway, given.folder, "x", lease=given.lease) == 409
    with pytest.raises(FileNotFound):
        await gateway.files.find(given.folder, "x")


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../x", "a\\b", "a\0b", "x" * 300]
)
async def test_names_that_are_none(gateway: Gateway, name: str) -> None:
    async with joined(gateway) as agent:
        await gateway.submit()
        given = await agent.hears(Assign)
        assert await put(gateway, given.folder, name, lease=given.lease) in (404, 409)


async def test_a_folder_that_is_a_link_leads_nowhere(gateway: Gateway, tmp_path: Path) -> None:
    async with joined(gateway) as agent:
        await gateway.submit()
        given = await agent.hears(Assign)
        await gateway.files.open()
        secret = tmp_path / "elsewhere"
        secret.mkdir()
        (tmp_path / "gateway" / "outputs" / "outputs" / given.folder).symlink_to(secret)
        assert await put(gateway, given.folder, "x", lease=given.lease) == 404
        assert list(secret.iterdir()) == []


async def test_too_large(gateway: Gateway) -> None:
    async def drip() -> AsyncIterator[bytes]:
        for _ in range(LIMIT // 50_000 + 2):
            yield bytes(50_000)

    async with joined(gateway) as agent:
        await gateway.submit()
        given = await agent.hears(Assign)
        exact = bytes(LIMIT)
        assert await put(gateway, given.folder, "x", lease=given.lease, data=exact) == 201
        larger = bytes(LIMIT + 1)
        assert await put(gateway, given.folder, "y", lease=given.lease, data=larger) == 413
        assert await put(gateway, given.folder, "z", lease=given.lease, data=drip()) == 413
        folder = (await gateway.files.find(given.folder, "x")).path.parent
        assert [one.name for one in folder.iterdir()] == ["x"]


async def test_half_a_file_is_none(gateway: Gateway) -> None:
    async with joined(gateway) as agent:
        await gateway.submit()
        given = await agent.hears(Assign)
        begun = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            for _ in range(8):
                yield bytes(100_000)
            begun.set()
            await asyncio.Event().wait()

        sending = asyncio.create_task(
            put(gateway, given.folder, "x", lease=given.lease, data=stuck())
        )
        await asyncio.wait_for(begun.wait(), 10)
        assert await put(gateway, given.folder, "x", lease=given.lease, data=b"whole") == 201
        sending.cancel()
        await asyncio.wait([sending])
        folder = (await gateway.files.find(given.folder, "x")).path.parent

        async def alone() -> bool:
            return [one.name for one in folder.iterdir()] == ["x"]

        await until(alone, timeout=10, pause=0.01)
        assert (folder / "x").read_bytes() == b"whole"


async def test_a_failed_task_leaves_no_files(gateway: Gateway) -> None:
    async with joined(gateway) as agent:
        await gateway.submit()
        given = await agent.hears(Assign)
        assert await put(gateway, given.folder, "x", lease=given.lease) == 201
        await agent.finish(given, state="failed", error={"code": "x", "message": "y"})
        await agent.acknowledged()
    with pytest.raises(FileNotFound):
        await gateway.files.find(given.folder, "x")


async def test_a_disk_that_takes_nothing(gateway: Gateway, tmp_path: Path) -> None:
    async with joined(gateway) as agent:
        await gateway.submit()
        given = await agent.hears(Assign)
        (tmp_path / "gateway" / "outputs").write_text("a file where a folder should be")
        assert await put(gateway, given.folder, "x", lease=given.lease) == 507


async def test_other_methods(gateway: Gateway) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{gateway.url}{messages.FILES_PATH}/a/b") as answer,
    ):
        assert answer.status == 404
