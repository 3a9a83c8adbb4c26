from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from easel.database.sqlite import SqliteDatabase
from easel.database.tables import task_bodies
from easel.errors import StoreFailed

INSERT = "INSERT INTO task_bodies (uid, body) VALUES (?, ?)"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    database = SqliteDatabase(tmp_path / "easel.db", lock_timeout=0.2)
    await database.open()
    yield database
    await database.close()


async def put(database: SqliteDatabase, uid: str, body: bytes = b"x") -> None:
    await database.write(lambda connection: connection.execute(INSERT, (uid, body)))


async def uids(database: SqliteDatabase) -> list[str]:
    rows = await database.read(
        lambda connection: connection.execute("SELECT uid FROM task_bodies").fetchall()
    )
    return sorted(uid for (uid,) in rows)


def fail(_: object) -> None:
    raise ZeroDivisionError("mine")


# Groups


async def test_callers_of_one_moment_share_a_transaction(database: SqliteDatabase) -> None:
    def work(connection: sqlite3.Connection) -> tuple[int, int]:
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        return threading.get_ident(), version

    begun: list[str] = []
    assert database._connection is not None
    database._connection.set_trace_callback(begun.append)
    said = await asyncio.gather(*(database.write(work) for _ in range(50)))
    assert len(set(said)) == 1
    assert said[0][0] != threading.get_ident()
    assert begun.count("BEGIN IMMEDIATE") == begun.count("COMMIT") == 1


async def test_a_failing_one_is_undone_alone(database: SqliteDatabase) -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute(INSERT, ("half", b""))
        raise ZeroDivisionError("mine")

    async def violate() -> None:
        await put(database, "1")

    outcomes = await asyncio.gather(
        put(database, "1"),
        database.write(half),
        violate(),
        database.run(fail),
        put(database, "2"),
        return_exceptions=True,
    )
    assert outcomes[0] is None
    assert isinstance(outcomes[1], ZeroDivisionError)
    assert isinstance(outcomes[2], StoreFailed)
    assert "UNIQUE" in str(outcomes[2])
    assert isinstance(outcomes[3], ZeroDivisionError)
    assert outcomes[4] is None
    assert await uids(database) == ["1", "2"]
    assert database.undone == 3


async def test_what_was_written_is_seen_by_the_next_read(database: SqliteDatabase) -> None:
    async def one(n: int) -> None:
        await put(database, str(n))
        assert str(n) in await uids(database)

    await asyncio.gather(*(one(n) for n in range(30)))


async def test_readers_do_not_write(database: SqliteDatabase) -> None:
    with pytest.raises(StoreFailed, match="readonly") as caught:
        await database.read(lambda connection: connection.execute(INSERT, ("1", b"")))
    assert caught.value.hint


async def test_a_reader_does_not_wait_for_the_writer(database: SqliteDatabase) -> None:
    going, go = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        connection.execute(INSERT, ("1", b""))
        going.set()
        assert go.wait(30)

    writing = asyncio.ensure_future(database.write(slow))
    await asyncio.to_thread(going.wait, 30)
    assert await uids(database) == []
    go.set()
    await writing
    assert await uids(database) == ["1"]


async def test_a_caller_that_left_before_its_turn_wrote_nothing(database: SqliteDatabase) -> None:
    going, go = threading.Event(), threading.Event()

    def slow(_: sqlite3.Connection) -> None:
        going.set()
        assert go.wait(30)

    writing = asyncio.ensure_future(database.write(slow))
    await asyncio.to_thread(going.wait, 30)
    left = asyncio.ensure_future(put(database, "left"))
    await asyncio.sleep(0)
    left.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await left
    go.set()
    await writing
    await put(database, "stays")
    assert await uids(database) == ["stays"]


# Ordinary queries


async def test_ordinary_queries_share_the_writer(database: SqliteDatabase) -> None:
    def work(connection: sa.Connection) -> int:
        connection.execute(task_bodies.insert(), [{"uid": "1", "body": b""}])
        connection.commit()  # means nothing here
        return threading.get_ident()

    def undone(connection: sa.Connection) -> None:
        work_ = task_bodies.insert().values(uid="2", body=b"")
        connection.execute(work_)
        connection.commit()
        raise ZeroDivisionError("mine")

    ordinary, raw, failed, _ = await asyncio.gather(
        database.run(work),
        database.write(lambda _: threading.get_ident()),
        database.run(undone),
        put(database, "3"),
        return_exceptions=True,
    )
    assert ordinary == raw
    assert isinstance(failed, ZeroDivisionError)
    assert await uids(database) == ["1", "3"]


