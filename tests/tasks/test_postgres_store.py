"""What is the PostgreSQL store's own: how it counts those that wait, whose turn it is, plans, ends that are appended."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import psycopg
import pytest

from easel.database.connections import Connection
from easel.database.postgres import PostgresDatabase
from easel.errors import LeaseLost, QueueFull, StoreFailed
from easel.tasks.codec import COLUMNS
from easel.tasks.model import Ending, Lease, Progress
from easel.tasks.postgres_steps import LAST_EVENT, SERVICE, STATE, UID
from easel.tasks.postgres_store import PostgresTaskStore
from easel.tasks.statements import postgres as sql
from easel.workflow.progress import NodeProgress
from tests.contract.conftest import postgresql  # noqa: F401 - a fixture
from tests.contract.databases import Database as Server
from tests.contract.task_stores import Clock, fresh_database, new
from tests.waiting import until

T = TypeVar("T")

pytestmark = pytest.mark.database

TIMEOUT = 40
LEASE = 30_000


@pytest.fixture
def url(postgresql: Server) -> Iterator[str]:  # noqa: F811
    """An empty database on a running server."""
    if postgresql.process is None:
        postgresql.start()
    yield fresh_database(postgresql)
    fresh_database(postgresql)


@pytest.fixture
async def databases(url: str) -> AsyncIterator[list[PostgresDatabase]]:
    """Two, as two processes would have them."""
    async with contextlib.AsyncExitStack() as stack:
        found = [PostgresDatabase(url) for _ in range(2)]
        for database in found:
            stack.push_async_callback(database.close)
            await database.open()
        yield found


@pytest.fixture
def stores(databases: list[PostgresDatabase]) -> list[PostgresTaskStore]:
    clock = Clock()
    return [PostgresTaskStore(database, clock=clock) for database in databases]


async def claimed(store: PostgresTaskStore) -> Lease:
    found = await store.claim("service", "i", lease_ms=LEASE)
    assert found is not None
    return found.lease


def test_places_in_rows_are_those_of_the_columns() -> None:
    places = {"uid": UID, "service": SERVICE, "state": STATE, "last_event": LAST_EVENT}
    assert {name: COLUMNS.index(name) for name in places} == places


# The line


class Counted(PostgresDatabase):
    """Counts how often the line is counted."""

    counted = 0

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        async with super().connection() as connection:
            execute = connection.execute

            async def watched(query: Any, *values: Any, **options: Any) -> Any:
                self.counted += query == sql.COUNT_LINE
                return await execute(query, *values, **options)

            connection.execute = watched  # type: ignore[method-assign]
            try:
                yield connection
            finally:
                del connection.execute


async def test_far_from_the_limit_nothing_is_counted(url: str) -> None:
    database = Counted(url)
    await database.open()
    try:
        store = PostgresTaskStore(database, clock=Clock())
        for n in range(100):
            await store.put_within(new(f"a{n}"), 200)
        assert database.counted == 1
        # Those that left are noticed when the first count says no more.
        for _ in range(90):
            await store.finish(await claimed(store), Ending(state="succeeded", ended=5))
        for n in range(150):
            await store.put_within(new(f"b{n}"), 200)
        assert database.counted == 2
        for n in range(40):
            await store.put_within(new(f"c{n}"), 200)
        with pytest.raises(QueueFull):
            await store.put_within(new("d"), 200)
        assert await store.counts("service") == {"queued": 200, "succeeded": 90}
    finally:
        await database.close()


@pytest.mark.parametrize("seed", range(3))
async def test_the_limit_is_exact_whoever_does_what(
    stores: list[PostgresTaskStore], seed: int
) -> None:
    dice = random.Random(seed)
    held: list[Lease] = []
    waiting = 0
    for n in range(400):
        store = dice.choice(stores)
        what = dice.choices(["put", "elsewhere", "claim", "back", "end"], [5, 1, 3, 1, 2])[0]
        if what == "put":
            most = dice.choice([3, 5, 8])
            try:
                await store.put_within(new(f"t{n}", owner=dice.choice("ab")), most)
            except QueueFull:
                assert waiting >= most
            else:
                assert waiting < most
                waiting += 1
        elif what == "elsewhere":
            await store.put(new(f"t{n}", service="other"))
        elif what == "claim" and waiting:
            held.append(await claimed(store))
            waiting -= 1
        elif what == "back" and held:
            await store.give_back(held.pop(), "why", counted=False, max_delivery=1)
            waiting += 1
        elif what == "end" and held:
            await store.finish(held.pop(), Ending(state="succeeded", ended=5))
    counts = await stores[0].counts("service")
    assert counts.get("queued", 0) == waiting


async def test_the_limit_holds_while_everybody_does_everything(
    stores: list[PostgresTaskStore],
) -> None:
    most, done = 6, 0

    async def putter(number: int) -> None:
        nonlocal done
        store = stores[number % 2]
        for n in range(25):
            with contextlib.suppress(QueueFull):
                await store.put_within(new(f"{number}-{n}", owner=str(number % 3)), most)
        done += 1

    async def worker(number: int) -> None:
        store = stores[number % 2]
        while done < 6:
            found = await store.claim("service", "i", lease_ms=LEASE)
            if found is not None:
                # What is given back may be one more than may wait: never more than are held.
                if number % 2:
                    await store.give_back(found.lease, "why", counted=False, max_delivery=1)
                else:
                    await store.finish(found.lease, Ending(state="succeeded", ended=5))

    async def watcher() -> None:
        while done < 6:
            counts = await stores[0].counts("service")
            assert counts.get("queued", 0) <= most + 2

    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(putter(number))
        for number in range(4):
            group.create_task(worker(number))
        group.create_task(watcher())


async def test_tasks_that_come_together_get_a_turn_each(stores: list[PostgresTaskStore]) -> None:
    store = stores[0]
    await asyncio.gather(*(store.put(new(f"a{n}", owner="a")) for n in range(12)))
    await store.put(new("b0", owner="b"))
    order = []
    while (found := await store.claim("service", "i", lease_ms=LEASE)) is not None:
        order.append(found.task.id)
    assert order[1] == "b0"
    assert sorted(order) == sorted([f"a{n}" for n in range(12)] + ["b0"])


# A server that goes


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
async def test_every_task_ends_once_whatever_becomes_of_the_server(
    postgresql: Server,  # noqa: F811
    databases: list[PostgresDatabase],
    how: signal.Signals,
) -> None:
    clock = Clock()
    stores = [PostgresTaskStore(database, clock=clock) for database in databases]
    wanted = {f"{number}-{n}" for number in range(4) for n in range(40)}
    accepted: set[str] = set()
    acknowledged: dict[str, str] = {}
    hints: list[str | None] = []

    async def patiently(call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except StoreFailed as error:
                hints.append(error.hint)
                await asyncio.sleep(0.01)

    async def door(number: int) -> None:
        for n in range(40):
            asked = new(f"{number}-{n}", owner=str(number))
            task, _ = await patiently(partial(stores[number % 2].put_within, asked, 500))
            accepted.add(task.id)

    async def instance(number: int) -> None:
        store, name = stores[number % 2], f"i{number}"
        while len(acknowledged) < len(wanted):
            found = await patiently(lambda: store.claim("service", name, lease_ms=LEASE))
            if found is None:
                clock.now += LEASE // 20  # claims of which nobody heard come back in the end
                await patiently(lambda: store.sweep(max_delivery=50))
                continue
            ending = Ending(state="succeeded", ended=clock.now, error={"by": found.lease.token})
            with contextlib.suppress(LeaseLost):
                task = await patiently(partial(store.finish, found.lease, ending))
                assert acknowledged.setdefault(task.id, found.lease.token) == found.lease.token

    async def done(part: float) -> bool:
        return len(acknowledged) >= part * len(wanted)

    async def fate() -> None:
        for part in (0.2, 0.5, 0.8):
            await until(partial(done, part), pause=0.005)
            assert postgresql.process is not None
            postgresql.process.send_signal(how)
            await asyncio.to_thread(postgresql.process.wait, TIMEOUT)
            await asyncio.to_thread(postgresql.start)

    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(door(number))
            group.create_task(instance(number))
        group.create_task(fate())
    assert hints
    assert all(hints)
    assert accepted == wanted == acknowledged.keys()
    for task in await stores[0].page("service", limit=1000):
        assert task.error == {"by": acknowledged[task.id]}
        kinds = [event.kind for event in await stores[0].events(task.uid)]
        assert (kinds[0], kinds[-1]) == ("queued", "succeeded")
        assert kinds.count("succeeded") == 1
        assert len(kinds) == task.last_event


# Ends are appended


async def test_an_end_and_a_snapshot_at_once_lose_nothing(
    stores: list[PostgresTaskStore],
) -> None:
    one, two = stores
    for n in range(15):
        await one.put(new(f"t{n}", seeds={"3.seed": 7}))
        lease = await claimed(one)
        snapshot = Progress(
            percent=50, current_node="1", nodes={"1": NodeProgress(value=1, results=["kept"])}
        )
        ended, shown = await asyncio.gather(
            one.finish(
                lease,
                Ending(state="succeeded", ended=5, nodes={"2": NodeProgress(results=["end"])}),
            ),
            two.progress(lease, snapshot, event=True),
            return_exceptions=True,
        )
        assert not isinstance(ended, BaseException)
        task = await two.get_uid(lease.uid)
        assert task.nodes["2"].results == ["end"]
        assert task.seeds == {"3.seed": 7}
        if shown is None:
            assert task.nodes["1"].results == ["kept"]
        else:
            assert isinstance(shown, LeaseLost)


async def test_two_that_tell_snapshots_at_once_lose_nothing(
    stores: list[PostgresTaskStore],
) -> None:
    await stores[0].put(new())
    lease = await claimed(stores[0])
    await asyncio.gather(
        *(
            stores[n % 2].progress(
                lease,
                Progress(percent=n, current_node=str(n), nodes={str(n): NodeProgress(value=n)}),
                event=True,
            )
            for n in range(20)
        )
    )
    task = await stores[0].get_uid(lease.uid)
    assert {name: node.value for name, node in task.nodes.items()} == {
        str(n): float(n) for n in range(20)
    }
    assert len(await stores[0].events(lease.uid)) == 22 == task.last_event


async def test_a_body_that_is_gone_is_said(
    databases: list[PostgresDatabase], stores: list[PostgresTaskStore]
) -> None:
    await stores[0].put(new())
    async with databases[0].connection() as connection:
        await connection.execute("DELETE FROM task_bodies")
    with pytest.raises(StoreFailed, match="no body"):
        await stores[0].claim("service", "i", lease_ms=LEASE)


@pytest.mark.parametrize("number", [2**31, 2**63, -(2**70)])
async def test_a_number_that_no_column_takes(stores: list[PostgresTaskStore], number: int) -> None:
    with pytest.raises(StoreFailed, match="range"):
        await stores[0].put(new(priority=number))
    await stores[0].put(new())


@pytest.mark.parametrize("name", ["nul\x00", "half \ud800", '"'])
async def test_names_that_cannot_be(stores: list[PostgresTaskStore], name: str) -> None:
    store = stores[0]
    await store.put(new())
    lease = await claimed(store)
    odd = Lease(uid=lease.uid, token=name)
    assert await store.claim(name, name, lease_ms=LEASE) is None
    assert await store.page(name, owner=name, before=name) == []
    assert await store.page("service", before=name) is not None
    assert await store.events(name) == []
    assert await store.position(name) is None
    assert await store.counts(name) == {}
    assert await store.held(name) == []
    assert await store.renew([odd, Lease(uid=name, token=name), lease], lease_ms=LEASE) == (
        [odd, Lease(uid=name, token=name)],
        [],
    )
    with pytest.raises(LeaseLost):
        await store.finish(odd, Ending(state="succeeded", ended=5))
    await store.give_back(lease, name, counted=True, max_delivery=2)
    found = await store.claim("service", name, lease_ms=LEASE)
    assert found is not None
    (*_, back, assigned) = await store.events(lease.uid)
    assert back.data == {"reason": name}
    assert assigned.data == {"instance": name, "attempt": 2}


# Plans

VALUES: dict[str, Any] = {
    **dict.fromkeys(("uid", "service", "owner", "id", "lease", "instance", "before", "said"), "x"),
    **dict.fromkeys(("state", "signature", "tags", "data", "node"), "x"),
    **dict.fromkeys(("now", "until", "limit", "last", "priority", "created", "deadline"), 5),
    **dict.fromkeys(
        ("at", "ended", "started", "events", "ended_before", "after", "most", "count", "rear"), 1
    ),
    **{key: ["x"] for key in ("uids", "leases", "states", "kinds", "datas")},
    **{key: [1] for key in ("seqs", "turns", "attempts", "numbers", "rears")},
    **dict.fromkeys(("body", "result", "change"), b"{}"),
    "percent": 1.0,
    "results": [b"{}"],
}


FILL = """
INSERT INTO tasks (
    uid, service, owner, id, signature, state, priority, turn, tags, created, ended, lease, lease_until, deadline, attempt,
    cancelling, rear, percent, last_event
) SELECT
    md5(n::text), 'service', 'owner-' || n % 9, n::text, '', CASE n % 4 WHEN 0 THEN 'queued' ELSE 'succeeded' END, 0, n, '{}',
    n, CASE n % 4 WHEN 0 THEN NULL ELSE n END, NULL, CASE n % 99 WHEN 1 THEN n END, n, 0, 0, 0, 0, 1
