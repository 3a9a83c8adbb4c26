"""What is wanted: the one way in which services are deployed, changed and described.

Nothing here starts or stops anything. Each call changes rows and publishes ``fleet``; the controller brings the instances in
line, also when it was not running at the time.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from easel.errors import InvalidSpec, ServiceBusy, ServiceNotFound
from easel.services.description import Description, describe
from easel.services.model import Revision, Service, ServiceEvent, ServiceSpec
from easel.services.status import derive, is_current
from easel.services.store import ServiceStore
from easel.services.tokens import new_token

log = logging.getLogger(__name__)

MOST_INSTANCES = 1000
TOPIC = "fleet"


class Publisher(Protocol):
    """The part of the event bus that is needed here."""

    def publish(self, topic: str) -> None:
        """Wake every subscriber of a topic."""


class TaskRows(Protocol):
    """The part of the task store that is needed here."""

    async def forget_service(self, service: str) -> None:
        """Delete every task of a service."""


class ServiceTasks(Protocol):
    """`tasks.Tasks`, as far as services know tasks."""

    @property
    def store(self) -> TaskRows:
        """Where tasks are kept."""


def now_ms() -> int:
    """Return the time in ms since the epoch."""
    return time.time_ns() // 1_000_000


class Services:
    """Every service of the platform, as doors and operators see them.

    Calls for one service are done one after the other. Every method raises `StoreFailed`, and `ServiceNotFound` for a name
    that is not deployed; changes of a service that is being deleted raise `ServiceBusy`.
    """

    def __init__(
        self,
        store: ServiceStore,
        tasks: ServiceTasks | None,
        bus: Publisher,
        *,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.store = store
        self._tasks = tasks
        self._bus = bus
        self._clock = clock
        self._locks: dict[str, asyncio.Lock] = {}

    # Asking.

    async def get(self, name: str) -> Service:
        """Return a service's row, tokens included."""
        return await self.store.get(name)

    async def describe(self, name: str) -> Description:
        """Return everything that is known of a service except its tokens."""
        service = await self.store.get(name)
        revisions = await self.store.revisions(name)
        return describe(service, revisions, await self.store.instances(name))

    async def list(self) -> builtins.list[Service]:
        """Return every service by name, with the status that follows from its instances now."""
        services = await self.store.all()
        instances = await self.store.instances()
        for service in services:
            own = [one for one in instances if one.service == service.name]
            service.status, service.reason, service.message = derive(service, own)
        return services

    async def events(
        self, name: str, *, after: int = 0, limit: int = 100
    ) -> builtins.list[ServiceEvent]:
        """Return the latest events of a service with numbers above ``after``, oldest first."""
        await self.store.get(name)
        return await self.store.events(name, after=after, limit=limit)

    async def revisions(self, name: str) -> builtins.list[Revision]:
        """Return a service's revisions, oldest first."""
        await self.store.get(name)
        return await self.store.revisions(name)

    async def join_token(self, name: str) -> str:
        """Return the token with which agents from anywhere join a service."""
        return (await self.store.get(name)).join_token

    # Changing.

    async def deploy(self, spec: ServiceSpec, source: str, warnings: builtins.list[str]) -> Service:
        """Deploy a new service; its instances are started as soon as there are devices.

        ``source`` is what was deployed, word for word; ``warnings`` what of it is not obeyed. Raises `ServiceExists`,
        `ServiceBusy` while one of this name is being deleted, and `InvalidSpec` for a number of instances the edition does
        not have.
        """
        _check_count(spec.edition, spec.instances)
        async with self._alone(spec.name):
            with contextlib.suppress(ServiceNotFound):
                if (await self.store.get(spec.name)).target == "deleted":
                    raise ServiceBusy(
                        f"service {spec.name} is still being deleted",
                        hint="deploy it again when it is gone",
                    )
            now = self._clock()
            service = Service(
                name=spec.name,
                edition=spec.edition,
                revision=1,
                instances=spec.instances,
                token=spec.token or new_token(),
                join_token=new_token(),
                created=now,
                updated=now,
            )
            await self.store.create(service, spec, source, warnings)
            said = f"deployed in the {spec.edition} edition with {_instances(spec.instances)}"
            await self._changed(spec.name, "Deployed", said)
            return await self.store.get(spec.name)

    async def update(
        self, name: str, spec: ServiceSpec, source: str, warnings: builtins.list[str]
    ) -> Service:
        """Replace a service's specification.

        Another number of instances alone is scaling, another token alone replaces the token; everything else is a new
        revision, which the controller rolls out. A specification that says what the service has already changes nothing,
        unless it failed: then it is tried again.
        """
        async with self._alone(name):
            service = await self._changeable(name)
            _check_same(service, spec)
            _check_count(service.edition, spec.instances)
            fields: dict[str, Any] = {}
            if spec.instances != service.instances:
                fields["instances"] = spec.instances
            if spec.token is not None and spec.token != service.token:
                fields["token"] = spec.token
            wanted = await self.store.revision(name, service.revision)
            if _core(wanted.spec) != _core(spec):
                revision = await self.store.revise(name, spec, source, warnings, **fields)
                await self._changed(name, "Updating", f"revision {revision.number} was deployed")
            else:
                if fields:
                    await self.store.change(name, **fields)
                if await self._try_again(service):
                    await self._changed(name, "Restarted", "the same specification is tried again")
                if "instances" in fields:
                    await self._scaled(name, service.instances, spec.instances)
            if "token" in fields:
                await self._changed(name, "TokenReset", "the token was replaced by the one given")
            return await self.store.get(name)

    async def scale(self, name: str, instances: int) -> Service:
        """Want another number of instances. Raises `InvalidSpec` for one that the edition does not have."""
        async with self._alone(name):
            service = await self._changeable(name)
            _check_count(service.edition, instances)
            if instances != service.instances:
                await self.store.change(name, instances=instances)
                await self._scaled(name, service.instances, instances)
            return await self.store.get(name)

    async def stop(self, name: str) -> Service:
        """Stop every instance, after what runs on it; the definition and waiting tasks stay. Harmless when stopped."""
        async with self._alone(name):
            service = await self._changeable(name)
            if service.target != "stopped":
                await self.store.change(name, target="stopped")
                await self._changed(
                    name, "Stopped", "the service is stopped; its waiting tasks stay"
                )
            return await self.store.get(name)

    async def start(self, name: str) -> Service:
        """Start a stopped service, or try a failed one again. Harmless when it runs."""
        async with self._alone(name):
            service = await self._changeable(name)
            if service.target == "stopped":
                await self.store.change(name, target="running")
                await self._changed(name, "Started", "the service is started")
            elif await self._try_again(service):
                await self._changed(name, "Started", "what failed is tried again")
            return await self.store.get(name)

    async def restart(self, name: str) -> Service:
        """Replace every instance by a new one of the same revision, as an update does; starts a stopped service."""
        async with self._alone(name):
            service = await self._changeable(name)
            await self.store.change(
                name, target="running", restarts_asked=service.restarts_asked + 1
            )
            await self._changed(name, "Restarted", "every instance is replaced")
            return await self.store.get(name)

    async def rollback(self, name: str, revision: int | None = None) -> Service:
        """Want an earlier revision again; None: the one that last worked, else the one before.

        Raises `ServiceNotFound` for an unknown revision and `ServiceBusy` when there is none to go back to.
        """
        async with self._alone(name):
            service = await self._changeable(name)
            if revision is None:
                revision = _earlier(service, await self.store.revisions(name))
            await self.store.revision(name, revision)
            if revision != service.revision:
                await self.store.change(name, revision=revision)
                said = f"from revision {service.revision} back to revision {revision}"
                await self._changed(name, "RolledBack", said)
            return await self.store.get(name)

    async def delete(self, name: str) -> Service:
        """Stop every instance, then forget the service and its tasks. Folders of its storage are left alone."""
        async with self._alone(name):
            service = await self.store.get(name)
            if service.target != "deleted":
                await self.store.change(name, target="deleted")
                await self._changed(name, "Deleted", "the service is being deleted")
            return await self.store.get(name)

    async def reset_token(self, name: str, token: str | None = None) -> Service:
        """Replace the callers' token by a new one, or by the given one; the old one is refused from now on."""
        async with self._alone(name):
            await self._changeable(name)
            await self.store.change(name, token=token or new_token())
            await self._changed(name, "TokenReset", "the token was replaced")
            return await self.store.get(name)

    async def forget(self, name: str) -> None:
        """Remove the rows of a deleted service whose instances are gone, and its tasks. The controller's last step."""
        async with self._alone(name):
            if self._tasks is not None:
                await self._tasks.store.forget_service(name)
            await self.store.delete(name)
        self._locks.pop(name, None)
        self._bus.publish(TOPIC)

    # Inside.

    def _alone(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _changeable(self, name: str) -> Service:
        service = await self.store.get(name)
        if service.target == "deleted":
            raise ServiceBusy(f"service {name} is being deleted")
        return service

    async def _try_again(self, service: Service) -> bool:
        """Have instances that were given up replaced; True when there were any."""
        given_up = [
            one
            for one in await self.store.instances(service.name)
            if one.status == "failed" and one.target == "running" and is_current(service, one)
        ]
        for one in given_up:
            await self.store.change_instance(one.id, target="stopped")
        return bool(given_up)

    async def _scaled(self, name: str, before: int, after: int) -> None:
        await self._changed(name, "Scaled", f"from {before} to {_instances(after)}")

    async def _changed(self, name: str, reason: str, message: str) -> None:
        """Tell it: as an event, in the stored status, in the log and on the bus."""
        event = ServiceEvent(service=name, at=self._clock(), reason=reason, message=message)
        await self.store.add_event(event)
        service = await self.store.get(name)
        found = derive(service, await self.store.instances(name))
        await self.store.change(
            name, status=found.status, reason=found.reason, message=found.message
        )
        log.info("%s: %s", reason, message, extra={"service": name})
        self._bus.publish(TOPIC)


def _core(spec: ServiceSpec) -> ServiceSpec:
    """A specification without what can change without a new revision."""
    return msgspec.structs.replace(spec, instances=0, token=None)


def _instances(count: int) -> str:
    return "1 instance" if count == 1 else f"{count} instances"


def _check_count(edition: str, count: int) -> None:
    if edition == "standard" and count != 1:
        raise InvalidSpec(
            [("instances", f"the standard edition has exactly 1 instance, not {count}")],
            hint="its WebUI shows one ComfyUI; deploy with the api edition for more instances",
        )
    if not 0 <= count <= MOST_INSTANCES:
        raise InvalidSpec([("instances", f"must be 0 to {MOST_INSTANCES}, not {count}")])


def _check_same(service: Service, spec: ServiceSpec) -> None:
    faults = []
    if spec.name != service.name:
        faults.append(("name", f"is {spec.name!r}, but the service is {service.name!r}"))
    if spec.edition != service.edition:
        faults.append(
            ("edition", f"cannot change from {service.edition} to {spec.edition}: deploy anew")
        )
    if faults:
        raise InvalidSpec(faults)


def _earlier(service: Service, revisions: list[Revision]) -> int:
    if service.stable_revision is not None and service.stable_revision != service.revision:
        return service.stable_revision
    earlier = [one.number for one in revisions if one.number < service.revision and not one.failed]
    if not earlier:
        raise ServiceBusy(f"service {service.name} has no earlier revision to go back to")
    return earlier[-1]
