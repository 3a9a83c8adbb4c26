"""The port behind which services, revisions, instances and events are kept."""

from __future__ import annotations

from typing import Any, Protocol

from easel.services.model import Instance, Revision, Service, ServiceEvent, ServiceSpec


class ServiceStore(Protocol):
    """Keeps what is deployed. Every method raises `StoreFailed`; what it did is durable when it returns."""

    async def create(
        self, service: Service, spec: ServiceSpec, source: str, warnings: list[str]
    ) -> None:
        """Store a new service with revision 1. Raises `ServiceExists`."""

    async def get(self, name: str) -> Service:
        """Return a service. Raises `ServiceNotFound`."""

    async def all(self) -> list[Service]:
        """Return every service, by name."""

    async def change(self, name: str, **fields: Any) -> Service:
        """Change columns of a service (``updated`` is set) and return it. Raises `ServiceNotFound`."""

    async def revise(
        self, name: str, spec: ServiceSpec, source: str, warnings: list[str], **fields: Any
    ) -> Revision:
        """Add a revision and make it the wanted one, with other columns of the service, in one transaction."""

    async def revision(self, name: str, number: int) -> Revision:
        """Return a revision. Raises `ServiceNotFound`."""

    async def revisions(self, name: str) -> list[Revision]:
        """Return a service's revisions, oldest first."""

    async def mark_failed(self, name: str, number: int) -> None:
        """Note that a revision never became ready."""

    async def delete(self, name: str) -> None:
        """Remove a service with revisions, instances and events. Harmless when it is gone."""

    async def add_instance(self, instance: Instance) -> None:
        """Store a new instance."""

    async def instance(self, instance_id: str) -> Instance:
        """Return an instance. Raises `InstanceNotFound`."""

    async def instances(self, service: str | None = None) -> list[Instance]:
        """Return instances, oldest first."""

    async def change_instance(self, instance_id: str, **fields: Any) -> Instance:
        """Change columns of an instance (``updated`` is set) and return it. Raises `InstanceNotFound`."""

    async def remove_instance(self, instance_id: str) -> None:
        """Forget an instance. Harmless when it is gone."""

    async def add_event(self, event: ServiceEvent) -> ServiceEvent:
        """Store an event and return it with its number; a service keeps the latest 1000."""

    async def events(self, service: str, *, after: int = 0, limit: int = 100) -> list[ServiceEvent]:
        """Return the latest events with numbers above ``after``, oldest first."""
