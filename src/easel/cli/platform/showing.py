"""Commands that show: services, instances, events, logs, tasks, models, nodes."""

from __future__ import annotations

import sys
import time
from typing import Any

from easel.cli.platform.control import call, service_path
from easel.cli.platform.tables import age, clock, table
from easel.cli.platform.where import Where
from easel.cli.report import print_json


def services(where: Where, *, as_json: bool) -> int:
    """List every service."""
    found: list[dict[str, Any]] = []
    after = None
    while True:
        page = call(where, "GET", "/services", params={"after": after, "limit": 100})
        found += page["services"]
        after = page["next"]
        if after is None:
            break
    if as_json:
        print_json({"services": found})
        return 0
    rows = [
        (
            one["name"],
            one["edition"],
            one["status"],
            f"{one['running_instances']}/{one['instances_wanted']}",
            one["revision"],
            age(one["created"]),
            one["message"],
        )
        for one in found
    ]
    columns = ("NAME", "EDITION", "STATUS", "READY", "REVISION", "AGE", "MESSAGE")
    print(table(columns, rows) if rows else "no services; `easel deploy NAME` makes one")
    return 0


def describe(where: Where, name: str, *, as_json: bool) -> int:
    """Show everything known of a service."""
    service = call(where, "GET", service_path(name))
    if as_json:
        print_json(service)
        return 0
    for label, value in (
        ("name", service["name"]),
        ("edition", service["edition"]),
        ("status", service["status"]),
        ("reason", service["reason"]),
        ("message", service["message"]),
        ("revision", f"{service['revision']} (stable: {service['stable_revision'] or '-'})"),
        ("instances", f"{service['running_instances']} of {service['instances_wanted']} ready"),
        ("created", clock(service["created"])),
        ("endpoint", service["endpoint"]),
    ):
        if value != "":
            print(f"{label:<10} {value}")
    for warning in service["warnings"]:
        print(f"warning    {warning}")
    print()
    print(_instances(service["instances"]))
    return 0


def _instances(instances: list[dict[str, Any]]) -> str:
    rows = [
        (
            one["id"],
            one["status"],
            one["device"],
            one["revision"],
            one["restarts"],
            age(one["started"]),
            one["reason"],
            one["last_state"] or "-",
        )
        for one in instances
    ]
    columns = ("INSTANCE", "STATUS", "DEVICE", "REVISION", "RESTARTS", "AGE", "REASON", "LASTSTATE")
    return table(columns, rows)


def instances(where: Where, name: str, *, as_json: bool) -> int:
    """List a service's instances."""
    found = call(where, "GET", service_path(name, "instances"))
    if as_json:
        print_json(found)
    else:
        print(_instances(found["instances"]))
    return 0


def events(where: Where, name: str, *, limit: int, as_json: bool) -> int:
    """Show a service's latest events."""
    found = call(where, "GET", service_path(name, "events"), params={"limit": limit})
    if as_json:
        print_json(found)
        return 0
    for event in found["events"]:
        at = clock(event["at"])
        print(f"{at}  {event['type']:<8} {event['reason']:<20} {event['message']}")
        if event["advice"]:
            print(f"{'':{len(at)}}  advice: {event['advice']}")
        for line in event["log"]:
            print(f"{'':{len(at)}}  | {line}")
    return 0


def logs(
    where: Where,
    name: str,
    *,
    instance: str | None,
    lines: int,
    previous: bool,
    keyword: str | None,
    follow: bool,
    as_json: bool,
) -> int:
    """Show the last log lines of a service's instances; with ``follow`` go on until Ctrl-C."""
    asked = {
        "instance": instance,
        "lines": lines,
        "previous": str(previous).lower(),
        "keyword": keyword,
    }
    found = call(where, "GET", service_path(name, "logs"), params=asked)
    if as_json:
        print_json(found)
        return 0
    several = len(found["instances"]) > 1
    seen: dict[str, list[str]] = {}
    while True:
        for one in found["instances"]:
            for line in _new(seen.get(one["instance"], []), one["lines"]):
                print(f"{one['instance']}  {line}" if several else line)
            seen[one["instance"]] = one["lines"]
        if not follow:
            return 0
        sys.stdout.flush()
        time.sleep(1)
        found = call(where, "GET", service_path(name, "logs"), params=asked)


def _new(before: list[str], now: list[str]) -> list[str]:
    """The lines of a tail that were not in the tail before."""
    for start in range(len(before)):
        kept = before[start:]
        if now[: len(kept)] == kept:
            return now[len(kept) :]
    return now


def tasks(
    where: Where, name: str, *, state: list[str], rear: bool, limit: int, as_json: bool
) -> int:
    """List a service's tasks, newest first."""
    path = service_path(name, "tasks")
    query = "&".join(f"state={one}" for one in state)
    asked = {"limit": limit, "rear": "true" if rear else None}
    found = call(where, "GET", f"{path}?{query}" if query else path, params=asked)
    if as_json:
        print_json(found)
        return 0
    rows = [
        (
            one["id"],
            one["state"],
            f"{one['percent']:.0f}%",
            one["attempt"],
            one["instance"],
            age(one["created"]),
            (one["error"] or {}).get("message", ""),
        )
        for one in found["tasks"]
    ]
    columns = ("ID", "STATE", "PROGRESS", "ATTEMPT", "INSTANCE", "AGE", "ERROR")
    print(table(columns, rows) if rows else "no tasks")
    return 0


def models(where: Where, name: str, *, folder: str | None, as_json: bool) -> int:
    """List a service's models by folder, and the loaders that read each folder."""
    found = call(where, "GET", service_path(name, "models"), params={"folder": folder})
    if as_json:
        print_json(found)
        return 0
    rows = [
        (kind["folder"], file, ", ".join(kind["loaders"]) or "-")
        for kind in found["folders"]
        for file in kind["files"]
    ]
    columns = ("FOLDER", "FILE", "LOADERS")
    print(
        table(columns, rows) if rows else "no models: put files into the storage's models/ folder"
    )
    return 0


def nodes(where: Where, name: str, *, search: str | None, as_json: bool) -> int:
    """List the node classes that a service's engine knows."""
    found = call(where, "GET", service_path(name, "nodes"), params={"search": search})
    if as_json:
        print_json(found)
        return 0
    rows = [(one["class_type"], one["category"], one["display_name"]) for one in found["nodes"]]
    print(table(("CLASS", "CATEGORY", "NAME"), rows) if rows else "no such nodes")
    return 0
