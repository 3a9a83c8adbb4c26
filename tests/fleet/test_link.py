"""Agents that dial in: who is taken in, and what becomes of tasks whatever agents and connections do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from easel.errors import StoreFailed
from easel.link import messages
from easel.link.messages import Acknowledge, Assign, Cancel, Drain, EngineReport, Recall, Renewed
from easel.tasks.model import Ending, Lease, Task
from tests.fleet.links import (
    READY,
    Agent,
    Gateway,
    dialled,
    held,
    hello,
    joined,
    running_gateway,
)
from tests.waiting import until


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with running_gateway(tmp_path / "gateway") as running:
        await running.service()
        yield running


async def gone(gateway: Gateway) -> None:
    """Wait until no agent is connected."""

    async def look() -> bool:
        return not gateway.members.of("draw")

    await until(look, timeout=10, pause=0.01)


# Who is taken in.


@pytest.mark.parametrize("token", ["", "wrong", "join-draw ", "t"])
async def test_a_wrong_token_is_refused_before_a_word_is_read(gateway: Gateway, token: str) -> None:
    if token == "join-draw ":
        token = "join-dra"
    async with dialled(gateway.url, token) as agent:
        assert await agent.closed() == 4401
    assert await gateway.store.instances() == []


async def test_a_stranger_cannot_fill_our_memory(gateway: Gateway) -> None:
    """One that is told to go, and sends a message of 200 MB instead."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    head = f"GET /easel/link HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n\r\n"
    writer.write(head.encode())
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    writer.write(b"\x82\xff" + (200_000_000).to_bytes(8, "big") + bytes(4))
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 200_000_000:
            writer.write(bytes(1_000_000))
            await asyncio.wait_for(writer.drain(), 10)
            sent += 1_000_000
    writer.transport.abort()
    assert sent < 100_000_000


async def test_who_says_nothing_is_closed(gateway: Gateway) -> None:
    async with dialled(gateway.url, "join-draw") as agent:
        assert await agent.closed() == 1008


async def test_another_version_and_another_instances_token(gateway: Gateway) -> None:
    token = await gateway.instance("i1")
    await gateway.instance("i2")
    for fields, code in (
        ({"version": 2}, 4426),
        ({"instance": "i2"}, 4401),
        ({"instance": None}, 4401),
    ):
        async with dialled(gateway.url, token) as agent:
            await agent.send(hello(**{"instance": "i1", **fields}))
            assert await agent.closed() == code
    async with dialled(gateway.url, "join-draw") as agent:
        await agent.send(hello(instance="i1"))
        assert await agent.closed() == 4401


@pytest.mark.parametrize("first", ["{", '{"type":"renew","held":[]}', '{"type":"new"}'])
async def test_whoever_does_not_begin_with_hello_is_closed(gateway: Gateway, first: str) -> None:
    async with dialled(gateway.url, "join-draw") as agent:
        await agent.socket.send_str(first)
        assert await agent.closed() == 1008


async def test_an_instance_that_is_not_wanted_is_told_so(gateway: Gateway) -> None:
    token = await gateway.instance("i1", target="stopped")
    async with dialled(gateway.url, token) as agent:
        await agent.send(hello(instance="i1"))
        assert await agent.closed() == 4403


async def test_nobody_joins_a_stopped_service(gateway: Gateway) -> None:
    await gateway.service("still", target="stopped")
    async with dialled(gateway.url, "join-still") as agent:
        await agent.send(hello())
        assert await agent.closed() == 4403
    assert await gateway.store.instances() == []


async def test_a_joined_agent_has_one_row_however_often_it_comes(gateway: Gateway) -> None:
    for _ in range(2):
        async with joined(gateway):
            (row,) = await gateway.store.instances("draw")
            await gateway.row(row.id, status="ready", runtime="joined")
        await gateway.row(row.id, status="unready", reason="LinkLost")


