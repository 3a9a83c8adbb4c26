"""What follows when an instance has ended: another start after a while, or none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from easel.errors import EaselError, InstanceFailed
from easel.fleet.jobs import Ending, Job
from easel.fleet.journal import Journal
from easel.fleet.rollout import SERVING
from easel.services.model import Instance, Service, ServiceSpec
from easel.services.status import CRASH_LOOP, is_current
from easel.services.store import ServiceStore
from easel.settings import FleetSettings

log = logging.getLogger(__name__)

EXITS = frozenset({"Completed", "Error", "Killed"})
"""Reasons whose event is called InstanceExited; any other reason is the event's own name."""
HOPELESS = frozenset({"StartTimeout", "EngineFailed"})
"""Reasons that show a new revision to be broken without waiting for a crash loop: these ends took long enough."""


class Advise(Protocol):
    """What to do about an end, in a sentence for people."""

    def __call__(self, reason: str, message: str, log: Sequence[str]) -> str | None:
        """Return it; None when nothing better than the message is known."""


def no_advice(reason: str, message: str, log: Sequence[str]) -> str | None:
    """Know nothing better."""
    return None


class Scene(NamedTuple):
    """What a service looks like in this pass."""

    service: Service
    specs: Mapping[int, ServiceSpec]
    """Revision → its specification, for every revision that an instance has."""
    instances: Sequence[Instance]


class Ends:
    """Counts ends in a row and decides on them."""

    def __init__(
        self,
        store: ServiceStore,
        journal: Journal,
        settings: FleetSettings,
        *,
        clock: Callable[[], int],
        advise: Advise,
    ) -> None:
        self._store = store
        self._journal = journal
        self._settings = settings
        self._clock = clock
        self._advise = advise
        self._in_a_row: dict[str, int] = {}
        self._parked: dict[str, dict[str, Any]] = {}

    def advice(self, reason: str, message: str, lines: Sequence[str] = ()) -> str | None:
        """Return what to do about something that befell an instance; None when nothing is known."""
        return self._advise(reason, message, lines)

    async def park(self, instance: Instance) -> bool:
        """Write once more how an ended instance is, where a late word of its agent overwrote it; False: it is not ended."""
        fields = self._parked.get(instance.id)
        if fields is None:
            return False
        await self._store.change_instance(instance.id, **fields)
        return True

    def started(self, instance: str) -> None:
        """It is started again: what was written after its end does not hold any more."""
        self._parked.pop(instance, None)

    def forget(self, instance: str) -> None:
        """Forget an instance that was removed."""
        self._in_a_row.pop(instance, None)
        self._parked.pop(instance, None)

    async def ended(self, scene: Scene, instance: Instance, job: Job) -> None:
        """Write what comes now that nothing of an instance's last run is left. Raises `StoreFailed`; may be repeated."""
        ending = job.ending
        assert ending is not None
        now = self._clock()
        fields: dict[str, Any] = {"started": None, "ready_at": None, "handle": job.handle}
        if not ending.counted:
            fields |= {"status": "pending", "reason": "", "message": "", "device": None}
            await self._park(instance, fields)
            return
        ends = self._count(instance, now)
        looping = ends >= self._settings.crash_loop
        hopeless = looping or ending.reason in HOPELESS
        final = (
            ending.final
            or not scene.specs[instance.revision].restart_after_crash
            or (hopeless and _others_serve(scene, instance))
        )
        reason = CRASH_LOOP if looping and not ending.final else ending.reason
        fields |= {"reason": reason, "message": ending.message, "last_state": ending.reason}
        pause = self.pause(ends)
        if final:
            fields |= {"status": "failed", "device": None}
            new = instance.revision != scene.service.stable_revision
            if new and is_current(scene.service, instance):
                await self._store.mark_failed(instance.service, instance.revision)
        else:
            again = now + int(pause * 1000)
            restarts = instance.restarts + 1
            fields |= {"status": "backoff", "not_before": again, "restarts": restarts}
        await self._park(instance, fields)
        self._in_a_row[instance.id] = ends
        lines = job.lines or list(ending.log)
        advice = ending.advice or self.advice(ending.reason, ending.message, lines)
        then = "it is given up" if final else f"started again in {pause:g} s"
        what = "InstanceExited" if ending.reason in EXITS else ending.reason
        said = f"{instance.id} ({ending.reason}): {ending.message}; {then}"
        await self._tell(instance, what, said, advice, lines)
        if reason == CRASH_LOOP:
            said = f"{instance.id} ended {ends} times in a row, the last time so: {ending.message}"
            await self._tell(instance, CRASH_LOOP, said, advice, lines)

    async def _park(self, instance: Instance, fields: dict[str, Any]) -> None:
        self._parked[instance.id] = fields
        await self._store.change_instance(instance.id, **fields)

    def pause(self, ends: int) -> float:
        """Return the seconds before the next start, after so many ends in a row."""
        doubled = self._settings.backoff_seconds * 2.0 ** min(ends - 1, 30)
        return min(doubled, self._settings.backoff_max_seconds)

    def _count(self, instance: Instance, now: int) -> int:
        """Return how often it ended in a row: it began anew if it was ready longer than the longest pause."""
        lasted = now - instance.ready_at if instance.ready_at is not None else 0
        if lasted >= self._settings.backoff_max_seconds * 1000:
            return 1
        # After a restart of this process: one that was ready since its last start has proved itself.
        before = instance.restarts if instance.ready_at is None else 0
        return self._in_a_row.get(instance.id, before) + 1

    async def _tell(
        self, instance: Instance, reason: str, said: str, advice: str | None, lines: Sequence[str]
    ) -> None:
        await self._journal.note(
            instance.service,
            reason,
            said,
            instance=instance.id,
            warning=True,
            advice=advice,
            lines=lines,
        )


def failed_start(error: BaseException, job: Job) -> Ending:
    """Return what it means that a start job failed."""
    if isinstance(error, InstanceFailed):
        lines = tuple(error.log or ())
        return Ending(error.reason, error.message, error.hint, lines, final=True)
    if isinstance(error, asyncio.CancelledError):
        if job.overdue:
            return Ending("StartTimeout", f"its start did not end within {job.limit:g} s")
        return Ending("Interrupted", "its start was interrupted", counted=False)
    if isinstance(error, EaselError):
        return Ending("StartFailed", error.message, error.hint, tuple(error.log or ()))
    log.error("the runtime failed", exc_info=error, extra={"instance": job.instance})
    return Ending("StartFailed", f"internal error: {type(error).__name__}: {error}")


def startup_seconds(spec: ServiceSpec, settings: FleetSettings) -> float:
    """Return how long a started instance may take until it is ready."""
    check = spec.startup_check
    if check is None:
        return settings.start_timeout
    tries = check.period_seconds * check.failure_threshold
    return check.initial_delay_seconds + tries + check.timeout_seconds


def _others_serve(scene: Scene, instance: Instance) -> bool:
    """Whether older instances serve while this one tries to replace them: then it is given up rather than tried for ever."""
    return is_current(scene.service, instance) and any(
        one.target == "running" and one.status in SERVING and not is_current(scene.service, one)
        for one in scene.instances
    )
