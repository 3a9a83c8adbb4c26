"""Prompts that wait: by number, first come first served among equals; one runs at a time."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from easel.workflow.types import NodeId, Prompt


@dataclass(frozen=True, slots=True)
class Item:
    """A validated prompt on its way through the engine."""

    number: float
    prompt_id: str
    prompt: Prompt
    extra_data: dict[str, Any]
    outputs: list[NodeId]
    client_id: str | None
    interrupted: threading.Event = field(default_factory=threading.Event, compare=False)
    """Set when this prompt, and no other, is to stop."""

    def listed(self) -> list[Any]:
        """Return the form of ``/queue`` and ``/history``."""
        return [self.number, self.prompt_id, self.prompt, self.extra_data, self.outputs]


@dataclass(order=True, slots=True)
class _Entry:
    number: float
    order: int
    item: Item = field(compare=False)


class PromptQueue:
    """The line. Thread-safe.

    ``changed`` is called after every change with the number of prompts, under the lock, so that the numbers come in the
    order of the changes: it returns at once and asks nothing of the queue.
    """

    def __init__(self, changed: Callable[[int], None]) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._heap: list[_Entry] = []
        self._ids: set[str] = set()
        self._running: Item | None = None
        self._order = 0
        self._closed = False

    def put(self, item: Item) -> bool:
        """Add a prompt; False when its id waits or runs already."""
        with self._lock:
            if item.prompt_id in self._ids:
                return False
            self._ids.add(item.prompt_id)
            self._order += 1
            heapq.heappush(self._heap, _Entry(item.number, self._order, item))
            remaining = self._remaining()
            self._changed(remaining)
            self._filled.notify()
        return True

    def take(self, wanted: Callable[[], bool]) -> Item | None:
        """Wait for the next prompt, which runs from now on; None when ``wanted`` says so or the queue is closed."""
        with self._lock:
            self._filled.wait_for(lambda: self._heap or self._closed or wanted())
            if self._closed or not self._heap:
                return None
            self._running = heapq.heappop(self._heap).item
            self._changed(self._remaining())
            return self._running

    def done(self) -> None:
        """The running prompt has ended."""
        with self._lock:
            if self._running is not None:
                self._ids.discard(self._running.prompt_id)
            self._running = None
            self._changed(self._remaining())

    def wake(self) -> None:
        """Have `take` look again."""
        with self._lock:
            self._filled.notify_all()

    def close(self) -> None:
        """End `take`."""
        with self._lock:
            self._closed = True
            self._filled.notify_all()

    @property
    def closed(self) -> bool:
        """Whether the line is closed."""
        return self._closed

    @property
    def remaining(self) -> int:
        """Prompts that wait or run."""
        with self._lock:
            return self._remaining()

    @property
    def running(self) -> Item | None:
        """The prompt that runs."""
        return self._running

    def listed(self) -> dict[str, Any]:
        """Return ``/queue``'s answer; the waiting ones in the order they will run."""
        with self._lock:
            running = [self._running.listed()] if self._running else []
            return {
                "queue_running": running,
                "queue_pending": [entry.item.listed() for entry in sorted(self._heap)],
            }

    def remove(self, prompt_ids: set[str] | None) -> None:
        """Remove waiting prompts, all of them when ``prompt_ids`` is None."""
        with self._lock:
            kept = [
                e
                for e in self._heap
                if prompt_ids is not None and e.item.prompt_id not in prompt_ids
            ]
            if len(kept) == len(self._heap):
                return
            self._heap = kept
            heapq.heapify(self._heap)
            self._ids = {e.item.prompt_id for e in kept}
            if self._running is not None:
                self._ids.add(self._running.prompt_id)
            self._changed(self._remaining())

    def _remaining(self) -> int:
        return len(self._heap) + (self._running is not None)
