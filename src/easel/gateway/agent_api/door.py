"""What the agent API's handlers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from starlette.datastructures import QueryParams
from starlette.requests import HTTPConnection

from easel.errors import BadRequest
from easel.gateway.agent_api.submission import Submission
from easel.settings import GatewaySettings
from easel.storage.outputs import OutputFiles
from easel.tasks.model import Task
from easel.tasks.tasks import Tasks

CALLER = "easel.caller"
"""Where the front puts the `Caller` into the ASGI scope."""


class Caller(Protocol):
    """Who calls, and of which service."""

    @property
    def service(self) -> str:
        """The service's name."""

    @property
    def owner(self) -> str:
        """Whose tasks these are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One gateway's agent API."""

    settings: GatewaySettings
    tasks: Tasks
    submission: Submission
    files: Callable[[str], OutputFiles]
    """Service → its stored outputs."""
    most_waiting: Callable[[str], int]
    """Service → tasks that may wait."""

    async def position(self, task: Task) -> int | None:
        """Return a task's place in line, 0 for the next one."""
        return await self.tasks.store.position(task.uid) if task.state == "queued" else None


def caller_of(connection: HTTPConnection) -> Caller:
    """Return who calls."""
    caller: Caller = connection.scope[CALLER]
    return caller


def prefix_of(connection: HTTPConnection) -> str:
    """Return the path under which the caller reaches the service, without a slash at its end."""
    return str(connection.scope.get("root_path", "")).rstrip("/")


def flag(query: QueryParams, name: str) -> bool:
    """Read a yes-or-no query parameter.

    Raises BadRequest for anything but true, false, 1, 0 or nothing.
    """
    value = query.get(name, "false").lower()
    if value in ("true", "1", ""):
        return True
    if value in ("false", "0"):
        return False
    raise BadRequest(f"{name} must be true or false, not {value!r}")
