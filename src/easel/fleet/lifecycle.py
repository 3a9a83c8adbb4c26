"""One instance: from what it is, one step towards what is wanted.

::

    pending ──place──► starting ──agent reports──► ready ⇄ unready
       ▲                  │ ended, or not ready in time │
       └── (half made)    └────────► backoff ◄──────────┘ ──► starting …
                                     failed    (given up: `InstanceFailed`, or not to be restarted)
    target stopped: any ──► stopping (drained, stopped, discarded) ──► row removed

``ready`` and ``unready`` are written by the agent link, with the reason ``EngineFailed`` when the agent gave its engine up;
everything else is written here. A start is complete when ``started`` is set: a row that is starting without it, and has no
job, is half made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from easel.fleet.ends import Ends, Scene, failed_start, startup_seconds
from easel.fleet.jobs import Ending, Job, Jobs
from easel.fleet.journal import Journal
from easel.fleet.placement import Places, Soon
from easel.fleet.rollout import SERVING
from easel.fleet.runtime import Handle, Launch
from easel.services.model import Instance
from easel.services.status import CHECK_FAILED, ENGINE_FAILED, LINK_LOST, NO_DEVICE
from easel.services.store import ServiceStore
from easel.services.tokens import new_token, token_hash
from easel.settings import FleetSettings

RETRY_SECONDS = 5.0
"""Pause before a stop that failed is tried again; doubled each time, at most ten minutes."""
STARTED = frozenset({"starting", "ready", "unready"})
"""States in which an instance runs, or is about to."""


@dataclass
class _Memory:
    """What is known of an instance beyond its row; lost with this process, without harm."""

    status: str
    since: int
    """When that status was first seen."""
    verdict: tuple[Handle, Ending] | None = None
    """Why it is to be ended, seen on the run that has this handle."""


class Lifecycle:
    """Does one step for one instance at a time; `step` is never called twice at once for the same service."""

    def __init__(
        self,
        store: ServiceStore,
        jobs: Jobs,
        places: Places,
        ends: Ends,
        journal: Journal,
        *,
        settings: FleetSettings,
        gateway_url: str,
        again_at: Callable[[str, int], None],
        clock: Callable[[], int],
        engine_ready: Callable[[str], bool | None] | None,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._places = places
        self._ends = ends
        self._journal = journal
        self._settings = settings
        self._gateway_url = gateway_url
        self._again_at = again_at
        self._clock = clock
        self._engine_ready = engine_ready
        self._memory: dict[str, _Memory] = {}

    def condemn(self, instance: Instance, ending: Ending) -> None:
        """Have a started instance ended with the next step: it was seen dead, too large or ill."""
        self._remember(instance).verdict = (instance.handle, ending)

    async def step(self, scene: Scene, instance: Instance) -> bool:
        """Do what is to be done now; True when the row was changed. Raises `StoreFailed`; then nothing is lost."""
        memory = self._remember(instance)
        job = self._jobs.of(instance.id)
        if job is not None:
            return await self._attend(scene, instance, job)
        await self._tell(instance, memory)
        if instance.target == "stopped":
            return await self._remove(scene, instance)
        if instance.status == "pending":
            return await self._launch(scene, instance)
        if instance.status == "backoff":
            if self._clock() >= instance.not_before:
                return await self._launch(scene, instance)
            self._again_at(instance.service, instance.not_before)
        elif instance.status in STARTED:
            return await self._watch(scene, instance, memory)
        elif instance.status == "failed" and instance.started is not None:
            return await self._end(instance, _given_up(instance))
        elif instance.status in {"stopping", "stopped"}:  # wanted again after all
            ending = Ending("Interrupted", "its stop was interrupted", counted=False)
            self._jobs.end(instance, instance.handle, ending)
        return False

    async def guest(self, scene: Scene, instance: Instance) -> bool:
        """Like `step`, for an instance that joined by itself: it is watched, and let go when it is not wanted any more."""
        memory = self._remember(instance)
        job = self._jobs.of(instance.id)
        if job is not None:
            return await self._attend(scene, instance, job)
        if instance.target == "running" and await self._correct(instance):
            return True
        await self._tell(instance, memory)
        if instance.target == "stopped":
            return await self._remove(scene, instance)
        gone_at = instance.updated + int(self._settings.orphan_timeout * 1000)
        away = instance.reason == LINK_LOST  # an engine that starts for long is not away
        lost = away and self._clock() >= gone_at
        if lost or scene.service.target != "running":
            await self._store.change_instance(instance.id, target="stopped")
            return True
        if away:
            self._again_at(instance.service, gone_at)
        return False

    # Jobs.

    async def _attend(self, scene: Scene, instance: Instance, job: Job) -> bool:
        if not job.task.done():
            due = job.begun + int(job.limit * 1000)
            if job.kind == "start" and instance.target == "stopped":
                job.task.cancel()
            elif self._clock() >= due:
                job.overdue = True
                job.task.cancel()
            else:
                self._again_at(instance.service, due)
            return False
        if job.kind == "start":
            return await self._conclude_start(instance, job)
        if job.error is not None:
            return await self._retry(instance, job)
        if job.kind == "remove":
            await self._store.remove_instance(instance.id)
            self._jobs.conclude(job)
            self._memory.pop(instance.id, None)
            self._ends.forget(instance.id)
            said = f"{instance.id} of revision {instance.revision} was stopped"
            await self._note(instance, "InstanceStopped", said)
            return True
        if instance.target == "running":
            await self._ends.ended(scene, instance, job)
        self._jobs.conclude(job)
        return True

    async def _conclude_start(self, instance: Instance, job: Job) -> bool:
        error = job.error
        if instance.handle != job.handle:  # cut off between the runtime's word and the store's
            await self._store.change_instance(instance.id, handle=job.handle)
        if error is None:
            await self._store.change_instance(instance.id, started=self._clock())
        if error is None or instance.target == "stopped":
            self._jobs.conclude(job)
            return True
        self._jobs.end(instance, job.handle, failed_start(error, job))
        return False

    async def _retry(self, instance: Instance, job: Job) -> bool:
        """A stop failed or hung: it must not be forgotten, whatever it takes."""
        now = self._clock()
        if job.retry_at is None:
            pause = min(RETRY_SECONDS * 2 ** (job.attempt - 1), 600)
            job.retry_at = now + int(pause * 1000)
            said = "did not end in time" if job.overdue else str(job.error) or repr(job.error)
            await self._note(
                instance,
                "StopFailed",
                f"{instance.id} could not be stopped: {said}; it is tried again",
                warning=True,
            )
        if now < job.retry_at:
            self._again_at(instance.service, job.retry_at)
        elif job.kind == "remove":
            self._jobs.remove(instance, None, job.attempt + 1)
        else:
            assert job.ending is not None
            self._jobs.end(instance, job.handle, job.ending, job.attempt + 1)
        return False

    # Steps.

    async def _launch(self, scene: Scene, instance: Instance) -> bool:
        spec = scene.specs[instance.revision]
        placed = await self._places.find(spec, instance)
        if isinstance(placed, str):
            return await self._wait(scene, instance, placed)
        token = new_token()
        await self._store.change_instance(
            instance.id,
            status="starting",
            reason="",
            message="",
            device=placed.id,
            token_hash=token_hash(token),
            not_before=0,
            started=None,
            ready_at=None,
        )
        launch = Launch(
            instance=instance.id,
            service=instance.service,
            spec=spec,
            device=placed.id if placed.kind == "gpu" else None,
            gateway_url=self._gateway_url,
            token=token,
        )
        self._ends.started(instance.id)
        self._jobs.start(launch, instance.handle, self._settings.start_timeout)
        on = f"{instance.id} of revision {instance.revision} on {placed.name or placed.id}"
        await self._note(instance, "InstanceStarting", on)
        return True

    async def _wait(self, scene: Scene, instance: Instance, why: str) -> bool:
        reason = "" if isinstance(why, Soon) else NO_DEVICE
        if (instance.status, instance.reason, instance.message) == ("pending", reason, why):
            return False
        await self._store.change_instance(
            instance.id, status="pending", reason=reason, message=str(why), device=None
        )
        in_place = scene.service.edition == "standard" and len(scene.instances) > 1
        if reason and not in_place:
            advice = "stop or scale down another service, or add a device (settings fleet.devices, fleet.cpu_slots)"
            await self._note(
                instance, NO_DEVICE, f"{instance.id} waits: {why}", warning=True, advice=advice
            )
        return True

    async def _watch(self, scene: Scene, instance: Instance, memory: _Memory) -> bool:
        spec = scene.specs[instance.revision]
        now = self._clock()
        ending: Ending | None = None
        if instance.started is None and await self._ends.park(instance):
            return True
        if instance.started is None:
            ending = Ending("Interrupted", "its start was interrupted", counted=False)
        elif await self._correct(instance):
            return True
        elif memory.verdict is not None and memory.verdict[0] == instance.handle:
            ending = memory.verdict[1]
        elif instance.reason == ENGINE_FAILED:
            ending = _given_up(instance)
        elif instance.status == "unready" and instance.reason == CHECK_FAILED:
            pass  # it may stay out of traffic for as long as its readiness check says so
        elif instance.status != "ready":
            patience = startup_seconds(spec, self._settings)
            if instance.status == "unready":
                patience = max(self._settings.start_timeout, self._settings.orphan_timeout)
            since = instance.started if instance.status == "starting" else memory.since
            due = since + int(patience * 1000)
            if now < due:
                self._again_at(instance.service, due)
            else:
                reason = "StartTimeout" if instance.status == "starting" else "Unresponsive"
                said = instance.message or "its engine did not become ready"
                ending = Ending(reason, f"not ready within {patience:g} s: {said}")
        elif instance.ready_at is None:
            await self._store.change_instance(instance.id, ready_at=now)
            return True
        if ending is None:
            return False
        memory.verdict = None
        return await self._end(instance, ending)

    async def _end(self, instance: Instance, ending: Ending) -> bool:
        await self._store.change_instance(
            instance.id, status="unready", reason=ending.reason, message=ending.message
        )
        self._jobs.end(instance, instance.handle, ending)
        return True

    async def _correct(self, instance: Instance) -> bool:
        """Set a row right that says something else than its agent, as after a restart of this process."""
        if self._engine_ready is None:
            return False
        ready = self._engine_ready(instance.id)
        if ready and instance.status != "ready":
            fields = {"status": "ready", "reason": "", "message": ""}
        elif ready is None and (instance.status == "ready" or _quietly_gone(instance)):
            said = "its agent is not connected"
            status = "unready" if instance.status == "ready" else instance.status
            fields = {"status": status, "reason": LINK_LOST, "message": said}
        else:
            return False
        await self._store.change_instance(instance.id, **fields)
        return True

    async def _remove(self, scene: Scene, instance: Instance) -> bool:
        connected = instance.status in SERVING
        if instance.status != "stopping":
            await self._store.change_instance(instance.id, status="stopping")
        grace = scene.specs[instance.revision].termination_grace_seconds
        self._jobs.remove(instance, max(grace, 0.0) if connected else None)
        return True

    # Telling.

    async def _tell(self, instance: Instance, memory: _Memory) -> None:
        """Note what the agent link wrote since the last look."""
        before, memory.status = memory.status, instance.status
        if before == instance.status:
            return
        now = self._clock()
        memory.since = now
        if instance.status == "ready":
            after = f" after {(now - instance.started) / 1000:.1f} s" if instance.started else ""
            again = "again" if before == "unready" else after.strip()
            await self._note(instance, "InstanceReady", f"{instance.id} is ready {again}".rstrip())
        elif instance.status == "unready":
            said = instance.message or "its engine or its connection is gone for the moment"
            await self._note(
                instance,
                "InstanceUnready",
                f"{instance.id} is not ready: {said}",
                warning=True,
                advice=self._ends.advice(instance.reason, said),
            )

    async def _note(
        self,
        instance: Instance,
        reason: str,
        message: str,
        *,
        warning: bool = False,
        advice: str | None = None,
    ) -> None:
        name, about = instance.service, instance.id
        await self._journal.note(
            name, reason, message, instance=about, warning=warning, advice=advice
        )

    def _remember(self, instance: Instance) -> _Memory:
        if instance.id not in self._memory:
            self._memory[instance.id] = _Memory(instance.status, self._clock())
        return self._memory[instance.id]


def _quietly_gone(guest: Instance) -> bool:
    """Whether a guest's row does not say yet that its agent is away: it left while nobody was here to note it."""
    return guest.runtime == "joined" and guest.reason != LINK_LOST


def _given_up(instance: Instance) -> Ending:
    return Ending(ENGINE_FAILED, instance.message or "its agent gave the engine up")
