"""Draining over real members of the link."""

from __future__ import annotations

import asyncio
from typing import Any

from easel.fleet.members import Holding, Member, Members
from easel.fleet.ties import Ties
from easel.link.messages import Drain, EngineReport, Hello, from_gateway
from easel.tasks.bus import LocalBus
from easel.tasks.model import Lease


class Socket:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    async def send_text(self, text: str) -> None:
        self.sent.append(from_gateway(text))


def connected(members: Members) -> tuple[Member, Socket]:
    socket: Any = Socket()
    hello = Hello(
        name="a",
        boot="b",
        easel="0",
        capacity=2,
        engine=EngineReport(state="ready", ready=True),
    )
    member = Member("i", "draw", hello, socket)
    members.add(member)
    return member, socket


async def test_draining_waits_for_what_is_held_and_lets_go() -> None:
    bus = LocalBus()
    members = Members(bus)
    ties = Ties(members, bus)
    member, socket = connected(members)
    member.holds["t"] = Holding(Lease(uid="t", token="x"))
    assert (ties.engine_ready("i"), ties.load("i")) == (True, 1)
    draining = asyncio.create_task(ties.drain("i"))
    await asyncio.sleep(0)
    assert not member.ready
    assert not draining.done()
    del member.holds["t"]
    bus.publish("queue:draw")
    await asyncio.wait_for(draining, 10)
    assert member.closing is not None
    assert member.closing[0] == 4403
    await member.write()
    assert socket.sent == [Drain()]


async def test_draining_ends_when_the_agent_leaves_or_is_not_there() -> None:
    bus = LocalBus()
    members = Members(bus)
    ties = Ties(members, bus)
    await asyncio.wait_for(ties.drain("i"), 10)
    assert ties.engine_ready("i") is None
    assert ties.load("i") == 0
    member, _ = connected(members)
    member.holds["t"] = Holding(Lease(uid="t", token="x"))
    draining = asyncio.create_task(ties.drain("i"))
    await asyncio.sleep(0)
    members.remove(member)
    await asyncio.wait_for(draining, 10)


async def test_an_agent_that_is_not_done_in_time_is_let_go_all_the_same() -> None:
    bus = LocalBus()
    members = Members(bus)
    member, _ = connected(members)
    member.holds["t"] = Holding(Lease(uid="t", token="x"))
    draining = asyncio.create_task(Ties(members, bus).drain("i"))
    await asyncio.sleep(0)
    draining.cancel()
    await asyncio.wait([draining])
    assert member.closing is not None
