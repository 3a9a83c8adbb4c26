"""Which door a request comes to: paths, ports, hosts; limits; the doors of the operator."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from easel.errors import ConfigurationError, StoreFailed
from easel.gateway import protocol
from easel.services.model import Instance
from easel.tasks.model import Task
from tests.agent.web import serve
from tests.gateway.gateways import ADMIN, PAINT, TOKEN, Gateway, gateway, spec_of
from tests.gateway.test_proxy import echo
from tests.servers import free_port
from tests.waiting import until

OPERATOR = {"Authorization": f"Bearer {ADMIN}"}


async def test_each_door_has_its_paths(served: Gateway) -> None:
    async with serve(echo) as url:
        served.stands(url)
        mine = {"Authorization": TOKEN}
        for path, headers, door in (
            (f"/api/predict/{PAINT}/api/run", mine, "agent_api"),
            (f"/api/predict/{PAINT}/api/status?id=1", mine, "agent_api"),
            (f"/api/predict/{PAINT}/api/outputs/a/b", mine, "agent_api"),
            ("/easel/link", {}, "link"),
            ("/easel/link/files/a/b", {}, "link"),
            ("/easel/v1/services", OPERATOR, "control"),
            ("/easel/v1/openapi.json", {}, "control"),
            ("/", {}, "control"),
            ("/elsewhere", {}, "control"),
        ):
            async with served.http.get(served.origin + path, headers=headers) as answer:
                told = await answer.json()
                assert (answer.status, told["door"]) == (200, door)
                assert told["path"] == path.partition("?")[0]
        for path in ("/api/running", "/api/run/x", "/api/history", "/api/outputs"):
            async with served.get(path) as answer:
                assert (await answer.json())["path"] == path


async def test_the_agent_api_learns_who_calls_and_where(served: Gateway) -> None:
    async with served.call(
        "POST", "/api/run", data=b"body", headers={"Easel-Owner": "ann"}
    ) as answer:
        told = await answer.json()
    assert told["root_path"] == f"/api/predict/{PAINT}"
    assert (told["service"], told["owner"], told["body"]) == (PAINT, "ann", "body")
    async with served.http.ws_connect(
        served.url + "/api/run/ws", headers={"Authorization": TOKEN}
    ) as ws:
        assert await ws.receive_str(timeout=10) == "agent_api"
    async with served.http.post(served.url + "/api/run") as answer:
        assert answer.status == 401


async def test_the_control_api_is_the_operators(served: Gateway) -> None:
    for headers in ({}, {"Authorization": TOKEN}, {"Authorization": f"Basic {ADMIN}"}):
        async with served.http.post(
            served.origin + "/easel/v1/services", data=b"x", headers=headers
        ) as answer:
            assert answer.status == 401
            assert answer.content_type == "application/problem+json"
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await served.http.ws_connect(served.origin + "/easel/v1/x", headers=OPERATOR)


async def test_large_bodies_for_the_operator(tmp_path: Path) -> None:
    async with gateway(tmp_path, max_body_bytes=100) as served:
        url = served.origin + "/easel/v1/services"
        async with served.http.post(url, data=b"x" * 101, headers=OPERATOR) as answer:
            assert answer.status == 413


async def test_a_port_of_its_own(served: Gateway) -> None:
    async def reachable(port: int) -> bool:
        try:
            async with served.http.get(f"http://127.0.0.1:{port}/x", headers=headers) as answer:
                return bool(answer.status == 200)
        except aiohttp.ClientConnectionError:
            return False

    headers = {"Authorization": TOKEN}
    port = free_port()
    async with serve(echo) as url:
        served.stands(url)
        await served.change(web_port=port)
        await until(lambda: reachable(port), timeout=10)
        async with served.http.get(f"http://127.0.0.1:{port}/a?b", headers=headers) as answer:
            told = await answer.json()
            assert told["path"] == "/a?b"
            assert dict(told["headers"])["X-Forwarded-Prefix"] == ""
        for path, door in (("/api/run", "agent_api"), ("/easel/v1/services", None)):
            async with served.http.get(f"http://127.0.0.1:{port}{path}", headers=headers) as answer:
                told = await answer.json()
                assert told.get("door") == door
                assert told["path"] == path
        async with served.http.get(f"http://127.0.0.1:{port}/x") as answer:
            assert answer.status == 401
        other = free_port()
        await served.change(web_port=other)
        await until(lambda: reachable(other), timeout=10)

        async def closed() -> bool:
            return not await reachable(port)

        await until(closed, timeout=10)


async def test_a_port_of_its_own_that_is_taken_harms_nobody(
    served: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        await served.change(web_port=port)

        async def said() -> bool:
            return f"cannot listen on 127.0.0.1:{port}" in caplog.text

        await until(said, timeout=10)
        async with served.get("/x") as answer:
            assert answer.status == 503


async def test_a_host_of_its_own(served: Gateway) -> None:
    await served.change(web_host="Paint.example")
    async with serve(echo) as url:
        served.stands(url)
        for host in ("paint.example", "PAINT.example:8500"):
            headers = {"Authorization": TOKEN, "Host": host}
            async with served.http.get(served.origin + "/a/b", headers=headers) as answer:
                assert (await answer.json())["path"] == "/a/b"
        async with served.http.get(served.origin + "/a", headers={"Host": "x.example"}) as answer:
            assert (await answer.json())["door"] == "control"


async def test_more_requests_a_second_than_the_service_takes(served: Gateway) -> None:
    await served.change(rate_limit=3)
    async with serve(echo) as url:
        served.stands(url)
        seen = []
        for _ in range(6):
            async with served.get("/x") as answer:
                seen.append(answer.status)
                if answer.status == 429:
                    assert int(answer.headers["Retry-After"]) >= 1
                    assert (await answer.json())["code"] == "rate_limited"
        assert seen[:3] == [200] * 3
        assert 429 in seen
        async with served.call("POST", "/api/run") as answer:
            assert answer.status in (200, 429)


async def test_more_requests_at_a_time_than_the_service_takes(served: Gateway) -> None:
    come, go = asyncio.Event(), asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        come.set()
        await go.wait()
        return web.Response(text="done")

    await served.change(concurrency_limit=1)
    async with serve(handler) as url:
        served.stands(url)

        async def first() -> str:
            async with served.get("/x") as answer:
                return str(await answer.text())

        running = asyncio.create_task(first())
        await asyncio.wait_for(come.wait(), 10)
        async with served.get("/x") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        # Another revision does not forget who is in.
        await served.change(concurrency_limit=1, keepalive_ms=1000)
        async with served.get("/x") as answer:
            assert answer.status == 429
        go.set()
        assert await running == "done"
        async with served.get("/x") as answer:
            assert answer.status == 200


async def test_health(served: Gateway) -> None:
    async with served.http.get(served.origin + "/healthz") as answer:
        assert (answer.status, await answer.text()) == (200, "ok\n")
    async with served.http.get(served.origin + "/readyz") as answer:
        assert (answer.status, (await answer.json())["ready"]) == (200, True)
    served.state.draining = True
    async with served.http.get(served.origin + "/readyz") as answer:
        assert answer.status == 503
        assert (await answer.json())["reasons"] == ["the gateway is about to stop"]
    async with served.http.post(served.origin + "/readyz") as answer:
        assert answer.status == 405


async def test_not_ready_without_a_database(tmp_path: Path) -> None:
    async def gone() -> None:
        raise StoreFailed("gone")

    async with (
        gateway(tmp_path, ping=gone) as served,
        served.http.get(served.origin + "/readyz") as answer,
    ):
        assert (answer.status, (await answer.json())["reasons"]) == (503, ["the database: gone"])


async def test_metrics_are_for_this_machine_and_the_operator(served: Gateway) -> None:
    url = served.origin + "/metrics"
    for headers, status in (
        ({}, 200),
        ({"Host": "localhost:8500"}, 200),
        ({"Host": "[::1]:8500"}, 200),
        ({"Host": "rebound.example"}, 401),
        ({"X-Forwarded-For": "10.0.0.1"}, 401),
        ({"X-Forwarded-For": "10.0.0.1", **OPERATOR}, 200),
        ({"Forwarded": "for=10.0.0.1", "Authorization": TOKEN}, 401),
    ):
        async with served.http.get(url, headers=headers) as answer:
            assert answer.status == status, headers


async def test_what_the_metrics_say(served: Gateway) -> None:
    async with serve(echo) as url:
        served.stands(url)
        async with served.call("POST", "/x", data=b"12345") as answer:
            size = len(await answer.read())
        async with served.http.get(served.url) as answer:
            assert answer.status == 401
        async with served.http.get(f"{served.origin}/api/predict/no_such_service/x") as answer:
            assert answer.status == 401
    metrics = served.state.metrics
    base: dict[str, Any] = {
        "uid": "u",
        "service": PAINT,
        "owner": "",
        "id": "1",
        "signature": "",
        "created": 1000,
    }
    metrics.task_ended(Task(**base, state="succeeded", started=3000, ended=10_000))
    metrics.task_ended(Task(**base, state="expired", ended=10_000))
    started = Instance(
        id="1", service=PAINT, revision=1, created=0, updated=0, started=500, ready_at=13_000
    )
    for _ in range(2):  # looked at twice, counted once
        metrics.instances_started([started])
    metrics.set_tasks({PAINT: {"queued": 7, "running": 1}})
    metrics.set_services({PAINT: "Running"})
    metrics.set_instances(
        [
            Instance(id=str(n), service=PAINT, revision=1, status="ready", created=0, updated=0)
            for n in (1, 2)
        ]
    )
    async with served.http.get(served.origin + "/metrics") as answer:
        text = await answer.text()
    for line in (
        f'easel_requests_total{{door="predict",service="{PAINT}",status="200"}} 1.0',
        'easel_requests_total{door="predict",service="",status="401"} 2.0',
        f'easel_proxied_bytes_total{{direction="up",service="{PAINT}"}} 5.0',
        f'easel_proxied_bytes_total{{direction="down",service="{PAINT}"}} {float(size)}',
        f'easel_tasks_ended_total{{service="{PAINT}",state="succeeded"}} 1.0',
        f'easel_tasks_ended_total{{service="{PAINT}",state="expired"}} 1.0',
        f'easel_task_wait_seconds_sum{{service="{PAINT}"}} 2.0',
        f'easel_task_run_seconds_sum{{service="{PAINT}"}} 7.0',
        f'easel_device_seconds_total{{service="{PAINT}"}} 7.0',
        f'easel_instance_start_seconds_sum{{service="{PAINT}"}} 12.5',
        f'easel_queue_depth{{service="{PAINT}"}} 7.0',
        f'easel_tasks{{service="{PAINT}",state="running"}} 1.0',
        f'easel_instances{{service="{PAINT}",status="ready"}} 2.0',
        f'easel_service_status{{service="{PAINT}",status="Running"}} 1.0',
    ):
        assert line in text
    assert "no_such_service" not in text


async def test_a_port_in_use_is_said(served: Gateway, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on 127\.0\.0\.1"):
        async with gateway(tmp_path / "second", port=served.running.port):
            raise AssertionError


async def test_heads_that_do_not_end_and_connections_that_say_nothing(
    served: Gateway, monkeypatch: Any
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT", 0.2)
    for said in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /"):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.running.port)
        writer.write(said)
        assert (await asyncio.wait_for(reader.read(), 10)).count(b"HTTP/1.1") == said.count(
            b"\n\r\n"
        )
        writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.running.port)
    writer.write(b"GET / HTTP/1.1\r\n" + b"A: " + b"x" * 400_000)
    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 400")
    writer.close()


async def test_pages_of_other_origins(tmp_path: Path) -> None:
    allowed = "https://app.example"
    async with serve(echo) as url, gateway(tmp_path, cors_origins=(allowed,)) as served:
        served.stands(url)
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
        for origin, status, shown in ((allowed, 204, allowed), ("https://evil.example", 403, None)):
            async with served.http.options(
                served.url, headers={"Origin": origin, **asked}
            ) as answer:
                assert answer.status == status
                assert answer.headers.get("Access-Control-Allow-Origin") == shown
                if shown:
                    assert answer.headers["Access-Control-Allow-Headers"] == "x-a"
            for path in ("/x", "/api/run"):
                async with served.get(path, headers={"Origin": origin}) as answer:
                    assert answer.status == 200
                    assert answer.headers.get("Access-Control-Allow-Origin") == shown
            async with served.http.get(served.url, headers={"Origin": origin}) as answer:
                assert answer.status == 401
                assert answer.headers.get("Access-Control-Allow-Origin") == shown


async def test_something_nobody_foresaw(served: Gateway, monkeypatch: Any) -> None:
    def fail(service: str) -> Any:
        raise ValueError("secret words")

    monkeypatch.setattr(served.instances, "ready", fail)
    async with served.get("/x") as answer:
        assert answer.status == 500
        assert "secret" not in json.dumps(await answer.json())


async def test_services_that_come_and_go(served: Gateway) -> None:
    headers = {"Authorization": TOKEN}
    for number in range(10):
        name = f"more_{number}"
        url = f"{served.origin}/api/predict/{name}/x"
        async with served.http.get(url, headers=headers) as answer:
            assert answer.status == 401
        await served.services.deploy(spec_of(name), "{}", [])
        async with served.http.get(url, headers=headers) as answer:
            assert answer.status == 503