async def test_one_whose_row_is_being_removed_may_come_again(gateway: Gateway) -> None:
    async with joined(gateway):
        (row,) = await gateway.store.instances("draw")
    await gone(gateway)
    await gateway.store.change_instance(row.id, target="stopped")
    async with dialled(gateway.url, "join-draw") as agent:
        await agent.send(hello())
        assert await agent.closed() == 1001


async def test_a_second_connection_takes_the_place_of_the_first(gateway: Gateway) -> None:
    async with joined(gateway) as first, joined(gateway) as second:
        assert await first.closed() == 4409
        await gateway.submit()
        assert await second.hears(Assign)
        (row,) = await gateway.store.instances("draw")
        await gateway.row(row.id, status="ready")


async def test_many_connections_of_one_instance_at_once_leave_one(gateway: Gateway) -> None:
    agents: list[Agent] = []

    async def come() -> None:
        async with dialled(gateway.url, "join-draw") as agent:
            await agent.send(hello())
            agents.append(agent)
            await agent.closed()

    coming = [asyncio.create_task(come()) for _ in range(5)]

    async def one_is_left() -> bool:
        left = sum(not one.done() for one in coming)
        return left == 1 and len(gateway.members.of("draw")) == 1

    await until(one_is_left, timeout=10, pause=0.01)
    for one in coming:
        one.cancel()
    await asyncio.gather(*coming, return_exceptions=True)


async def test_a_store_that_fails_during_the_welcome_leaves_no_ghost(gateway: Gateway) -> None:
    change = gateway.store.change_instance

    async def fail(*args: Any, **fields: Any) -> Any:
        raise StoreFailed("no")

    gateway.store.change_instance = fail  # type: ignore[method-assign]
    async with dialled(gateway.url, "join-draw") as agent:
        await agent.send(hello())
        assert await agent.closed() == 1001
    gateway.store.change_instance = change  # type: ignore[method-assign]
    assert gateway.members.of("draw") == []


async def test_plain_http_on_the_link(gateway: Gateway) -> None:
    async with aiohttp.ClientSession() as http:
        for path, status in (("", 426), ("x", 404), ("/other", 404)):
            async with http.get(gateway.url + messages.PATH + path) as answer:
                assert answer.status == status


# What runs.


async def test_a_task_from_its_assignment_to_its_end(gateway: Gateway) -> None:
    async with joined(gateway) as agent:
        task = await gateway.submit()
        given = await agent.hears(Assign)
        assert given.uid == task.uid
        assert given.folder.startswith(f"{task.uid}.1.")
        await agent.start(given)
        await agent.send(
            messages.Progressed(
                uid=given.uid,
                lease=given.lease,
                percent=50,
                current_node="1",
                nodes={},
                border=True,
            )
        )
        await agent.finish(given, started=gateway.now - 5, ended=gateway.now)
        await agent.acknowledged()
        ended = await gateway.task(task.uid)
        assert (ended.state, ended.percent) == ("succeeded", 100)


async def test_one_runs_and_one_is_prefetched_and_no_more(gateway: Gateway) -> None:
    tasks = [await gateway.submit() for _ in range(3)]
    async with joined(gateway) as agent:
        first, second = await agent.hears(Assign), await agent.hears(Assign)
        assert [first.uid, second.uid] == [tasks[0].uid, tasks[1].uid]
        await agent.finish(first)
        assert (await agent.hears(Assign)).uid == tasks[2].uid


async def test_nobody_may_hoard(gateway: Gateway) -> None:
    for _ in range(messages.MOST_TASKS + 3):
        await gateway.submit()
    async with joined(gateway, capacity=10**9) as agent:
        for _ in range(messages.MOST_TASKS):
            await agent.hears(Assign)
        counts = await gateway.tasks.store.counts("draw")
        assert counts["queued"] == 3


async def test_an_idle_instance_gets_what_another_prefetched(gateway: Gateway) -> None:
    async with joined(gateway) as one:
        await gateway.submit()
        await gateway.submit()
        first, second = await one.hears(Assign), await one.hears(Assign)
        await one.start(first)
        await one.acknowledged()
        async with joined(gateway, name="other") as other:
            recall = await one.hears(Recall)
            assert recall.uid == second.uid
            await one.give_back(second)
            given = await other.hears(Assign)
            assert (given.uid, given.attempt) == (second.uid, 1)
            assert given.folder != second.folder


