"""What every event bus does, within a process and between several."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from easel.database.postgres import PostgresDatabase
from easel.errors import StoreFailed
from easel.tasks.bus import EventBus, LocalBus
from easel.tasks.postgres_bus import MOST_PENDING, PostgresBus
from tests.contract.databases import Database as Server
from tests.contract.task_stores import fresh_database

TIMEOUT = 30


class BusPlace:
    """Where buses meet that hear each other."""

    @contextlib.asynccontextmanager
    async def bus(self) -> AsyncIterator[EventBus]:
        """Open another one, as another process would."""
        raise NotImplementedError
        yield


class InProcess(BusPlace):
    """One bus is all there is."""

    def __init__(self) -> None:
        self.only = LocalBus()

    @contextlib.asynccontextmanager
    async def bus(self) -> AsyncIterator[EventBus]:
        yield self.only


class OnServer(BusPlace):
    """Buses meet on a server."""

    def __init__(self, server: Server) -> None:
        self.server = server

    @contextlib.asynccontextmanager
    async def bus(self) -> AsyncIterator[PostgresBus]:
        database = PostgresDatabase(self.server.url)
        bus = PostgresBus(database, retry_pause=0.05)
        try:
            await bus.open()
            yield bus
        finally:
            await bus.close()
            await database.close()

    def cut(self, statement: str) -> None:
        """End the sessions whose latest statement is like this."""
        with psycopg.connect(self.server.url, autocommit=True) as connection:
            found = connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE query LIKE %s AND pid <> pg_backend_pid()",
                [statement],
            ).fetchall()
        assert (True,) in found


@pytest.fixture
def on_server(postgresql: Server) -> Iterator[OnServer]:
    """A running server."""
    if postgresql.process is None:
        postgresql.start()
    fresh_database(postgresql)
    yield OnServer(postgresql)
    if postgresql.process is None:
        postgresql.start()


@pytest.fixture(params=["local", pytest.param("postgresql", marks=pytest.mark.database)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> BusPlace:
    """A place of each kind."""
    if request.param == "local":
        return InProcess()
    found = request.getfixturevalue("on_server")
    assert isinstance(found, OnServer)
    return found


@pytest.fixture
async def buses(place: BusPlace) -> AsyncIterator[list[EventBus]]:
    """Three that hear each other."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(place.bus()) for _ in range(3)]


async def woken(event: asyncio.Event) -> None:
    """Wait until an event is set, and clear it."""
    async with asyncio.timeout(TIMEOUT):
        await event.wait()
    event.clear()


async def told(buses: list[EventBus]) -> None:
    """Wait until everything that was published is told: what comes from one bus comes in order."""
    with contextlib.ExitStack() as stack:
        for number, bus in enumerate(buses):
            marks = [stack.enter_context(one.subscribe(f"mark {number}")) for one in buses]
            bus.publish(f"mark {number}")
            for mark in marks:
                await woken(mark)


async def test_everybody_is_woken(buses: list[EventBus]) -> None:
    with contextlib.ExitStack() as stack:
        events = [stack.enter_context(bus.subscribe("task:1")) for bus in buses * 2]
        others = [stack.enter_context(bus.subscribe("task:2")) for bus in buses]
        for bus in buses:
            bus.publish("task:1")
            for event in events:
                await woken(event)
            await told(buses)
            for event in events:
                event.clear()  # with one bus for all, as often as there are buses
        assert not any(event.is_set() for event in others)


async def test_here_it_is_at_once_and_once(buses: list[EventBus]) -> None:
    with buses[0].subscribe("t") as here:
        buses[0].publish("t")
        assert here.is_set()
        here.clear()
        await told(buses)
        assert not here.is_set()
        buses[0].publish("t")
        assert here.is_set()


async def test_only_from_now_on(buses: list[EventBus]) -> None:
    buses[0].publish("t")
    await told(buses)
    with buses[1].subscribe("t") as event:
        await told(buses)
        assert not event.is_set()
    buses[0].publish("t")
    await told(buses)
    assert not event.is_set()


