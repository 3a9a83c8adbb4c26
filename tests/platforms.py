"""A platform as its users have it: `easel up` as a process of its own, called over HTTP; killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests.servers import free_port
from tests.waiting import until


class Refused(AssertionError):
    """The control API refused a call."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body


class Platform:
    """One platform; its process may be killed and started again."""

    def __init__(
        self,
        folder: Path,
        http: aiohttp.ClientSession,
        env: dict[str, str],
        database: str | None = None,
    ) -> None:
        self._database = database
        self.home = folder / "home"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = http
        self.log = folder / "platform.log"
        self._env = env
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process id of `easel up`."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start `easel up` and wait until it is ready."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "easel", "up", "--home", str(self.home)]
        if self._database is not None:
            command += ["--database", self._database]
        with self.log.open("ab") as sink:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                "--port",
                str(self.port),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **self._env},
                start_new_session=True,
            )

        async def ready() -> bool:
            assert self._process is not None
            assert self._process.returncode is None, self.log.read_text()
            with contextlib.suppress(aiohttp.ClientError):
                async with self.http.get(f"{self.url}/readyz") as answer:
                    return answer.status == 200
            return False

        await until(ready, timeout=30)

    async def kill(self) -> None:
        """Kill it, as a crash would."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        """Stop it in order."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(self._process.wait(), 30)

    def token(self) -> str:
        """The admin token."""
        return (self.home / "admin-token").read_text().strip()

    async def control(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        """Call ``/easel/v1{path}``. Raises Refused."""
        async with self.http.request(
            method,
            f"{self.url}/easel/v1{path}",
            json=body,
            params={name: str(value) for name, value in params.items()},
            headers={"Authorization": f"Bearer {self.token()}"},
        ) as answer:
            found = await answer.json(content_type=None) if answer.status != 204 else None
            if answer.status >= 400:
                raise Refused(answer.status, found)
            return found

    async def deploy(self, name: str, **scenario: Any) -> Service:
        """Deploy on the built-in engine and wait until it runs."""
        scenario = {"engine": "builtin", "edition": "standard", "packs": ["demo"], **scenario}
        await self.control("POST", "/services", {"scenario": {"name": name, **scenario}})
        return await self.running(name)

    async def running(self, name: str, timeout: float = 60) -> Service:
        """Wait until a service runs."""

        async def look() -> bool:
            found = await self.control("GET", f"/services/{name}")
            assert found["status"] != "Failed", found
            return bool(found["status"] == "Running")

        try:
            await until(look, timeout=timeout)
        except TimeoutError:
            found = await self.control("GET", f"/services/{name}")
            logs = await self.control("GET", f"/services/{name}/logs")
            text = json.dumps([found, logs], indent=1)
            raise AssertionError(f"{text}\n{self.log.read_text()[-3000:]}") from None
        endpoint = await self.control("GET", f"/services/{name}/endpoint")
        return Service(self, name, endpoint["token"])

    def descendants(self) -> list[psutil.Process]:
        """Every process that belongs to this platform's home, wherever its parent is, and all they started."""
        mark = str(self.home)
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and any(mark in w for w in process.cmdline()):
                    family = [process, *process.children(recursive=True)]
                    found |= {one.pid: one for one in family}
        return list(found.values())


class Service:
    """One service of a platform, as its callers use it."""

    def __init__(self, platform: Platform, name: str, token: str) -> None:
        self.platform = platform
        self.name = name
        self.token = token
        self.url = f"{platform.url}/api/predict/{name}"

    def request(self, method: str, path: str, **fields: Any) -> Any:
        """Call the service with its token."""
        headers = {"Authorization": self.token, **fields.pop("headers", {})}
        return self.platform.http.request(method, self.url + path, headers=headers, **fields)

    async def run(self, prompt: dict[str, Any], task_id: str | None = None) -> Any:
        """Run a prompt and return the node map."""
        headers = {"task-id": task_id} if task_id else {}
        async with self.request("POST", "/api/run", json=prompt, headers=headers) as answer:
            found = await answer.json(content_type=None)
            assert answer.status == 200, (answer.status, found)
            return found

    async def submit(self, prompt: dict[str, Any], task_id: str) -> None:
        """Submit a prompt to be asked for later."""
        headers = {"task-id": task_id, "X-Fc-Invocation-Type": "Async"}
        async with self.request("POST", "/api/run", json=prompt, headers=headers) as answer:
            assert answer.status == 202, await answer.text()

    async def status(self, task_id: str) -> dict[str, Any]:
        """Return everything known of a task."""
        path = f"/api/status?id={task_id}&detail=true"
        async with self.request("GET", path) as answer:
            found: dict[str, Any] = await answer.json()
            assert answer.status == 200, found
            return found

    async def ended(self, task_id: str, timeout: float = 60) -> dict[str, Any]:
        """Wait for a task's end and return everything known of it."""

        async def look() -> dict[str, Any] | None:
            found = await self.status(task_id)
            return found if found["ended"] else None

        return await until(look, timeout=timeout)


async def register(platform: Platform, comfyui: tuple[Path, str]) -> None:
    """Make a real ComfyUI (its folder, its interpreter) the installation ``real`` of a platform."""
    folder, python = comfyui
    command = [sys.executable, "-m", "easel", "comfyui", "install", "--from", str(folder)]
    process = await asyncio.create_subprocess_exec(
        *command, "--python", python, "--name", "real", "--home", str(platform.home)
    )
    assert await process.wait() == 0


@contextlib.asynccontextmanager
async def running_platform(
    folder: Path, database: str | None = None, **settings: Any
) -> AsyncIterator[Platform]:
    """Run a platform until the block ends; then nothing of it is left, however the block ended.

    ``database`` is a URL instead of the home's SQLite; ``settings`` are sections of the settings tree: ``tasks={"lease_seconds": 3}``.
    """
    env = {
        f"EASEL_{section}__{name}".upper(): str(value)
        for section, fields in settings.items()
        for name, value in fields.items()
    }
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        platform = Platform(folder, http, env, database)
        await platform.start()
        try:
            yield platform
        finally:
            with contextlib.suppress(TimeoutError):
                await platform.stop()
            for process in platform.descendants():
                with contextlib.suppress(psutil.Error):
                    process.kill()