async def test_a_recall_comes_too_late_for_what_has_begun(gateway: Gateway) -> None:
    async with joined(gateway) as one:
        await gateway.submit()
        await gateway.submit()
        first, second = await one.hears(Assign), await one.hears(Assign)
        async with joined(gateway, name="other"):
            await one.hears(Recall)
            await one.start(second)
            await one.finish(first)
            await one.finish(second)
            await one.acknowledged()
            assert (await gateway.task(second.uid)).state == "succeeded"


async def test_cancelling_while_it_runs(gateway: Gateway) -> None:
    async with joined(gateway) as agent:
        task = await gateway.submit("mine")
        given = await agent.hears(Assign)
        await gateway.tasks.cancel("draw", "", "mine")
        assert (await agent.hears(Cancel)).lease == given.lease
        await agent.finish(given, state="cancelled")
        await agent.acknowledged()
        assert (await gateway.task(task.uid)).state == "cancelled"


async def test_cancelling_while_it_is_claimed_reaches_the_agent_at_once(gateway: Gateway) -> None:
    claim = gateway.tasks.claim

    async def slowly(service: str, instance: str) -> Any:
        found = await claim(service, instance)
        if found is not None:
            await gateway.tasks.cancel("draw", "", "mine")
        return found

    gateway.tasks.claim = slowly  # type: ignore[method-assign]
    async with joined(gateway) as agent:
        await gateway.submit("mine")
        given = await agent.hears(Assign)
        renewals = [one for one in agent.seen if isinstance(one, Renewed)]
        assert (await agent.hears(Cancel)).lease == given.lease
        assert not renewals


async def test_cancelled_while_the_link_was_cut(gateway: Gateway) -> None:
    async with joined(gateway) as agent:
        await gateway.submit("mine")
        given = await agent.hears(Assign)
    await gone(gateway)
    await gateway.tasks.cancel("draw", "", "mine")
    async with joined(gateway, held=[held(given)]) as agent:
        await agent.send(messages.Renew(held=[held(given)]))
        assert (await agent.hears(Cancel)).lease == given.lease


async def test_an_engine_that_is_not_ready_gets_nothing(gateway: Gateway) -> None:
    async with joined(gateway, engine=EngineReport(state="starting", ready=False)) as agent:
        await gateway.submit()
        await agent.send(messages.Renew(held=[]))
        assert isinstance(await agent.next(), Renewed)
        await agent.send(messages.Report(engine=READY))
        assert isinstance(await agent.next(), Assign)


async def test_the_engines_end_is_in_the_row(gateway: Gateway) -> None:
    async with joined(gateway) as agent:
        (row,) = await gateway.store.instances("draw")
        await gateway.row(row.id, status="ready")
        error = {"code": "engine_died", "message": "x" * 10_000}
        await agent.send(
            messages.Report(engine=EngineReport(state="failed", ready=False, error=error))
        )
        found = await gateway.row(row.id, status="unready", reason="EngineFailed")
        assert len(found.message) == 2000


# Cuts.


async def test_what_was_not_acknowledged_is_taken_again(gateway: Gateway) -> None:
    async with joined(gateway) as agent:
        task = await gateway.submit()
        given = await agent.hears(Assign)
        await agent.start(given)
    await gone(gateway)
    async with joined(gateway, held=[held(given)]) as agent:
        await agent.start(given)
        await agent.finish(given)
        await agent.acknowledged()
        assert (await gateway.task(task.uid)).state == "succeeded"
    await gone(gateway)
    async with joined(gateway, held=[held(given)]) as agent:  # its acknowledgement was lost
        await agent.finish(given, state="failed", error={"code": "x", "message": "y"})
        await agent.acknowledged()
        assert (await gateway.task(task.uid)).state == "succeeded"


