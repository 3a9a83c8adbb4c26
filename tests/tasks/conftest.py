"""Tasks over a real SQLite store, with a clock that tests turn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest_asyncio

from easel.database.sqlite import SqliteDatabase
from easel.settings import TaskSettings
from easel.tasks.bus import LocalBus
from easel.tasks.model import NewTask, TaskBody
from easel.tasks.sqlite_store import SqliteTaskStore
from easel.tasks.tasks import Tasks


class Clock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now


@dataclass
class Bench:
    """Tasks with everything a test turns at."""

    tasks: Tasks
    clock: Clock = field(default_factory=Clock)


def new(task_id: str, *, service: str = "paint", owner: str = "", **fields: object) -> NewTask:
    """A task of one node."""
    body = TaskBody(prompt={"1": {"class_type": "PreviewImage", "inputs": {}}})
    return NewTask(
        service=service,
        owner=owner,
        id=task_id,
        signature="s",
        body=body,
        **fields,  # type: ignore[arg-type]
    )


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Tasks whose sweeper does not look by itself."""
    clock = Clock()
    database = SqliteDatabase(tmp_path / "easel.db")
    await database.open()
    tasks = Tasks(
        SqliteTaskStore(database, clock=clock),
        LocalBus(),
        TaskSettings(sweep_interval=3600, lease_seconds=30, max_delivery=2),
        clock=clock,
    )
    await tasks.open()
    yield Bench(tasks, clock)
    await tasks.close()
    await database.close()
