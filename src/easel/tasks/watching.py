"""Tasks that somebody watches or an instance holds: their latest state in memory, and waking those who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from easel.link.messages import Preview
from easel.tasks.model import FINISHED, Lease, Progress, Task


class Live:
    """One task in memory. What is here may be ahead of the store, never behind it while ``lease`` is set."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.lease: Lease | None = None
        """The lease of the attempt that an instance connected to this process runs."""
        self.watches: set[Watch] = set()
        self.started: int | None = None
        """When the engine began, while the store does not know it yet."""
        self.unstored: Progress | None = None
        """Progress the store does not know yet, merged."""
        self.border = False
        """Whether another node began since progress was stored last."""
        self.storing = asyncio.Lock()
        """Held while one of its writes is under way, so that they arrive in order."""

    @property
    def wants_previews(self) -> bool:
        """Whether anybody who watches wants previews."""
        return any(watch.previews for watch in self.watches)

    def merge(self, progress: Progress) -> None:
        """Take a snapshot into the task and into what is to be stored."""
        task = self.task
        task.percent = max(task.percent, progress.percent)
        task.current_node = progress.current_node
        task.nodes = {**task.nodes, **progress.nodes}
        before = self.unstored.nodes if self.unstored is not None else {}
        self.unstored = Progress(
            percent=task.percent,
            current_node=progress.current_node,
            nodes={**before, **progress.nodes},
        )


class Watch:
    """Somebody who watches a task. Sees the latest state, so that a slow one misses steps, not the end."""

    def __init__(
        self,
        live: Live,
        news: asyncio.Event,
        reload: Callable[[Live], Awaitable[None]],
        *,
        previews: bool,
    ) -> None:
        self.previews = previews
        self._live = live
        self._news = news
        self._reload = reload
        self._preview: tuple[Preview, bytes] | None = None

    @property
    def task(self) -> Task:
        """The task as it is known now."""
        return self._live.task

    @property
    def over(self) -> bool:
        """Whether the task has ended."""
        return self._live.task.state in FINISHED

    async def wait(self, timeout: float) -> bool:
        """Wait for news; False when there was none in ``timeout`` seconds. True at once when the task is over.

        Raises StoreFailed.
        """
        if self.over and not self._news.is_set():
            return True
        try:
            async with asyncio.timeout(timeout):
                await self._news.wait()
        except TimeoutError:
            await self._catch_up()  # a wake-up may have been lost
            return self.over
        self._news.clear()
        await self._catch_up()
        return True

    async def _catch_up(self) -> None:
        """What happens to a task that no instance of this process holds is in the store alone."""
        if self._live.lease is None and not self.over:
            await self._reload(self._live)

    def show(self, preview: tuple[Preview, bytes]) -> None:
        """A preview came; the latest is kept."""
        if self.previews:
            self._preview = preview
            self._news.set()

    def take_preview(self) -> tuple[Preview, bytes] | None:
        """Return the latest preview, once."""
        preview, self._preview = self._preview, None
        return preview