async def test_a_held_task_is_shown_live_again_after_a_cut(gateway: Gateway) -> None:
    async with joined(gateway) as agent:
        await gateway.submit("mine")
        given = await agent.hears(Assign)
        await agent.start(given)
        await agent.acknowledged()
    await gone(gateway)
    assert (await gateway.tasks.get("draw", "", "mine")).state == "running"
    async with (
        joined(gateway, held=[held(given)]) as agent,
        gateway.tasks.watch(given.uid) as watch,
    ):
        await agent.send(
            messages.Progressed(
                uid=given.uid,
                lease=given.lease,
                percent=40,
                current_node="1",
                nodes={},
                border=False,
            )
        )
        async with asyncio.timeout(10):
            while watch.task.percent != 40:
                await watch.wait(1)


async def test_what_an_agent_has_forgotten_goes_back_at_once(gateway: Gateway) -> None:
    """The agent was killed: of two tasks, the one that ran has cost an attempt."""
    async with joined(gateway) as agent:
        await gateway.submit()
        await gateway.submit()
        first, second = await agent.hears(Assign), await agent.hears(Assign)
        await agent.start(first)
        await agent.acknowledged()
    await gone(gateway)
    async with joined(gateway, boot="b2") as agent:
        again = {one.uid: one for one in (await agent.hears(Assign), await agent.hears(Assign))}
        assert again[first.uid].attempt == 2
        assert again[second.uid].attempt == 1


async def test_a_task_whose_preparation_kills_agents_does_not_go_round_for_ever(
    gateway: Gateway,
) -> None:
    task = await gateway.submit()
    attempts = []
    for boot in ("b1", "b2", "b3"):
        async with joined(gateway, boot=boot) as agent:
            attempts.append((await agent.hears(Assign)).attempt)
        await gone(gateway)
    assert attempts == [1, 2, 3]
    assert (await gateway.task(task.uid)).attempt == 3


async def test_a_lease_that_was_lost_is_named_with_its_token(gateway: Gateway) -> None:
    """The same task may have come back to the same agent under a new lease."""
    async with joined(gateway) as agent:
        task = await gateway.submit()
        given = await agent.hears(Assign)
        gateway.now += 31_000
        await gateway.tasks.sweep()
        again = await agent.hears(Assign)
        assert (again.uid, again.attempt) == (task.uid, 2)
        await agent.send(messages.Renew(held=[held(given)]))
        assert (await agent.hears(Renewed)).lost == [held(given)]
        await agent.finish(given, state="failed", error={"code": "x", "message": "stale"})
        await agent.acknowledged()
        assert (await gateway.task(task.uid)).state == "assigned"
        await agent.finish(again)
        await agent.acknowledged()
        assert (await gateway.task(task.uid)).state == "succeeded"


async def test_lost_leases_end_in_the_rear_queue(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "g", max_delivery=2) as gateway:
        await gateway.service()
        async with joined(gateway) as agent:
            task = await gateway.submit()
            for _ in range(2):
                given = await agent.hears(Assign)
                gateway.now += 31_000
                await gateway.tasks.sweep()
                await agent.send(messages.Renew(held=[held(given)]))
            found = await gateway.in_state(task.uid, "failed")
            assert found.rear
            assert found.error is not None
            assert found.error["code"] == "task_lost"


async def test_a_task_that_an_agent_never_speaks_of_does_not_take_its_place_for_ever(
    tmp_path: Path,
) -> None:
    async with running_gateway(tmp_path / "g", lease_seconds=0.3) as gateway:
        await gateway.service()
        async with joined(gateway, capacity=1) as agent:
            first = await gateway.submit()
            await agent.hears(Assign)
            second = await gateway.submit()
            gateway.now += 300
            await gateway.tasks.sweep()

            async def given_more() -> bool:
                await agent.send(messages.Renew(held=[]))
                return isinstance(await agent.next(), Assign)

            await until(given_more, timeout=10, pause=0.05)
            states = {(await gateway.task(one.uid)).state for one in (first, second)}
            assert states == {"queued", "assigned"}


