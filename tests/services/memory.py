"""A ServiceStore in memory, for tests of those who use one."""

from __future__ import annotations

import copy
from typing import Any

import msgspec

from easel.errors import InstanceNotFound, ServiceExists, ServiceNotFound
from easel.services.model import Instance, Revision, Service, ServiceEvent, ServiceSpec


class MemoryStore:
    """Copies what comes and goes, as a database does."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.of: dict[str, list[Revision]] = {}
        self.rows: dict[str, Instance] = {}
        self.log: list[ServiceEvent] = []

    async def create(
        self, service: Service, spec: ServiceSpec, source: str, warnings: list[str]
    ) -> None:
        if service.name in self.services:
            raise ServiceExists(f"service {service.name} is deployed already")
        self.services[service.name] = copy.deepcopy(service)
        self.of[service.name] = []
        self._add(service.name, spec, source, warnings)

    async def get(self, name: str) -> Service:
        if name not in self.services:
            raise ServiceNotFound(f"no service is called {name}")
        return copy.deepcopy(self.services[name])

    async def all(self) -> list[Service]:
        return [await self.get(name) for name in sorted(self.services)]

    async def change(self, name: str, **fields: Any) -> Service:
        await self.get(name)
        for field, value in fields.items():
            assert hasattr(self.services[name], field)
            setattr(self.services[name], field, value)
        return await self.get(name)

    async def revise(
        self, name: str, spec: ServiceSpec, source: str, warnings: list[str], **fields: Any
    ) -> Revision:
        revision = self._add(name, spec, source, warnings)
        await self.change(name, revision=revision.number, **fields)
        return revision

    async def revision(self, name: str, number: int) -> Revision:
        found = [one for one in self.of.get(name, []) if one.number == number]
        if not found:
            raise ServiceNotFound(f"service {name} has no revision {number}")
        return found[0]

    async def revisions(self, name: str) -> list[Revision]:
        return list(self.of.get(name, []))

    async def mark_failed(self, name: str, number: int) -> None:
        self.of[name] = [
            msgspec.structs.replace(one, failed=True) if one.number == number else one
            for one in self.of[name]
        ]

    async def delete(self, name: str) -> None:
        self.services.pop(name, None)
        self.of.pop(name, None)
        self.rows = {key: one for key, one in self.rows.items() if one.service != name}
        self.log = [one for one in self.log if one.service != name]

    async def add_instance(self, instance: Instance) -> None:
        assert instance.id not in self.rows
        self.rows[instance.id] = copy.deepcopy(instance)

    async def instance(self, instance_id: str) -> Instance:
        if instance_id not in self.rows:
            raise InstanceNotFound(f"no instance is called {instance_id}")
        return copy.deepcopy(self.rows[instance_id])

    async def instances(self, service: str | None = None) -> list[Instance]:
        return [copy.deepcopy(one) for one in self.rows.values() if service in {None, one.service}]

    async def change_instance(self, instance_id: str, **fields: Any) -> Instance:
        await self.instance(instance_id)
        for field, value in fields.items():
            assert hasattr(self.rows[instance_id], field)
            setattr(self.rows[instance_id], field, value)
        return await self.instance(instance_id)

    async def remove_instance(self, instance_id: str) -> None:
        self.rows.pop(instance_id, None)

    async def add_event(self, event: ServiceEvent) -> ServiceEvent:
        self.log.append(event)
        return event

    async def events(self, service: str, *, after: int = 0, limit: int = 100) -> list[ServiceEvent]:
        return [one for one in self.log if one.service == service][-limit:]

    def _add(self, name: str, spec: ServiceSpec, source: str, warnings: list[str]) -> Revision:
        number = len(self.of[name]) + 1
        revision = Revision(
            service=name, number=number, spec=spec, source=source, warnings=warnings, created=0
        )
        self.of[name].append(revision)
        return revision
