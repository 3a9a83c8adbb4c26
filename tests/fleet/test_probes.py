"""Health checks asked of real servers and with real commands."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from easel.fleet.probes import Asker, Subject
from easel.services.model import HealthCheck, Mount
from tests.servers import free_port
from tests.waiting import until


@pytest.fixture
async def asker() -> AsyncIterator[Asker]:
    asker = Asker()
    try:
        yield asker
    finally:
        await asker.close()


async def answer(request: web.Request) -> web.Response:
    if request.path == "/hang":
        await asyncio.Event().wait()
    raw = "x" * 10_000_000 if request.path == "/long" else ""
    status = int(request.query.get("status", "200"))
    return web.Response(status=status, text=raw, headers={"Location": "http://127.0.0.1:1/"})


@contextlib.asynccontextmanager
async def engine() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{tail:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def of(url: str, **fields: object) -> Subject:
    return Subject(**{"url": url, "here": True, "port": 8000, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "good"),
    [
        ("/", True),
        ("/?status=204", True),
        ("/?status=302", True),
        ("/?status=399", True),
        ("/?status=400", False),
        ("/?status=503", False),
        ("/long", True),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_http(asker: Asker, path: str, good: bool, scheme: str) -> None:
    async with engine() as url:
        check = HealthCheck(path=path, port=8000, scheme=scheme, timeout_seconds=10)
        problem = await asker(check, of(url))
    assert (problem is None) is good
    if problem is not None:
        assert path in problem


async def test_silence_and_absence(asker: Asker) -> None:
    async with engine() as url:
        problem = await asker(HealthCheck(path="/hang", timeout_seconds=0.1), of(url))
        assert problem == "no answer within 0.1 s"
    gone = of(f"http://127.0.0.1:{free_port()}")
    assert await asker(HealthCheck(path="/"), gone)
    assert await asker(HealthCheck(port=8000), gone)


async def test_a_connection(asker: Asker) -> None:
    async with engine() as url:
        assert await asker(HealthCheck(port=8000), of(url)) is None


async def test_another_port_of_the_service(asker: Asker) -> None:
    async with engine() as url:
        port = int(url.rpartition(":")[2])
        nowhere = f"http://127.0.0.1:{free_port()}"
        assert await asker(HealthCheck(path="/", port=port), of(nowhere)) is None
        assert await asker(HealthCheck(port=port), of(nowhere)) is None
        elsewhere = of(nowhere, here=False)
        assert await asker(HealthCheck(port=port), elsewhere) is not None


async def test_commands(asker: Asker, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    mounts = [Mount(mount_path="/mnt/data", source=str(tmp_path))]
    subject = of("http://127.0.0.1:1", mounts=mounts)
    good = HealthCheck(command=["test", "-e", "/mnt/data/there"], timeout_seconds=10)
    assert await asker(good, subject) is None
    bad = HealthCheck(command=["test", "-e", "/mnt/data/nothing"], timeout_seconds=10)
    assert await asker(bad, subject) == "test ended with 1"
    said = HealthCheck(command=["sh", "-c", "echo no queue >&2; exit 3"], timeout_seconds=10)
    assert await asker(said, subject) == "sh ended with 3: no queue"
    missing = HealthCheck(command=["/no/such/program"], timeout_seconds=10)
    assert "/no/such/program" in (await asker(missing, subject) or "")
    assert await asker(bad, of("http://127.0.0.1:1", here=False)) is None


async def test_a_command_means_the_engine_beside_it(asker: Asker) -> None:
    code = "import sys, urllib.request as r; r.urlopen(sys.argv[1])"
    async with engine() as url:
        for host in ("localhost", "127.0.0.1", "0.0.0.0"):
            words = [sys.executable, "-c", code, f"http://{host}:8000/"]
            check = HealthCheck(command=words, timeout_seconds=20)
            assert await asker(check, of(url)) is None


async def test_the_platforms_settings_are_its_own(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EASEL_DATABASE", "postgresql://me:secret@db/easel")
    check = HealthCheck(command=["sh", "-c", 'test -z "$EASEL_DATABASE"'], timeout_seconds=10)
    assert await asker(check, of("http://127.0.0.1:1")) is None


async def test_a_command_that_hangs_leaves_nothing(asker: Asker, tmp_path: Path) -> None:
    mark = f"sleep-{tmp_path.name}"
    script = f"exec -a {mark} sleep 600 & exec -a {mark} sleep 600"
    check = HealthCheck(command=["bash", "-c", script], timeout_seconds=0.5)
    assert await asker(check, of("http://127.0.0.1:1")) == "no answer within 0.5 s"

    async def gone() -> bool:
        return not await asyncio.to_thread(_named, mark)

    await until(gone, timeout=10)


def _named(mark: str) -> list[int]:
    return [
        one.pid
        for one in psutil.process_iter(["cmdline", "status"])
        if mark in (one.info["cmdline"] or []) and one.info["status"] != psutil.STATUS_ZOMBIE
    ]