async def test_coming_back_without_beginning_counts_in_the_end(gateway: Gateway) -> None:
    task = await gateway.submit()
    async with joined(gateway, capacity=1) as agent:
        attempts = []
        while (given := await agent.hears(Assign)).attempt < 5:
            attempts.append(given.attempt)
            await agent.give_back(given)
        await agent.give_back(given)
        found = await gateway.in_state(task.uid, "failed")
    assert found.rear
    assert attempts == sorted([1] * 11 + [2, 3, 4])


# A store that fails.


async def test_what_cannot_be_stored_is_not_acknowledged(gateway: Gateway) -> None:
    finish = gateway.tasks.store.finish

    async def fail(lease: Lease, ending: Ending) -> Task:
        raise StoreFailed("no")

    task = await gateway.submit()
    async with joined(gateway) as agent:
        given = await agent.hears(Assign)
        gateway.tasks.store.finish = fail  # type: ignore[method-assign]
        await agent.finish(given)
        assert await agent.closed() == 1001
        assert not any(isinstance(one, Acknowledge) for one in agent.seen)
    gateway.tasks.store.finish = finish  # type: ignore[method-assign]
    await gone(gateway)
    async with joined(gateway, held=[held(given)]) as agent:
        await agent.finish(given)
        await agent.acknowledged()
    assert (await gateway.task(task.uid)).state == "succeeded"


async def test_leases_that_could_not_be_renewed_for_a_moment(gateway: Gateway) -> None:
    renew = gateway.tasks.store.renew

    async def fail(leases: Any, *, lease_ms: int) -> Any:
        raise StoreFailed("no")

    task = await gateway.submit()
    async with joined(gateway) as agent:
        given = await agent.hears(Assign)
        gateway.tasks.store.renew = fail  # type: ignore[method-assign]
        await agent.send(messages.Renew(held=[held(given)]))
        await agent.start(given)
        await agent.acknowledged()
        gateway.tasks.store.renew = renew  # type: ignore[method-assign]
        await agent.send(messages.Renew(held=[held(given)]))
        assert (await agent.hears(Renewed)).lost == []
        await agent.finish(given)
        await agent.acknowledged()
    assert (await gateway.task(task.uid)).state == "succeeded"


async def test_an_end_that_can_never_be_stored_fails_its_task(gateway: Gateway) -> None:
    finish = gateway.tasks.store.finish

    async def choosy(lease: Lease, ending: Ending) -> Task:
        if ending.state == "succeeded":
            raise OverflowError("a number too large")
        return await finish(lease, ending)

    gateway.tasks.store.finish = choosy  # type: ignore[method-assign]
    task = await gateway.submit()
    async with joined(gateway) as agent:
        await agent.finish(await agent.hears(Assign))
        await agent.acknowledged()
    assert (await gateway.task(task.uid)).state == "failed"


# Agents that do what they should not.


async def test_an_agent_touches_no_task_but_its_own(gateway: Gateway) -> None:
    await gateway.service("other")
    mine = await gateway.submit()
    async with joined(gateway) as agent:
        given = await agent.hears(Assign)
        async with joined(gateway, "join-other", name="thief", held=[held(given)]) as thief:
            await thief.send(messages.Renew(held=[held(given)]))
            assert (await thief.hears(Renewed)).lost == [held(given)]
            await thief.start(given)
            await thief.finish(given)
            await thief.give_back(given, counted=True)
            await thief.acknowledged()
        found = await gateway.task(mine.uid)
        assert (found.state, found.attempt) == ("assigned", 1)
        await agent.finish(given)
        await agent.acknowledged()
        assert (await gateway.task(mine.uid)).state == "succeeded"


