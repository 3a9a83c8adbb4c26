"""The places a task store can live in. `tests/contract/conftest.py` gives its fixtures to the suite."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from easel.database import Database, open_database
from easel.tasks.model import NewTask, TaskBody
from easel.tasks.opening import open_task_store
from easel.tasks.store import TaskStore
from tests.contract.databases import Database as Server

PROMPT: Any = {"3": {"class_type": "KSampler", "inputs": {"seed": 2**64 - 1, "text": "ä\u0000🎨"}}}


class Clock:
    """Time that tests move."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


class TaskPlace:
    """A database of its own for one test; any number of stores may open it."""

    def __init__(self, url: str | None, home: Path, clock: Clock, server: Server | None) -> None:
        self.url = url
        self.home = home
        self.clock = clock
        self.server = server

    def database(self) -> Database:
        """Return another connection to the place, not opened yet."""
        return open_database(self.url, self.home)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[TaskStore]:
        """Open a store in the place until the block ends, as another process would."""
        database = self.database()
        await database.open()
        try:
            yield open_task_store(database, clock=self.clock)
        finally:
            await database.close()


def new(task_id: str = "task", **values: Any) -> NewTask:
    """Return something to submit."""
    fields = {
        "service": "service",
        "owner": "owner",
        "id": task_id,
        "signature": "sig",
        "body": TaskBody(prompt=PROMPT, extra_data={"client": [1, None, "x"]}, outputs=["3"]),
    }
    return NewTask(**{**fields, **values})


def fresh_database(server: Server) -> str:
    """Make the server's database empty and return its URL."""
    import psycopg

    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return server.url


@pytest.fixture
def clock() -> Clock:
    """The stores' clock."""
    return Clock()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def task_place(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[TaskPlace]:
    """An empty place of each kind."""
    if request.param == "sqlite":
        yield TaskPlace(None, tmp_path / "home", clock, None)
        return
    if importlib.util.find_spec("easel.tasks.postgres_store") is None:
        pytest.skip("there is no PostgreSQL store yet")
    server = request.getfixturevalue("postgresql")
    if server.process is None:
        server.start()
    yield TaskPlace(fresh_database(server), tmp_path / "home", clock, server)
    if server.process is None:
        server.start()


@pytest.fixture
async def tasks(task_place: TaskPlace) -> AsyncIterator[TaskStore]:
    """An open, empty store of each kind."""
    async with task_place.opened() as store:
        yield store