async def test_subscribers_come_and_go(buses: list[EventBus]) -> None:
    with buses[1].subscribe("t") as first:
        with buses[1].subscribe("t"):
            pass
        buses[0].publish("t")
        await woken(first)
    with pytest.raises(ZeroDivisionError), buses[1].subscribe("t"):
        _ = 1 / 0
    with buses[1].subscribe("t") as again:
        buses[0].publish("t")
        await woken(again)


@pytest.mark.parametrize(
    "topic",
    ["", " ", "task:ä\U0001f600", "nul\x00", "half \ud800", "x" * 8000, "ä" * 7000, "'; --", "%s"],
)
async def test_any_topic(buses: list[EventBus], topic: str) -> None:
    with buses[0].subscribe(topic) as here, buses[1].subscribe(topic) as there:
        buses[0].publish(topic)
        assert here.is_set()
        await woken(there)


async def test_many_at_once(buses: list[EventBus]) -> None:
    with contextlib.ExitStack() as stack:
        topics = [f"task:{n}" for n in range(500)]
        events = [stack.enter_context(buses[2].subscribe(topic)) for topic in topics]
        for n in range(20):
            for topic in topics:
                buses[n % 2].publish(topic)
            await asyncio.sleep(0)
        for event in events:
            await woken(event)


async def test_to_publish_does_not_wait_for_anybody(buses: list[EventBus]) -> None:
    with buses[1].subscribe("last") as event:
        for n in range(2 * MOST_PENDING):
            buses[0].publish(f"task:{n}")  # the event loop has no turn meanwhile
        buses[0].publish("last")
        await woken(event)


# What only those between processes do.


@pytest.mark.database
@pytest.mark.parametrize("cut", ["LISTEN%", "%pg_notify%"])
async def test_a_connection_that_is_cut(on_server: OnServer, cut: str) -> None:
    async with on_server.bus() as one, on_server.bus() as two:
        with one.subscribe("t") as here, two.subscribe("t") as there:
            one.publish("t")
            two.publish("t")
            await woken(there)
            await told([one, two])
            for event in (here, there):
                event.clear()
            await asyncio.to_thread(on_server.cut, cut)
            if cut == "LISTEN%":  # who did not listen for a while looks for itself
                await woken(here)
                await woken(there)
            for _ in range(3):
                one.publish("t")
                await woken(there)
                two.publish("t")
                here.clear()
                await told([one, two])


@pytest.mark.database
async def test_a_server_that_is_gone_and_comes_back(
    on_server: OnServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with on_server.bus() as one, on_server.bus() as two:
        with one.subscribe("t") as here, two.subscribe("t") as there:
            await asyncio.to_thread(on_server.server.stop)
            for n in range(MOST_PENDING + 100):
                one.publish(f"task:{n}")
            one.publish("t")
            assert here.is_set()
            here.clear()
            await asyncio.to_thread(on_server.server.start)
            await woken(here)
            await woken(there)
            await told([one, two])
            there.clear()
            one.publish("t")
            await woken(there)
    said = [r.getMessage() for r in caplog.records if r.name == "easel.tasks.postgres_bus"]
    assert any("does not reach" in line for line in said)
    assert not any("pa55" in line for line in said)
    assert len([line for line in said if "does not reach" in line]) <= 8  # not for every attempt


@pytest.mark.database
async def test_what_was_published_before_the_end_is_told(on_server: OnServer) -> None:
    async with on_server.bus() as two:
        with two.subscribe("last words") as event:
            async with on_server.bus() as one:
                one.publish("last words")
            await woken(event)
            one.publish("after the end")


@pytest.mark.database
async def test_without_a_server_it_does_not_open(on_server: OnServer) -> None:
    await asyncio.to_thread(on_server.server.stop)
    with pytest.raises(StoreFailed) as caught:
        async with on_server.bus():
            pass
    assert caught.value.hint
    assert "pa55" not in str(caught.value)


@pytest.mark.database
async def test_to_close_does_not_wait_for_a_server_that_is_gone(on_server: OnServer) -> None:
    async with asyncio.timeout(TIMEOUT), on_server.bus() as one:
        await asyncio.to_thread(on_server.server.stop)
        one.publish("t")
