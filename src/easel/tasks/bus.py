"""Waking those who wait: topics without content, so that a lost or doubled message does no harm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class EventBus(Protocol):
    """Tells every process that something changed. Topics: ``task:<uid>``, ``queue:<service>``, ``fleet``."""

    def publish(self, topic: str) -> None:
        """Wake every subscriber of a topic, here and in other processes; returns at once and never raises."""

    def subscribe(self, topic: str) -> AbstractContextManager[asyncio.Event]:
        """Give an event that is set at each publication from now on; the subscriber clears it."""


class LocalBus:
    """A bus within one process."""

    def __init__(self) -> None:
        self._subscribers: dict[str, set[asyncio.Event]] = {}

    def publish(self, topic: str) -> None:
        """Wake every subscriber of a topic."""
        for event in self._subscribers.get(topic, ()):
            event.set()

    def publish_all(self) -> None:
        """Wake every subscriber of every topic: something may have been missed."""
        for topic in self._subscribers:
            self.publish(topic)

    @contextmanager
    def subscribe(self, topic: str) -> Iterator[asyncio.Event]:
        """Give an event that is set at each publication from now on."""
        event = asyncio.Event()
        self._subscribers.setdefault(topic, set()).add(event)
        try:
            yield event
        finally:
            subscribers = self._subscribers[topic]
            subscribers.discard(event)
            if not subscribers:
                del self._subscribers[topic]
