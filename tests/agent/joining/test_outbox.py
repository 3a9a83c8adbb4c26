"""What is on its way to the gateway, against a model: nothing numbered is lost, nothing of a node's progress either."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.agent.joining.backoff import FIRST_PAUSE, LONGEST_PAUSE, Backoff
from easel.agent.joining.outbox import Frame, Outbox
from easel.errors import BodyTooLarge
from easel.link import messages
from easel.link.messages import Progressed, Report, Started
from easel.workflow.progress import NodeProgress

LEASES = ("a", "b", "c")


def started(outbox: Outbox, lease: str) -> None:
    """Say that a task began."""
    outbox.keep(lease, lambda n: Started(n=n, uid=f"task {lease}", lease=lease, at=n))


def progress(lease: str, node: str, value: float, *, border: bool = False) -> Progressed:
    """Return the progress of one node."""
    nodes = {node: NodeProgress(value=value, max=100)}
    return Progressed(
        uid=f"task {lease}",
        lease=lease,
        percent=value,
        current_node=node,
        nodes=nodes,
        border=border,
    )


def read(frames: list[Frame]) -> list[messages.FromAgent]:
    """Return the text messages among frames."""
    found = [messages.from_agent(one.data) for one in frames if not one.binary]
    return [one for one in found if one is not None]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("keep"), st.sampled_from(LEASES)),
            st.tuples(st.just("send"), st.just("")),
            st.tuples(st.just("cut"), st.just("")),
            st.tuples(st.just("acknowledge"), st.just("")),
            st.tuples(st.just("forget"), st.sampled_from(LEASES)),
        )
    )
)
def test_whatever_is_cut_the_gateway_gets_every_number_in_order(
    steps: list[tuple[str, str]],
) -> None:
    async def play() -> None:
        outbox, made = Outbox(), 0
        kept: dict[int, str] = {}
        heard: list[int] = []
        for what, lease in steps:
            if what == "keep":
                made += 1
                started(outbox, lease)
                kept[made] = lease
            elif what == "send":
                numbers = [one.n for one in read(list(outbox.take())) if isinstance(one, Started)]
                assert numbers == sorted(numbers)
                heard += numbers
            elif what == "acknowledge" and heard:
                outbox.acknowledged(max(heard))
                kept = {n: one for n, one in kept.items() if n > max(heard)}
            elif what == "forget":
                outbox.forget(lease)
                kept = {n: one for n, one in kept.items() if one != lease}
            elif what == "cut":
                outbox.reconnected()
        outbox.reconnected()
        again = [one.n for one in read(list(outbox.take())) if isinstance(one, Started)]
        assert again == list(kept)
        for lease in LEASES:
            waiting = asyncio.create_task(outbox.stored(lease))
            await asyncio.sleep(0)
            assert waiting.done() == (lease not in kept.values())
            waiting.cancel()

    asyncio.run(play())


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(LEASES), st.sampled_from("123"), st.integers(0, 100)),
            st.just(None),
        )
    )
)
def test_progress_that_waits_loses_no_node(steps: list[tuple[str, str, int] | None]) -> None:
    async def play() -> None:
        outbox = Outbox()
        wanted: dict[tuple[str, str], float] = {}
        told: dict[tuple[str, str], float] = {}
        for step in [*steps, None]:
            if step is None:
                for one in read(list(outbox.take())):
                    assert isinstance(one, Progressed)
                    told.update({(one.lease, node): p.value for node, p in one.nodes.items()})
                assert told == wanted
            else:
                lease, node, value = step
                outbox.progress(progress(lease, node, value))
                wanted[lease, node] = value

    asyncio.run(play())


async def test_a_border_is_not_lost_in_what_follows_it() -> None:
    outbox = Outbox()
    outbox.progress(progress("a", "1", 1, border=True))
    outbox.progress(progress("a", "1", 2))
    (told,) = read(list(outbox.take()))
    assert isinstance(told, Progressed)
    assert told.border
    assert told.percent == 2


async def test_progress_goes_before_what_is_said_after_it() -> None:
    outbox = Outbox()
    started(outbox, "a")
    outbox.progress(progress("a", "1", 1))
    started(outbox, "a")
    assert [type(one).__name__ for one in read(list(outbox.take()))] == [
        "Started",
        "Progressed",
        "Started",
    ]


async def test_only_the_latest_preview_waits() -> None:
    outbox = Outbox()
    for number in range(5):
        outbox.preview("a", b"%d" % number)
        outbox.preview("b", b"%d" % number)
    assert list(outbox.take()) == [Frame(b"4", binary=True), Frame(b"4", binary=True)]


async def test_what_comes_while_others_are_sent_is_sent_too() -> None:
    outbox = Outbox()
    engine = messages.EngineReport(state="ready", ready=True)
    outbox.say(Report(engine=engine))
    taken = outbox.take()
    next(taken)
    started(outbox, "a")
    assert len(read(list(taken))) == 1
    # The writer is woken again, to find nothing.
    assert outbox.news.is_set()
    assert list(outbox.take()) == []
    assert not outbox.news.is_set()


async def test_what_no_gateway_would_take_is_not_sent_for_ever() -> None:
    outbox = Outbox(limit=300)
    with pytest.raises(BodyTooLarge):
        outbox.keep("a", lambda n: Started(n=n, uid="u" * 300, lease="a", at=n))
    outbox.preview("a", bytes(301))
    outbox.progress(progress("a", "n" * 300, 1))
    started(outbox, "b")
    (said,) = read(list(outbox.take()))
    assert isinstance(said, Started)
    assert said.n == 1


def test_pauses_grow_and_begin_anew() -> None:
    backoff = Backoff()
    pauses = [backoff.pause() for _ in range(12)]
    assert pauses[0] == 0
    assert FIRST_PAUSE / 2 <= pauses[1] <= FIRST_PAUSE
    assert all(pause <= LONGEST_PAUSE for pause in pauses)
    assert pauses[-1] >= LONGEST_PAUSE / 2
    backoff.reset()
    assert backoff.pause() == 0