FROM generate_series(1, 20000) AS n;
INSERT INTO task_bodies SELECT uid, '{}' FROM tasks WHERE length(signature) = 0;
INSERT INTO task_results SELECT uid, '{}' FROM tasks WHERE length(signature) = 0;
INSERT INTO task_events SELECT uid, 1, 0, 'queued', '{}' FROM tasks WHERE length(signature) = 0
"""
"""As many as come before PostgreSQL looks at what has come."""

PLANS: list[tuple[str, set[str]]] = [
    (sql.INSERT_TASK, {"tasks_owner", "tasks_claim"}),
    (sql.COUNT_LINE, set()),
    (sql.CLAIM, {"tasks_claim", "tasks_pkey", "task_bodies_pkey", "task_results_pkey"}),
    (sql.SELECT_HEAD, {"tasks_claim"}),
    (sql.SELECT_OVERDUE, {"tasks_lease"}),
    (sql.EXPIRE, {"tasks_deadline"}),
    (sql.SELECT_HELD, {"tasks_lease"}),
    (sql.FORGET_ENDED, {"tasks_ended", "tasks_pkey", "task_events_pkey", "task_bodies_pkey"}),
    (sql.FORGET_ANY, {"tasks_pkey", "task_events_pkey"}),
    (sql.POSITION, {"tasks_uid_key"}),
    (sql.page(owner=True, states=True, rear=True, before=True), {"tasks_list"}),
    (sql.page(owner=False, states=False, rear=False, before=False), {"tasks_list"}),
    (sql.START, {"tasks_uid_key"}),
    (sql.RENEW, {"tasks_uid_key"}),
    (sql.PROGRESS, {"tasks_uid_key"}),
    (sql.FINISH, {"tasks_uid_key"}),
    (sql.SELECT_FINISHED, {"tasks_uid_key"}),
    (sql.SELECT_RELEASED, {"tasks_uid_key"}),
    (sql.REQUEUE, {"tasks_pkey"}),
    (sql.END, {"tasks_pkey"}),
    (sql.CANCEL, {"tasks_service_owner_id_key"}),
    (sql.SELECT_BY_ID, {"tasks_service_owner_id_key"}),
    (sql.SELECT_BY_UID, {"tasks_uid_key"}),
    (sql.SELECT_EVENTS, {"task_events_pkey"}),
    (sql.SELECT_RESULTS, {"task_results_pkey"}),
    (sql.DELETE_RESULTS, {"task_results_pkey"}),
]


def fill(url: str) -> None:
    """Let the tables grow, unnoticed by autovacuum."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE tasks SET (autovacuum_enabled = off)")
        connection.execute(FILL)


