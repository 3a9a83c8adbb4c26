"""Commands that change or call: scale, stop, start, restart, rollback, delete, token, link, invoke, check."""

from __future__ import annotations

import json
import sys
from typing import Any

from easel.cli.platform.control import call, service_path
from easel.cli.platform.waiting import follow, last_event
from easel.cli.platform.where import Where
from easel.cli.report import FAILED, print_json


def change(
    where: Where,
    name: str,
    verb: str,
    body: dict[str, Any],
    *,
    wanted: str,
    wait: bool,
    as_json: bool,
) -> int:
    """Ask for a change of a service and, with ``wait``, follow it until the status is as wanted."""
    after = last_event(where, name)
    service = call(where, "POST", service_path(name, verb), json=body)
    if wait:
        service = follow(where, name, wanted, after=after)
    if as_json:
        print_json(service)
    else:
        print(f"{name}: {service['status']}")
    return 0


def delete(where: Where, name: str, *, yes: bool, wait: bool) -> int:
    """Delete a service; its storage stays."""
    if not yes and sys.stdin.isatty():
        print(f"Delete the service {name}? Its storage stays. [Y/n] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("", "y", "yes"):
            print("kept")
            return FAILED
    call(where, "DELETE", service_path(name), params={"wait": str(wait).lower()})
    print(f"{name}: deleted" if wait else f"{name}: being deleted")
    return 0


def endpoint(where: Where, name: str, *, as_json: bool) -> int:
    """Show how a service is called."""
    found = call(where, "GET", service_path(name, "endpoint"))
    if as_json:
        print_json(found)
        return 0
    print(f"endpoint  {found['endpoint']}\ntoken     {found['token']}")
    for example in found["examples"]:
        print(f"\n# {example['title']}\n{example['text']}")
    return 0


def show(where: Where, method: str, path: str, body: Any, *, key: str, as_json: bool) -> int:
    """Call and print one field of the answer."""
    found = call(where, method, path, json=body)
    if as_json:
        print_json(found)
    else:
        print(found[key])
    return 0


def invoke(
    where: Where,
    name: str,
    *,
    method: str,
    path: str,
    headers: dict[str, str],
    body: Any,
    as_json: bool,
) -> int:
    """Send one request to a service, as online debugging does, and show the answer; 1 unless it is 2xx."""
    asked: dict[str, Any] = {"method": method, "path": path, "headers": headers}
    if body is not None:
        asked["body"] = body
    found = call(where, "POST", service_path(name, "invoke"), json=asked)
    if as_json:
        print_json(found)
    else:
        print(
            f"{found['status']} {found['reason']} ({found['milliseconds']:.0f} ms)", file=sys.stderr
        )
        for header, value in found["headers"]:
            print(f"{header}: {value}", file=sys.stderr)
        print(file=sys.stderr)
        shown = found["json"]
        print(json.dumps(shown, indent=2) if shown is not None else found["text"] or "")
    return 0 if 200 <= found["status"] < 300 else FAILED


def check(where: Where, name: str, *, workflow: Any, as_json: bool) -> int:
    """Say what a workflow needs and misses on a service, before it runs; 1 when something is missing."""
    found = call(where, "POST", service_path(name, "check"), json={"workflow": workflow})
    if as_json:
        print_json(found)
        return FAILED if found["missing"] else 0
    for one in found["missing"]:
        print(f"missing: {one['message']}")
        if one["advice"]:
            print(f"  {one['advice']}")
    if not found["missing"]:
        print("nothing is missing")
    return FAILED if found["missing"] else 0
