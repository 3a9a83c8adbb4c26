"""Task stores against a model in memory: any sequence of calls has the outcomes that the port's words promise."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from easel.errors import LeaseLost, QueueFull, TaskConflict, TaskNotFound
from easel.tasks.model import FINISHED, HELD, Ending, Lease, Progress, Task
from easel.tasks.store import TaskStore
from easel.workflow.progress import NodeProgress
from tests.contract.task_stores import Clock, TaskPlace, new

T = TypeVar("T")

LEASE = 100
MAX_DELIVERY = 2

_services = itertools.count()


@dataclass
class Known:
    """What the model knows of a task."""

    uid: str
    owner: str
    id: str
    signature: str
    priority: int
    deadline: int | None
    turn: int
    seq: int
    state: str = "queued"
    attempt: int = 0
    cancelling: bool = False
    rear: bool = False
    until: int = 0
    ended: int = 0
    lease: Lease | None = None
    """Of the latest attempt, while it can be repeated."""
    nodes: dict[str, NodeProgress] = field(default_factory=dict)
    percent: float = 0
    events: list[str] = field(default_factory=lambda: ["queued"])

    @property
    def place(self) -> tuple[int, int, int]:
        return -self.priority, self.turn, self.seq


class Machine(RuleBasedStateMachine):
    """Calls the store and the model alike."""

    def __init__(self, store: TaskStore, runner: asyncio.Runner, clock: Clock) -> None:
        super().__init__()
        self.store = store
        self.runner = runner
        self.clock = clock
        self.service = f"service-{next(_services)}"
        self.known: dict[tuple[str, str], Known] = {}
        self.leases: list[Lease] = []
        """Every lease that ever was."""
        self.seq = 0

    def do(self, call: Awaitable[T]) -> T:
        async def done() -> T:
            async with asyncio.timeout(30):
                return await call

        return self.runner.run(done())

    def teardown(self) -> None:
        self.do(self.store.forget_service(self.service))

    def waiting(self) -> list[Known]:
        return sorted(
            (task for task in self.known.values() if task.state == "queued"),
            key=lambda task: task.place,
        )

    def holder(self, lease: Lease) -> Known | None:
        found = (task for task in self.known.values() if task.uid == lease.uid)
        task = next(found, None)
        held = task is not None and task.state in HELD and task.lease == lease
        return task if held else None

    def check(self, task: Task, known: Known) -> None:
        assert (
            task.uid,
            task.owner,
            task.id,
            task.state,
            task.attempt,
            task.cancelling,
            task.rear,
            task.percent,
            task.nodes,
            task.seeds,
            task.ended,
            task.last_event,
        ) == (
            known.uid,
            known.owner,
            known.id,
            known.state,
            known.attempt,
            known.cancelling,
            known.rear,
            known.percent,
            known.nodes,
            {"3.seed": 7},
            known.ended if known.state in FINISHED else None,
            len(known.events),
        )

    # Calls

    @rule(
        owner=st.sampled_from("abc"),
        task_id=st.sampled_from("123456789"),
        signature=st.sampled_from(["sig", "sig", "sig", "gis"]),
        priority=st.sampled_from([0, 0, 0, 1]),
        wait=st.none() | st.integers(0, 300),
        most=st.none() | st.integers(0, 8),
    )
    def put(
        self,
        *,
        owner: str,
        task_id: str,
        signature: str,
        priority: int,
        wait: int | None,
        most: int | None,
    ) -> None:
        deadline = None if wait is None else self.clock.now + wait
        asked = new(
            task_id,
            service=self.service,
            owner=owner,
            signature=signature,
            priority=priority,
            deadline=deadline,
            seeds={"3.seed": 7},
        )
        call = self.store.put(asked) if most is None else self.store.put_within(asked, most)
        before = self.known.get((owner, task_id))
        waiting = self.waiting()
        try:
            task, created = self.do(call)
        except TaskConflict:
            assert before is not None
            assert before.signature != signature
            return
        except QueueFull:
            assert before is None
            assert most is not None
            assert len(waiting) >= most
            return
        assert created == (before is None)
        if before is None:
            assert most is None or len(waiting) < most
            line = [known for known in waiting if known.priority == priority]
            own = [known.turn for known in line if known.owner == owner]
            turn = max(own) + 1 if own else line[0].turn if line else 0
            self.seq += 1
            before = self.known[owner, task_id] = Known(
                task.uid, owner, task_id, signature, priority, deadline, turn, self.seq
            )
        else:
            assert before.signature == signature
        self.check(task, before)

    @rule()
    def claim(self) -> None:
        found = self.do(self.store.claim(self.service, "i", lease_ms=LEASE))
        line = [k for k in self.waiting() if k.deadline is None or k.deadline > self.clock.now]
        if not line:
            assert found is None
            return
        assert found is not None
        known = line[0]
        known.state, known.lease, known.until = "assigned", found.lease, found.until
        known.attempt += 1
        known.events.append("assigned")
        self.leases.append(found.lease)
        self.check(found.task, known)

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        if self.leases:
            lease = data.draw(st.sampled_from(self.leases))
            known = self.holder(lease)
            with self.lost_unless(known):
                self.do(self.store.start(lease, self.clock.now))
            if known is not None and known.state == "assigned":
                known.state = "running"
                known.events.append("started")

    @rule(data=st.data(), percent=st.integers(0, 99), event=st.booleans())
    def progress(self, data: st.DataObject, percent: int, event: bool) -> None:
        if self.leases:
            lease = data.draw(st.sampled_from(self.leases))
            nodes = {str(percent % 4): NodeProgress(value=percent, max=100)}
            known = self.holder(lease)
            with self.lost_unless(known):
                said = Progress(percent=percent, current_node="3", nodes=nodes)
                self.do(self.store.progress(lease, said, event=event))
            if known is not None:
                known.percent = percent
                known.nodes = {**known.nodes, **nodes}
                known.events += ["progress"] * event

    @rule(data=st.data(), state=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def finish(self, data: st.DataObject, state: Any) -> None:
        if self.leases:
            lease = data.draw(st.sampled_from(self.leases))
            again = next((k for k in self.known.values() if k.lease == lease), None)
            with self.lost_unless(again):
                done = self.do(self.store.finish(lease, Ending(state=state, ended=self.clock.now)))
                assert again is not None
                if again.state in HELD:
                    self.end(again, state)
                self.check(done, again)

    @rule(data=st.data(), counted=st.booleans())
    def give_back(self, data: st.DataObject, counted: bool) -> None:
        if self.leases:
            lease = data.draw(st.sampled_from(self.leases))
            known = self.holder(lease)
            with self.lost_unless(known):
                call = self.store.give_back(
                    lease, "why", counted=counted, max_delivery=MAX_DELIVERY
                )
                task = self.do(call)
                assert known is not None
                self.release(known, counted)
                self.check(task, known)

    @rule(owner=st.sampled_from("abc"), task_id=st.sampled_from("123456789"))
    def cancel(self, owner: str, task_id: str) -> None:
        known = self.known.get((owner, task_id))
        try:
            task = self.do(self.store.cancel(self.service, owner, task_id))
        except TaskNotFound:
            assert known is None
            return
        assert known is not None
        if known.state == "queued":
            self.end(known, "cancelled")
        elif known.state in HELD and not known.cancelling:
            known.cancelling = True
            known.events.append("cancelling")
        self.check(task, known)

    @rule()
    def renew(self) -> None:
        lost, cancelling = self.do(self.store.renew(self.leases, lease_ms=LEASE))
        held = {lease.token: self.holder(lease) for lease in self.leases}
        assert {lease.token for lease in lost} == {t for t, known in held.items() if known is None}
        kept = [known for known in held.values() if known is not None]
        assert set(cancelling) == {known.uid for known in kept if known.cancelling}
        for known in kept:
            known.until = self.clock.now + LEASE

    @rule(by=st.integers(1, 150))
    def wait(self, by: int) -> None:
        self.clock.now += by

    @rule()
    def sweep(self) -> None:
        swept = self.do(self.store.sweep(max_delivery=MAX_DELIVERY))
        overdue = [k for k in self.known.values() if k.state in HELD and k.until <= self.clock.now]
        late = [
            k for k in self.waiting() if k.deadline is not None and k.deadline <= self.clock.now
        ]
        given_back: list[Known] = []
        for known in sorted(overdue, key=lambda k: (k.turn, k.seq), reverse=True):
            self.release(known, True)
            if known.state == "queued":
                given_back.append(known)
        # What has come back in line past its deadline expires at this look or at the next.
        late += [k for k in given_back if k.uid in swept.expired]
        for known in late:
            self.end(known, "expired")
        assert set(swept.expired) == {k.uid for k in late}
        assert set(swept.redelivered) == {k.uid for k in given_back}
        assert set(swept.rear) == {k.uid for k in overdue if k.rear}
        assert set(swept.cancelled) == {k.uid for k in overdue if k.state == "cancelled"}
        assert swept.services == ([self.service] if given_back else [])

    @rule(age=st.integers(0, 200))
    def forget(self, age: int) -> None:
        before = self.clock.now - age
        gone = self.do(self.store.forget(self.service, ended_before=before))
        expected = {
            key: known
            for key, known in self.known.items()
            if known.state in FINISHED and known.ended < before
        }
        assert set(gone) == {known.uid for known in expected.values()}
        for key in expected:
            del self.known[key]

    # The model

    @contextlib.contextmanager
    def lost_unless(self, known: Known | None) -> Any:
        try:
            yield
        except LeaseLost:
            assert known is None
        else:
            assert known is not None

    def end(self, known: Known, state: str, *, rear: bool = False) -> None:
        if state != "expired" and not (known.state in HELD and not rear):
            known.lease = None
        known.state, known.rear, known.cancelling = state, rear, False
        known.ended = self.clock.now
        known.percent = 100 if state == "succeeded" else known.percent
        known.events.append(state)

    def release(self, known: Known, counted: bool) -> None:
        known.attempt -= not counted
        if known.cancelling:
            self.end(known, "cancelled")
            known.lease = None
        elif counted and known.attempt >= MAX_DELIVERY:
            self.end(known, "failed", rear=True)
        else:
            line = [k for k in self.waiting() if k.priority == known.priority]
            if line and line[0].place < known.place:
                known.turn = line[0].turn - (known.seq > line[0].seq)
            known.state, known.lease, known.nodes, known.percent = "queued", None, {}, 0
            known.events.append("redelivered")

    # What always holds

    @invariant()
    def the_store_tells_the_same(self) -> None:
        counts = self.do(self.store.counts(self.service))
        assert {s: n for s, n in counts.items() if n} == Counter(
            known.state for known in self.known.values()
        )
        page = self.do(self.store.page(self.service, limit=1000))
        assert [task.uid for task in page] == [
            known.uid for known in sorted(self.known.values(), key=lambda k: -k.seq)
        ]
        for place, known in enumerate(self.waiting()):
            assert self.do(self.store.position(known.uid)) == place
        held = {task.uid for task in self.do(self.store.held(self.service))}
        assert held == {known.uid for known in self.known.values() if known.state in HELD}

    @rule(owner=st.sampled_from("abc"), task_id=st.sampled_from("123456789"))
    def get(self, owner: str, task_id: str) -> None:
        known = self.known.get((owner, task_id))
        try:
            self.check(self.do(self.store.get(self.service, owner, task_id)), known)  # type: ignore[arg-type]
        except TaskNotFound:
            assert known is None
            return
        assert known is not None
        events = self.do(self.store.events(known.uid))
        assert [event.kind for event in events] == known.events
        assert [event.number for event in events] == list(range(1, len(events) + 1))


def test_it_does_what_the_model_does(task_place: TaskPlace, clock: Clock) -> None:
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        opened = task_place.opened()
        store = runner.run(opened.__aenter__())
        stack.callback(lambda: runner.run(opened.__aexit__(None, None, None)))

        class Here(Machine):
            def __init__(self) -> None:
                super().__init__(store, runner, clock)

        run_state_machine_as_test(
            Here,
            settings=settings(
                max_examples=40,
                stateful_step_count=40,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
