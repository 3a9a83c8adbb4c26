"""How a service does, derived from what is wanted and what its instances are. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from easel.services.model import Instance, Service, ServiceStatus

NO_DEVICE = "NoDevice"
"""Reason of a pending instance for which no device is free."""
CRASH_LOOP = "CrashLoopBackOff"
"""Reason of an instance that ended again and again."""
ENGINE_FAILED = "EngineFailed"
"""Reason of an instance whose agent gave its engine up, after starting it several times."""
LINK_LOST = "LinkLost"
"""Reason of an instance whose agent is not connected."""
CHECK_FAILED = "CheckFailed"
"""Reason of an instance whose engine answers while its startup or readiness check does not pass."""
UPDATE_PAUSED = "UpdatePaused"
"""Reason of a service whose wanted revision cannot be started, while another one serves."""


class Condition(NamedTuple):
    """A service's state in the vendor's words (eas-and-fc.md F.1)."""

    status: ServiceStatus
    reason: str = ""
    message: str = ""


def is_current(service: Service, instance: Instance) -> bool:
    """Whether an instance is what the service wants now; others are to be replaced."""
    joined = instance.runtime == "joined"  # comes and goes by itself, whatever is deployed here
    return joined or (
        instance.revision == service.revision and instance.generation == service.restarts_asked
    )


def derive(service: Service, instances: Sequence[Instance]) -> Condition:
    """Return the condition of a service.

    ``Creating``/``Starting``: no instance yet, for the first time or again. ``Pending``: one waits for a device, whatever
    else serves. ``Waiting``: none is ready. ``Scaling``: some are ready, others come or go. ``Updating``: instances of
    another revision or generation are still there; its reason is ``UpdatePaused`` when the wanted one cannot be started.
    ``Failed``: given up, nothing serves. A service that serves in spite of trouble is ``Running``, with the trouble as
    reason.
    """
    if service.target == "deleted":
        return Condition("Deleting", message=_leaving(instances))
    if service.target == "stopped":
        return (
            Condition("Stopping", message=_leaving(instances))
            if instances
            else Condition("Stopped")
        )
    wanted = [one for one in instances if one.target == "running"]
    current = [one for one in wanted if is_current(service, one)]
    old = [one for one in wanted if not is_current(service, one)]
    ready = sum(one.status == "ready" for one in current)
    own = [one for one in current if one.runtime != "joined"]  # others' ends are not ours to judge
    failed = next((one for one in own if one.status == "failed"), None)
    waiting = next((one for one in current if one.status == "pending" and one.reason), None)
    serving = f"{ready} of {service.instances} instances ready"
    if failed is not None:
        return _failed(service, failed, old, ready, serving)
    if old:
        if waiting is not None:
            return Condition(
                "Pending",
                waiting.reason,
                f"revision {service.revision} waits: {waiting.message}. The update goes on when a device is free, "
                "or when rolling_strategy.max_unavailable lets an old instance leave first",
            )
        trouble = _trouble(current)
        return Condition(
            "Updating",
            trouble.reason if trouble is not None else "",
            f"revision {service.revision}: {serving}, {len(old)} older still there",
        )
    if waiting is not None:
        said = f"{waiting.message} ({serving})" if ready else waiting.message
        return Condition("Pending", waiting.reason, said)
    return _steady(service, current, ready, serving, leaving=len(wanted) < len(instances))


def _steady(
    service: Service, current: list[Instance], ready: int, serving: str, *, leaving: bool
) -> Condition:
    managed = sum(one.runtime != "joined" for one in current)
    if managed == service.instances and ready == len(current) and not leaving:
        return Condition("Running", message="" if ready else "no instances are wanted")
    if not current:
        return Condition("Creating" if service.stable_revision is None else "Starting")
    trouble = _trouble(current)
    if trouble is None:
        return Condition("Scaling" if ready else "Waiting", message=serving)
    return Condition(
        "Running" if ready else "Waiting", trouble.reason, f"{serving}: {trouble.message}"
    )


def _failed(
    service: Service, failed: Instance, old: list[Instance], ready: int, serving: str
) -> Condition:
    reason = failed.reason or "InstanceFailed"
    if any(one.status in {"ready", "unready", "backoff", "starting"} for one in old):
        return Condition(
            "Updating",
            UPDATE_PAUSED,
            f"revision {service.revision} cannot be started, the older instances go on serving: {failed.message}",
        )
    if ready:
        return Condition("Running", reason, f"{serving}: {failed.message}")
    return Condition("Failed", reason, failed.message)


def _trouble(instances: Sequence[Instance]) -> Instance | None:
    """Return the instance that says most about why not all are ready."""
    troubled = [one for one in instances if one.status in {"backoff", "unready"} and one.reason]
    return max(
        troubled, key=lambda one: (one.reason == CRASH_LOOP, one.status == "backoff"), default=None
    )


def _leaving(instances: Sequence[Instance]) -> str:
    return f"{len(instances)} instances left" if instances else ""
