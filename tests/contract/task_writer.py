"""Another process at the same task store: ``python -m tests.contract.task_writer URL|- HOME``.

It puts, claims and finishes tasks from 16 callers until it is killed, and prints a line for each thing that the store has
accepted: ``put ID``, ``claimed ID``, ``finished ID``.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path

from easel.database import open_database
from easel.tasks.model import Ending
from easel.tasks.opening import open_task_store
from easel.tasks.tasks import now_ms
from tests.contract.task_stores import new

CALLERS = 16


def say(what: str, task_id: str) -> None:
    """Print a line at once: one write, which a kill does not cut in two."""
    os.write(1, f"{what} {task_id}\n".encode())


async def main(url: str | None, home: Path) -> None:
    """Work until killed."""
    database = open_database(url, home)
    await database.open()
    store = open_task_store(database, clock=now_ms)
    numbers = itertools.count()

    async def caller() -> None:
        while True:
            task, created = await store.put_within(new(f"task-{next(numbers)}"), 10**6)
            assert created
            say("put", task.id)
            if task.uid[-1] in "01234567":  # half of them wait
                found = await store.claim("service", "instance", lease_ms=10**6)
                if found is not None:
                    say("claimed", found.task.id)
                    await store.finish(found.lease, Ending(state="succeeded", ended=now_ms()))
                    say("finished", found.task.id)

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller())


if __name__ == "__main__":
    asyncio.run(main(None if sys.argv[1] == "-" else sys.argv[1], Path(sys.argv[2])))
