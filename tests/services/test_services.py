"""The façade: what its calls change, and what they refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from easel.database import open_database
from easel.errors import InvalidSpec, ServiceBusy, ServiceExists, ServiceNotFound
from easel.services.model import EngineSpec, Instance, ServiceSpec
from easel.services.services import Services
from easel.services.sql_store import SqlServiceStore
from easel.services.tokens import new_token, same_token, token_hash


class Bus:
    """Counts what is published."""

    def __init__(self) -> None:
        self.topics: list[str] = []

    def publish(self, topic: str) -> None:
        self.topics.append(topic)


class Tasks:
    """Remembers whose tasks were forgotten."""

    def __init__(self) -> None:
        self.store = self
        self.forgotten: list[str] = []

    async def forget_service(self, service: str) -> None:
        self.forgotten.append(service)


def spec(**fields: Any) -> ServiceSpec:
    whole: dict[str, Any] = {
        "name": "draw",
        "edition": "api",
        "engine": EngineSpec(kind="builtin"),
        **fields,
    }
    return ServiceSpec(**whole)


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    database = open_database(None, tmp_path)
    await database.open()
    store = SqlServiceStore(database, clock=lambda: 5)
    try:
        yield Services(store, Tasks(), Bus(), clock=lambda: 5)
    finally:
        await database.close()


async def reasons(services: Services) -> list[str]:
    return [event.reason for event in await services.events("draw")]


async def test_deploy_draws_tokens(services: Services) -> None:
    service = await services.deploy(spec(), '{"as": "written"}', ["cpu is not obeyed"])
    assert len(service.token) == len(service.join_token) == 64
    assert service.token != service.join_token
    assert await services.join_token("draw") == service.join_token
    found = await services.describe("draw")
    assert (found.status, found.wanted, found.revision) == ("Creating", 1, 1)
    assert (found.source, found.warnings) == ('{"as": "written"}', ["cpu is not obeyed"])
    assert await reasons(services) == ["Deployed"]
    assert services._bus.topics == ["fleet"]  # type: ignore[attr-defined]


async def test_a_name_is_deployed_once(services: Services) -> None:
    await services.deploy(spec(token="mine"), "{}", [])
    with pytest.raises(ServiceExists):
        await services.deploy(spec(), "{}", [])
    assert (await services.get("draw")).token == "mine"
    assert (await services.describe("draw")).spec.token is None


@pytest.mark.parametrize(("edition", "count"), [("standard", 0), ("standard", 2), ("api", 1001)])
async def test_numbers_of_instances_an_edition_does_not_have(
    services: Services, edition: str, count: int
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        await services.deploy(spec(edition=edition, instances=count), "{}", [])
    assert refused.value.faults[0][0] == "instances"
    await services.deploy(spec(edition=edition), "{}", [])
    with pytest.raises(InvalidSpec):
        await services.scale("draw", count)
    with pytest.raises(InvalidSpec):
        await services.update("draw", spec(edition=edition, instances=count), "{}", [])
    assert (await services.describe("draw")).revision == 1


async def test_another_number_alone_is_scaling(services: Services) -> None:
    await services.deploy(spec(), "{}", [])
    service = await services.update("draw", spec(instances=3), "{}", [])
    assert (service.revision, service.instances) == (1, 3)
    assert (await services.scale("draw", 2)).instances == 2
    assert await reasons(services) == ["Deployed", "Scaled", "Scaled"]
    assert (await services.describe("draw")).spec.instances == 2


async def test_another_token_alone_replaces_the_token(services: Services) -> None:
    first = await services.deploy(spec(), "{}", [])
    assert (await services.update("draw", spec(token="mine"), "{}", [])).token == "mine"
    assert (await services.update("draw", spec(), "{}", [])).token == "mine"
    reset = await services.reset_token("draw")
    assert reset.token not in {"mine", first.token}
    assert (reset.revision, reset.join_token) == (1, first.join_token)


async def test_everything_else_is_a_revision(services: Services) -> None:
    await services.deploy(spec(), "{}", [])
    service = await services.update("draw", spec(env={"a": "b"}, instances=2), "2", ["w"])
    assert (service.revision, service.instances) == (2, 2)
    found = await services.describe("draw")
    assert (found.latest_revision, found.source, found.warnings) == (2, "2", ["w"])
    assert (await services.update("draw", spec(env={"a": "b"}, instances=2), "3", [])).revision == 2
    assert [one.number for one in await services.revisions("draw")] == [1, 2]


@pytest.mark.parametrize("changed", [{"name": "other"}, {"edition": "standard"}])
async def test_what_an_update_cannot_change(services: Services, changed: dict[str, Any]) -> None:
    await services.deploy(spec(), "{}", [])
    with pytest.raises(InvalidSpec):
        await services.update("draw", spec(**changed), "{}", [])


async def test_the_same_again_tries_what_failed_again(services: Services) -> None:
    await services.deploy(spec(), "{}", [])
    failed = Instance(
        id="i",
        service="draw",
        revision=1,
        status="failed",
        reason="MissingMount",
        created=5,
        updated=5,
    )
    await services.store.add_instance(failed)
    assert (await services.describe("draw")).status == "Failed"
    await services.update("draw", spec(), "{}", [])
    assert (await services.store.instance("i")).target == "stopped"
    assert (await services.describe("draw")).status != "Failed"
    assert await reasons(services) == ["Deployed", "Restarted"]


async def test_stop_and_start(services: Services) -> None:
    await services.deploy(spec(), "{}", [])
    assert (await services.stop("draw")).status == "Stopped"
    assert (await services.describe("draw")).wanted == 0
    await services.stop("draw")
    assert (await services.update("draw", spec(env={"a": "b"}), "{}", [])).target == "stopped"
    assert (await services.start("draw")).target == "running"
    assert (await services.start("draw")).restarts_asked == 0
    await services.stop("draw")
    restarted = await services.restart("draw")
    assert (restarted.target, restarted.restarts_asked) == ("running", 1)
    assert await reasons(services) == [
        "Deployed",
        "Stopped",
        "Updating",
        "Started",
        "Stopped",
        "Restarted",
    ]


async def test_roll_back(services: Services) -> None:
    await services.deploy(spec(), "{}", [])
    with pytest.raises(ServiceBusy):
        await services.rollback("draw")
    for number in (2, 3):
        await services.update("draw", spec(env={"n": str(number)}), "{}", [])
    await services.store.mark_failed("draw", 2)
    with pytest.raises(ServiceNotFound):
        await services.rollback("draw", 9)
    assert (await services.rollback("draw")).revision == 1  # 2 never worked
    assert (await services.rollback("draw", 3)).revision == 3
    await services.store.change("draw", stable_revision=2)
    assert (await services.rollback("draw")).revision == 2
    found = await services.describe("draw")
    assert (found.revision, found.latest_revision) == (2, 3)
    assert (await services.update("draw", spec(env={"n": "4"}), "{}", [])).revision == 4


async def test_nothing_changes_one_that_is_being_deleted(services: Services) -> None:
    await services.deploy(spec(), "{}", [])
    assert (await services.delete("draw")).status == "Deleting"
    await services.delete("draw")
    calls = [
        services.deploy(spec(), "{}", []),
        services.update("draw", spec(env={"a": "b"}), "{}", []),
        services.scale("draw", 2),
        services.stop("draw"),
        services.start("draw"),
        services.restart("draw"),
        services.rollback("draw"),
        services.reset_token("draw"),
    ]
    for call in calls:
        with pytest.raises(ServiceBusy):
            await call
    await services.forget("draw")
    assert services._tasks.forgotten == ["draw"]  # type: ignore[union-attr]
    with pytest.raises(ServiceNotFound):
        await services.describe("draw")


async def test_unknown_names(services: Services) -> None:
    calls = [
        services.get("x"),
        services.describe("x"),
        services.events("x"),
        services.revisions("x"),
        services.update("x", spec(), "{}", []),
        services.scale("x", 1),
        services.delete("x"),
    ]
    for call in calls:
        with pytest.raises(ServiceNotFound):
            await call
    assert await services.list() == []


async def test_calls_at_once_are_done_one_after_the_other(services: Services) -> None:
    await services.deploy(spec(), "{}", [])
    await asyncio.gather(
        *(
            services.update("draw", spec(env={"n": str(n)}, instances=n), str(n), [])
            for n in range(1, 9)
        )
    )
    found = await services.describe("draw")
    revisions = await services.revisions("draw")
    assert [one.number for one in revisions] == list(range(1, 10))
    assert found.revision == 9
    assert found.spec.env == {"n": str(found.wanted)}  # never one's revision with another's number


async def test_the_list_tells_what_follows_from_the_instances(services: Services) -> None:
    await services.deploy(spec(), "{}", [])
    await services.deploy(spec(name="other"), "{}", [])
    ready = Instance(id="i", service="draw", revision=1, status="ready", created=5, updated=5)
    await services.store.add_instance(ready)
    found = {one.name: one.status for one in await services.list()}
    assert found == {"draw": "Running", "other": "Creating"}


def test_tokens() -> None:
    token = new_token()
    assert token != new_token()
    assert same_token(token, token)
    assert not same_token("", "")
    assert not same_token("ü\ud800", token)
    assert len(token_hash(token)) == 64
