"""The tasks that this agent has from the gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from easel.agent.background import Background
from easel.agent.joining.outbox import Outbox
from easel.agent.joining.work import Wish, Work
from easel.agent.tasks import Tasks
from easel.errors import EaselError
from easel.link.messages import Assign, Held

log = logging.getLogger(__name__)


class Desk:
    """Takes assignments and keeps each until the gateway has stored how it ended.

    ``discard`` removes what an attempt has left on this machine; None where its outputs stay where they are.
    """

    def __init__(
        self,
        tasks: Tasks,
        outbox: Outbox,
        *,
        engine_ready: Callable[[], bool],
        discard: Callable[[str], Awaitable[None]] | None,
    ) -> None:
        self._tasks = tasks
        self._outbox = outbox
        self._engine_ready = engine_ready
        self._discard = discard
        self._work: dict[str, Work] = {}
        self._running: dict[Work, asyncio.Task[None]] = {}
        self._background = Background()
        self.draining = False
        """Whether everything that comes is given back at once."""
        self.on_empty: Callable[[], None] = lambda: None
        """Called when nothing is held any more."""

    @property
    def held(self) -> list[Held]:
        """The leases to be renewed: also of what has ended until that is stored, or somebody would run it once more."""
        return [one.held for one in self._work.values()]

    @property
    def empty(self) -> bool:
        """Whether nothing is to be done, and everything that was done is stored."""
        return not self._work

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done."""
        return all(one.over for one in self._work.values())

    def assign(self, assign: Assign) -> None:
        """Begin a task. One that is here under an earlier lease is given up for it."""
        before = self._work.get(assign.uid)
        if before is not None and before.assign.lease == assign.lease:
            return
        if before is not None:
            self._forget(before)
        work = Work(assign, self._tasks, self._outbox, engine_ready=self._engine_ready)
        if self.draining:
            work.wish = Wish.RECALL
        self._work[assign.uid] = work
        self._running[work] = self._background.spawn(self._run(work))

    async def _run(self, work: Work) -> None:
        try:
            try:
                await work.run()
            except Exception as error:  # a fault of ours ends this task, not the agent
                log.exception("task %s", work.assign.uid)
                work.fail(EaselError(f"internal error: {type(error).__name__}: {error}"))
            work.over = True
            if self._discard is not None:
                await self._discard(work.assign.folder)
            await self._outbox.stored(work.assign.lease)
        finally:
            del self._running[work]
            self._drop(work)

    def _drop(self, work: Work) -> None:
        if self._work.get(work.assign.uid) is work:
            del self._work[work.assign.uid]
            if not self._work:
                self.on_empty()

    def get(self, uid: str, lease: str | None = None) -> Work | None:
        """Return a task that is here, under this lease where one is named."""
        work = self._work.get(uid)
        return work if work is not None and lease in (None, work.assign.lease) else None

    def stop(self, work: Work, wish: Wish) -> None:
        """End a task: its callers do not want it any more, or another instance is to run it."""
        self._background.spawn(work.stop(wish))

    def lease_of(self, folder: str) -> str | None:
        """Return the lease of the attempt whose outputs go there; None where it is none of the gateway's."""
        found = (one.assign.lease for one in self._running if one.assign.folder == folder)
        return next(found, None)

    def lose(self, held: Held) -> None:
        """A task under this lease is somebody else's by now: stop it, say nothing more of it."""
        work = self.get(held.uid, held.lease)
        if work is not None:
            self._forget(work)

    def _forget(self, work: Work) -> None:
        work.wish = Wish.FORGET
        self._outbox.forget(work.assign.lease)
        self._drop(work)
        self.stop(work, Wish.FORGET)

    def drain(self) -> None:
        """Give back what has not begun, and whatever comes."""
        self.draining = True
        for work in list(self._work.values()):
            self.stop(work, Wish.RECALL)

    def excuse(self) -> None:
        """What ends in the engine from now on, of what is there, ends for our sake."""
        for work in self._work.values():
            work.excused = True

    def abandon(self) -> None:
        """The gateway wants nothing more from us: stop everything, say nothing."""
        self.draining = True
        for work in list(self._work.values()):
            self._forget(work)

    def reconnected(self) -> None:
        """A new connection is there. A gateway that wants us to drain says so again."""
        self.draining = False
        for work in self._work.values():
            work.reconnected()

    async def settled(self) -> None:
        """Wait until nothing is held."""
        while self._running:
            await asyncio.wait(list(self._running.values()))

    async def close(self) -> None:
        """Stop waiting for what the gateway has not stored."""
        running = list(self._running.values())
        for one in running:
            one.cancel()
        if running:
            await asyncio.wait(running)
        await self._background.wait()
