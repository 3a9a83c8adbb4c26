"""What is PostgreSQL's own: opening, failures in words, transactions in each other's way, the hot path's connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
import sqlalchemy as sa

from easel.database.connections import Connection, Connections
from easel.database.postgres import ATTEMPTS, MOST_CONNECTIONS, PostgresDatabase
from easel.errors import ConfigurationError, DatabaseTooNew, StoreFailed
from tests.contract.databases import Database as Server
from tests.contract.task_stores import fresh_database

pytestmark = pytest.mark.database

TIMEOUT = 30


@pytest.fixture
def server(postgresql: Server) -> Iterator[Server]:
    """A running server with an empty database."""
    if postgresql.process is None:
        postgresql.start()
    fresh_database(postgresql)
    yield postgresql
    if postgresql.process is None:
        postgresql.start()
    fresh_database(postgresql)


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresDatabase]:
    database = PostgresDatabase(url)
    try:
        await database.open()
        yield database
    finally:
        await database.close()
        await database.close()


def administer(server: Server, *statements: str) -> None:
    """Run statements beside everything else."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


# Opening


def spoilt(url: str, how: str) -> str:
    """Return a URL with which nothing can be done."""
    return {
        "password": url.replace("pa55%2Fw%40rd", "wr0ng-pa55"),
        "user": url.replace("easel:", "nobody:"),
        "database": url.removesuffix("easel") + "nothing",
        "option": f"{url}?passfoo=pa55",
        "ssl": f"{url}?sslmode=require",
        "port": "postgresql://easel:pa55@127.0.0.1:99999/easel",
    }[how]