async def test_ordinary_blocks_and_savepoints(database: SqliteDatabase) -> None:
    def work(connection: sa.Connection) -> list[str]:
        with connection.begin():
            connection.execute(task_bodies.insert().values(uid="1", body=b""))
        with contextlib.suppress(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(task_bodies.insert().values(uid="2", body=b""))
            connection.execute(task_bodies.insert().values(uid="1", body=b""))
        return list(connection.execute(sa.select(task_bodies.c.uid)).scalars())

    assert await database.run(work) == ["1"]
    assert await uids(database) == ["1"]


async def test_a_violated_constraint_is_an_answer(database: SqliteDatabase) -> None:
    def work(connection: sa.Connection) -> None:
        connection.execute(task_bodies.insert().values(uid="1", body=b""))
        connection.execute(task_bodies.insert().values(uid="1", body=b""))

    with pytest.raises(sa.exc.IntegrityError):
        await database.run(work)
    with pytest.raises(StoreFailed, match="no such table"):
        await database.run(lambda connection: connection.execute(sa.text("SELECT * FROM x")))
    assert await uids(database) == []


async def test_a_failure_in_an_ordinary_block_leaves_the_connection_usable(
    database: SqliteDatabase,
) -> None:
    def work(connection: sa.Connection) -> None:
        connection.begin()
        connection.execute(task_bodies.insert().values(uid="1", body=b""))
        raise ZeroDivisionError("mine")

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await database.run(work)
    assert await database.run(lambda c: c.execute(sa.select(sa.func.count())).scalar()) == 1


# Failures


async def test_another_process_keeps_it_locked(database: SqliteDatabase) -> None:
    other = await asyncio.to_thread(
        sqlite3.connect, database.path, isolation_level=None, check_same_thread=False
    )
    await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")
    try:
        for outcome in await asyncio.gather(
            put(database, "1"), put(database, "2"), return_exceptions=True
        ):
            assert isinstance(outcome, StoreFailed)
            assert "another process" in str(outcome.hint)
        assert await uids(database) == []
    finally:
        await asyncio.to_thread(other.close)
    await put(database, "1")
    assert await uids(database) == ["1"]


async def test_a_full_disk_fails_the_whole_group_and_passes(database: SqliteDatabase) -> None:
    def limit(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 3}")

    await put(database, "before")
    await database.write(limit)
    outcomes = await asyncio.gather(
        put(database, "small"), put(database, "large", bytes(100_000)), return_exceptions=True
    )
    assert isinstance(outcomes[1], StoreFailed)
    assert "disk is full" in str(outcomes[1])
    assert "free some space" in str(outcomes[1].hint)
    # Whatever became of the small one, its caller knows it.
    assert await uids(database) == sorted(["before", *(["small"] if outcomes[0] is None else [])])
    await database.write(lambda connection: connection.execute("PRAGMA max_page_count = 1000000"))
    await put(database, "large", bytes(100_000))


class FailingConnection:
    """Passes everything on, but the next statement of these words fails, as a disk would make it."""

    def __init__(self, connection: Any, words: str, *, gives_up: bool) -> None:
        self.connection = connection
        self.words = words
        self.gives_up = gives_up

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def execute(self, statement: str, *values: Any) -> Any:
        if statement.startswith(self.words):
            self.words = "nothing more"
            if self.gives_up:
                self.connection.execute("ROLLBACK")
            raise sqlite3.OperationalError("disk I/O error")
        return self.connection.execute(statement, *values)


@pytest.mark.parametrize("gives_up", [True, False])
@pytest.mark.parametrize("words", ["BEGIN", "COMMIT", "SAVEPOINT", "RELEASE", "INSERT"])
async def test_an_error_anywhere_reaches_the_callers(
    database: SqliteDatabase, words: str, gives_up: bool
) -> None:
    if words == "BEGIN" and gives_up:
        return
    connection: Any = database._connection
    database._connection = FailingConnection(connection, words, gives_up=gives_up)  # type: ignore[assignment]
    async with asyncio.timeout(20):
        outcomes = await asyncio.gather(
            *(put(database, str(n)) for n in range(5)), return_exceptions=True
        )
    failed = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, StoreFailed)]
    assert "look at the system's log" in str(outcomes[failed[0]].hint)  # type: ignore[union-attr]
    assert failed == ([0] if words == "INSERT" and not gives_up else [0, 1, 2, 3, 4])
    assert await uids(database) == [str(n) for n in range(5) if n not in failed]
    await put(database, "after")
    assert "after" in await uids(database)


