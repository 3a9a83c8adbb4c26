"""Agents that join a platform by themselves: real processes on either end of the link, and what happens to either."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
from PIL import Image

from tests.fleet.wires import wire_to
from tests.platforms import Platform, Service, running_platform
from tests.servers import Server, running_agent
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)
_salts = itertools.count(1)


@pytest_asyncio.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with running_platform(
        tmp_path / "platform",
        tasks={"lease_seconds": 4, "renew_seconds": 0.5, "max_delivery": 2},
        fleet={"orphan_timeout": 2, "check_interval": 0.5},
    ) as running:
        yield running


async def deployed(platform: Platform) -> tuple[Service, str]:
    """Deploy a service without instances of its own; return it with its join token."""
    service = await platform.deploy("guests", edition="api", instances=0)
    found = await platform.control("POST", "/services/guests/join-token")
    return service, found["token"]


@contextlib.asynccontextmanager
async def guest(
    platform: Platform,
    folder: Path,
    token: str,
    *,
    url: str | None = None,
    name: str = "box",
    **settings: Any,
) -> AsyncIterator[Server]:
    """Run an agent that joins by itself, on a machine without the service's storage, and that only it can dial from."""
    settings = {"engine_reachable": "false", **settings}
    env = {f"EASEL_AGENT__{key}".upper(): str(value) for key, value in settings.items()}
    env["EASEL_ENGINE__PREVIEWS"] = "true"
    flags = ["--join", url or platform.url, "--token", token, "--name", name]
    flags += ["--engine", "builtin", "--pack", "demo"]
    async with running_agent(folder / name, *flags, env=env) as agent:
        await ready(platform, name)
        yield agent


async def ready(platform: Platform, name: str) -> None:
    """Wait until the platform knows a joined instance as ready."""

    async def look() -> bool:
        rows = (await platform.control("GET", "/services/guests/instances"))["instances"]
        return any(row["status"] == "ready" for row in rows)

    await until(look, timeout=30)


def sleep(seconds: float) -> dict[str, Any]:
    inputs = {"seconds": seconds, "salt": next(_salts)}
    return {"1": {"class_type": "EaselSleep", "inputs": inputs}}


def saved(red: int, size: int = 8) -> dict[str, Any]:
    fields = {"width": size, "height": size, "batch_size": 1, "color": red << 16}
    return {
        "1": {"class_type": "EmptyImage", "inputs": fields},
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": "joined"},
        },
    }


async def running(service: Service, task_id: str) -> dict[str, Any]:
    """Wait until a task runs."""

    async def look() -> dict[str, Any] | None:
        found = await service.status(task_id)
        assert not found["ended"], found
        return found if found["state"] == "running" else None

    return await until(look, timeout=30)


async def test_an_agent_from_anywhere_is_a_whole_instance(
    platform: Platform, tmp_path: Path
) -> None:
    """Its outputs are sent, its engine is reached through the link: API, WebUI routes and WebSocket."""
    service, token = await deployed(platform)
    async with guest(platform, tmp_path, token):
        nodes = await service.run(saved(200))
        (image,) = nodes["2"]["images"]
        path = image["url"].removeprefix(f"/api/predict/{service.name}")
        async with service.request("GET", path) as answer:
            picture = Image.open(io.BytesIO(await answer.read()))
        assert picture.getpixel((0, 0)) == (200, 0, 0)
        left = [one for one in (tmp_path / "box" / "outputs").rglob("*") if one.is_file()]
        assert left == []
        async with service.request("GET", "/object_info") as answer:
            assert "EaselSleep" in await answer.json()
        files = aiohttp.FormData()
        big = bytes(3_000_000)
        files.add_field("image", io.BytesIO(big), filename="big.bin")
        async with service.request("POST", "/upload/image", data=files) as answer:
            name = (await answer.json())["name"]
        async with service.request("GET", f"/view?filename={name}&type=input") as answer:
            assert await answer.read() == big
        headers = {"Authorization": service.token}
        async with platform.http.ws_connect(
            service.url + "/ws?clientId=a", headers=headers
        ) as socket:
            first = json.loads(await socket.receive_str(timeout=10))
            assert first["type"] == "status"


async def test_cancelled_while_queued_prefetched_and_running(
    platform: Platform, tmp_path: Path
) -> None:
    service, token = await deployed(platform)
    async with guest(platform, tmp_path, token):
        for name in ("runs", "prefetched", "queued"):
            await service.submit(sleep(60), name)
        await running(service, "runs")
        tasks = (await platform.control("GET", "/services/guests/tasks"))["tasks"]
        uids = {one["id"]: one["uid"] for one in tasks}
        for name in ("queued", "prefetched", "runs"):
            await platform.control("DELETE", f"/services/guests/tasks/{uids[name]}")
            assert (await service.ended(name))["state"] == "cancelled"
        await service.run(saved(1))


async def test_previews_and_progress_come_through(platform: Platform, tmp_path: Path) -> None:
    service, token = await deployed(platform)
    async with guest(platform, tmp_path, token):
        inputs = {"steps": 8, "seconds": 0.15, "preview": True, "salt": next(_salts)}
        steps = {"1": {"class_type": "EaselSteps", "inputs": inputs}}
        headers = {"Authorization": service.token}
        said: list[dict[str, Any]] = []
        address = service.url + "/api/run/ws?preview=true"
        async with platform.http.ws_connect(address, headers=headers) as socket:
            await socket.send_json(steps)
            said += [json.loads(message.data) async for message in socket]
        kinds = [one["type"] for one in said]
        assert kinds.count("preview") > 1, said
        assert len({json.dumps(one["data"]) for one in said}) > 4
        assert "error" not in kinds, said


