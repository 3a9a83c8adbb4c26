"""`make bench`: the agent against a direct client on prompts of zero length, in one run, as ratios.

Engine, agent and load share the machine. Direct and agent blocks alternate, so that a busy machine burdens both.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import psutil
import uvloop

from tests.bench.clients import Caller, Direct, ThroughAgent, WrongResult
from tests.bench.report import say
from tests.servers import running_agent, running_engine


class Block:
    """What one block of calls showed. Times in seconds."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.elapsed = 0.0
        self.failures: list[str] = []

    def add(self, other: Block) -> None:
        """Take in another block of the same kind."""
        self.latencies += other.latencies
        self.elapsed += other.elapsed
        self.failures += other.failures

    @property
    def rate(self) -> float:
        """Calls a second."""
        return len(self.latencies) / self.elapsed

    def quantile(self, q: float) -> float:
        """Return a latency quantile in milliseconds."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))]


async def run_block(caller: Caller, colours: Iterator[int], calls: int, clients: int) -> Block:
    """Make `calls` calls from `clients` clients at once, each with its own connections."""
    block = Block()
    left = iter(range(calls))

    async def client(session: aiohttp.ClientSession) -> None:
        for _ in left:
            begin = time.perf_counter()
            try:
                await caller(session, next(colours))
            except (aiohttp.ClientError, WrongResult, KeyError, TimeoutError) as error:
                block.failures.append(f"{type(error).__name__}: {error}")
            block.latencies.append(time.perf_counter() - begin)

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        begin = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        block.elapsed = time.perf_counter() - begin
    return block


async def alternate(
    callers: list[Caller], colours: Iterator[int], calls: int, clients: int, rounds: int = 5
) -> list[Block]:
    """Run the callers' blocks in turn, `rounds` times, and return one block for each."""
    totals = [Block() for _ in callers]
    for caller in callers:
        await run_block(caller, colours, max(clients, 20), clients)
    for _ in range(rounds):
        for caller, total in zip(callers, totals, strict=True):
            total.add(await run_block(caller, colours, max(1, calls // rounds), clients))
    return totals


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time the process has used, user and system."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def bench(folder: Path, calls: int) -> bool:
    """Run every measurement and print the report. Return whether all targets were reached."""
    colours = itertools.cycle(range(1, 1 << 24))
    async with (
        running_engine(folder / "engine") as engine,
        running_agent(folder / "agent", "--comfyui", engine.url) as agent,
    ):
        process = psutil.Process(agent.pid)
        direct, through = Direct(engine.url), ThroughAgent(agent.url)
        failures: list[str] = []
        print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
        print(f"{'':<52} {'measured':>22}   target")

        plain, wrapped = await alternate([direct, through], colours, calls // 10, 1)
        failures += plain.failures + wrapped.failures
        added = wrapped.quantile(0.5) - plain.quantile(0.5)
        ratio = wrapped.quantile(0.5) / plain.quantile(0.5)
        ok = say(
            "1 client: p50 agent / direct, added",
            f"{ratio:.2f}x, {added:+.2f} ms",
            "<= +3 ms",
            added <= 3,
        )

        plain, wrapped = await alternate([direct, through], colours, calls // 5, 16)
        failures += plain.failures + wrapped.failures
        ok &= say(
            "16 clients: calls/s agent / direct, agent",
            f"{wrapped.rate / plain.rate:.2f}x, {wrapped.rate:.0f}/s",
            ">= 200/s",
            wrapped.rate >= 200,
        )

        plain, wrapped = await alternate([direct, through], colours, calls // 5, 64)
        failures += plain.failures + wrapped.failures
        spread = wrapped.quantile(0.99) / wrapped.quantile(0.5)
        spread_direct = plain.quantile(0.99) / plain.quantile(0.5)
        ok &= say(
            "64 clients: p99/p50 agent (direct)",
            f"{spread:.2f} ({spread_direct:.2f})",
            "<= 3",
            spread <= 3,
        )

        used = cpu_seconds(process)
        many = await run_block(through, colours, calls, 16)
        failures += many.failures
        each = 1000 * (cpu_seconds(process) - used) / calls
        ok &= say("16 clients: agent CPU a call", f"{each:.2f} ms", "<= 2 ms", each <= 2)
        ok &= say(
            f"{calls} calls: lost or wrong",
            str(len(many.failures)),
            "0",
            not failures,
        )
        memory = process.memory_info().rss / 1e6
        ok &= say("agent memory afterwards (RSS)", f"{memory:.0f} MB", "< 80 MB", memory < 80)
        print(f"latency in ms, agent, 16 clients: {summary(many)}")
        for failure in failures[:5]:
            print("failed:", failure)
    return ok


def summary(block: Block) -> str:
    """Median and spread of a block in words."""
    return (
        f"{statistics.median(block.latencies) * 1000:.1f}, p99 {block.quantile(0.99):.1f} "
        f"({block.rate:.0f}/s)"
    )


def main() -> None:
    """Parse the flags and run."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000, help="calls of the last measurement")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a target is missed")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="easel-bench-") as folder:
        ok = uvloop.run(bench(Path(folder), flags.calls))
    sys.exit(0 if ok or not flags.strict else 1)


if __name__ == "__main__":
    main()
