"""What takes long: a runtime starts or stops an instance, while the controller looks after the others.

Jobs talk to the runtime and checkpoint handles; what their outcome means is decided in `lifecycle`. An instance has at most
one job.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from easel.errors import EaselError
from easel.fleet.runtime import Handle, Launch, Runtime
from easel.services.model import Instance
from easel.services.store import ServiceStore

log = logging.getLogger(__name__)

STOP_GRACE = 15.0
"""Seconds between the polite and the forceful end of an instance that was drained: the agent's own grace and a little."""
LOG_LINES = 60
"""Of an ended instance: what its advice is looked for in."""

Drain = Callable[[str], Awaitable[None]]
"""Takes an instance out of traffic; returns when it holds no task any more, at once when it is not connected."""


class Ending(NamedTuple):
    """Why an instance is ended, or has ended."""

    reason: str
    message: str
    advice: str | None = None
    log: tuple[str, ...] = ()
    final: bool = False
    """Starting it again will not help."""
    counted: bool = True
    """Whether it is to blame itself: else it is simply started again."""
    at_once: bool = False
    """Whether the machine cannot wait until what runs on it has ended."""


@dataclass(eq=False)
class Job:
    """Something under way with an instance."""

    kind: Literal["start", "end", "remove"]
    service: str
    instance: str
    begun: int
    """Time of the clock, ms."""
    limit: float
    """Seconds after which it is cancelled."""
    handle: Handle
    """The latest one."""
    ending: Ending | None = None
    attempt: int = 1
    lines: list[str] = field(default_factory=list)
    """The last log lines, when it has ended an instance."""
    overdue: bool = False
    retry_at: int | None = None
    """After it failed: when to do it again."""
    task: asyncio.Task[None] = field(init=False)

    @property
    def error(self) -> BaseException | None:
        """What it failed with, when it is done: CancelledError when it was cancelled."""
        return asyncio.CancelledError() if self.task.cancelled() else self.task.exception()


class Jobs:
    """The jobs of all instances."""

    def __init__(
        self,
        store: ServiceStore,
        runtime: Runtime,
        drain: Drain | None,
        on_done: Callable[[str], None],
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._drain = drain
        self._on_done = on_done
        self._clock = clock
        self._jobs: dict[str, Job] = {}

    def of(self, instance: str) -> Job | None:
        """Return an instance's job, also one that is done and not concluded yet."""
        return self._jobs.get(instance)

    def conclude(self, job: Job) -> None:
        """Forget a job: what it brought about is written."""
        if self._jobs.get(job.instance) is job:
            del self._jobs[job.instance]

    def start(self, launch: Launch, handle: Handle, limit: float) -> Job:
        """Start an instance; ``handle``: of its run before, until the runtime yields the first new one."""
        job = self._new("start", launch.service, launch.instance, handle, limit)
        return self._run(job, self._start(job, launch))

    def end(self, instance: Instance, handle: Handle, ending: Ending, attempt: int = 1) -> Job:
        """End what is left of an instance that is to be started again, or that failed."""
        job = self._new("end", instance.service, instance.id, handle, STOP_GRACE + 30)
        job.ending, job.attempt = ending, attempt
        return self._run(job, self._end(job))

    def remove(self, instance: Instance, grace: float | None, attempt: int = 1) -> Job:
        """Drain an instance for at most ``grace`` seconds (None: not at all), then stop it and remove what it left."""
        limit = (grace or 0) + STOP_GRACE + 30
        own = instance.runtime == self._runtime.name
        handle = instance.handle if own else {}  # others end by themselves
        job = self._new("remove", instance.service, instance.id, handle, limit)
        job.attempt = attempt
        return self._run(job, self._remove(job, grace))

    async def abandon(self) -> None:
        """Cancel every job, and store how far the starts were: the next controller finishes what is half done."""
        running = [job for job in self._jobs.values() if not job.task.done()]
        for job in running:
            job.task.cancel()
        if running:
            await asyncio.wait([job.task for job in running])
        for job in running:
            if job.kind == "start":
                with contextlib.suppress(EaselError):
                    await self._store.change_instance(job.instance, handle=job.handle)
        self._jobs.clear()

    def _new(
        self,
        kind: Literal["start", "end", "remove"],
        service: str,
        instance: str,
        handle: Handle,
        limit: float,
    ) -> Job:
        return Job(kind, service, instance, self._clock(), limit, handle)

    def _run(self, job: Job, work: Coroutine[None, None, None]) -> Job:
        job.task = asyncio.create_task(work, name=f"easel {job.kind} {job.instance}")
        job.task.add_done_callback(lambda task: self._done(job))
        self._jobs[job.instance] = job
        return job

    def _done(self, job: Job) -> None:
        if not job.task.cancelled():
            job.task.exception()  # looked at by whoever concludes it
        self._on_done(job.service)

    async def _start(self, job: Job, launch: Launch) -> None:
        handles = self._runtime.start(launch)
        try:
            async for handle in handles:
                job.handle = handle
                await self._store.change_instance(launch.instance, handle=handle)
        finally:
            if isinstance(handles, AsyncGenerator):
                await handles.aclose()

    async def _end(self, job: Job) -> None:
        if job.handle:
            at_once = job.ending is not None and job.ending.at_once
            await self._runtime.stop(job.handle, grace=0 if at_once else STOP_GRACE)
            with contextlib.suppress(EaselError):
                job.lines = await self._runtime.logs(job.handle, lines=LOG_LINES)

    async def _remove(self, job: Job, grace: float | None) -> None:
        await self.halt(job.instance, job.handle, grace)
        if job.handle:
            await self._runtime.discard(job.handle)

    async def halt(self, instance: str, handle: Handle, grace: float | None) -> None:
        """Drain for at most ``grace`` seconds (None: not at all), then stop."""
        if self._drain is not None and grace is not None:
            try:
                async with asyncio.timeout(grace):
                    await self._drain(instance)
            except TimeoutError:
                about = {"instance": instance}
                log.info("not drained within %g s, stopped all the same", grace, extra=about)
            except EaselError as error:
                log.warning("not drained: %s", error, extra={"instance": instance})
        if handle:
            await self._runtime.stop(handle, grace=STOP_GRACE)