@pytest.mark.parametrize("how", ["password", "user", "database", "option", "ssl", "port"])
async def test_what_waiting_does_not_help_against(server: Server, how: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        async with opened(spoilt(server.url, how)):
            pass
    assert caught.value.hint
    assert "pa55" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1:1", "nothing.invalid"])
async def test_a_server_that_is_not_there(host: str) -> None:
    with pytest.raises(StoreFailed) as caught:
        async with opened(f"postgresql://easel:pa55@{host}/easel"):
            pass
    assert "start the database" in (caught.value.hint or "")
    assert "pa55" not in str(caught.value)


@pytest.mark.parametrize("right", ["CONNECT ON DATABASE easel", "USAGE ON SCHEMA public"])
async def test_a_user_without_rights(server: Server, right: str) -> None:
    administer(server, "CREATE ROLE weak LOGIN PASSWORD 'w3ak'", f"GRANT {right} TO weak")
    try:
        with pytest.raises(ConfigurationError) as caught:
            async with opened(server.url.replace("easel:pa55%2Fw%40rd", "weak:w3ak")):
                pass
        assert "grant" in (caught.value.hint or "")
    finally:
        administer(server, "DROP OWNED BY weak", "DROP ROLE weak")


async def test_an_encoding_that_not_every_text_fits_into(server: Server) -> None:
    made = "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    administer(server, made)
    try:
        with pytest.raises(ConfigurationError, match="LATIN1") as caught:
            async with opened(server.url.removesuffix("easel") + "latin"):
                pass
        assert "UTF8" in (caught.value.hint or "")
    finally:
        administer(server, "DROP DATABASE latin")


async def test_a_newer_versions_database_is_refused(server: Server) -> None:
    async with opened(server.url):
        pass
    administer(server, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseTooNew, match="9999"):
        async with opened(server.url):
            pass


async def test_another_programs_tables_are_left_alone(server: Server) -> None:
    administer(server, "CREATE TABLE tasks (mine integer)")
    with pytest.raises(ConfigurationError, match="not Easel's: tasks"):
        async with opened(server.url):
            pass
    administer(server, "SELECT mine FROM tasks")


async def test_several_open_a_new_one_at_once(server: Server) -> None:
    async with asyncio.timeout(TIMEOUT), contextlib.AsyncExitStack() as stack:
        databases = await asyncio.gather(
            *(stack.enter_async_context(opened(server.url)) for _ in range(5))
        )
        for database in databases:
            assert (
                await database.run(lambda c: c.scalar(sa.text("SELECT count(*) FROM tasks"))) == 0
            )


@pytest.mark.parametrize("scheme", ["postgres://", "postgresql+psycopg://"])
async def test_other_ways_to_write_it(server: Server, scheme: str) -> None:
    async with opened(server.url.replace("postgresql://", scheme) + "?application_name=mine"):
        pass


# Ordinary queries


async def test_what_raises_is_undone(server: Server) -> None:
    def work(connection: sa.Connection) -> None:
        connection.execute(sa.text("INSERT INTO t VALUES (1)"))
        raise ZeroDivisionError

    async with opened(server.url) as database:
        await database.run(lambda c: c.execute(sa.text("CREATE TABLE t (n integer PRIMARY KEY)")))
        with pytest.raises(ZeroDivisionError):
            await database.run(work)
        for _ in range(2):
            with contextlib.suppress(sa.exc.IntegrityError):
                await database.run(lambda c: c.execute(sa.text("INSERT INTO t VALUES (1)")))
        with pytest.raises(sa.exc.IntegrityError):
            await database.run(lambda c: c.execute(sa.text("INSERT INTO t VALUES (1)")))
        with pytest.raises(StoreFailed, match="nothing"):
            await database.run(lambda c: c.execute(sa.text("SELECT nothing")))
        assert await database.run(lambda c: c.scalar(sa.text("SELECT sum(n) FROM t"))) == 1


async def test_ordinary_queries_in_each_others_way_are_repeated(server: Server) -> None:
    attempts: list[str] = []
    both = asyncio.Barrier(2)
    loop = asyncio.get_running_loop()

    def cross(first: int) -> None:
        def work(connection: sa.Connection) -> None:
            attempts.append("")
            add = sa.text("UPDATE t SET hits = hits + 1 WHERE n = :n")
            connection.execute(add, {"n": first})
            if len(attempts) <= 2:  # each holds what the other one wants
                asyncio.run_coroutine_threadsafe(both.wait(), loop).result(TIMEOUT)
            connection.execute(add, {"n": 1 - first})

        return work  # type: ignore[return-value]

    async with opened(server.url) as database, asyncio.timeout(TIMEOUT):
        await database.run(lambda c: c.execute(sa.text("CREATE TABLE t (n integer, hits integer)")))
        await database.run(lambda c: c.execute(sa.text("INSERT INTO t VALUES (0, 0), (1, 0)")))
        await asyncio.gather(*(database.run(cross(n)) for n in (0, 1)))  # type: ignore[func-returns-value,arg-type]
        assert await database.run(lambda c: c.scalar(sa.text("SELECT sum(hits) FROM t"))) == 4
    assert len(attempts) > 2


# The hot path


async def test_statements_in_each_others_way_are_repeated(server: Server) -> None:
    attempts: list[int] = []
    both = asyncio.Barrier(2)

    async def cross(connection: Connection, first: int) -> None:
        attempts.append(first)
        async with connection.transaction():
            await connection.execute("UPDATE t SET hits = hits + 1 WHERE n = %s", [first])
            if len(attempts) <= 2:
                await both.wait()
            await connection.execute("UPDATE t SET hits = hits + 1 WHERE n = %s", [1 - first])

    async with opened(server.url) as database, asyncio.timeout(TIMEOUT):
        administer(server, "CREATE TABLE t (n integer, hits integer)")
        administer(server, "INSERT INTO t VALUES (0, 0), (1, 0)")
        await asyncio.gather(*(database.repeated(lambda c, n=n: cross(c, n)) for n in (0, 1)))  # type: ignore[misc]
        async with database.connection() as connection:
            (hits,) = await (await connection.execute("SELECT sum(hits) FROM t")).fetchall()
    assert hits == (4,)
    assert len(attempts) > 2


async def test_they_are_not_repeated_for_ever(server: Server) -> None:
    attempts = 0

    async def fails(connection: Connection) -> None:
        nonlocal attempts
        attempts += 1
        await connection.execute(
            "DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = 'serialization_failure'; END $$"
        )

    async with opened(server.url) as database:
        with pytest.raises(StoreFailed, match="again"):
            await database.repeated(fails)
        assert attempts == ATTEMPTS


async def test_of_what_failed_the_connection_is_used_again(server: Server) -> None:
    async def fails(connection: Connection) -> None:
        async with connection.transaction():
            await connection.execute("SELECT 1 / 0")

    async with opened(server.url) as database:
        numbers = set()
        for _ in range(3):
            async with database.connection() as connection:
                numbers.add(connection.info.backend_pid)
            with pytest.raises(StoreFailed, match="division"):
                await database.repeated(fails)
            with pytest.raises(ZeroDivisionError):
                async with database.connection() as connection:
                    _ = 1 / 0
        assert len(numbers) == 1


async def test_one_that_is_left_in_a_transaction_is_not(server: Server) -> None:
    async with opened(server.url) as database:
        async with database.connection() as connection:
            await connection.execute("BEGIN")
        assert connection.closed
        async with database.connection() as connection:
            await connection.execute("SELECT 1")


async def test_a_caller_that_goes_away_gives_its_connection_back(server: Server) -> None:
    async def sleep(connection: Connection) -> None:
        await connection.execute("SELECT pg_sleep(60)")

    async with opened(server.url) as database, asyncio.timeout(TIMEOUT):
        calls = [
            asyncio.ensure_future(database.repeated(sleep)) for _ in range(MOST_CONNECTIONS + 5)
        ]

        async def busy() -> bool:
            find = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"
            found = await database.run(lambda c: c.scalar(sa.text(find)))
            return bool(found == MOST_CONNECTIONS)

        while not await busy():
            pass
        for call in reversed(calls):
            call.cancel()
        assert await asyncio.gather(*calls, return_exceptions=True)
        assert all(call.cancelled() for call in calls)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(MOST_CONNECTIONS):
                connection = await stack.enter_async_context(database.connection())
                await connection.execute("SELECT 1")


async def test_connections_that_died_while_idle_are_replaced(server: Server) -> None:
    async with opened(server.url) as database:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(MOST_CONNECTIONS):
                await stack.enter_async_context(database.connection())
        for _ in range(2):
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(MOST_CONNECTIONS):
                    connection = await stack.enter_async_context(database.connection())
                    await connection.execute("SELECT 1")
            assert await database.run(lambda c: c.scalar(sa.text("SELECT 1"))) == 1


async def test_a_connection_that_may_only_read_is_not_kept(server: Server) -> None:
    async def write(connection: Connection) -> None:
        await connection.execute("SET default_transaction_read_only = on")
        await connection.execute("CREATE TABLE t (n integer)")

    async with opened(server.url) as database:
        with pytest.raises(StoreFailed):
            await database.repeated(write)
        async with database.connection() as connection:
            await connection.execute("CREATE TABLE t (n integer)")


async def test_to_close_ends_those_who_wait(server: Server) -> None:
    async with opened(server.url) as database, contextlib.AsyncExitStack() as stack:
        lent = [
            await stack.enter_async_context(database.connection()) for _ in range(MOST_CONNECTIONS)
        ]

        async def one_more() -> None:
            async with database.connection():
                pass

        waiting = asyncio.create_task(one_more())
        await asyncio.sleep(0)
        await database.close()
        with pytest.raises(StoreFailed, match="closed"):
            await waiting
        await stack.aclose()
        assert all(connection.closed for connection in lent)


# The connections alone


@pytest.fixture
async def two(server: Server) -> AsyncIterator[Connections]:
    """At most two connections."""

    async def connect() -> Connection:
        return await psycopg.AsyncConnection.connect(server.url, autocommit=True)

    connections = Connections(connect, most=2)
    yield connections
    await connections.close()


async def test_who_waits_too_long_is_told(two: Connections) -> None:
    async with two.connection(TIMEOUT), two.connection(TIMEOUT) as kept:
        with pytest.raises(psycopg.OperationalError, match="busy"):
            async with two.connection(0):
                pass
    async with two.connection(0) as again:
        assert again is kept or not again.closed


async def test_first_come_first_served(two: Connections) -> None:
    order: list[int] = []
    async with two.connection(TIMEOUT), two.connection(TIMEOUT):
        pass  # both are there

    async def use(number: int) -> None:
        async with two.connection(TIMEOUT):
            order.append(number)
            await asyncio.sleep(0)

    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*(use(number) for number in range(20)))
    assert order == list(range(20))


