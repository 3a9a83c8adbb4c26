"""Services, revisions, instances and their events in the platform's database, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa

from easel.database.port import Database
from easel.database.tables import instances, revisions, service_events, services
from easel.errors import InstanceNotFound, ServiceExists, ServiceNotFound, StoreFailed
from easel.services.codec import (
    LARGEST,
    LARGEST_KEY,
    columns_of_instance,
    columns_of_service,
    read_event,
    read_instance,
    read_revision,
    read_service,
    text,
    to_row,
)
from easel.services.model import Instance, Revision, Service, ServiceEvent, ServiceSpec

MOST_EVENTS = 1000
"""Events that are kept of a service."""


class SqlServiceStore:
    """A `ServiceStore` in an open `Database`. ``clock`` tells ms since the epoch.

    Text is kept as it is but for NUL and halves of surrogate pairs, which PostgreSQL does not take.
    """

    def __init__(self, database: Database, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    # Services and revisions.

    async def create(
        self, service: Service, spec: ServiceSpec, source: str, warnings: list[str]
    ) -> None:
        """Store a new service with revision 1. Raises ServiceExists."""
        row = to_row(msgspec.structs.asdict(service))
        first = _revision_row(row["name"], service.revision, service.created)
        first |= to_row({"spec": spec, "source": source, "warnings": warnings})

        def create(connection: sa.Connection) -> None:
            connection.execute(sa.insert(services).values(row))
            connection.execute(sa.insert(revisions).values(first))
            # What was still told of an earlier service of this name after it had been deleted.
            connection.execute(
                sa.delete(service_events).where(service_events.c.service == row["name"])
            )

        try:
            await self._database.run(create)
        except sa.exc.IntegrityError as error:
            raise ServiceExists(f"a service {service.name!r} is deployed already") from error

    async def get(self, name: str) -> Service:
        """Return a service. Raises ServiceNotFound."""
        return read_service(await self._one(_service(name), _no_service(name)))

    async def all(self) -> list[Service]:
        """Return every service, by name."""
        rows = await self._rows(sa.select(services))
        return sorted(map(read_service, rows), key=lambda service: service.name)

    async def change(self, name: str, **fields: Any) -> Service:
        """Change columns of a service and return it. Raises ServiceNotFound, TypeError for columns that are none."""
        change = self._update_service(name, columns_of_service(fields))
        return read_service(await self._one(change, _no_service(name)))

    async def revise(
        self, name: str, spec: ServiceSpec, source: str, warnings: list[str], **fields: Any
    ) -> Revision:
        """Add a revision and make it the wanted one, with other columns of the service. Raises ServiceNotFound."""
        if "revision" in fields:
            raise TypeError("the revision's number is not the caller's to choose")
        changed = columns_of_service(fields)
        content = to_row({"spec": spec, "source": source, "warnings": warnings})
        now = self._clock()
        key = text(name)
        latest = sa.select(sa.func.max(revisions.c.number)).where(revisions.c.service == key)

        def revise(connection: sa.Connection) -> dict[str, Any]:
            # One revision after the other: the row is locked until the transaction ends.
            if connection.execute(_service(name).with_for_update()).first() is None:
                raise _no_service(name)
            number = (connection.scalar(latest) or 0) + 1
            row = _revision_row(key, number, now) | content
            added = connection.execute(sa.insert(revisions).values(row).returning(revisions))
            connection.execute(self._update_service(name, {**changed, "revision": number}))
            return added.one()._asdict()

        return read_revision(await self._database.run(revise))

    async def revision(self, name: str, number: int) -> Revision:
        """Return a revision. Raises ServiceNotFound."""
        missing = ServiceNotFound(f"service {name!r} has no revision {number}")
        if not 0 < number <= LARGEST:
            raise missing
        return read_revision(
            await self._one(_revision(sa.select(revisions), name, number), missing)
        )

    async def revisions(self, name: str) -> list[Revision]:
        """Return a service's revisions, oldest first."""
        found = sa.select(revisions).where(revisions.c.service == text(name))
        return [read_revision(row) for row in await self._rows(found.order_by(revisions.c.number))]

    async def mark_failed(self, name: str, number: int) -> None:
        """Note that a revision never became ready. Harmless when it is gone."""
        await self._execute(_revision(sa.update(revisions), name, number).values(failed=1))

    async def delete(self, name: str) -> None:
        """Remove a service with revisions, instances and events. Harmless when it is gone."""
        key = text(name)

        def delete(connection: sa.Connection) -> None:
            # The service first: whoever adds something to it waits for its row.
            connection.execute(sa.delete(services).where(services.c.name == key))
            for table in (revisions, instances, service_events):
                connection.execute(sa.delete(table).where(table.c.service == key))

        await self._database.run(delete)

    # Instances.

    async def add_instance(self, instance: Instance) -> None:
        """Store a new instance. Raises StoreFailed when the id is taken."""
        try:
            await self._execute(
                sa.insert(instances).values(to_row(msgspec.structs.asdict(instance)))
            )
        except sa.exc.IntegrityError as error:
            raise StoreFailed(f"there is an instance {instance.id!r} already") from error

    async def instance(self, instance_id: str) -> Instance:
        """Return an instance. Raises InstanceNotFound."""
        found = sa.select(instances).where(instances.c.id == text(instance_id))
        return read_instance(await self._one(found, _no_instance(instance_id)))

    async def instances(self, service: str | None = None) -> list[Instance]:
        """Return instances, oldest first."""
        found = sa.select(instances)
        if service is not None:
            found = found.where(instances.c.service == text(service))
        rows = await self._rows(found)
        return sorted(map(read_instance, rows), key=lambda one: (one.created, one.id))

    async def change_instance(self, instance_id: str, **fields: Any) -> Instance:
        """Change columns of an instance and return it. Raises InstanceNotFound, TypeError for columns that are none."""
        change = (
            sa.update(instances)
            .where(instances.c.id == text(instance_id))
            .values({**columns_of_instance(fields), "updated": self._clock()})
            .returning(instances)
        )
        return read_instance(await self._one(change, _no_instance(instance_id)))

    async def remove_instance(self, instance_id: str) -> None:
        """Forget an instance. Harmless when it is gone."""
        await self._execute(sa.delete(instances).where(instances.c.id == text(instance_id)))

    # Events.

    async def add_event(self, event: ServiceEvent) -> ServiceEvent:
        """Store an event and return it with its number; a service keeps the latest 1000."""
        row = to_row(msgspec.structs.asdict(event))
        del row["seq"]
        of_service = service_events.c.service == row["service"]
        newest_left_out = (
            sa.select(service_events.c.seq)
            .where(of_service)
            .order_by(service_events.c.seq.desc())
            .offset(MOST_EVENTS)
            .limit(1)
            .scalar_subquery()
        )

        def add(connection: sa.Connection) -> dict[str, Any]:
            # Numbers become visible in their order: whoever asks for those after the latest misses none.
            connection.execute(_service(event.service).with_for_update())
            added = connection.execute(
                sa.insert(service_events).values(row).returning(service_events)
            )
            stored = added.one()._asdict()
            connection.execute(
                sa.delete(service_events).where(of_service, service_events.c.seq <= newest_left_out)
            )
            return stored

        return read_event(await self._database.run(add))

    async def events(self, service: str, *, after: int = 0, limit: int = 100) -> list[ServiceEvent]:
        """Return the latest events with numbers above ``after``, oldest first."""
        found = (
            sa.select(service_events)
            .where(
                service_events.c.service == text(service),
                service_events.c.seq > max(0, min(after, LARGEST_KEY)),
            )
            .order_by(service_events.c.seq.desc())
            .limit(max(0, min(limit, LARGEST)))
        )
        return [read_event(row) for row in reversed(await self._rows(found))]

    # Inside.

    def _update_service(self, name: str, columns: dict[str, Any]) -> sa.Executable:
        return (
            sa.update(services)
            .where(services.c.name == text(name))
            .values({**columns, "updated": self._clock()})
            .returning(services)
        )

    async def _rows(self, statement: sa.Executable) -> list[dict[str, Any]]:
        return await self._database.run(
            lambda connection: [row._asdict() for row in connection.execute(statement)]
        )

    async def _one(self, statement: sa.Executable, missing: Exception) -> dict[str, Any]:
        rows = await self._rows(statement)
        if not rows:
            raise missing
        return rows[0]

    async def _execute(self, statement: sa.Executable) -> None:
        def execute(connection: sa.Connection) -> None:
            connection.execute(statement)

        await self._database.run(execute)


def _service(name: str) -> sa.Select[Any]:
    return sa.select(services).where(services.c.name == text(name))


def _revision(statement: Any, name: str, number: int) -> Any:
    return statement.where(revisions.c.service == text(name), revisions.c.number == number)


def _revision_row(service: str, number: int, created: int) -> dict[str, Any]:
    return {"service": service, "number": number, "failed": 0, "created": created}


def _no_service(name: str) -> ServiceNotFound:
    return ServiceNotFound(f"there is no service {name!r}")


def _no_instance(instance_id: str) -> InstanceNotFound:
    return InstanceNotFound(f"there is no instance {instance_id!r}")
