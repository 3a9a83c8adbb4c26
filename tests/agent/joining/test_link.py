"""The link itself: cut and replayed, renewed, lost, closed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from easel.link import messages
from easel.link.messages import Cancel, Finished, Hello, Progressed, Renew, Returned, Started
from tests.agent.agents import noop, picture, sleep, steps
from tests.agent.joining.gateways import Member, held, member
from tests.waiting import until


async def test_what_an_agent_says_of_itself(joined: Member) -> None:
    hello = joined.gateway.all(Hello)[0]
    assert (hello.name, hello.capacity, hello.version) == ("box", 2, messages.VERSION)
    assert hello.instance is None
    assert hello.shares_storage
    assert hello.engine_url == joined.engine.url
    assert hello.agent_url == joined.agent.url
    assert hello.held == []


async def test_an_engine_that_is_hidden(tmp_path: Path) -> None:
    async with member(tmp_path, engine_reachable=False, instance="i-7") as joined:
        hello = joined.gateway.all(Hello)[0]
        assert (hello.engine_url, hello.agent_url) == (None, None)
        assert hello.instance == "i-7"


async def test_a_task_outlives_a_cut(joined: Member) -> None:
    """It runs on, its lease is told again, and its end comes over the next connection."""
    at = joined.gateway
    assign = await at.assign(steps(100, 0.01))
    await at.heard(Progressed, assign.uid)
    await at.cut()
    hello = await at.connected(2)
    assert hello.held == [held(assign)]
    assert hello.boot == at.all(Hello)[0].boot
    ended = await at.ended(assign)
    assert ended.state == "succeeded"
    assert len(at.all(Started, assign.uid)) == 1


async def test_progress_after_a_cut_has_every_node(joined: Member) -> None:
    at = joined.gateway
    prompt = {**steps(3000, 0.01), "2": noop()["1"]}
    assign = await at.assign(prompt)
    await at.heard(Progressed, assign.uid, count=3)
    await at.cut()
    await at.connected(2)
    seen = at.said.index(at.all(Hello)[-1])

    def later() -> list[Progressed]:
        return [one for one in at.said[seen:] if isinstance(one, Progressed)]

    await at.until(later)
    assert set(later()[0].nodes) == {"1", "2"}
    await at.say(Cancel(uid=assign.uid, lease=assign.lease))
    await at.ended(assign)


async def test_an_end_while_the_gateway_is_away_comes_first_afterwards(joined: Member) -> None:
    at = joined.gateway
    assign = await at.assign(picture())
    second = await at.assign(sleep(0.3))
    await at.stop()
    before = len(at.said)

    async def both_have_run() -> bool:
        return await joined.agent.executed() == 2

    await until(both_have_run)
    await at.start()
    hello = await at.connected(2)
    assert hello in at.said[before:]
    assert {one.uid for one in hello.held} == {assign.uid, second.uid}
    ended, ended_too = await at.ended(assign), await at.ended(second)
    assert (ended.state, ended_too.state) == ("succeeded", "succeeded")
    said = at.said[at.said.index(hello) + 1 :]
    replayed = [one for one in said if isinstance(one, Started | Finished)]
    # Before anything else, and in order.
    assert said[0] is replayed[0]
    assert [one.n for one in replayed] == sorted(one.n for one in replayed)


async def test_what_is_not_acknowledged_is_said_again(joined: Member) -> None:
    at = joined.gateway
    at.acknowledges = False
    first = await at.assign(noop("a"))
    second = await at.assign(noop("b"))
    await at.ended(first)
    await at.ended(second)
    # Their leases are renewed: to the gateway they are not over.
    await at.holds(first, second)
    told = at.all(Started) + at.all(Finished)
    numbers = sorted(one.n for one in told)
    assert numbers == [1, 2, 3, 4]

    for connection in (2, 3):
        before = len(at.said)
        await at.cut()
        await at.connected(connection)

        def again(begin: int = before) -> list[int]:
            said = [one for one in at.said[begin:] if not isinstance(one, Hello)][:4]
            return [one.n for one in said if isinstance(one, Started | Finished)]

        await at.until(lambda: len(again()) == 4)
        assert again() == [1, 2, 3, 4]

    at.acknowledges = True
    await at.say(messages.Acknowledge(n=2))
    await at.say(messages.Acknowledge(n=4))
    await at.holds()
    # What comes next has the next number.
    third = await at.ended(await at.assign(noop("c")))
    assert third.n == 6


async def test_a_lost_lease_ends_its_task_without_a_word(joined: Member) -> None:
    at = joined.gateway
    lost = await at.assign(sleep(60))
    kept = await at.assign(sleep(60))
    await at.heard(Started, lost.uid)
    await at.holds(lost, kept)
    at.lost = {lost.lease}
    await at.heard(Started, kept.uid)
    await at.holds(kept)
    assert not at.all(Finished)
    assert not at.all(Returned)
    assert await joined.queue() == (1, 0)
    await at.say(Cancel(uid=kept.uid, lease=kept.lease))
    await at.ended(kept)
    assert not at.all(Finished, lost.uid)


async def test_an_end_that_was_not_acknowledged_is_forgotten_with_its_lease(joined: Member) -> None:
    at = joined.gateway
    at.acknowledges = False
    assign = await at.assign(noop())
    await at.ended(assign)
    at.lost = {assign.lease}
    await at.holds()
    before = len(at.said)
    await at.cut()
    await at.connected(2)
    await at.holds()
    assert not [one for one in at.said[before:] if isinstance(one, Started | Finished)]


async def test_a_task_that_comes_again_under_another_lease(joined: Member) -> None:
    at = joined.gateway
    first = await at.assign(sleep(60), uid="u")
    await at.heard(Started, "u")
    second = await at.assign(picture(), uid="u")
    ended = await at.ended(second)
    assert (ended.lease, ended.state) == (second.lease, "succeeded")
    assert {one.lease for one in at.all(Finished)} == {second.lease}
    # An outdated word about the first lease does no harm to the second.
    await at.say(messages.Renewed(lost=[held(first)]))
    await at.holds()
    await until(joined.agent.engine_idle)


async def test_a_task_that_is_assigned_twice_runs_once(joined: Member) -> None:
    at = joined.gateway
    assign = await at.assign(steps(20, 0.01))
    await at.say(assign)
    await at.ended(assign)
    await at.holds()
    assert len(at.all(Finished)) == 1
    assert await joined.agent.executed() == 1


async def test_what_is_not_understood_is_passed_over(joined: Member) -> None:
    at = joined.gateway
    for text in ('{"type": "from the future"}', "{", '{"type": "assign"}', "[]", '{"type": "ack"}'):
        await at.raw(text)
    assert (await at.ended(await at.assign(noop()))).state == "succeeded"
    assert at.connections == 1


async def test_words_about_tasks_that_are_not_here_do_no_harm(joined: Member) -> None:
    at = joined.gateway
    await at.say(Cancel(uid="nobody", lease="x"))
    await at.say(messages.Recall(uid="nobody", lease="x"))
    await at.say(messages.Watch(uid="nobody", previews=True))
    await at.say(messages.Acknowledge(n=99))
    assert (await at.ended(await at.assign(noop()))).state == "succeeded"


@pytest.mark.parametrize("code", [1001, 1008, 1011, 1013])
async def test_an_agent_comes_back_after_other_closes(joined: Member, code: int) -> None:
    await joined.gateway.close(code, "for now")
    await joined.gateway.connected(2)
    assert (await joined.gateway.ended(await joined.gateway.assign(noop()))).state == "succeeded"


@pytest.mark.parametrize(
    ("code", "failed", "words"),
    [
        (4401, True, "refuses the token"),
        (4403, False, "enough of you"),
        (4409, True, "in this one's place"),
        (4426, True, "version"),
    ],
)
@pytest.mark.parametrize("welcomed", [True, False])
async def test_closes_for_good(
    joined: Member, code: int, failed: bool, words: str, welcomed: bool
) -> None:
    """Nothing is said any more, and what runs is stopped."""
    at, client = joined.gateway, joined.agent.running.member
    assert client is not None
    assign = await at.assign(sleep(60))
    await at.heard(Started, assign.uid)
    if welcomed:
        await at.close(code, "enough of you")
    else:
        at.closes_with = (code, "enough of you")
        await at.cut()
    leaving = await asyncio.wait_for(client.left, 20)
    assert words in leaving.reason
    assert (leaving.error is not None) == failed
    await until(joined.agent.engine_idle)
    assert not at.all(Finished)


async def test_a_renewal_names_everything_that_is_held(joined: Member) -> None:
    at = joined.gateway
    first = await at.assign(sleep(60))
    second = await at.assign(sleep(60))
    await at.holds(first, second)
    for one in (second, first):
        await at.say(Cancel(uid=one.uid, lease=one.lease))
    await at.ended(first)
    await at.holds()
    assert at.all(Renew)[0].held == []
