"""The controller: brings the instances that exist in line with those that are wanted.

It owns no state: rows say what is wanted (`Services`) and what is, a work queue says which services to look at, and each look
does one step (`reconcile`). So it may die at any point: what it had begun is found in the rows, and finished or undone, by the
next one. Instances live on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator

from easel.errors import EaselError, InstanceNotFound, ServiceNotFound
from easel.fleet.ends import Advise, Ends, no_advice
from easel.fleet.jobs import Drain, Ending, Jobs
from easel.fleet.journal import Journal
from easel.fleet.lifecycle import STARTED, Lifecycle
from easel.fleet.placement import Places
from easel.fleet.reconcile import Reconciler
from easel.fleet.recovery import recover, sweep
from easel.fleet.rollout import SERVING, idle
from easel.fleet.runtime import Runtime, Vitals
from easel.fleet.workqueue import WorkQueue
from easel.services.model import Instance, ServiceSpec
from easel.services.services import Services, now_ms
from easel.services.store import ServiceStore
from easel.settings import FleetSettings
from easel.tasks.bus import EventBus

log = logging.getLogger(__name__)

TOPIC = "fleet"
RESYNC_SECONDS = 30.0
"""How often every service, and what nobody remembers, is looked for without having been told."""
SWEEP = ""
"""Key of the work queue, which no service has: look for processes without a row."""
NEWS_PAUSE = 0.02
"""Seconds between two looks at everything: many agents may come at once."""

Probe = Callable[[Instance, ServiceSpec], Awaitable[str | None]]
"""Asks a ready instance's liveness check; returns in words why it is to be ended, None while it is well or not due."""