async def test_a_cut_in_the_middle_is_made_good(platform: Platform, tmp_path: Path) -> None:
    service, token = await deployed(platform)
    async with wire_to(platform.port) as wire, guest(platform, tmp_path, token, url=wire.url):
        await service.submit(sleep(2), "long")
        await running(service, "long")
        for _ in range(3):
            wire.cut()
            await ready(platform, "box")
        wire.broken = True
        wire.cut()
        await service.submit(saved(7), "later")
        wire.broken = False
        ended = await service.ended("long")
        assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
        assert (await service.ended("later"))["state"] == "succeeded"
        assert wire.connections >= 4


async def test_the_gateway_is_killed_while_a_task_runs(platform: Platform, tmp_path: Path) -> None:
    service, token = await deployed(platform)
    async with guest(platform, tmp_path, token):
        await service.submit(sleep(3), "long")
        await service.submit(saved(9), "next")
        await running(service, "long")
        await platform.kill()
        await platform.start()
        long = await service.ended("long")
        assert (long["state"], long["attempt"]) == ("succeeded", 1)
        assert (await service.ended("next"))["state"] == "succeeded"


async def test_a_task_that_kills_engines_ends_in_the_rear_queue(
    platform: Platform, tmp_path: Path
) -> None:
    service, token = await deployed(platform)
    crash = {"how": "SIGKILL", "exit_code": 1, "seconds": 0.2, "salt": next(_salts)}
    async with guest(platform, tmp_path, token):
        await service.submit({"1": {"class_type": "EaselCrash", "inputs": crash}}, "bad")
        await service.submit(saved(3), "good")
        bad = await service.ended("bad")
        assert (bad["state"], bad["error"]["code"], bad["attempt"]) == ("failed", "task_lost", 2)
        assert (await service.ended("good"))["state"] == "succeeded"


async def test_an_agent_that_is_stopped_gives_back_what_it_did_not_begin(
    platform: Platform, tmp_path: Path
) -> None:
    service, token = await deployed(platform)
    async with guest(platform, tmp_path, token) as first:
        await service.submit(sleep(2), "runs")
        await service.submit(saved(4), "waits")
        await running(service, "runs")
        first.process.send_signal(signal.SIGTERM)
        assert (await service.ended("runs"))["state"] == "succeeded"
        assert await asyncio.wait_for(first.process.wait(), 20) == 0
    assert (await service.status("waits"))["state"] == "queued"
    async with guest(platform, tmp_path, token, name="second"):
        waits = await service.ended("waits")
        assert (waits["state"], waits["attempt"]) == ("succeeded", 1)


async def test_an_agent_that_is_killed_and_started_again_gets_its_task_back_at_once(
    platform: Platform, tmp_path: Path
) -> None:
    service, token = await deployed(platform)
    async with guest(platform, tmp_path, token) as agent:
        await service.submit(sleep(1), "long")
        await running(service, "long")
        for one in psutil.Process(agent.pid).children(recursive=True):
            one.kill()
        agent.process.kill()
        await agent.process.wait()
    async with guest(platform, tmp_path, token):
        ended = await service.ended("long")
        assert (ended["state"], ended["attempt"]) == ("succeeded", 2)


async def test_a_wrong_token_ends_the_agent_with_one_line(
    platform: Platform, tmp_path: Path
) -> None:
    await deployed(platform)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "easel", "agent", "--join", platform.url, "--token", "wrong"),
        *("--engine", "builtin", "--data-dir", str(tmp_path / "box")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), 60)
    lines = [one for one in err.decode().splitlines() if not one.startswith("[engine]")]
    assert process.returncode == 2, lines
    (said,) = [one for one in lines if one.startswith("error:")]
    assert "refuses the token" in said
    assert (await platform.control("GET", "/services/guests/instances"))["instances"] == []


async def test_an_orphan_ends_itself(platform: Platform, tmp_path: Path) -> None:
    _, token = await deployed(platform)
    async with guest(platform, tmp_path, token, orphan_timeout=1) as agent:
        engines = psutil.Process(agent.pid).children(recursive=True)
        await platform.kill()
        assert await asyncio.wait_for(agent.process.wait(), 40) == 0
        assert not any(one.is_running() for one in engines)


async def test_a_guest_that_is_gone_disappears(platform: Platform, tmp_path: Path) -> None:
    service, token = await deployed(platform)
    async with guest(platform, tmp_path, token):
        pass

    async def none_left() -> bool:
        found = await platform.control("GET", "/services/guests/instances")
        return not found["instances"]

    await until(none_left, timeout=30)
    async with guest(platform, tmp_path, token):
        await service.run(saved(5))


async def test_a_service_that_is_stopped_sends_its_guests_away(
    platform: Platform, tmp_path: Path
) -> None:
    _, token = await deployed(platform)
    async with guest(platform, tmp_path, token) as agent:
        await platform.control("POST", "/services/guests/stop")
        assert await asyncio.wait_for(agent.process.wait(), 40) == 0
        assert "not wanted" in agent.log_text()


async def test_two_agents_of_one_name_do_not_fight(platform: Platform, tmp_path: Path) -> None:
    service, token = await deployed(platform)
    async with (
        guest(platform, tmp_path / "a", token) as first,
        guest(platform, tmp_path / "b", token),
    ):
        assert await asyncio.wait_for(first.process.wait(), 40) == 2
        await service.run(saved(6))
