"""The next step from the instances there are to those that are wanted: updates, restarts, scaling and stops alike. Pure.

Instances of another revision or generation than the wanted one are *old*. The rules are Kubernetes' and the vendor's
(eas-and-fc.md F.5):

- Up to ``max_surge`` instances beyond the wanted number are started; an old one leaves when a new one is ready in its place.
- ``max_unavailable`` is used only where surging is impossible: no device is free, or ``max_surge`` is 0.
- Where it is 0 as well, the update waits, and the service's status says so. Only the standard edition, which has one instance
  and is often alone on its machine's only device, is then replaced in place: its old instance leaves first.
- A new instance that failed for good pauses everything: nothing more is started, and what serves goes on serving.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from easel.services.model import Instance, Service, ServiceSpec
from easel.services.status import NO_DEVICE, is_current

SERVING = frozenset({"ready", "unready"})
"""An unready one may be back in a second: it leaves like a ready one, only before it."""
USE = {"failed": 0, "pending": 1, "backoff": 2, "starting": 3, "unready": 4, "ready": 5}


class Plan(NamedTuple):
    """What to do now."""

    create: int = 0
    """How many instances of the wanted revision to add."""
    retire: tuple[str, ...] = ()
    """Instances that leave."""
    paused: bool = False
    """Whether the wanted revision failed while older instances are still there."""
    complete: bool = False
    """Whether everything wanted is ready and nothing else is there."""


def idle(instance: str) -> int:
    """Know of no tasks."""
    return 0


def plan(
    service: Service,
    spec: ServiceSpec,
    instances: Sequence[Instance],
    load: Callable[[str], int] = idle,
) -> Plan:
    """Return the next step for the instances a runtime manages (joined ones come and go by themselves).

    ``load``: instance id → how many tasks it holds.
    """
    live = [one for one in instances if one.target == "running"]
    if service.target != "running":
        return Plan(retire=tuple(one.id for one in live))
    current = [one for one in live if is_current(service, one)]
    old = [one for one in live if not is_current(service, one)]
    failed = any(one.status == "failed" for one in current)
    blocked = any(one.status == "pending" and one.reason == NO_DEVICE for one in current)
    dispensable = [one for one in old if _dispensable(service, one, blocked=blocked)]
    serving = [one for one in old if one not in dispensable]
    excess = least_useful(current, load)[: max(len(current) - service.instances, 0)]
    retire = [*dispensable, *excess]
    if failed:
        leaving = least_useful(serving, load)[: max(len(serving) - service.instances, 0)]
        return Plan(retire=_ids(retire + leaving), paused=bool(serving))
    ready = sum(one.status == "ready" for one in current if one not in excess)
    may_leave = ready + len(serving) - (service.instances - _slack(service, spec, blocked=blocked))
    retire += least_useful(serving, load)[: max(may_leave, 0)]
    room = service.instances + max(spec.max_surge, 0) - (len(live) - len(retire))
    create = max(min(service.instances - len(current), room), 0)
    everything = len(live) == len(instances) and not old and not excess
    complete = everything and ready == service.instances == len(current)
    return Plan(create=create, retire=_ids(retire), complete=complete)


def least_useful(
    instances: Sequence[Instance], load: Callable[[str], int] = idle
) -> list[Instance]:
    """Order instances by how little is lost with them: those that do not serve first, then idle ones, then the youngest."""
    return sorted(
        instances, key=lambda one: (USE.get(one.status, 0), load(one.id), -one.created, one.id)
    )


def _slack(service: Service, spec: ServiceSpec, *, blocked: bool) -> int:
    """How many of the wanted instances may be missing for the sake of an update."""
    if spec.max_surge <= 0:
        return max(spec.max_unavailable, 1)  # else nothing could ever move
    if not blocked:
        return 0
    in_place = 1 if service.edition == "standard" else 0
    return max(spec.max_unavailable, in_place)


def _dispensable(service: Service, old: Instance, *, blocked: bool) -> bool:
    """Whether an old instance serves nobody and will not: it leaves without a successor.

    One of the revision that last worked which is starting, or starts again after an end, is what callers wait for; unless
    a restart was asked for since, or it ended and keeps a device that a new one needs.
    """
    if old.status in SERVING:
        return False
    if old.status in {"failed", "pending"} or old.revision != service.stable_revision:
        return True
    if blocked and old.status == "backoff":
        return True
    return old.revision == service.revision  # an older generation: somebody asked for a restart


def _ids(instances: Sequence[Instance]) -> tuple[str, ...]:
    return tuple(one.id for one in instances)
