"""Pauses between attempts to reach the gateway."""

from __future__ import annotations

import random

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between two attempts: the second one, and the later ones at most. The first follows a cut at once."""


class Backoff:
    """Doubles the pause after each failure. Jittered: many agents lose one gateway at the same moment."""

    def __init__(self) -> None:
        self._next = 0.0

    def pause(self) -> float:
        """Return the seconds to wait before the next attempt."""
        pause = self._next
        self._next = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * pause))
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret

    def reset(self) -> None:
        """It went well: the next failure is a first one."""
        self._next = 0.0
