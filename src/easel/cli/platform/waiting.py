"""Following a service until it is as wanted, with what happens to it on standard error."""

from __future__ import annotations

import sys
import time
from typing import Any

from easel.cli.platform.control import call, service_path
from easel.cli.platform.where import Where
from easel.errors import InstanceFailed

SETTLED = {"Running", "Stopped", "Failed", "Deleted"}
PAUSE = 0.25


def follow(where: Where, name: str, wanted: str, *, after: int) -> dict[str, Any]:
    """Show a service's events above ``after`` until its status is ``wanted``, and return it.

    Raises InstanceFailed with reason, advice and log when it comes to nothing.
    """
    shown = after
    line = ""
    while True:
        service: dict[str, Any] = call(where, "GET", service_path(name))
        events = call(where, "GET", service_path(name, "events"), params={"after": shown})["events"]
        for event in events:
            shown = max(shown, event["seq"])
            print(f"  {event['reason']}: {event['message']}", file=sys.stderr, flush=True)
        status = service["status"]
        progress = (
            f"[{'OK' if status == wanted else '..'}] {status} [Total: {service['total_instances']}, "
            f"Pending: {service['pending_instances']}, Running: {service['running_instances']}]"
        )
        if progress != line:
            print(progress, file=sys.stderr, flush=True)
            line = progress
        if status == wanted:
            return service
        paused = status == "Updating" and service["reason"] == "UpdatePaused"
        if status == "Failed" or paused:
            last: dict[str, Any] = next((e for e in reversed(events) if e["type"] == "Warning"), {})
            raise InstanceFailed(
                service["reason"],
                f"service {name}: {service['message'] or service['reason']}",
                hint=last.get("advice")
                or f"`easel events {name}` and `easel logs {name}` say more",
                log=last.get("log"),
            )
        time.sleep(PAUSE)


def last_event(where: Where, name: str) -> int:
    """Return the number of a service's latest event, 0 when there is none."""
    events = call(where, "GET", service_path(name, "events"), params={"limit": 1})["events"]
    return int(events[-1]["seq"]) if events else 0