class Controller:
    """Reconciles all services over one runtime. Exactly one runs at a time."""

    def __init__(  # noqa: PLR0917 - the six parts it cannot do without
        self,
        store: ServiceStore,
        runtime: Runtime,
        bus: EventBus,
        services: Services,
        settings: FleetSettings,
        gateway_url: str,
        *,
        clock: Callable[[], int] = now_ms,
        drain: Drain | None = None,
        advise: Advise = no_advice,
        probe: Probe | None = None,
        load: Callable[[str], int] = idle,
        engine_ready: Callable[[str], bool | None] | None = None,
    ) -> None:
        """``gateway_url`` is where agents dial; ``drain``, ``load`` and ``engine_ready`` are those of `Ties`.

        ``engine_ready`` is left out where agents may be connected to another process.
        """
        self._store = store
        self._runtime = runtime
        self._bus = bus
        self._settings = settings
        self._clock = clock
        self._probe = probe
        self._queue: WorkQueue[str] = WorkQueue(clock)
        self._journal = Journal(store, clock)
        self._jobs = Jobs(store, runtime, drain, self._queue.put, clock)
        ends = Ends(store, self._journal, settings, clock=clock, advise=advise)
        self._lifecycle = Lifecycle(
            store,
            self._jobs,
            Places(store, runtime),
            ends,
            self._journal,
            settings=settings,
            gateway_url=gateway_url,
            again_at=self._queue.put_at,
            clock=clock,
            engine_ready=engine_ready,
        )
        self._reconciler = Reconciler(
            store,
            services,
            self._lifecycle,
            self._journal,
            runtime=runtime.name,
            clock=clock,
            load=load,
        )
        self._loops: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Adopt what still runs, finish what was half done, stop strays; then look after everything until `close`.

        Raises `StoreFailed` when the rows cannot be read, and whatever keeps the runtime from looking at its instances.
        """
        await recover(self._store, self._runtime, self._journal, self._clock)
        await self.check()
        self._loops = [
            asyncio.create_task(self._work(), name="easel controller"),
            asyncio.create_task(self._listen(), name="easel controller news"),
            asyncio.create_task(self._check_often(), name="easel controller checks"),
            asyncio.create_task(self._resync_often(), name="easel controller resync"),
        ]

    async def close(self, *, stop_instances: bool = False) -> None:
        """Stop looking. Instances live on and are adopted by the next `open`, unless ``stop_instances``.

        With it they are drained and stopped now, although they are still wanted: the next `open` starts them again.
        """
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops)
        self._loops = []
        await self._jobs.abandon()
        if stop_instances:
            own = [one for one in await self._store.instances() if self._is_own(one)]
            await asyncio.gather(*(self._halt(one) for one in own))

    # What tests call one by one and `open` calls for ever.

    async def step(self) -> None:
        """Work on every service that is due now, until none is. Jobs that were begun go on by themselves."""
        while (name := self._queue.take()) is not None:
            await self._look_at(name)

    async def resync(self) -> None:
        """Put every service into the queue."""
        for service in await self._store.all():
            self._queue.put(service.name)

    async def check(self) -> None:
        """Look at all started instances, all at once; those that are to be ended are with the next step."""
        started = {
            one.id: one
            for one in await self._store.instances()
            if self._is_own(one)
            and one.status in STARTED
            and one.started is not None
            and self._jobs.of(one.id) is None
        }
        if not started:
            return
        vitals = await self._runtime.check({key: one.handle for key, one in started.items()})
        for key, instance in started.items():
            with contextlib.suppress(ServiceNotFound):
                revision = await self._store.revision(instance.service, instance.revision)
                ending = await self._judge(instance, vitals.get(key), revision.spec)
                if ending is not None:
                    self._lifecycle.condemn(instance, ending)
                    self._queue.put(instance.service)

    async def logs(self, instance_id: str, *, lines: int, previous: bool = False) -> list[str]:
        """Return the last lines of an instance's processes; ``previous``: of the run before. Raises `InstanceNotFound`."""
        instance = await self._store.instance(instance_id)
        if not self._is_own(instance):
            raise InstanceNotFound(
                f"instance {instance_id} runs elsewhere", hint="its log is on its own machine"
            )
        if not instance.handle:
            return []
        return await self._runtime.logs(instance.handle, lines=lines, previous=previous)

    # Inside.

    def _is_own(self, instance: Instance) -> bool:
        return instance.runtime == self._runtime.name

    async def _look_at(self, name: str) -> None:
        try:
            if name == SWEEP:
                await sweep(self._store, self._runtime, self._journal)
            elif await self._reconciler.service(name):
                self._queue.put(name)
                self._bus.publish(TOPIC)
            self._queue.forgive(name)
        except EaselError as error:
            pause = self._queue.put_backoff(name)
            log.warning("%s; tried again in %g s", error, pause, extra={"service": name})
        except Exception:  # one service must not keep the controller from the others
            self._queue.put_backoff(name)
            log.exception("the controller failed", extra={"service": name})
        finally:
            self._queue.done(name)

    async def _judge(
        self, instance: Instance, vitals: Vitals | None, spec: ServiceSpec
    ) -> Ending | None:
        if vitals is None:
            return None
        if not vitals.alive:
            said = vitals.message or "it ended by itself"
            return Ending(vitals.exit or "Error", said)
        used, most = vitals.memory_bytes, spec.memory_bytes
        if used is not None and most is not None and used > most:
            said = f"host memory exhausted: {_mebibytes(used)} in use, {_mebibytes(most)} allowed"
            return Ending("OOMKilled", said, at_once=True)
        if self._probe is not None and instance.status in SERVING:
            ill = await self._probe(instance, spec)
            if ill is not None:
                return Ending("LivenessFailed", ill)
        return None

    async def _halt(self, instance: Instance) -> None:
        with _surviving(f"{instance.id} was not stopped"):
            revision = await self._store.revision(instance.service, instance.revision)
            serving = instance.status in SERVING
            grace = max(revision.spec.termination_grace_seconds, 0.0) if serving else None
            await self._jobs.halt(instance.id, instance.handle, grace)
            if instance.target == "running" and instance.status in STARTED:
                await self._store.change_instance(
                    instance.id, status="pending", device=None, started=None, ready_at=None
                )

    async def _work(self) -> None:
        while True:
            await self._look_at(await self._queue.get())

    async def _listen(self) -> None:
        with self._bus.subscribe(TOPIC) as news:
            while True:
                with _surviving("news were not looked at"):
                    await self.resync()
                await news.wait()
                await asyncio.sleep(NEWS_PAUSE)
                news.clear()

    async def _check_often(self) -> None:
        while True:
            await asyncio.sleep(self._settings.check_interval)
            with _surviving("instances were not checked"):
                await self.check()

    async def _resync_often(self) -> None:
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            with _surviving("services were not looked at"):
                await self.resync()
                self._queue.put(SWEEP)


@contextlib.contextmanager
def _surviving(what: str) -> Iterator[None]:
    """Log what fails, and go on."""
    try:
        yield
    except EaselError as error:
        log.warning("%s: %s", what, error)
    except Exception:
        log.exception("%s", what)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
