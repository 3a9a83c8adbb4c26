"""What the service store does, on every database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from easel.database import Database
from easel.database.tables import instances, revisions, service_events
from easel.errors import InstanceNotFound, ServiceExists, ServiceNotFound, StoreFailed
from easel.services.model import (
    EngineSpec,
    HealthCheck,
    Instance,
    Mount,
    Service,
    ServiceEvent,
    ServiceSpec,
)
from easel.services.sql_store import MOST_EVENTS, SqlServiceStore
from easel.services.store import ServiceStore
from tests.contract.task_stores import Clock, TaskPlace

ODD = "odd ä\U0001f600 %s '; -- \n"
SOURCE = '{"metadata": {"name": "s"},   "ä": "\\u0000"}'


@pytest.fixture
async def database(task_place: TaskPlace) -> AsyncIterator[Database]:
    """An open, empty database of each kind."""
    found = task_place.database()
    await found.open()
    yield found
    await found.close()


@pytest.fixture
def store(database: Database, clock: Clock) -> ServiceStore:
    """A store on each database."""
    return SqlServiceStore(database, clock=clock)


def service(name: str = "s", **fields: Any) -> Service:
    return Service(
        **{
            "name": name,
            "edition": "api",
            "revision": 1,
            "instances": 2,
            "token": "token",
            "join_token": "join",
            "created": 5,
            "updated": 5,
            **fields,
        }
    )


def spec(name: str = "s", **fields: Any) -> ServiceSpec:
    return ServiceSpec(
        **{
            "name": name,
            "edition": "api",
            "engine": EngineSpec(kind="comfyui", arguments=["--fast"]),
            "mounts": [Mount(mount_path="/data", source="/srv/ä", read_only=True)],
            "env": {"A": ODD},
            "readiness_check": HealthCheck(path="/", timeout_seconds=0.5),
            "autoscaler": {"min": 1, "behavior": {"x": [1.5, None, True]}},
            **fields,
        }
    )


def instance(key: str = "s-1", **fields: Any) -> Instance:
    return Instance(
        **{"id": key, "service": "s", "revision": 1, "created": 5, "updated": 5, **fields}
    )


def event(message: str = "said", **fields: Any) -> ServiceEvent:
    return ServiceEvent(
        **{"service": "s", "at": 5, "reason": "Deployed", "message": message, **fields}
    )


async def deployed(store: ServiceStore, name: str = "s", **fields: Any) -> None:
    await store.create(service(name, **fields), spec(name), SOURCE, ["a warning"])


# Services


async def test_a_service_is_kept_as_it_came(store: ServiceStore) -> None:
    made = service(message=ODD, stable_revision=None, reason="R", restarts_asked=3)
    await store.create(made, spec(), SOURCE, ["w1", ODD])
    assert await store.get("s") == made
    assert await store.all() == [made]
    found = await store.revision("s", 1)
    assert (found.service, found.number, found.created, found.failed) == ("s", 1, 5, False)
    assert (found.spec, found.source, found.warnings) == (spec(), SOURCE, ["w1", ODD])
    assert await store.revisions("s") == [found]


async def test_services_are_listed_by_name(store: ServiceStore) -> None:
    for name in ("b", "a_1", "a1", "B"):
        await deployed(store, name)
    assert [one.name for one in await store.all()] == ["B", "a1", "a_1", "b"]


async def test_a_name_is_taken_once(store: ServiceStore) -> None:
    await deployed(store, token="first")
    with pytest.raises(ServiceExists, match="'s'"):
        await deployed(store, token="second")
    assert (await store.get("s")).token == "first"
    assert len(await store.revisions("s")) == 1


async def test_of_many_that_deploy_at_once_one_does(task_place: TaskPlace, clock: Clock) -> None:
    one, two = task_place.database(), task_place.database()
    await asyncio.gather(one.open(), two.open())
    try:
        stores = [SqlServiceStore(database, clock=clock) for database in (one, two)]
        outcomes = await asyncio.gather(
            *(
                store.create(service(token=str(n)), spec(), SOURCE, [])
                for n, store in enumerate(stores * 5)
            ),
            return_exceptions=True,
        )
        assert (
            sorted(type(outcome).__name__ for outcome in outcomes)
            == ["NoneType"] + ["ServiceExists"] * 9
        )
        (done,) = [n for n, outcome in enumerate(outcomes) if outcome is None]
        assert (await stores[0].get("s")).token == str(done)
    finally:
        await asyncio.gather(one.close(), two.close())


@pytest.mark.parametrize(
    "name", ["nothing", "", "S", "nul\x00", "half \ud800", "%", "s' OR 1=1 --"]
)
async def test_what_is_not_there_is_not_found(store: ServiceStore, name: str) -> None:
    await deployed(store)
    for call in (
        store.get(name),
        store.change(name, reason="x"),
        store.revise(name, spec(), SOURCE, []),
        store.revision(name, 1),
        store.revision("s", 2),
        store.revision("s", 0),
        store.revision("s", -1),
        store.revision("s", 10**30),
    ):
        with pytest.raises(ServiceNotFound):
            await call
    with pytest.raises(InstanceNotFound):
        await store.instance(name)
    with pytest.raises(InstanceNotFound):
        await store.change_instance(name, reason="x")
    assert await store.revisions(name) == []
    assert await store.instances(name) == []
    assert await store.events(name) == []
    await store.delete(name)
    await store.mark_failed(name, 1)
    await store.remove_instance(name)
    assert [one.name for one in await store.all()] == ["s"]
    assert not (await store.revision("s", 1)).failed


async def test_columns_change(store: ServiceStore, clock: Clock) -> None:
    await deployed(store)
    await deployed(store, "other")
    clock.now += 1
    changed = await store.change("s", status="Running", stable_revision=1, target="stopped")
    expected = service(
        status="Running", stable_revision=1, target="stopped", updated=clock.now, message=""
    )
    assert changed == expected
    assert await store.get("s") == expected
    clock.now += 1
    assert (await store.change("s", stable_revision=None)).stable_revision is None
    assert (await store.change("s")).updated == clock.now
    assert await store.get("other") == service("other")


@pytest.mark.parametrize("field", ["nmae", "name", "updated", "created", "token; --", "seq"])
async def test_what_is_no_column_cannot_change(store: ServiceStore, field: str) -> None:
    await deployed(store)
    await store.add_instance(instance())
    with pytest.raises(TypeError, match=field):
        await store.change("s", **{field: "x"})
    with pytest.raises(TypeError, match=field):
        await store.revise("s", spec(), SOURCE, [], **{field: "x"})
    with pytest.raises(TypeError, match=field):
        await store.change_instance("s-1", **{field: "x"})
    with pytest.raises(TypeError, match="revision"):
        await store.revise("s", spec(), SOURCE, [], revision=7)
    assert await store.get("s") == service()
    assert await store.instance("s-1") == instance()


@pytest.mark.parametrize("words", ["nul\x00", "half \ud800", "\udcff", ODD, "x" * 100_000])
async def test_any_text_is_taken(store: ServiceStore, words: str) -> None:
    await deployed(store)
    told = await store.add_event(event(words, log=[words], advice=words))
    assert told.log == [words]
    assert await store.events("s") == [told]
    handle = {"pid": 5, words: [words, 2**70, 1.5]}
    await store.add_instance(instance(message=words, handle=handle))
    found = await store.instance("s-1")
    assert found.handle == handle
    changed = await store.change("s", message=words)
    for text in (told.message, told.advice, found.message, changed.message):
        assert text.replace("\ufffd", "") == words.replace("\x00", "").encode(
            errors="ignore"
        ).decode(errors="ignore")


# Revisions


async def test_a_revision_becomes_the_wanted_one(store: ServiceStore, clock: Clock) -> None:
    await deployed(store)
    wanted = spec(engine=EngineSpec(kind="builtin"))
    clock.now += 1
    second = await store.revise("s", wanted, "{}", ["w"], instances=3, status="Updating")
    assert (second.service, second.number, second.created) == ("s", 2, clock.now)
    assert (second.spec, second.source, second.warnings, second.failed) == (
        wanted,
        "{}",
        ["w"],
        False,
    )
    found = await store.get("s")
    assert (found.revision, found.instances, found.status) == (2, 3, "Updating")
    assert found.updated == clock.now
    assert [one.number for one in await store.revisions("s")] == [1, 2]
    assert await store.revision("s", 2) == second
    # Back to the first, and on: numbers are never used twice.
    await store.change("s", revision=1)
    assert (await store.revise("s", wanted, "{}", [])).number == 3


async def test_revisions_at_once_each_get_a_number(task_place: TaskPlace, clock: Clock) -> None:
    one, two = task_place.database(), task_place.database()
    await asyncio.gather(one.open(), two.open())
    try:
        stores = [SqlServiceStore(database, clock=clock) for database in (one, two)]
        await deployed(stores[0])
        made = await asyncio.gather(
            *(store.revise("s", spec(), str(n), []) for n, store in enumerate(stores * 5))
        )
        assert sorted(revision.number for revision in made) == list(range(2, 12))
        assert (await stores[1].get("s")).revision == 11
        for revision in made:
            assert await stores[0].revision("s", revision.number) == revision
    finally:
        await asyncio.gather(one.close(), two.close())


async def test_a_revision_fails(store: ServiceStore) -> None:
    await deployed(store)
    await store.revise("s", spec(), SOURCE, [])
    await store.mark_failed("s", 2)
    await store.mark_failed("s", 2)
    assert [one.failed for one in await store.revisions("s")] == [False, True]


# Instances


async def test_an_instance_is_kept_as_it_came(store: ServiceStore, clock: Clock) -> None:
    made = instance(
        generation=2,
        runtime="joined",
        target="stopped",
        status="ready",
        reason="R",
        message=ODD,
        device="cuda:0",
        handle={"pid": 7, "ports": [1, 2], "nested": {"ä": None}},
        token_hash="ab",
        restarts=4,
        last_state="OOMKilled",
        not_before=2**53,
        started=6,
        ready_at=7,
    )
    await store.add_instance(made)
    assert await store.instance("s-1") == made
    clock.now += 1
    changed = await store.change_instance("s-1", handle={}, device=None, ready_at=2**53)
    made.handle, made.device, made.ready_at, made.updated = {}, None, 2**53, clock.now
    assert changed == made
    assert await store.instance("s-1") == made
    with pytest.raises(StoreFailed, match="s-1"):
        await store.add_instance(instance())
    assert await store.instance("s-1") == made


async def test_instances_are_listed_oldest_first(store: ServiceStore) -> None:
    for key, created, of in [("c", 2, "s"), ("b", 3, "s"), ("a", 2, "s"), ("d", 1, "t")]:
        await store.add_instance(instance(key, created=created, service=of))
    assert [one.id for one in await store.instances("s")] == ["a", "c", "b"]
    assert [one.id for one in await store.instances()] == ["d", "a", "c", "b"]
    await store.remove_instance("a")
    assert [one.id for one in await store.instances("s")] == ["c", "b"]


# Events


async def test_events_are_numbered(store: ServiceStore) -> None:
    told = event(instance="s-1", type="Warning", advice="do", log=["a", ODD])
    kept = await store.add_event(told)
    assert kept.seq > 0
    assert (kept.instance, kept.type, kept.advice, kept.log) == ("s-1", "Warning", "do", ["a", ODD])
    await store.add_event(event(service="other"))
    rest = [await store.add_event(event(str(n))) for n in range(5)]
    assert await store.events("s") == [kept, *rest]
    assert await store.events("s", after=kept.seq) == rest
    assert await store.events("s", limit=2) == rest[-2:]
    assert await store.events("s", after=rest[1].seq, limit=2) == rest[-2:]
    assert await store.events("s", after=rest[-1].seq) == []
    assert await store.events("s", after=10**30) == []
    assert await store.events("s", after=-(10**30), limit=10**30) == [kept, *rest]
    assert await store.events("s", limit=0) == []
    assert await store.events("s", limit=-1) == []


async def test_the_latest_events_are_kept(database: Database, clock: Clock) -> None:
    store = SqlServiceStore(database, clock=clock)
    row = {"type": "Normal", "reason": "R", "advice": "", "log": "[]", "at": 5}
    await database.run(
        lambda connection: connection.execute(
            service_events.insert(),
            [{**row, "service": "s", "message": str(n)} for n in range(MOST_EVENTS)]
            + [{**row, "service": "other", "message": "x"}],
        )
    )
    await store.add_event(event("more"))
    await store.add_event(event("and more"))
    kept = await store.events("s", limit=2 * MOST_EVENTS)
    assert [one.message for one in kept[:1] + kept[-2:]] == ["2", "more", "and more"]
    assert len(kept) == MOST_EVENTS
    assert len(await store.events("other")) == 1


async def test_who_follows_events_misses_none(task_place: TaskPlace, clock: Clock) -> None:
    one, two = task_place.database(), task_place.database()
    await asyncio.gather(one.open(), two.open())
    try:
        stores = [SqlServiceStore(database, clock=clock) for database in (one, two)]
        await deployed(stores[0])
        wanted = {str(n) for n in range(60)}
        seen: list[ServiceEvent] = []

        async def follow() -> None:
            while len(seen) < len(wanted):
                seen.extend(await stores[1].events("s", after=seen[-1].seq if seen else 0))

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(follow())
            for n in range(60):
                group.create_task(stores[n % 2].add_event(event(str(n))))
        assert {one.message for one in seen} == wanted
    finally:
        await asyncio.gather(one.close(), two.close())


# The end


async def test_a_deleted_service_leaves_nothing(store: ServiceStore, database: Database) -> None:
    for name in ("s", "other"):
        await deployed(store, name)
        await store.add_instance(instance(f"{name}-1", service=name))
        await store.add_event(event(service=name))
    await store.delete("s")
    await store.delete("s")
    assert [one.name for one in await store.all()] == ["other"]
    for table in (revisions, instances, service_events):
        owners = sa.select(table.c.service)
        found = await database.run(lambda c, owners=owners: list(c.scalars(owners)))  # type: ignore[misc]
        assert found == ["other"]


async def test_a_name_can_be_used_again(store: ServiceStore) -> None:
    await deployed(store)
    await store.revise("s", spec(), SOURCE, [])
    await store.delete("s")
    late = await store.add_event(event("told after the end"))
    await deployed(store, token="new")
    assert (await store.get("s")).token == "new"
    assert [one.number for one in await store.revisions("s")] == [1]
    assert await store.events("s") == []
    assert (await store.add_event(event())).seq > late.seq


async def test_it_is_there_after_a_restart(task_place: TaskPlace, clock: Clock) -> None:
    for opened in range(3):
        database = task_place.database()
        await database.open()
        store = SqlServiceStore(database, clock=clock)
        if opened == 0:
            await deployed(store)
            await store.add_instance(instance())
        assert await store.get("s") == service()
        assert await store.instances("s") == [instance()]
        await database.close()


async def test_a_caller_that_goes_away_does_no_harm(store: ServiceStore) -> None:
    await deployed(store)
    calls = [asyncio.ensure_future(store.revise("s", spec(), str(n), [])) for n in range(9)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    found = await store.revisions("s")
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    for outcome in outcomes[1::2]:
        assert outcome in found


# Failures


async def calls(store: ServiceStore) -> None:
    """Call everything; each call raises StoreFailed."""
    for call in (
        store.create(service(), spec(), SOURCE, []),
        store.get("s"),
        store.all(),
        store.change("s", reason="x"),
        store.revise("s", spec(), SOURCE, []),
        store.revision("s", 1),
        store.revisions("s"),
        store.mark_failed("s", 1),
        store.delete("s"),
        store.add_instance(instance()),
        store.instance("s-1"),
        store.instances(),
        store.change_instance("s-1", reason="x"),
        store.remove_instance("s-1"),
        store.add_event(event()),
        store.events("s"),
    ):
        with pytest.raises(StoreFailed) as caught:
            async with asyncio.timeout(40):
                await call
        assert "pa55" not in str(caught.value)


async def test_after_close_every_call_says_so(store: ServiceStore, database: Database) -> None:
    await deployed(store)
    await database.close()
    await calls(store)


async def test_a_server_that_is_gone_and_comes_back(
    task_place: TaskPlace, store: ServiceStore
) -> None:
    if task_place.server is None:
        pytest.skip("SQLite has no server")
    await deployed(store)
    await asyncio.to_thread(task_place.server.stop)
    try:
        await calls(store)
    finally:
        await asyncio.to_thread(task_place.server.start)
    assert await store.get("s") == service()


async def test_what_is_damaged_is_said(store: ServiceStore, database: Database) -> None:
    await deployed(store)
    await store.add_instance(instance())
    await database.run(lambda c: c.execute(revisions.update().values(spec='{"name": "s"')))
    await database.run(lambda c: c.execute(instances.update().values(handle="[]")))
    for call in (store.revision("s", 1), store.revisions("s"), store.instances()):
        with pytest.raises(StoreFailed, match="cannot be read"):
            await call


@pytest.mark.parametrize("value", [object(), float("inf"), {1: object()}])
async def test_what_has_no_json_form(store: ServiceStore, value: object) -> None:
    await deployed(store)
    await store.add_instance(instance())
    if value != float("inf"):
        with pytest.raises(StoreFailed, match="cannot be stored"):
            await store.change_instance("s-1", handle={"x": value})
        assert (await store.instance("s-1")).handle == {}
    else:  # JSON knows no infinity
        assert (await store.change_instance("s-1", handle={"x": value})).handle == {"x": None}
