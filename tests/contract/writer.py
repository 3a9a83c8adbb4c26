"""Another process at the same store: ``python -m tests.contract.writer create|save SETTINGS OWNER COUNT``.

It says ``ready`` when its store is open and begins when it reads a line. ``create`` creates the tasks ``race-0`` … and prints
a JSON list of those it won; ``save`` saves one record over and over and prints a line for each.
"""

from __future__ import annotations

import asyncio
import json
import sys

from easel.agent.record import ProgressStore, TaskRequest
from easel.agent.store import open_store
from easel.settings import AgentSettings
from easel.workflow.progress import NodeProgress
from tests.contract.records import record

NODES = 200


def snapshot(owner: str, value: int) -> dict[str, NodeProgress]:
    """Return nodes that all say the same: a mixture shows that two records ran together."""
    return {
        str(node): NodeProgress(value=value, max=value, results=[owner]) for node in range(NODES)
    }


async def create(store: ProgressStore, owner: str, count: int) -> None:
    """Try to create every task."""
    won = []
    for n in range(count):
        holder = await store.create(record(f"race-{n}", owner=owner))
        if holder is None:
            won.append(n)
        else:
            assert holder.owner != owner
    sys.stdout.write(f"{json.dumps(won)}\n")
    sys.stdout.flush()


async def save(store: ProgressStore, owner: str, count: int) -> None:
    """Save the same task again and again."""
    for n in range(count):
        await store.save(
            record(
                "shared",
                owner=owner,
                state="running",
                nodes=snapshot(owner, n),
                request=TaskRequest(prompt={}),
            )
        )
        sys.stdout.write(f"{n}\n")
        sys.stdout.flush()


async def main(what: str, settings: str, owner: str, count: int) -> None:
    """Open the store, wait for the start signal, work."""
    store = open_store(AgentSettings.model_validate_json(settings))
    await store.open()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    await {"create": create, "save": save}[what](store, owner, count)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
