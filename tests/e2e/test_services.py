"""A platform end to end: deploy, call in every way, update, lose processes, delete. On the built-in engine, and on the real ComfyUI
where it is given (`make test-comfyui`)."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from tests.platforms import Platform, Refused, Service, register, running_platform
from tests.waiting import until

ENGINES = ["builtin", pytest.param("comfyui", marks=pytest.mark.real_comfyui)]


def picture(colour: int, side: int = 8) -> dict[str, Any]:
    """A prompt of next to no work."""
    size = {"width": side, "height": side, "batch_size": 1, "color": colour}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "e2e"}},
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=ENGINES)
async def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    """A standard service."""
    folder = tmp_path_factory.mktemp("platform")
    async with running_platform(folder) as platform:
        scenario: dict[str, Any] = {"storage": str(folder / "storage")}
        if request.param == "comfyui":
            await register(platform, request.getfixturevalue("comfyui"))
            scenario |= {"engine": "comfyui:real", "packs": None}
        yield await platform.deploy("paint", **scenario)


pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


async def test_a_run_gives_its_picture(service: Service) -> None:
    nodes = await service.run(picture(1))
    (image,) = nodes["2"]["images"]
    path = image["url"].removeprefix(f"/api/predict/{service.name}")
    async with service.request("GET", path) as answer:
        assert (await answer.read()).startswith(b"\x89PNG")


async def test_the_native_api_works_as_directly(service: Service) -> None:
    async with service.request("POST", "/prompt", json={"prompt": picture(2)}) as answer:
        accepted = await answer.json()
        assert answer.status == 200, accepted
    path = f"/history/{accepted['prompt_id']}"

    async def ended() -> dict[str, Any] | None:
        async with service.request("GET", path) as history:
            found: dict[str, Any] = await history.json()
            return found.get(accepted["prompt_id"])

    entry = await until(ended, timeout=60)
    assert entry["status"]["status_str"] == "success"
    (image,) = entry["outputs"]["2"]["images"]
    storage = await service.platform.control("GET", f"/services/{service.name}")
    (mount,) = storage["spec"]["mounts"]
    assert (Path(mount["source"]) / "output" / image["filename"]).is_file()


async def test_the_vendors_sdk_calls_it_unmodified(service: Service) -> None:
    program = (
        "import json, sys\n"
        "from eas_prediction import PredictClient, StringRequest\n"
        "client = PredictClient(sys.argv[1], sys.argv[2] + '/prompt')\n"
        "client.set_token(sys.argv[3])\n"
        "client.set_timeout(60000)\n"
        "client.init()\n"
        "answer = client.predict(StringRequest(sys.argv[4]))\n"
        "print(answer.response_data.decode())\n"
    )
    body = json.dumps({"prompt": picture(3)})
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        service.platform.url.removeprefix("http://"),
        service.name,
        service.token,
        body,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaints = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, complaints.decode()
    assert json.loads(said)["node_errors"] == {}


async def test_a_websocket_goes_through(service: Service) -> None:
    socket = service.platform.http.ws_connect(
        f"{service.url}/ws?clientId=e2e", headers={"Authorization": service.token}
    )
    async with socket as connection:
        first = await connection.receive_json(timeout=20)
        assert (first["type"], first["data"]["sid"]) == ("status", "e2e")


@pytest.mark.parametrize("token", ["", "wrong", "Bearer wrong"])
async def test_a_wrong_token_says_nothing_of_what_exists(service: Service, token: str) -> None:
    async def answer(name: str) -> tuple[int, bytes]:
        url = f"{service.platform.url}/api/predict/{name}/prompt"
        headers = {"Authorization": token} if token else {}
        async with service.platform.http.post(url, json={}, headers=headers) as found:
            return found.status, await found.read()

    here, nowhere = await answer(service.name), await answer("nothing_here")
    assert here == nowhere
    assert here[0] == 401


async def test_a_workflow_with_an_unknown_class_is_refused_with_its_node(service: Service) -> None:
    prompt = {"9": {"class_type": "Nonsense", "inputs": {}}}
    async with service.request("POST", "/api/run", json=prompt) as answer:
        found = await answer.json()
    assert (answer.status, found["node_id"]) == (400, "9")


async def test_a_killed_platform_loses_nothing_and_adopts_what_runs(service: Service) -> None:
    platform = service.platform
    (before,) = (await platform.control("GET", "/services/paint/instances"))["instances"]
    await service.submit(picture(4), "survivor")
    await platform.kill()
    await platform.start()
    await platform.running("paint")
    assert (await service.ended("survivor"))["state"] == "succeeded"
    (after,) = (await platform.control("GET", "/services/paint/instances"))["instances"]
    assert (after["id"], after["restarts"]) == (before["id"], before["restarts"])


async def test_a_killed_engine_is_started_again_and_the_task_runs_all_the_same(
    service: Service,
) -> None:
    engine = _engine(service.platform)
    engine.kill()
    nodes = await service.run(picture(5), "after-the-kill")
    assert nodes["2"]["images"]


async def test_an_update_is_ready_before_the_old_one_leaves(service: Service) -> None:
    platform = service.platform
    failures: list[int] = []
    stop = asyncio.Event()

    async def call() -> None:
        number = 1000
        while not stop.is_set():
            number += 1
            async with service.request("POST", "/api/run", json=picture(number)) as answer:
                if answer.status != 200:
                    failures.append(answer.status)
                await answer.read()

    calling = asyncio.create_task(call())
    changed = {"scenario": {"name": "paint", "env": {"GREETING": "hello"}}}
    updated = await platform.control("PUT", "/services/paint", changed)
    assert updated["revision"] == updated["latest_revision"]

    async def serves() -> bool:
        found = await platform.control("GET", "/services/paint")
        return bool(found["status"] == "Running" and found["revision"] == found["stable_revision"])

    await until(serves, timeout=120)
    stop.set()
    await calling
    assert failures == []


async def test_a_stopped_service_refuses_and_a_started_one_serves(service: Service) -> None:
    platform = service.platform
    await platform.control("POST", "/services/paint/stop", {})

    async def stopped() -> bool:
        found = await platform.control("GET", "/services/paint")
        return bool(found["status"] == "Stopped")

    await until(stopped, timeout=60)
    async with service.request("GET", "/system_stats") as answer:
        assert answer.status == 503
        assert "no healthy upstream" in await answer.text()
    await service.submit(picture(6), "waits")
    await platform.control("POST", "/services/paint/start", {})
    await platform.running("paint", timeout=120)
    assert (await service.ended("waits"))["state"] == "succeeded"


async def test_deleting_leaves_no_process_and_no_row(service: Service) -> None:
    platform = service.platform
    await platform.control("DELETE", "/services/paint", wait="true")
    with pytest.raises(Refused) as refused:
        await platform.control("GET", "/services/paint")
    assert refused.value.status == 404

    async def alone() -> bool:
        return [one.pid for one in platform.descendants()] == [platform.pid]

    await until(alone, timeout=30)


def _engine(platform: Platform) -> psutil.Process:
    """The engine's own process."""
    found = [
        one
        for one in platform.descendants()
        if not {"agent", "up"} & set(one.cmdline()) and not one.children()
    ]
    assert found, [one.cmdline() for one in platform.descendants()]
    return found[0]
