"""What the control API's routes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from easel.fleet.knowledge import Knower, Knowledge
from easel.fleet.runtime import Runtime
from easel.gateway.control.specs import SpecReader
from easel.services.services import Services
from easel.tasks.tasks import Tasks


class Reachable(Knower, Protocol):
    """A connected instance."""

    async def refresh(self, *, restart: bool, reason: str) -> None:
        """Forget what is known of nodes and models, or restart the engine's process."""


class Connected(Protocol):
    """The connected instances."""

    def ready(self, service: str) -> Sequence[Reachable]:
        """Return a service's ready instances."""

    def of(self, service: str) -> Sequence[Reachable]:
        """Return a service's connected instances."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One platform, as its operator controls it."""

    services: Services
    tasks: Tasks
    runtime: Runtime
    members: Connected
    knowledge: Knowledge
    specs: SpecReader
    base_url: Callable[[], str]
    """Where callers reach the gateway, without a slash at its end."""
    local_url: Callable[[], str]
    """Where this machine reaches it."""
    link_seconds: int
    sign_link: Callable[[str, int], str]
    """Service and seconds → the query string of a signed link."""
