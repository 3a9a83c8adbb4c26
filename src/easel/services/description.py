"""A service as operators see it, in one piece."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from easel.errors import ServiceNotFound
from easel.services.model import (
    Edition,
    Instance,
    Revision,
    Service,
    ServiceSpec,
    ServiceStatus,
)
from easel.services.status import derive


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What eas-and-fc.md F.1 and F.2 name of a service. No tokens: `Services.get` has them."""

    name: str
    edition: Edition
    status: ServiceStatus
    reason: str
    message: str
    wanted: int
    """Instances that are wanted; 0 while the service is stopped."""
    total: int
    """Instances there are."""
    running: int
    """Instances that are ready."""
    pending: int
    """Instances that are on their way: everything wanted that is not ready."""
    revision: int
    """The wanted one (the vendor's CurrentVersion)."""
    stable_revision: int | None
    latest_revision: int
    """The newest one (the vendor's LatestVersion)."""
    restarts: int
    """Sum over the instances."""
    warnings: list[str]
    """What of the wanted revision is not obeyed."""
    spec: ServiceSpec
    """Of the wanted revision, with the number of instances that is wanted now and without its token."""
    source: str
    """What was deployed as the wanted revision, word for word; it may contain a token."""
    instances: list[Instance]
    """Without token hashes."""
    created: int
    updated: int


def describe(
    service: Service, revisions: Sequence[Revision], instances: Sequence[Instance]
) -> Description:
    """Put a description together. Raises ServiceNotFound when it was deleted between the queries."""
    wanted = next((one for one in revisions if one.number == service.revision), None)
    if wanted is None:
        raise ServiceNotFound(f"there is no service {service.name!r}")
    condition = derive(service, instances)
    ready = sum(one.status == "ready" for one in instances)
    leaving = sum(one.target == "stopped" for one in instances if one.status != "ready")
    return Description(
        name=service.name,
        edition=service.edition,
        status=condition.status,
        reason=condition.reason,
        message=condition.message,
        wanted=service.instances if service.target == "running" else 0,
        total=len(instances),
        running=ready,
        pending=len(instances) - ready - leaving,
        revision=service.revision,
        stable_revision=service.stable_revision,
        latest_revision=max(one.number for one in revisions),
        restarts=sum(one.restarts for one in instances),
        warnings=list(wanted.warnings),
        spec=msgspec.structs.replace(wanted.spec, token=None, instances=service.instances),
        source=wanted.source,
        instances=[msgspec.structs.replace(one, token_hash="") for one in instances],
        created=service.created,
        updated=service.updated,
    )
