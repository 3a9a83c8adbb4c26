"""A work queue of keys without duplicates (the idea of dask-gateway's and Kubernetes' controllers).

A key that is put while it waits is merged; one that is put while it is worked on comes again afterwards, never at the same
time. So whoever works on a key needs no lock for it, and looks at everything afresh each time.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

LONGEST_NAP = 60.0
"""Seconds after which the clock is looked at again: it may have been set, and the machine suspended."""


class WorkQueue(Generic[Key]):
    """Keys to work on, now or at a time of the clock (ms)."""

    def __init__(
        self, clock: Callable[[], int], *, backoff: float = 1.0, backoff_max: float = 60.0
    ) -> None:
        self._clock = clock
        self._backoff = backoff
        self._backoff_max = backoff_max
        self._ready: deque[Key] = deque()
        self._waiting: set[Key] = set()
        """Those in `_ready`."""
        self._working: set[Key] = set()
        self._again: set[Key] = set()
        """Put while they were worked on."""
        self._later: list[tuple[int, int, Key]] = []
        self._due: dict[Key, int] = {}
        """The earliest time at which each key of `_later` comes; other entries there are void."""
        self._order = 0
        self._failures: dict[Key, int] = {}
        self._news = asyncio.Event()

    def put(self, key: Key) -> None:
        """Have a key worked on as soon as possible."""
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.append(key)
        self._news.set()

    def put_at(self, key: Key, at: int) -> None:
        """Have a key worked on at a time of the clock, in ms; of several times the earliest counts."""
        if key in self._due and self._due[key] <= at:
            return
        self._due[key] = at
        self._order += 1
        heapq.heappush(self._later, (at, self._order, key))
        self._news.set()

    def put_after(self, key: Key, seconds: float) -> None:
        """Have a key worked on in a while."""
        self.put_at(key, self._clock() + int(seconds * 1000))

    def put_backoff(self, key: Key) -> float:
        """Have a key that failed worked on again, later each time until `forgive`; returns the pause in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        pause = min(self._backoff * 2.0 ** min(failures, 30), self._backoff_max)
        self.put_after(key, pause)
        return pause

    def forgive(self, key: Key) -> None:
        """Forget that a key failed: it went well."""
        self._failures.pop(key, None)

    def take(self) -> Key | None:
        """Return a key that is to be worked on now, None when there is none. Its user calls `done`."""
        self._move_due()
        if not self._ready:
            return None
        key = self._ready.popleft()
        self._waiting.discard(key)
        self._working.add(key)
        return key

    async def get(self) -> Key:
        """Wait for a key to work on. Its user calls `done`."""
        while (key := self.take()) is None:
            self._news.clear()
            try:
                async with asyncio.timeout(self._nap()):
                    await self._news.wait()
            except TimeoutError:
                continue
        return key

    def done(self, key: Key) -> None:
        """The work on a key has ended; if it was put meanwhile, it comes again."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.put(key)

    def wake(self) -> None:
        """Look at the clock again: it was moved."""
        self._news.set()

    def next_due(self) -> int | None:
        """Return when the next key that waits for its time comes."""
        while self._later and self._due.get(self._later[0][2]) != self._later[0][0]:
            heapq.heappop(self._later)
        return self._later[0][0] if self._later else None

    def _move_due(self) -> None:
        now = self._clock()
        while (due := self.next_due()) is not None and due <= now:
            _, _, key = heapq.heappop(self._later)
            del self._due[key]
            self.put(key)

    def _nap(self) -> float:
        due = self.next_due()
        if due is None:
            return LONGEST_NAP
        return min(max(due - self._clock(), 0) / 1000, LONGEST_NAP)
