"""Ended prompts, in memory, oldest first."""

from __future__ import annotations

import threading
from typing import Any

from easel.engine.executor import Ended
from easel.engine.queue import Item


class History:
    """What ``/history`` answers. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._entries: dict[str, dict[str, Any]] = {}

    def add(self, item: Item, ended: Ended) -> None:
        """Record how a prompt ended; the oldest entry goes when there are too many."""
        entry = {
            "prompt": item.listed(),
            "outputs": ended.outputs,
            "status": {
                "status_str": "success" if ended.success else "error",
                "completed": ended.success,
                "messages": [list(message) for message in ended.messages],
            },
            "meta": ended.meta,
        }
        with self._lock:
            self._entries.pop(item.prompt_id, None)
            self._entries[item.prompt_id] = entry
            while len(self._entries) > self._limit:
                del self._entries[next(iter(self._entries))]

    def get(self, prompt_id: str) -> dict[str, Any]:
        """Return one entry under its id, or nothing."""
        with self._lock:
            entry = self._entries.get(prompt_id)
        return {} if entry is None else {prompt_id: entry}

    def listed(self, max_items: int | None, offset: int) -> dict[str, Any]:
        """Return entries from ``offset`` on; a negative offset means the last ``max_items``."""
        with self._lock:
            entries = list(self._entries.items())
        if offset < 0:
            offset = max(0, len(entries) - max_items) if max_items is not None else 0
        end = None if max_items is None else offset + max(0, max_items)
        return dict(entries[offset:end])

    def remove(self, prompt_ids: list[str] | None) -> None:
        """Forget entries, all of them when ``prompt_ids`` is None."""
        with self._lock:
            if prompt_ids is None:
                self._entries.clear()
            else:
                for prompt_id in prompt_ids:
                    self._entries.pop(prompt_id, None)