async def test_absurd_numbers_and_words(gateway: Gateway) -> None:
    async with joined(gateway, name="n" * 100_000, device="d" * 100_000) as agent:
        task = await gateway.submit()
        given = await agent.hears(Assign)
        await agent.start(given, at=10**30)
        await agent.send(
            messages.Progressed(
                uid=given.uid,
                lease=given.lease,
                percent=1e300,
                current_node="\0",
                nodes={},
                border=True,
            )
        )
        error = {"message": "m", "http_status": "x"}
        await agent.finish(given, state="failed", started=-(10**30), ended=10**30, error=error)
        await agent.acknowledged()
        found = await gateway.task(task.uid)
        assert (found.state, found.ended, found.started) == ("failed", gateway.now, 0)
        assert found.error == {"message": "m", "http_status": 500}


async def test_a_thousand_foreign_leases_cost_nothing(gateway: Gateway) -> None:
    foreign = [messages.Held(uid=f"{n:032x}", lease="x") for n in range(1000)]
    async with joined(gateway, held=foreign) as agent:
        await agent.send(messages.Renew(held=foreign))
        assert len((await agent.hears(Renewed)).lost) == 1000


async def test_garbage_ends_the_connection_alone(gateway: Gateway) -> None:
    async with joined(gateway) as agent:
        await agent.socket.send_str('{"type":"started"}')
        assert await agent.closed() == 1008
    async with joined(gateway) as agent:
        await agent.socket.send_bytes(b"\0")
        assert await agent.closed() == 1008
    async with joined(gateway) as agent:
        await agent.socket.send_str('{"type":"of tomorrow"}')
        await agent.send(messages.Renew(held=[]))
        assert isinstance(await agent.next(), Renewed)


async def test_a_silent_agent_is_dropped(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "g", lease_seconds=0.3) as gateway:
        await gateway.service()
        async with joined(gateway) as agent:
            assert await agent.closed() == 1001


async def test_an_agent_that_reads_nothing_is_cut_off(gateway: Gateway) -> None:
    async with joined(gateway) as agent:
        (member,) = gateway.members.of("draw")
        assert agent.socket._conn is not None
        transport: Any = agent.socket._conn.transport
        transport.pause_reading()
        while member.closing is None:
            member.send(messages.Refresh(reason="x" * 20_000))
        assert member.closing[0] == 1013
        await asyncio.wait_for(member.gone.wait(), 20)
        transport.abort()


# Draining.


async def test_a_draining_one_ends_what_it_has_and_is_let_go(gateway: Gateway) -> None:
    """Its row was marked while it was cut off: what it brings along is taken, nothing more is given."""
    token = await gateway.instance("i1")
    async with joined(gateway, token, instance="i1") as agent:
        task = await gateway.submit()
        given = await agent.hears(Assign)
        await agent.start(given)
        await agent.acknowledged()
    await gone(gateway)
    await gateway.store.change_instance("i1", target="stopped")
    await gateway.submit()
    async with joined(gateway, token, instance="i1", held=[held(given)]) as agent:
        await agent.hears(Drain)
        await agent.finish(given)
        assert await agent.closed() == 4403
        assert not any(isinstance(one, Assign) for one in agent.seen)
    assert (await gateway.task(task.uid)).state == "succeeded"


async def test_the_link_outlives_a_restart_of_the_gateway(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "g") as gateway:
        await gateway.service()
        token = await gateway.instance("i1")
        async with joined(gateway, token, instance="i1") as agent:
            task = await gateway.submit()
            given = await agent.hears(Assign)
    async with running_gateway(tmp_path / "g") as gateway:
        async with joined(gateway, token, instance="i1", held=[held(given)]) as agent:
            await agent.start(given)
            await agent.finish(given)
            await agent.acknowledged()
        assert (await gateway.task(task.uid)).state == "succeeded"


async def test_engines_are_called_directly_only_where_the_agent_is(gateway: Gateway) -> None:
    for url, direct in (
        ("http://127.0.0.1:8188", True),
        ("http://localhost:8188", True),
        ("http://169.254.169.254", False),
        ("http://10.0.0.1:8188", False),
        ("file:///etc/passwd", False),
        ("http://[", False),
        (None, False),
    ):
        async with joined(gateway, engine_url=url):
            (member,) = gateway.members.of("draw")
            assert (member.upstream == url) is direct
            assert member.upstream.startswith("http://")
        await gone(gateway)
