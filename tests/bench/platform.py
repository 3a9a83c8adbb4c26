"""The platform against the agent alone, in one run: ``python -m tests.bench.platform``.

What a task costs more through gateway, queue and link than at the agent's own door; how long the device waits between two
waiting tasks; what a second instance gives.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from tests.bench.report import say
from tests.platforms import Service, running_platform
from tests.servers import running_agent

ROUNDS, CALLS = 5, 60
WAITING, SECONDS = 60, 0.1
"""Tasks that wait in line, and how long each runs."""

_numbers = itertools.count(1)


def picture() -> dict[str, Any]:
    """Return a prompt of next to no work, another one each time."""
    size = {"width": 8, "height": 8, "batch_size": 1, "color": next(_numbers)}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


def sleep() -> dict[str, Any]:
    """Return a prompt that occupies the device for a while."""
    return {
        "1": {"class_type": "EaselSleep", "inputs": {"seconds": SECONDS, "salt": next(_numbers)}}
    }


async def latencies(post: Any) -> list[float]:
    """Run prompts one after the other; ms each."""
    found = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        await post(picture())
        found.append((time.perf_counter() - begin) * 1000)
    return found


async def added(service: Service, agent_url: str) -> tuple[float, float]:
    """Return p50 at the agent alone and through the platform, in ms; blocks alternate."""
    alone: list[float] = []
    through: list[float] = []
    async with aiohttp.ClientSession() as http:

        async def at_agent(prompt: dict[str, Any]) -> None:
            async with http.post(f"{agent_url}/api/run", json=prompt) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()

        await latencies(at_agent)
        await latencies(service.run)
        for _ in range(ROUNDS):
            alone += await latencies(at_agent)
            through += await latencies(service.run)
    return statistics.median(alone), statistics.median(through)


async def line(service: Service) -> tuple[float, list[dict[str, Any]]]:
    """Put tasks in line, wait for all; return seconds from first start to last end, and what is known of each."""
    ids = [f"b-{next(_numbers)}" for _ in range(WAITING)]
    await asyncio.gather(*(service.submit(sleep(), task_id) for task_id in ids))
    known = [await service.ended(task_id) for task_id in ids]
    assert all(one["state"] == "succeeded" for one in known), known[0]
    begin = min(one["started"] for one in known)
    return (max(one["ended"] for one in known) - begin) / 1000, known


async def idle(service: Service) -> list[float]:
    """Return how long the device waited between the prompts of a line, in ms, by the engine's own clock."""
    async with service.request("GET", f"/history?max_items={WAITING}") as answer:
        history = await answer.json()
    spans = []
    for entry in history.values():
        at = {kind: data["timestamp"] for kind, data in entry["status"]["messages"]}
        spans.append((at["execution_start"], at["execution_success"]))
    spans.sort()
    return [later[0] - earlier[1] for earlier, later in itertools.pairwise(spans)]


async def bench(folder: Path) -> bool:
    """Run every measurement and print the report. Return whether all targets were reached."""
    async with (
        running_agent(folder / "agent", "--engine", "builtin", "--pack", "demo") as agent,
        running_platform(folder / "platform") as platform,
    ):
        one = await platform.deploy("one", edition="api", instances=1)
        alone, through = await added(one, agent.url)
        ok = say(
            "1 client: p50 platform / agent, added",
            f"{through / alone:.2f}x, {through - alone:+.2f} ms",
            "<= +5 ms",
            through - alone <= 5,
        )
        single, _ = await line(one)
        gaps = await idle(one)
        gap = statistics.median(gaps)
        ok &= say(
            "waiting tasks: device idle between two, p50 (max)",
            f"{gap:.1f} ms ({max(gaps):.0f})",
            "<= 5 ms",
            gap <= 5,
        )
        await platform.control("POST", "/services/one/scale", {"instances": 2})
        await platform.running("one")
        double, _ = await line(one)
        ok &= say(
            f"two instances / one, {SECONDS * 1000:.0f} ms tasks",
            f"{single / double:.2f}x",
            ">= 1.9x",
            single / double >= 1.9,
        )
    return ok


def main() -> None:
    """Run."""
    with tempfile.TemporaryDirectory(prefix="easel-bench-") as folder:
        ok = uvloop.run(bench(Path(folder)))
    sys.exit(0 if ok or "--strict" not in sys.argv else 1)


if __name__ == "__main__":
    main()
