"""What the doors know of services, when the database is slow, silent or ahead of them; and how limits count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from easel.database.sqlite import SqliteDatabase
from easel.errors import StoreFailed
from easel.gateway import directory as module
from easel.gateway.directory import Directory
from easel.gateway.limits import Limits
from easel.services.model import Service
from easel.services.services import Services
from easel.services.sql_store import SqlServiceStore
from easel.tasks.bus import LocalBus
from easel.tasks.tasks import now_ms
from tests.gateway.gateways import PAINT, spec_of
from tests.waiting import until


class FaultyStore(SqlServiceStore):
    """A store that can be made to fail, or to wait."""

    failing = False
    held: asyncio.Event | None = None
    reads = 0

    async def all(self) -> list[Service]:
        self.reads += 1
        if self.failing:
            raise StoreFailed("gone")
        found = await super().all()
        if self.held is not None:
            await self.held.wait()
        return found


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[FaultyStore]:
    database = SqliteDatabase(tmp_path / "easel.db")
    await database.open()
    yield FaultyStore(database, clock=now_ms)
    await database.close()


async def token_of(directory: Directory, name: str = PAINT) -> bytes | None:
    entry = await directory.find(name)
    return entry.token if entry is not None else None


async def test_a_change_is_seen_by_who_asks_after_it(store: FaultyStore) -> None:
    bus = LocalBus()
    services = Services(store, None, bus)
    async with Directory(store, bus).opened() as directory:
        assert await token_of(directory) is None
        await services.deploy(spec_of(), "{}", [])
        for number in range(50):
            token = f"token-{number}"
            await services.reset_token(PAINT, token)
            for _ in range(number % 4):
                await asyncio.sleep(0)
            assert await token_of(directory) == token.encode()


async def test_many_who_ask_cost_one_look(store: FaultyStore) -> None:
    bus = LocalBus()
    async with Directory(store, bus).opened() as directory:
        reads = store.reads
        bus.publish("fleet")
        await asyncio.gather(*(directory.find(PAINT) for _ in range(100)))
        assert store.reads == reads + 1


async def test_a_change_while_reading_is_not_missed(store: FaultyStore) -> None:
    bus = LocalBus()
    services = Services(store, None, bus)
    await services.deploy(spec_of(), "{}", [])
    async with Directory(store, bus).opened() as directory:
        store.held = asyncio.Event()
        bus.publish("fleet")
        asking = asyncio.create_task(token_of(directory))
        reads = store.reads

        async def began() -> bool:
            return store.reads > reads

        await until(began, timeout=10)
        await services.reset_token(PAINT, "newer")
        store.held.set()
        store.held = None
        await asyncio.wait_for(asking, 10)
        assert await token_of(directory) == b"newer"


async def test_without_a_database_the_last_answer_counts(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK", 0.05)
    monkeypatch.setattr(module, "RETRY_PAUSE", 0.05)
    bus = LocalBus()
    services = Services(store, None, bus)
    await services.deploy(spec_of(token="first"), "{}", [])
    async with Directory(store, bus).opened() as directory:
        store.failing = True
        bus.publish("fleet")
        assert await token_of(directory) == b"first"
        # A message that is lost with another process: the slow look finds the change.
        await store.change(PAINT, token="second")
        store.failing = False

        async def seen() -> bool:
            return await token_of(directory) == b"second"

        await until(seen, timeout=10)


async def test_a_database_that_fails_at_the_start_is_said(store: FaultyStore) -> None:
    store.failing = True
    with pytest.raises(StoreFailed):
        async with Directory(store, LocalBus()).opened():
            raise AssertionError


times = st.lists(st.floats(0, 3, allow_nan=False), max_size=60)


@given(st.floats(0.1, 50), times)
def test_no_window_takes_more_than_its_rate_and_one_burst(rate: float, pauses: list[float]) -> None:
    now = [0.0]
    limits = Limits(rate, clock=lambda: now[0])
    taken: list[float] = []
    for pause in pauses:
        now[0] += pause
        wait = limits.enter()
        assert wait >= 0
        if not wait:
            taken.append(now[0])
            limits.leave()
        else:
            # After what was said there is room.
            later = Limits(rate, clock=lambda: now[0])
            later._tokens, later._at = limits._tokens, limits._at
            now[0] += wait + 1e-6
            assert later.enter() == 0
            now[0] -= wait + 1e-6
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            allowed = max(rate, 1) + rate * (taken[last] - taken[first])
            assert last - first + 1 <= allowed + 1e-6


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_never_more_at_a_time(most: int, steps: list[bool]) -> None:
    limits = Limits(0, most)
    running = 0
    for come in steps:
        if come:
            refused: Any = limits.enter()
            assert bool(refused) == (running >= most)
            running += not refused
        elif running:
            limits.leave()
            running -= 1
        assert limits.running == running <= most