async def test_a_damaged_file_fails_aloud(tmp_path: Path) -> None:
    path = tmp_path / "easel.db"
    database = SqliteDatabase(path)
    await database.open()
    for n in range(50):
        await put(database, str(n), bytes(5000))
    await database.close()
    whole = await asyncio.to_thread(path.read_bytes)
    await asyncio.to_thread(path.write_bytes, whole[:200_000] + b"\xff" * (len(whole) - 200_000))
    database = SqliteDatabase(path)
    await database.open()
    try:
        with pytest.raises(StoreFailed) as caught:
            await database.read(
                lambda connection: (
                    connection.execute("PRAGMA quick_check").fetchall()
                    and connection.execute("SELECT * FROM task_bodies ORDER BY uid").fetchall()
                )
            )
        assert "damaged" in str(caught.value.hint)
    finally:
        await database.close()


async def test_values_that_sqlite_cannot_hold(database: SqliteDatabase) -> None:
    for value in (2**64, "\ud800"):
        for call in (database.write, database.read):
            with pytest.raises(StoreFailed):
                await call(lambda c, value=value: c.execute("SELECT ?", (value,)))  # type: ignore[misc]
    await put(database, "after")


async def test_locks_outlast_another_opening_in_this_process(database: SqliteDatabase) -> None:
    """POSIX locks are a process's: to close any descriptor of the file would release them all."""
    locks = Path("/proc/locks")
    if not await asyncio.to_thread(locks.exists):
        pytest.skip("no /proc/locks here")

    def held() -> list[str]:
        inode = f":{database.path.stat().st_ino} "
        return [line for line in locks.read_text().splitlines() if inode in line]

    await put(database, "1")
    before = await asyncio.to_thread(held)
    assert before
    other = SqliteDatabase(database.path)
    await other.open()
    assert len(await asyncio.to_thread(held)) >= len(before)
    await other.close()
    await put(database, "2")


# The end


async def test_close_finishes_what_was_asked(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "easel.db")
    await database.open()
    calls = [asyncio.ensure_future(put(database, str(n))) for n in range(700)]
    await asyncio.sleep(0)
    await database.close()
    await asyncio.gather(*calls)
    await database.close()
    for call in (put(database, "x"), uids(database), database.run(fail)):
        with pytest.raises(StoreFailed, match="closed"):
            await call
    assert not [t for t in threading.enumerate() if t.name.startswith("easel-database")]
    database = SqliteDatabase(tmp_path / "easel.db")
    await database.open()
    assert len(await uids(database)) == 700
    await database.close()


async def test_before_open_it_says_so(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "easel.db")
    with pytest.raises(StoreFailed, match="not open"):
        await put(database, "x")
    with pytest.raises(StoreFailed, match="not open"):
        await uids(database)


FORGETFUL = """
import asyncio, sys
from pathlib import Path
from easel.database.sqlite import SqliteDatabase
async def main():
    database = SqliteDatabase(Path(sys.argv[1]))
    await database.open()
    await database.read(lambda connection: None)
    asyncio.ensure_future(database.write(lambda connection: None))
    await asyncio.sleep(0)
asyncio.run(main())
"""


def test_a_process_that_does_not_close_it_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL, str(tmp_path / "easel.db")],
        timeout=30,
        check=False,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")


async def test_nothing_is_kept_of_what_was_done(database: SqliteDatabase) -> None:
    class Witness:
        pass

    async def one() -> None:
        witness = Witness()

        def work(_: sqlite3.Connection) -> None:
            assert witness

        await database.write(work)

    await one()
    await asyncio.sleep(0)
    await database.write(lambda _: None)
    gc.collect()
    assert not [kept for kept in gc.get_objects() if type(kept) is Witness]
