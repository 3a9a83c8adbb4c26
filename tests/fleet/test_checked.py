"""Health checks over a platform: what fails them gets no work, or is ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp

from tests.platforms import Platform, Service, running_platform
from tests.waiting import until

PROMPT = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}
FLEET = {"check_interval": 0.2, "backoff_seconds": 0.1, "cpu_slots": 1}


def service(data: Path, **checks: dict[str, Any]) -> dict[str, Any]:
    """A service in the vendor's words, whose checks look for files in its storage."""
    script = "easel engine --pack demo --data-dir /mnt/data --port 8000"
    return {
        "metadata": {"name": "checked", "instance": 1, "type": "Async"},
        "containers": [{"script": script, "port": 8000, **checks}],
        "storage": [{"mount_path": "/mnt/data", "oss": {"path": str(data)}}],
    }


def there(name: str, **fields: Any) -> dict[str, Any]:
    """A check that passes while a file is there."""
    command = ["test", "-e", f"/mnt/data/{name}"]
    return {"exec": {"command": command}, "period_seconds": 0.1, "timeout_seconds": 10, **fields}


async def status(platform: Platform) -> dict[str, Any]:
    found: dict[str, Any] = await platform.control("GET", "/services/checked")
    return found


async def instance(platform: Platform) -> dict[str, Any]:
    found = (await platform.control("GET", "/services/checked/instances"))["instances"]
    return dict(found[0]) if found else {"status": "none", "reason": ""}


async def reaches(platform: Platform, wanted: str, reason: str) -> dict[str, Any]:
    """Wait until the only instance is in a state for a reason."""

    async def look() -> dict[str, Any] | None:
        found = await instance(platform)
        return found if (found["status"], found["reason"]) == (wanted, reason) else None

    return await until(look, timeout=60)


async def proxied(service: Service) -> int:
    async with service.request("GET", "/system_stats") as answer:
        return int(answer.status)


async def test_in_and_out_of_traffic_and_ended(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    document = service(
        data,
        startup_check=there("started", failure_threshold=10_000),
        readiness_check=there("ready", failure_threshold=2),
        liveness_check=there("alive", failure_threshold=2),
    )
    async with running_platform(tmp_path, fleet=FLEET) as platform:
        await platform.control("POST", "/services", {"eas": document})
        found = await reaches(platform, "starting", "CheckFailed")
        assert "startup check" in found["message"]
        (data / "alive").touch()
        (data / "ready").touch()
        (data / "started").touch()
        checked = await platform.running("checked")
        await checked.run(PROMPT)
        assert await proxied(checked) == 200

        (data / "ready").unlink()
        found = await reaches(platform, "unready", "CheckFailed")
        assert "readiness check" in found["message"]
        assert await proxied(checked) == 503
        await checked.submit(PROMPT, "waits")
        assert (await checked.status("waits"))["state"] == "queued"

        # The platform is killed and comes back: what does not pass stays out.
        await platform.kill()
        await platform.start()
        await reaches(platform, "unready", "CheckFailed")
        (data / "ready").touch()
        assert (await checked.ended("waits"))["state"] == "succeeded"
        assert await proxied(checked) == 200

        (data / "alive").unlink()

        async def ended() -> dict[str, Any] | None:
            events = (await platform.control("GET", "/services/checked/events"))["events"]
            return next((one for one in events if one["reason"] == "LivenessFailed"), None)

        event = await until(ended, timeout=30)
        assert "liveness check failed 2 times in a row" in event["message"]
        assert "liveness_check" in event["advice"]
        (data / "alive").touch()

        async def again() -> bool:
            now = await instance(platform)
            return bool(now["status"] == "ready" and now["restarts"] >= 1)

        await until(again, timeout=60)
        await checked.run(PROMPT)


async def test_a_start_that_does_not_pass_in_time(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    never = there("never", failure_threshold=30)  # 13 s with the engine's own start
    async with running_platform(tmp_path, fleet={**FLEET, "crash_loop": 2}) as platform:
        await platform.control("POST", "/services", {"eas": service(data, startup_check=never)})

        async def told() -> dict[str, Any] | None:
            events = (await platform.control("GET", "/services/checked/events"))["events"]
            return next((one for one in events if one["reason"] == "StartTimeout"), None)

        event = await until(told, timeout=60)
        assert "startup check has not passed yet: test ended with 1" in event["message"]
        assert "startup_check" in event["advice"]
        found = await status(platform)
        assert found["status"] != "Running"
        with_token = Service(platform, "checked", platform.token())
        try:
            assert await proxied(with_token) in {401, 503}
        except aiohttp.ClientError:
            raise AssertionError("the gateway itself has a trouble") from None
