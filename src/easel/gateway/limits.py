"""How many requests a service takes: per second (a token bucket) and at a time. Counted in each gateway process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Limits:
    """One service's limits; 0 is no limit. The bucket holds one second's worth, at least one request."""

    __slots__ = ("_at", "_clock", "_tokens", "concurrency", "rate", "running")

    def __init__(
        self,
        rate: float = 0,
        concurrency: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = 0.0
        self.concurrency = 0
        self.running = 0
        """Requests that are being answered."""
        self._clock = clock
        self._tokens = 0.0
        self._at = 0.0
        self.change(rate, concurrency)

    def change(self, rate: float, concurrency: int) -> None:
        """Set other limits; what is under way stays counted."""
        self.concurrency = concurrency
        if rate != self.rate:
            self.rate = rate
            self._tokens = max(rate, 1.0)
            self._at = self._clock()

    def enter(self) -> int:
        """Take a request in: 0, or the seconds after which trying again makes sense.

        Each 0 needs one `leave`.
        """
        if self.concurrency and self.running >= self.concurrency:
            return 1
        if self.rate:
            now = self._clock()
            self._tokens = min(
                max(self.rate, 1.0), self._tokens + max(0.0, now - self._at) * self.rate
            )
            self._at = now
            if self._tokens < 1:
                return max(1, math.ceil((1 - self._tokens) / self.rate))
            self._tokens -= 1
        self.running += 1
        return 0

    def leave(self) -> None:
        """A request that was taken in is over."""
        self.running -= 1
