"""The places a progress store can live in, each with a way to make it fail."""

from __future__ import annotations

import contextlib
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from easel.agent.record import ProgressStore
from easel.agent.store import open_store
from easel.settings import AgentSettings
from tests.contract.databases import Database, MariaDb, NotInstalled, PostgreSql
from tests.contract.runtimes import runs, secrets_of_the_platform
from tests.contract.task_stores import clock, task_place, tasks

__all__ = ["clock", "runs", "secrets_of_the_platform", "task_place", "tasks"]


class Place(ABC):
    """Where the records of one test are kept; any number of stores and processes may open it."""

    settings: AgentSettings

    @abstractmethod
    def stop(self) -> None:
        """Make every call fail."""

    @abstractmethod
    def start(self) -> None:
        """Undo `stop`."""

    @abstractmethod
    def damage(self, task_id: str) -> None:
        """Tear the record of a plain id in two."""


class Folder(Place):
    """A folder of files."""

    def __init__(self, folder: Path) -> None:
        self.settings = AgentSettings(data_dir=folder, store="files")
        self.folder = folder / "tasks"
        self.aside = folder / "away"

    def stop(self) -> None:
        self.folder.rename(self.aside)
        self.folder.write_text("in the way")

    def start(self) -> None:
        self.folder.unlink()
        self.aside.rename(self.folder)

    def damage(self, task_id: str) -> None:
        (path,) = self.folder.glob(f"records/*/{task_id}-*.json")
        path.write_bytes(path.read_bytes()[:40])


class Table(Place):
    """A table of any database."""

    url: str

    def damage(self, task_id: str) -> None:
        engine = sa.create_engine(
            self.url.replace("mysql:", "mysql+pymysql:").replace(
                "postgresql:", "postgresql+psycopg:"
            )
        )
        with engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE easel_tasks SET record = :torn WHERE id = :id"),
                {"torn": '{"id": "torn', "id": task_id},
            )
        engine.dispose()


class SqliteFile(Table):
    """A SQLite database; writing fails while somebody else keeps it locked (readers pass)."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "nested" / "tasks.db"
        self.url = f"sqlite:///{self.path}"
        self.settings = AgentSettings(data_dir=folder, store=f"{self.url}?timeout=0.2")
        self.lock: sqlite3.Connection | None = None

    def stop(self) -> None:
        self.lock = sqlite3.connect(self.path, isolation_level=None)
        self.lock.execute("BEGIN IMMEDIATE")

    def start(self) -> None:
        assert self.lock is not None
        self.lock.close()


class Server(Table):
    """A database server."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.url = database.url
        self.settings = AgentSettings(data_dir=folder, store=database.url)

    def stop(self) -> None:
        self.database.stop()

    def start(self) -> None:
        if self.database.process is None:
            self.database.start()


def running(database: type[Database]) -> Iterator[Database]:
    """Start a server for the tests of this process; skip, with the reason, where there is none."""
    server = database()
    try:
        try:
            server.install()
        except NotInstalled as reason:
            pytest.skip(f"{database.__name__}: {reason}")
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Database]:
    yield from running(MariaDb)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Database]:
    yield from running(PostgreSql)


SERVERS = ("mariadb", "postgresql")


@pytest.fixture(
    params=[
        "files",
        "sqlite",
        *(pytest.param(name, marks=pytest.mark.database) for name in SERVERS),
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty place of each kind."""
    if request.param == "files":
        yield Folder(tmp_path)
    elif request.param == "sqlite":
        yield SqliteFile(tmp_path)
    else:
        server = Server(request.getfixturevalue(request.param), tmp_path)
        server.start()
        yield server
        server.start()
        empty(server)


def empty(server: Server) -> None:
    """Drop the table."""
    kind, rest = server.url.split(":", 1)
    engine = sa.create_engine(
        {"mysql": "mysql+pymysql:", "postgresql": "postgresql+psycopg:"}[kind] + rest
    )
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS easel_tasks"))
    engine.dispose()


@contextlib.asynccontextmanager
async def opened(place: Place) -> AsyncIterator[ProgressStore]:
    """Open a store in the place until the block ends."""
    store = open_store(place.settings)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(place: Place) -> AsyncIterator[ProgressStore]:
    """An open, empty store of each kind."""
    async with opened(place) as store:
        yield store
