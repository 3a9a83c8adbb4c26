"""The work queue, on a clock of the test's own."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from easel.fleet.workqueue import WorkQueue


class Clock:
    now = 0

    def __call__(self) -> int:
        return self.now


def take_all(queue: WorkQueue[str]) -> list[str]:
    taken = []
    while (key := queue.take()) is not None:
        taken.append(key)
    return taken


def test_a_key_that_waits_is_merged() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    for key in "abab":
        queue.put(key)
    assert take_all(queue) == ["a", "b"]


def test_a_key_that_is_worked_on_comes_again_afterwards() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    queue.put("a")
    assert queue.take() == "a"
    queue.put("a")
    queue.put("a")
    assert queue.take() is None
    queue.done("a")
    assert take_all(queue) == ["a"]
    queue.done("a")
    assert queue.take() is None


def test_of_several_times_the_earliest_counts() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.put_at("a", 300)
    queue.put_at("a", 100)
    queue.put_at("a", 200)
    assert queue.next_due() == 100
    clock.now = 99
    assert queue.take() is None
    clock.now = 100
    assert queue.take() == "a"
    queue.done("a")
    clock.now = 1000
    assert queue.take() is None


def test_the_pause_doubles_until_it_is_forgiven() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock, backoff=1, backoff_max=5)
    pauses = []
    for _ in range(5):
        pauses.append(queue.put_backoff("a"))
        clock.now += int(pauses[-1] * 1000)
        assert queue.take() == "a"
        queue.done("a")
    assert pauses == [1, 2, 4, 5, 5]
    queue.forgive("a")
    assert queue.put_backoff("a") == 1


async def test_getting_waits_for_a_put_and_for_the_clock() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    getting = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0)
    assert not getting.done()
    queue.put("a")
    assert await asyncio.wait_for(getting, 5) == "a"
    queue.put_at("b", 3_600_000)
    getting = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0)
    assert not getting.done()
    clock.now = 3_600_000
    queue.wake()
    assert await asyncio.wait_for(getting, 5) == "b"


async def test_a_getter_that_is_cancelled_loses_nothing() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    getting = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0)
    queue.put("a")
    getting.cancel()
    await asyncio.wait([getting])
    assert getting.cancelled()
    assert queue.take() == "a"


class Model(RuleBasedStateMachine):
    """No key is ever worked on twice at once, and none that was put is lost."""

    keys = st.sampled_from("abc")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue: WorkQueue[str] = WorkQueue(self.clock)
        self.owed: set[str] = set()
        self.timed: dict[str, int] = {}
        self.working: set[str] = set()

    @rule(key=keys)
    def put(self, key: str) -> None:
        self.queue.put(key)
        self.owed.add(key)

    @rule(key=keys, after=st.integers(0, 20))
    def put_at(self, key: str, after: int) -> None:
        self.queue.put_at(key, self.clock.now + after)
        self.timed[key] = min(self.timed.get(key, 10**9), self.clock.now + after)

    @rule(by=st.integers(1, 10))
    def pass_time(self, by: int) -> None:
        self.clock.now += by

    @rule()
    def take(self) -> None:
        for key in [key for key, at in self.timed.items() if at <= self.clock.now]:
            del self.timed[key]
            self.owed.add(key)
        taken = self.queue.take()
        if taken is None:
            assert self.owed <= self.working
        else:
            assert taken in self.owed
            assert taken not in self.working
            self.owed.discard(taken)
            self.working.add(taken)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.working.discard(key)
        self.queue.done(key)

    @invariant()
    def the_next_time_is_known(self) -> None:
        due = [at for at in self.timed.values() if at > self.clock.now]
        late = [at for at in self.timed.values() if at <= self.clock.now]
        if not late:
            assert self.queue.next_due() == min(due, default=None)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
