"""What the gateway's doors share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp

from easel.errors import BadRequest, ServiceNotFound
from easel.gateway.directory import Directory
from easel.gateway.links import Links, query
from easel.gateway.metrics import Metrics
from easel.settings import GatewaySettings


class Member(Protocol):
    """A connected instance."""

    @property
    def instance(self) -> str:
        """Its id."""

    @property
    def upstream(self) -> str:
        """Base URL of its engine, without a slash at its end."""


class ReadyMembers(Protocol):
    """The connected instances (`fleet.Members`)."""

    def ready(self, service: str) -> Sequence[Member]:
        """Return a service's ready instances."""


async def _nothing() -> None:
    """There is nothing to ask."""


@dataclass(slots=True, kw_only=True)
class GatewayState:
    """One gateway."""

    settings: GatewaySettings
    directory: Directory
    members: ReadyMembers
    links: Links
    metrics: Metrics
    http: aiohttp.ClientSession
    """The way to the instances (`proxy.session`)."""
    admin_token: str
    ping: Callable[[], Awaitable[None]] = field(default=_nothing)
    """Asks the database; raises EaselError when it does not answer."""
    refresh_gauges: Callable[[], Awaitable[None]] = field(default=_nothing)
    """Called before `/metrics` is read: sets what is counted only when somebody looks (`metrics.Gauges`)."""
    draining: bool = False
    """The gateway is about to stop: `/readyz` says so, everything else is still answered."""

    def sign_link(self, service: str, seconds: int) -> str:
        """Return the query string of a link to a service's WebUI, good for at most ``gateway.link_seconds``.

        Raises ServiceNotFound, and BadRequest for a service without a WebUI.
        """
        entry = self.directory.known(service)
        if entry is None:
            raise ServiceNotFound(f"there is no service {service}")
        if not entry.spec.webui:
            raise BadRequest(f"service {service} has no WebUI")
        seconds = min(seconds, self.settings.link_seconds)
        return query(self.links.sign(service, entry.token, seconds))

    @property
    def scheme(self) -> str | None:
        """The scheme under which callers reach the gateway, where that was configured."""
        url = self.settings.public_url
        return url.partition(":")[0].lower() if url else None