async def test_statements_go_by_indexes(url: str, databases: list[PostgresDatabase]) -> None:
    for filled in (False, True):
        if filled:
            await asyncio.to_thread(fill, url)
        async with databases[0].connection() as connection:
            for statement, indexes in PLANS:
                rows = await (await connection.execute(f"EXPLAIN {statement}", VALUES)).fetchall()
                said = "\n".join(line for (line,) in rows)
                assert not re.search(r"Seq Scan on (tasks|task_\w+) ", said), said
                for index in indexes if filled else ():
                    assert index in said, said
                if statement in {sql.CLAIM, sql.SELECT_HEAD}:
                    assert "Sort" not in said, said


async def test_plans_are_made_anew_when_the_tables_have_grown(
    url: str,
    databases: list[PostgresDatabase],
    stores: list[PostgresTaskStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    await stores[0].put(new())
    async with databases[0].connection() as connection:
        await connection.execute("LOAD 'auto_explain'")
        await connection.execute("SET auto_explain.log_min_duration = 0")
        await connection.execute("SET client_min_messages = log")
        connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    for _ in range(12):
        await stores[0].get("service", "owner", "task")
    assert any("owner = $2" in plan for plan in said)  # a plan for any values, which is kept
    await asyncio.to_thread(fill, url)
    monkeypatch.setattr("easel.database.postgres.PLAN_AGE", 0)
    said.clear()
    await stores[0].get("service", "owner", "task")
    assert len(said) == 1
    assert "tasks_service_owner_id_key" in said[0]
