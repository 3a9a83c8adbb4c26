"""The one road of every task: submitted by a door, claimed for an instance, watched, finished.

What must last is in the `TaskStore`; what is live is here: progress between two looks at the store, previews, and who waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence

from easel.errors import EaselError, LeaseLost
from easel.link.messages import Preview
from easel.settings import TaskSettings
from easel.tasks.bus import EventBus
from easel.tasks.model import FINISHED, Assignment, Ending, Lease, NewTask, Progress, Task
from easel.tasks.store import TaskStore
from easel.tasks.watching import Live, Watch

log = logging.getLogger(__name__)

BORDER_DELAY = 0.1
"""Seconds until a node border is stored: most tasks that are quicker than that need not be stored in between."""
RETRY_PAUSE = 1.0
"""Seconds until the store is asked again after it failed."""
MOST_TOLD = 10_000
"""Ends remembered, so that one that is delivered again is not told of again."""


def now_ms() -> int:
    """Return the time in ms since the epoch."""
    return time.time_ns() // 1_000_000


class Tasks:
    """Every task of the platform, as doors and dispatchers see them."""

    def __init__(
        self,
        store: TaskStore,
        bus: EventBus,
        settings: TaskSettings,
        *,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.store = store
        self.bus = bus
        self.settings = settings
        self.on_cancel: Callable[[Task], None] = lambda task: None
        """Called with a held task that is to be cancelled: its agent should be told."""
        self.on_previews_wanted: Callable[[str, bool], None] = lambda uid, wanted: None
        """Called with a held task's uid when the first watcher of its previews comes, and when the last one leaves."""
        self.on_ended: Callable[[Task], None] = lambda task: None
        """Called with every task whose end this process wrote, once."""
        self._clock = clock
        self._live: dict[str, Live] = {}
        self._told: dict[str, None] = {}
        """Tasks whose end was told of lately: agents repeat what was not acknowledged."""
        self._due: dict[str, float] = {}
        """uid → loop time at which its progress is to be stored."""
        self._dirty = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Begin to look at the clock and to store progress."""
        self._loops = [
            asyncio.create_task(self._sweep_often(), name="easel tasks sweep"),
            asyncio.create_task(self._store_often(), name="easel tasks progress"),
        ]

    async def close(self) -> None:
        """Store what is not stored yet. The tasks themselves go on wherever they are."""
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops)
        for uid in list(self._due):
            with contextlib.suppress(EaselError):
                await self._store_progress(uid)

    # Doors.

    async def submit(self, new: NewTask, most_waiting: int) -> tuple[Task, bool]:
        """Accept a task durably; False with the one that has the id and body already.

        Raises TaskConflict, QueueFull and StoreFailed; then nothing was accepted.
        """
        task, created = await self.store.put_within(new, most_waiting)
        if created:
            self.bus.publish(f"queue:{task.service}")
        return task, created

    @contextlib.asynccontextmanager
    async def watch(self, uid: str, *, previews: bool = False) -> AsyncIterator[Watch]:
        """Watch a task until the block ends. Raises TaskNotFound and StoreFailed."""
        with self.bus.subscribe(f"task:{uid}") as news:
            live = self._live.get(uid)
            if live is None:
                task = await self.store.get_uid(uid)
                live = self._live.setdefault(uid, Live(task))
            watch = Watch(live, news, self._reload, previews=previews)
            wanted = live.wants_previews
            live.watches.add(watch)
            if previews and not wanted and live.lease is not None:
                self.on_previews_wanted(uid, True)
            try:
                yield watch
            finally:
                live.watches.discard(watch)
                if previews and not live.wants_previews and live.lease is not None:
                    self.on_previews_wanted(uid, False)
                self._forget_if_idle(live)

    async def get(self, service: str, owner: str, task_id: str) -> Task:
        """Return an owner's task as it is now. Raises TaskNotFound and StoreFailed."""
        task = await self.store.get(service, owner, task_id)
        live = self._live.get(task.uid)
        return live.task if live is not None and live.lease is not None else task

    async def cancel(self, service: str, owner: str, task_id: str) -> Task:
        """Cancel an owner's task wherever it is; harmless when it is over. One that runs ends a moment later.

        Raises TaskNotFound and StoreFailed.
        """
        before = await self.store.get(service, owner, task_id)
        if before.state in FINISHED:
            return before
        task = await self.store.cancel(service, owner, task_id)
        live = self._live.get(task.uid)
        if task.state in FINISHED:
            self._ended(task)
        else:
            if live is not None:
                live.task.cancelling = True
            self.on_cancel(task)
        self.bus.publish(f"task:{task.uid}")
        return task

    # Instances.

    async def claim(self, service: str, instance: str) -> Assignment | None:
        """Claim the next task of a service for an instance; None when there is none now. Raises StoreFailed."""
        lease_ms = int(self.settings.lease_seconds * 1000)
        found = await self.store.claim(service, instance, lease_ms=lease_ms)
        if found is not None:
            live = self._live.setdefault(found.task.uid, Live(found.task))
            live.task, live.lease = found.task, found.lease
            self.bus.publish(f"task:{found.task.uid}")
        return found

    async def hold(self, lease: Lease) -> None:
        """Take a task that an agent brings along from before a cut: its progress is shown from now on. Raises LeaseLost."""
        lost, _ = await self.renew([lease])
        if lost:
            raise LeaseLost("the task is another instance's by now, or has ended")
        task = await self.store.get_uid(lease.uid)
        live = self._live.setdefault(lease.uid, Live(task))
        live.task, live.lease = task, lease
        self.bus.publish(f"task:{lease.uid}")

    async def detach(self, lease: Lease) -> None:
        """The connection to the agent that has it was cut: what happens to it is looked for in the store from now on.

        Nothing happens when the lease is another by now. Raises StoreFailed; it is let go all the same.
        """
        live = self._live.get(lease.uid)
        if live is None or live.lease != lease:
            return
        try:
            await self._store_progress(lease.uid)
        finally:
            self._let_go(lease)

    async def start(self, lease: Lease, at: int) -> None:
        """The engine began. Known to watchers at once, to the store with the next progress, or with the end."""
        live = self._held(lease)
        live.task.state = "running"
        live.task.started = live.task.started or at
        live.started = at
        self._store_within(live, BORDER_DELAY)
        self.bus.publish(f"task:{lease.uid}")

    async def renew(self, leases: Sequence[Lease]) -> tuple[list[Lease], list[str]]:
        """Extend leases; returns those that are lost and the uids of tasks to be cancelled. Raises StoreFailed."""
        lost, cancelling = await self.store.renew(
            leases, lease_ms=int(self.settings.lease_seconds * 1000)
        )
        for lease in lost:
            self._let_go(lease)
        return lost, cancelling

    async def progress(self, lease: Lease, progress: Progress, *, border: bool) -> None:
        """A snapshot came: shown at once, stored soon. Raises LeaseLost when it is known to be outdated."""
        live = self._held(lease)
        live.merge(progress)
        live.border = live.border or border
        self._store_within(live, BORDER_DELAY if border else self.settings.progress_interval)
        self.bus.publish(f"task:{lease.uid}")

    def preview(self, uid: str, preview: Preview, image: bytes) -> None:
        """Show a preview to those who want previews."""
        live = self._live.get(uid)
        for watch in live.watches if live is not None else ():
            watch.show((preview, image))

    def wants_previews(self, uid: str) -> bool:
        """Tell whether anybody here wants previews of a task."""
        live = self._live.get(uid)
        return live is not None and live.wants_previews

    async def finish(self, lease: Lease, ending: Ending) -> Task:
        """Write an end, once. Repeating it is harmless. Raises LeaseLost and StoreFailed."""
        live = self._live.get(lease.uid)
        async with live.storing if live is not None else contextlib.nullcontext():
            try:
                task = await self.store.finish(lease, ending)
            except LeaseLost:
                self._let_go(lease)
                raise
        self._ended(task)
        return task

    async def give_back(self, lease: Lease, reason: str, *, counted: bool) -> Task:
        """An instance does not finish its task: another may. Raises LeaseLost and StoreFailed."""
        live = self._live.get(lease.uid)
        async with live.storing if live is not None else contextlib.nullcontext():
            try:
                task = await self.store.give_back(
                    lease, reason, counted=counted, max_delivery=self.settings.max_delivery
                )
            except LeaseLost:
                self._let_go(lease)
                raise
        if task.state in FINISHED:
            self._ended(task)
            return task
        self._let_go(lease)
        if live is not None:
            live.task = task
        self.bus.publish(f"queue:{task.service}")
        self.bus.publish(f"task:{task.uid}")
        return task

    # Inside.

    def _held(self, lease: Lease) -> Live:
        live = self._live.get(lease.uid)
        if live is None or live.lease != lease or live.task.state in FINISHED:
            raise LeaseLost("the task is another instance's by now, or has ended")
        return live

    def _let_go(self, lease: Lease) -> None:
        """The attempt of this lease is over for us; what it did not store yet is void."""
        live = self._live.get(lease.uid)
        if live is not None and live.lease == lease:
            live.lease = live.unstored = live.started = None
            self._due.pop(lease.uid, None)
            self.bus.publish(f"task:{lease.uid}")
            self._forget_if_idle(live)

    def _ended(self, task: Task) -> None:
        """A task's end is stored: tell everybody, once."""
        self._due.pop(task.uid, None)
        live = self._live.get(task.uid)
        if live is not None:
            live.task = task
            live.lease = live.unstored = live.started = None
            self._forget_if_idle(live)
        self.bus.publish(f"task:{task.uid}")
        if task.uid not in self._told:
            self._told[task.uid] = None
            if len(self._told) > MOST_TOLD:
                del self._told[next(iter(self._told))]
            self.on_ended(task)

    def _forget_if_idle(self, live: Live) -> None:
        if not live.watches and live.lease is None:
            self._live.pop(live.task.uid, None)

    async def _reload(self, live: Live) -> None:
        task = await self.store.get_uid(live.task.uid)
        if live.lease is None and live.task.state not in FINISHED:
            live.task = task

    def _store_within(self, live: Live, delay: float) -> None:
        at = asyncio.get_running_loop().time() + delay
        uid = live.task.uid
        if at < self._due.get(uid, float("inf")):
            self._due[uid] = at
            self._dirty.set()

    async def _store_progress(self, uid: str) -> None:
        """Store what is known of a held task. Raises StoreFailed; then it is tried again later."""
        live = self._live.get(uid)
        if live is None:
            return
        async with live.storing:
            lease, started, unstored, border = live.lease, live.started, live.unstored, live.border
            if lease is None:
                return
            live.started, live.unstored, live.border = None, None, False
            try:
                if started is not None:
                    await self.store.start(lease, started)
                if unstored is not None:
                    await self.store.progress(lease, unstored, event=border)
            except LeaseLost:
                self._let_go(lease)
            except EaselError:
                if live.lease == lease:
                    live.started = live.started or started
                    if live.unstored is None:
                        live.unstored = unstored
                    live.border = live.border or border
                    self._store_within(live, RETRY_PAUSE)
                raise

    async def _store_often(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._due:
                self._dirty.clear()
                await self._dirty.wait()
            pause = min(self._due.values()) - loop.time()
            if pause > 0:
                self._dirty.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._dirty.wait()
                continue
            now = loop.time()
            due = [uid for uid, at in self._due.items() if at <= now]
            for uid in due:
                del self._due[uid]
            done = await asyncio.gather(*map(self._store_progress, due), return_exceptions=True)
            for uid, error in zip(due, done, strict=True):
                if isinstance(error, EaselError):
                    log.warning("progress not stored yet: %s", error, extra={"task": uid})
                elif isinstance(error, BaseException):
                    raise error

    async def _sweep_often(self) -> None:
        # After a start, or while the store failed, leases ended because nobody could renew them: their agents come first.
        patience = max(self.settings.lease_seconds / 3, self.settings.renew_seconds + 1)
        await asyncio.sleep(patience)
        while True:
            await asyncio.sleep(self.settings.sweep_interval)
            try:
                await self.sweep()
            except EaselError as error:
                log.warning("the queue could not be swept: %s", error)
                await asyncio.sleep(patience)

    async def sweep(self) -> None:
        """Act on ended leases and passed deadlines. Raises StoreFailed."""
        swept = await self.store.sweep(max_delivery=self.settings.max_delivery)
        for uid in swept.redelivered:
            log.warning("a lease ended: the task goes back in line", extra={"task": uid})
            live = self._live.get(uid)
            if live is not None and live.lease is not None:
                self._let_go(live.lease)
            self.bus.publish(f"task:{uid}")
        for uid in (*swept.rear, *swept.expired, *swept.cancelled):
            self._ended(await self.store.get_uid(uid))
        for service in swept.services:
            self.bus.publish(f"queue:{service}")
