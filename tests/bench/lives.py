"""How many task lives a second a store bears: ``python -m tests.bench.lives [--url postgresql://…] [--folder DIR]``.

A life is put, claim and finish of a task with a prompt of some 5 kB, from 16 concurrent callers; each step is durable before
the next begins. Then one caller's put and claim, with no other task waiting and with 100,000: medians, and their ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from easel.database import open_database
from easel.tasks.model import Ending, NewTask, TaskBody
from easel.tasks.opening import open_task_store
from easel.tasks.store import TaskStore
from easel.tasks.tasks import now_ms
from easel.workflow.progress import NodeProgress

CALLERS = 16
LEASE = 600_000
NODE: Any = {
    "class_type": "CLIPTextEncode",
    "inputs": {"text": "a picture " * 18, "clip": ["4", 1]},
}
BODY = TaskBody(prompt={str(n): NODE for n in range(20)}, outputs=["9"])
OUTPUT = NodeProgress(
    max=1,
    value=1,
    images=[{"filename": "a.png", "subfolder": "", "type": "output", "kind": "image"}],
)

_numbers = itertools.count()


def new(owner: int = 0, service: str = "service") -> NewTask:
    """Return a task of a new id."""
    return NewTask(
        service=service,
        owner=f"owner-{owner}",
        id=f"task-{next(_numbers)}",
        signature="0" * 64,
        body=BODY,
        seeds={"3.seed": 2**63},
    )


async def lives(store: TaskStore, seconds: float) -> float:
    """Return how many lives a second pass."""
    done = 0
    until = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await store.put_within(new(number), 1000)
            found = await store.claim("service", f"instance-{number}", lease_ms=LEASE)
            if found is None:
                continue  # SKIP LOCKED: the others hold what waits
            await store.finish(
                found.lease,
                Ending(state="succeeded", ended=now_ms(), started=now_ms(), nodes={"9": OUTPUT}),
            )
            done += 1

    begin = time.perf_counter()
    await asyncio.gather(*(caller(n) for n in range(CALLERS)))
    return done / (time.perf_counter() - begin)


async def steps(store: TaskStore, service: str, count: int) -> tuple[float, float]:
    """Return the median ms of put and of claim, one caller, as many put as claimed."""
    puts, claims = [], []
    for n in range(count):
        begin = time.perf_counter()
        await store.put_within(new(n % 50, service), 10**6)
        middle = time.perf_counter()
        found = await store.claim(service, "instance", lease_ms=LEASE)
        end = time.perf_counter()
        assert found is not None
        puts.append(1000 * (middle - begin))
        claims.append(1000 * (end - middle))
    return statistics.median(puts), statistics.median(claims)


async def fill(store: TaskStore, service: str, count: int) -> None:
    """Let this many tasks of 50 owners wait."""
    left = iter(range(count))

    async def caller() -> None:
        for n in left:
            await store.put(new(n % 50, service))

    await asyncio.gather(*(caller() for _ in range(128)))


async def main(url: str | None, folder: Path, seconds: float, waiting: int) -> None:
    """Measure, and print."""
    database = open_database(url, folder)
    await database.open()
    try:
        store = open_task_store(database, clock=now_ms)
        rates = [await lives(store, seconds) for _ in range(3)]
        print(f"{database.kind}: lives/s {', '.join(f'{rate:,.0f}' for rate in rates)}")
        await steps(store, "warm", 200)
        before = await steps(store, "empty", 500)
        begin = time.perf_counter()
        await fill(store, "full", waiting)
        filled = time.perf_counter() - begin
        after = await steps(store, "full", 500)
        # Again with nothing waiting: the machine may be busier now than at first.
        again = await steps(store, "empty", 500)
        quiet = [statistics.mean(pair) for pair in zip(before, again, strict=True)]
        print(f"filled with {waiting:,} waiting tasks: {waiting / filled:,.0f} puts/s")
        for name, least, most in zip(("put", "claim"), quiet, after, strict=True):
            print(
                f"{name}: {least:.3f} ms, with {waiting:,} waiting {most:.3f} ms, × {most / least:.2f}"
            )
    finally:
        await database.close()


def run() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="database; a new SQLite file when it is not given")
    parser.add_argument("--folder", type=Path, help="where to make the SQLite file")
    parser.add_argument("--seconds", type=float, default=4, help="of each of three rounds")
    parser.add_argument("--waiting", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        uvloop.run(main(given.url, Path(folder), given.seconds, given.waiting))


if __name__ == "__main__":
    run()