async def test_who_goes_away_while_waiting_takes_nothing_along(two: Connections) -> None:
    async def use() -> None:
        async with two.connection(TIMEOUT):
            pass

    async with asyncio.timeout(TIMEOUT):
        for turns in range(4):  # cancelled before, with and after the hand-over
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(2):
                    await stack.enter_async_context(two.connection(TIMEOUT))
                waiting = [asyncio.create_task(use()) for _ in range(6)]
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            for one in waiting[::2]:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert [one.cancelled() for one in waiting[1::2]] == [False] * 3
            async with two.connection(TIMEOUT), two.connection(TIMEOUT):
                pass


async def test_who_waits_may_try_when_another_one_fails(server: Server) -> None:
    begun, go = asyncio.Event(), asyncio.Event()
    tries = 0

    async def connect() -> Connection:
        nonlocal tries
        tries += 1
        if tries == 1:
            begun.set()
            await go.wait()
            raise psycopg.OperationalError("not this time")
        return await psycopg.AsyncConnection.connect(server.url, autocommit=True)

    connections = Connections(connect, most=1)

    async def use() -> int:
        async with connections.connection(TIMEOUT) as connection:
            return connection.info.backend_pid

    async with asyncio.timeout(TIMEOUT):
        first, second = asyncio.create_task(use()), asyncio.create_task(use())
        await begun.wait()
        go.set()
        with pytest.raises(psycopg.OperationalError, match="not this time"):
            await first
        assert await second
    await connections.close()
