"""Ends with their advice, over a platform: what went wrong is in the events, in words that help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.platforms import Platform, running_platform
from tests.waiting import until

SETTINGS: dict[str, Any] = {
    "agent": {"supervision__start_attempts": 2, "supervision__restart_backoff": 0.1},
    "fleet": {"check_interval": 0.2, "backoff_seconds": 0.1, "crash_loop": 2},
}


def service(data: Path, script: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "draw", "instance": 1},
        "containers": [{"script": script, "port": 8000}],
        "storage": [{"mount_path": "/mnt/data", "oss": {"path": str(data)}}],
    }


async def event(platform: Platform, reason: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        events = (await platform.control("GET", "/services/draw/events"))["events"]
        return next((one for one in events if one["reason"] == reason), None)

    return await until(look, timeout=60)


async def test_an_engine_that_lacks_a_module(tmp_path: Path) -> None:
    async with running_platform(tmp_path, **SETTINGS) as platform:
        script = 'python -c "import no_such_module" --port 8000'
        await platform.control("POST", "/services", {"eas": service(tmp_path, script)})
        told = await event(platform, "EngineFailed")
        assert "no_such_module" in told["advice"]
        assert "prepare.pythonRequirements" in told["advice"]
        assert any("ModuleNotFoundError" in line for line in told["log"])
        assert len(told["log"]) <= 20
        told = await event(platform, "CrashLoopBackOff")
        assert "no_such_module" in told["advice"]

        # The remedy, and the service runs.
        cured = service(tmp_path, "easel engine --data-dir /mnt/data --port 8000")
        await platform.control("PUT", "/services/draw", {"eas": cured})
        await platform.running("draw")


async def test_a_script_that_fails_before_its_engine(tmp_path: Path) -> None:
    async with running_platform(tmp_path, **SETTINGS) as platform:
        script = "no-such-installer --all\npython serve.py --port 8000"
        await platform.control("POST", "/services", {"eas": service(tmp_path, script)})
        told = await event(platform, "PreparationFailed")
        assert "no-such-installer --all" in told["message"]
        assert "given up" in told["message"]
        assert "no-such-installer is not on this machine" in told["advice"]

        async def failed() -> bool:
            found = await platform.control("GET", "/services/draw")
            return bool(found["status"] == "Failed")

        await until(failed, timeout=30)


async def test_a_comfyui_that_is_not_there(tmp_path: Path) -> None:
    async with running_platform(tmp_path, **SETTINGS) as platform:
        script = "python main.py --listen --port 8000 --data-dir /mnt/data"
        await platform.control("POST", "/services", {"eas": service(tmp_path, script)})
        told = await event(platform, "ComfyUIMissing")
        assert "easel comfyui install" in told["advice"]
