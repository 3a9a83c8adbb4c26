"""`easel deploy` and `easel update`: a scenario by flags, or an EAS service JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easel.cli.platform.control import call, service_path
from easel.cli.platform.waiting import follow, last_event
from easel.cli.platform.where import Where
from easel.cli.report import UsageError, print_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What the command line gave."""

    name: str | None
    file: Path | None
    edition: str | None
    storage: Path | None
    engine: str | None
    instances: int | None
    packs: list[str]
    env: list[str]
    memory: str | None
    web_port: int | None
    wait: bool
    as_json: bool

    def body(self) -> dict[str, Any]:
        """Return the control API's body. Raises UsageError."""
        if self.file is not None:
            return self._file_body(self.file)
        fields: dict[str, Any] = {
            "name": self.name,
            "edition": self.edition,
            "storage": str(self.storage.absolute()) if self.storage is not None else None,
            "engine": self.engine,
            "instances": self.instances,
            "packs": self.packs or None,
            "env": dict(_pair(text) for text in self.env) or None,
            "memory": self.memory,
            "web_port": self.web_port,
        }
        return {"scenario": {k: v for k, v in fields.items() if v is not None}}

    def _file_body(self, file: Path) -> dict[str, Any]:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read: {error}") from error
        # Sent as text: the platform says where its JSON is wrong, and keeps it word for word.
        return {"eas": text, **({"name": self.name} if self.name else {})}


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--env {text!r} is not NAME=VALUE")
    return name, value


def deploy(where: Where, deployment: Deployment) -> int:
    """Deploy a service; wait until it runs; print its endpoint. Return the exit code."""
    if deployment.name is None and deployment.file is None:
        raise UsageError("name the service, or give its JSON with --file")
    return _put(where, deployment, "POST", "/services")


def update(where: Where, deployment: Deployment) -> int:
    """Give a service a new revision; wait until it serves. Return the exit code."""
    if deployment.name is None:
        raise UsageError("name the service to update")
    return _put(where, deployment, "PUT", service_path(deployment.name))


def _put(where: Where, deployment: Deployment, method: str, path: str) -> int:
    after = last_event(where, str(deployment.name)) if method == "PUT" else 0
    service = call(where, method, path, json=deployment.body())
    name = service["name"]
    for warning in service["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if deployment.wait:
        service = follow(where, name, "Running", after=after)
    endpoint = call(where, "GET", service_path(name, "endpoint"))
    if deployment.as_json:
        print_json({**service, **endpoint})
        return 0
    print(f"service   {name}\nstatus    {service['status']}")
    print(f"endpoint  {endpoint['endpoint']}\ntoken     {endpoint['token']}")
    if service["webui"] and deployment.wait:
        link = call(where, "POST", service_path(name, "signed-link"), json={})
        print(f"WebUI     {link['url']}")
    return 0


def example_body(text: str) -> Any:
    """Read a JSON body given on the command line: the text itself, or ``@FILE``, or ``@-`` for standard input.

    Raises UsageError.
    """
    if text.startswith("@"):
        name = text[1:]
        try:
            text = sys.stdin.read() if name == "-" else Path(name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{name} cannot be read: {error}") from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"the body is not JSON: {error}") from error
