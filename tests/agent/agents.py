"""A real agent over a real engine, both in the test's own process, or the engine supervised in one of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from easel.agent.command import EngineChoice, choose
from easel.agent.serve import RunningAgent, running_agent
from easel.settings import AgentSettings, EngineSettings, InputSettings, SupervisionSettings
from tests.engine.engines import engine
from tests.waiting import until

salts = itertools.count(1)

QUICK = SupervisionSettings(
    probe_interval=0.2,
    silent_timeout=2,
    stop_grace=0.5,
    drain_timeout=5,
    restart_backoff=0.01,
    start_timeout=30,
)
"""Quick to notice what is wrong, so that tests need not wait long."""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """Return one node of a prompt."""
    return {"class_type": kind, "inputs": inputs}


def noop(text: str = "done") -> dict[str, Any]:
    """Return the smallest prompt; its answer tells it apart from others."""
    return {"1": node("EaselNoop", text=text)}


def sleep(seconds: float) -> dict[str, Any]:
    """Return a prompt that waits and can be interrupted; never cached."""
    return {"1": node("EaselSleep", seconds=seconds, salt=next(salts))}


def steps(count: int, seconds: float = 0.0, *, preview: bool = False) -> dict[str, Any]:
    """Return a prompt that reports steps."""
    return {
        "1": node("EaselSteps", steps=count, seconds=seconds, preview=preview, salt=next(salts))
    }


def crash(seconds: float = 0.0) -> dict[str, Any]:
    """Return a prompt that ends its engine's process."""
    return {"1": node("EaselCrash", how="SIGKILL", exit_code=1, seconds=seconds, salt=next(salts))}


def picture(colour: int | None = None) -> dict[str, Any]:
    """Return a prompt that saves an 8x8 picture."""
    number = next(salts) if colour is None else colour
    return {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=number),
        "2": node("SaveImage", images=["1", 0], filename_prefix="test"),
    }


def text_file(content: str, **changes: Any) -> dict[str, Any]:
    """Return a prompt that saves a text file as a result."""
    inputs = {
        "content": content,
        "encoding": "text",
        "extension": ".txt",
        "result_key": "files",
        "filename_prefix": "files/Easel",
        "folder": "output",
        **changes,
    }
    return {"1": node("EaselFile", **inputs)}


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent that listens, and how to speak to it."""

    running: RunningAgent
    http: aiohttp.ClientSession
    data: Path
    engine_url: str

    @property
    def url(self) -> str:
        """Its URL."""
        return self.running.url

    async def post(
        self,
        body: Any,
        query: str = "",
        **headers: str,
    ) -> tuple[int, Any]:
        """Post to the blocking door; underscores in header names stand for dashes."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kind = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.http.post("/api/run" + query, headers=named, **kind) as answer:
            raw = await answer.read()
            return answer.status, await answer.json() if raw else None

    async def run(self, prompt: Any, query: str = "", **headers: str) -> Any:
        """Run a prompt that must succeed and return its node map."""
        status, nodes = await self.post(prompt, query, **headers)
        assert status == 200, nodes
        return nodes

    async def submit(self, prompt: Any, task_id: str) -> None:
        """Submit asynchronously; it must be accepted."""
        status, body = await self.post(prompt, task_id=task_id, X_Fc_Invocation_Type="Async")
        assert status == 202, body

    async def record(self, task_id: str) -> Any:
        """Return a task's whole record, or the error that there is none."""
        async with self.http.get("/api/status", params={"id": task_id, "detail": "true"}) as answer:
            return await answer.json()

    async def settled(self, task_id: str) -> Any:
        """Wait for a task's end and return its record."""

        async def ended() -> Any:
            found = await self.record(task_id)
            return found if found.get("state") in ("succeeded", "failed", "cancelled") else None

        return await until(ended, timeout=30, pause=0.02)

    async def runs(self, task_id: str) -> None:
        """Wait until a task runs in the engine."""

        async def started() -> bool:
            return bool((await self.record(task_id)).get("state") == "running")

        await until(started, timeout=30, pause=0.01)

    async def cancel(self, task_id: str) -> Any:
        """Cancel a task and return the answer's status header."""
        async with self.http.delete("/api/status", params={"id": task_id}) as answer:
            assert answer.status == 200, await answer.text()
            return answer.headers["task-status"]

    async def executed(self) -> int:
        """How many prompts the engine has run."""
        async with self.http.get("/history?max_items=10000") as answer:
            return len(await answer.json())

    async def engine_idle(self) -> bool:
        """Whether the engine neither runs nor holds a prompt."""
        async with self.http.get("/queue") as answer:
            queue = await answer.json()
            return not (queue["queue_running"] or queue["queue_pending"])

    def files(self) -> set[str]:
        """Every file the agent and its engine keep, but for settings and databases."""
        found = set()
        for folder in (self.data, self.data.parent / "engine"):
            for path in folder.rglob("*"):
                name = path.relative_to(self.data.parent).as_posix()
                if path.is_file() and "/user" not in name:
                    found.add(name)
        return found


@contextlib.asynccontextmanager
async def agent_of(data: Path, choice: EngineChoice, **changes: Any) -> AsyncIterator[Agent]:
    """Run an agent in this process until the block ends."""
    settings = AgentSettings(
        **{
            "port": 0,
            "name": "tested",
            "data_dir": data,
            "supervision": QUICK,
            "progress_interval": 0.02,
            "inputs": InputSettings(
                allow_private=("127.0.0.1/32",), connect_timeout=2, fetch_timeout=3
            ),
            **changes,
        }
    )
    async with running_agent(settings, choice) as running:
        timeout = aiohttp.ClientTimeout(total=50)
        async with aiohttp.ClientSession(running.url, timeout=timeout) as http:
            await running.state.link.wait_ready(30)
            yield Agent(running, http, data, choice.url)


@contextlib.asynccontextmanager
async def agent(
    folder: Path, *, engine_settings: dict[str, Any] | None = None, **changes: Any
) -> AsyncIterator[Agent]:
    """Run an agent and the engine it is given, both in this process."""
    options = {"previews": True, **(engine_settings or {})}
    async with (
        engine(folder / "engine", "demo", "pretend", **options) as running,
        agent_of(folder / "agent", EngineChoice(running.url, None), **changes) as found,
    ):
        yield found


def supervised(folder: Path) -> EngineChoice:
    """Name the built-in engine with the demo nodes, in a process of its own that the agent looks after."""
    return choose(
        engine="builtin",
        comfyui=None,
        command=(),
        builtin=EngineSettings(packs=("demo",)),
        data_dir=folder / "supervised",
        environ=os.environ,
    )
