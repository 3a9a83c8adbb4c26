"""Is the engine's work moving? Judged from what was observed and when; no clock, no I/O.

``/system_stats`` answering proves little: ComfyUI's worker thread can be dead while its HTTP goes on. Three signs count:

- its HTTP does not answer for ``silent_timeout``;
- the prompt that runs for us has not moved for ``stall_timeout`` (prompts of others report to others, and are not judged);
- prompts wait and none runs: no worker takes them.
"""

from __future__ import annotations

from easel.comfy.answers import QueueSnapshot
from easel.settings import SupervisionSettings

IDLE_WORKER_SECONDS = 10.0
"""How long prompts may wait while none runs; between two prompts a worker may clean up for a second or two."""
FAILURES = 2
"""Unanswered questions it takes at least: one may be our own pause (a suspended machine, a debugger)."""


class Liveness:
    """What is known about one process since it was ready. Times are seconds of any one clock."""

    def __init__(self, settings: SupervisionSettings, now: float) -> None:
        self._settings = settings
        self._answered_at = now
        self._failures = 0
        self._refusals = 0
        self._idle_since: float | None = None
        self._idle_head = ""
        self._waiting = 0

    @property
    def refused(self) -> bool:
        """Whether it no longer listens although the process lives, as while it replaces itself."""
        return self._refusals >= FAILURES

    def answered(self, now: float) -> None:
        """Its HTTP answered."""
        self._answered_at = now
        self._failures = self._refusals = 0

    def unanswered(self, *, refused: bool) -> None:
        """A question was not answered; ``refused``: nothing listens."""
        self._failures += 1
        self._refusals = self._refusals + 1 if refused else 0

    def queue(self, snapshot: QueueSnapshot, now: float) -> None:
        """The queue as it was seen."""
        self._waiting = len(snapshot.pending)
        if snapshot.running or not snapshot.pending:
            self._idle_since = None
        elif self._idle_since is None or self._idle_head != snapshot.pending[0]:
            self._idle_since, self._idle_head = now, snapshot.pending[0]

    def verdict(self, now: float, stalled_for: float | None) -> str | None:
        """Return what is wrong, as the end of a sentence about the engine; None while nothing is.

        ``stalled_for``: seconds since the prompt that runs for us moved, None when none does.
        """
        silent = now - self._answered_at
        if silent >= self._settings.silent_timeout and self._failures >= FAILURES:
            return f"has not answered for {silent:.0f} s"
        if stalled_for is not None and stalled_for >= self._settings.stall_timeout:
            return f"runs a prompt that has not moved for {stalled_for:.0f} s"
        if self._idle_since is not None and now - self._idle_since >= IDLE_WORKER_SECONDS:
            return f"runs nothing although prompts wait ({self._waiting}): its worker is dead"
        return None


class Backoff:
    """Pauses between restarts: none before the first, then doubling, forgotten after a healthy while."""

    def __init__(self, settings: SupervisionSettings) -> None:
        self._settings = settings
        self._in_a_row = 0

    def pause(self, healthy_for: float) -> float:
        """Return the seconds to wait before the next start, after a process that was ready for ``healthy_for`` seconds.

        One that was ready for ``restart_backoff_max`` seconds begins a new row.
        """
        if healthy_for >= self._settings.restart_backoff_max:
            self._in_a_row = 0
        self._in_a_row += 1
        if self._in_a_row == 1:
            return 0.0
        exponent = min(self._in_a_row - 2, 32)
        return min(
            self._settings.restart_backoff * 2.0**exponent, self._settings.restart_backoff_max
        )
