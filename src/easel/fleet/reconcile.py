"""One service: one pass from what its rows say is there towards what they say is wanted."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from easel.errors import ServiceNotFound
from easel.fleet.ends import Scene
from easel.fleet.journal import Journal
from easel.fleet.lifecycle import Lifecycle
from easel.fleet.rollout import Plan, idle, plan
from easel.services.model import Instance, Service, ServiceSpec
from easel.services.services import Services
from easel.services.status import UPDATE_PAUSED, derive, is_current
from easel.services.store import ServiceStore

log = logging.getLogger(__name__)

_ELSEWHERE: dict[str, Any] = {
    "instances": 0,
    "max_waiting": 0,
    "rate_limit": 0,
    "concurrency_limit": 0,
    "keepalive_ms": 0,
    "max_surge": 0,
    "max_unavailable": 0,
    "termination_grace_seconds": 0,
    "restart_after_crash": True,
    "webui": True,
    "web_port": None,
    "web_host": None,
    "retention_seconds": 0,
    "autoscaler": {},
    "labels": {},
    "token": None,
}
"""Fields that the gateway and the controller obey: an instance need not be replaced for them."""


def runs_the_same(one: ServiceSpec, other: ServiceSpec) -> bool:
    """Whether instances of two specifications are the same."""
    neutral = msgspec.structs.replace(one, **_ELSEWHERE)
    return neutral == msgspec.structs.replace(other, **_ELSEWHERE)


class Reconciler:
    """Looks at services one at a time."""

    def __init__(
        self,
        store: ServiceStore,
        services: Services,
        lifecycle: Lifecycle,
        journal: Journal,
        *,
        runtime: str,
        clock: Callable[[], int],
        load: Callable[[str], int] = idle,
    ) -> None:
        self._store = store
        self._services = services
        self._lifecycle = lifecycle
        self._journal = journal
        self._runtime = runtime
        self._clock = clock
        self._load = load

    async def service(self, name: str) -> bool:
        """Do what can be done now; True when rows were changed and it should be looked at again. Raises `StoreFailed`."""
        try:
            service = await self._store.get(name)
            instances = await self._store.instances(name)
            numbers = {service.revision, *(one.revision for one in instances)}
            found = [await self._store.revision(name, number) for number in sorted(numbers)]
        except ServiceNotFound:
            self._journal.forget(name)
            return False
        scene = Scene(service, {one.number: one.spec for one in found}, instances)
        changed = await self._relabel(scene)
        if not changed:
            changed = await self._visit(scene)
        if not changed:
            changed = await self._follow(scene)
        instances = await self._store.instances(name) if changed else instances
        condition = derive(service, instances)
        if condition != (service.status, service.reason, service.message):
            status, reason, message = condition
            await self._store.change(name, status=status, reason=reason, message=message)
            if reason == UPDATE_PAUSED != service.reason:
                await self._tell_paused(service, message)
            changed = True
        if service.target == "deleted" and not instances:
            await self._services.forget(name)
            self._journal.forget(name)
        return changed

    async def _relabel(self, scene: Scene) -> bool:
        """Take instances over into the wanted revision where it starts nothing else than theirs did."""
        service, wanted = scene.service, scene.specs[scene.service.revision]
        others = [
            one
            for one in scene.instances
            if one.revision != service.revision and runs_the_same(scene.specs[one.revision], wanted)
        ]
        for one in others:
            await self._store.change_instance(one.id, revision=service.revision)
        return bool(others)

    async def _visit(self, scene: Scene) -> bool:
        changed = False
        for instance in scene.instances:
            if instance.runtime == self._runtime:
                changed |= await self._lifecycle.step(scene, instance)
            elif instance.runtime == "joined":
                changed |= await self._lifecycle.guest(scene, instance)
        return changed

    async def _follow(self, scene: Scene) -> bool:
        """Add and retire instances, and note what has been reached."""
        service = scene.service
        managed = [one for one in scene.instances if one.runtime == self._runtime]
        step: Plan = plan(service, scene.specs[service.revision], managed, self._load)
        for one in step.retire:
            await self._store.change_instance(one, target="stopped")
        for _ in range(step.create):
            await self._store.add_instance(self._new(service))
        changed = bool(step.retire or step.create)
        if not changed and service.stable_revision != service.revision and _works(service, managed):
            await self._store.change(service.name, stable_revision=service.revision)
            if service.stable_revision is not None:
                said = f"revision {service.revision} serves; no older instance is left"
                await self._journal.note(service.name, "UpdateComplete", said)
            changed = True
        return changed

    def _new(self, service: Service) -> Instance:
        now = self._clock()
        return Instance(
            id=f"{service.name}-{secrets.token_hex(4)}",
            service=service.name,
            revision=service.revision,
            generation=service.restarts_asked,
            runtime=self._runtime,
            created=now,
            updated=now,
        )

    async def _tell_paused(self, service: Service, message: str) -> None:
        back = service.stable_revision or "an earlier one"
        advice = (
            f"the events of its instance say why; deploy a corrected specification, go back to revision {back} "
            "(rollback), or try it again (restart)"
        )
        await self._journal.note(service.name, UPDATE_PAUSED, message, warning=True, advice=advice)


def _works(service: Service, managed: Sequence[Instance]) -> bool:
    """Whether the wanted revision serves and no older one is needed any more."""
    live = [one for one in managed if one.target == "running"]
    return (
        service.target == "running"
        and all(is_current(service, one) and one.status != "failed" for one in live)
        and any(one.status == "ready" for one in live)
    )
