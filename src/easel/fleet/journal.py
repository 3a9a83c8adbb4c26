"""The events of services: written once, not again and again, and never in the way of what they tell about."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from easel.errors import EaselError
from easel.services.model import ServiceEvent
from easel.services.store import ServiceStore

log = logging.getLogger(__name__)

WINDOW_MS = 10 * 60 * 1000
"""The same words are not said twice within this time."""
MOST_IN_WINDOW = 20
"""Events of one reason and instance within it, whatever they say."""
LOG_LINES = 20


class _Said(NamedTuple):
    at: int
    message: str


_Subject = tuple[str, str | None, str]


class Journal:
    """Writes `ServiceEvent` and log records."""

    def __init__(self, store: ServiceStore, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        self._said: dict[_Subject, deque[_Said]] = {}
        self._known: set[str] = set()
        """Services whose stored events were looked at."""

    async def note(
        self,
        service: str,
        reason: str,
        message: str,
        *,
        instance: str | None = None,
        warning: bool = False,
        advice: str | None = None,
        lines: Sequence[str] = (),
    ) -> None:
        """Tell that something happened to a service. A store that does not take it is logged, nothing is raised."""
        words = f"{reason}: {message}"
        about = {"service": service, "instance": instance}
        try:
            await self._recall(service)
            now = self._clock()
            said = self._said.setdefault((service, instance, reason), deque())
            while said and said[0].at <= now - WINDOW_MS:
                said.popleft()
            if len(said) >= MOST_IN_WINDOW or any(one.message == message for one in said):
                log.debug("again: %s", words, extra=about)
                return
            log.log(logging.WARNING if warning else logging.INFO, words, extra=about)
            said.append(_Said(now, message))
            event = ServiceEvent(
                service=service,
                instance=instance,
                at=now,
                type="Warning" if warning else "Normal",
                reason=reason,
                message=message,
                advice=advice or "",
                log=list(lines)[-LOG_LINES:],
            )
            await self._store.add_event(event)
        except EaselError as error:
            log.warning("an event was not stored (%s): %s", words, error, extra=about)

    def forget(self, service: str) -> None:
        """Forget a service that was deleted."""
        self._known.discard(service)
        self._said = {key: said for key, said in self._said.items() if key[0] != service}

    async def _recall(self, service: str) -> None:
        """Look once at what was said before this process began."""
        if service in self._known:
            return
        for event in await self._store.events(service, limit=200):
            said = self._said.setdefault((service, event.instance, event.reason), deque())
            said.append(_Said(event.at, event.message))
        self._known.add(service)
