"""Events that wait for a slow reader: bounded, and never a step or an end lost."""

from __future__ import annotations

from collections import deque

from easel.comfy.events import Event, Executed, Executing, Preview, Progress, ProgressText, Unknown

CROWDED = 256
"""Waiting events above which superseded ones are thrown out."""
MOST = 100_000
"""Waiting events at which the oldest go: only an engine that invents node ids gets there."""
PREVIEWS = 2
"""Sampler previews kept for a slow reader: the latest."""
PICTURE_BYTES = 64 * 1024 * 1024
"""Bytes of other pictures kept (SaveImageWebsocket's results come as PNG frames)."""
NOTES = 64
"""Messages of custom nodes and progress texts kept: the latest."""


class Backlog:
    """A queue of events in their order. What a later event supersedes is dropped when it gets crowded."""

    __slots__ = ("_events", "_limit", "_pictures")

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._limit = CROWDED
        self._pictures = 0

    def __len__(self) -> int:
        return len(self._events)

    def append(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)
        if type(event) is Preview:
            self._pictures += len(event.data)
            if self._pictures > PICTURE_BYTES:
                self._thin()
        if len(self._events) > self._limit:
            self._thin()

    def popleft(self) -> Event:
        """Take the oldest event. Raises IndexError when there is none."""
        event = self._events.popleft()
        if type(event) is Preview:
            self._pictures -= len(event.data)
        return event

    def _thin(self) -> None:
        """Keep the latest of what is superseded, going from the newest to the oldest event."""
        kept: list[Event] = []
        seen: set[tuple[type, str | None]] = set()
        previews = pictures = notes = 0
        for event in reversed(self._events):
            if isinstance(event, Progress | Executing | Executed):
                key = (type(event), event.node)
                if key in seen:
                    continue
                seen.add(key)
            elif isinstance(event, Preview):
                if event.image_type == "image/jpeg":
                    previews += 1
                    if previews > PREVIEWS:
                        continue
                elif pictures + len(event.data) > PICTURE_BYTES:
                    continue
                pictures += len(event.data)
            elif isinstance(event, ProgressText | Unknown):
                notes += 1
                if notes > NOTES:
                    continue
            kept.append(event)
        kept.reverse()
        self._events = deque(kept[-MOST:])
        self._pictures = pictures
        self._limit = max(CROWDED, 2 * len(self._events))
