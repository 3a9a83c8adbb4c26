"""What the answers to a service's health checks add up to, with Kubernetes' meaning (eas-and-fc.md F.7). Pure: no clock, no I/O.

Startup is asked first; until it has passed, the other two are not asked, and the instance gets no work; how long that may
take is for the controller to judge. Liveness is good until it fails ``failure_threshold``
times in a row: then the instance is to be ended. Readiness is bad until it passes ``success_threshold`` times in a row, and
again after ``failure_threshold`` failures: meanwhile the instance gets no work. ``initial_delay_seconds`` holds back liveness
alone: the other two can only let in sooner an engine that answers already.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

from easel.services.model import HealthCheck, ServiceSpec

Kind: TypeAlias = Literal["startup", "liveness", "readiness"]


class Counted:
    """One check of one run of an instance: when it is due, and whether it counts as passed."""

    def __init__(self, check: HealthCheck, *, passed: bool, begin: int) -> None:
        """``begin``: when it is asked first, ms; ``passed``: what it counts as until then."""
        self.check = check
        self.passed = passed
        self.problem = ""
        """What the last failed asking said, until one passes."""
        self.due = begin
        self._row = 0
        """Answers in a row that say other than `passed`."""

    def answered(self, now: int, problem: str | None) -> None:
        """Take an answer: in words what is wrong, or None. ``now`` is when it was asked, ms."""
        self.due = max(self.due, now) + int(self.check.period_seconds * 1000)
        good = problem is None
        self.problem = problem or ""
        if good == self.passed:
            self._row = 0
            return
        self._row += 1
        needed = self.check.success_threshold if good else self.check.failure_threshold
        if self._row >= needed:
            self.passed, self._row = good, 0


class Checks:
    """All checks of one run of an instance."""

    def __init__(self, spec: ServiceSpec, *, since: int, adopted: bool = False) -> None:
        """``since``: when the run began, ms. ``adopted``: it has been ready before, which is believed until it is asked."""
        self._startup = _counted(spec.startup_check, passed=adopted, begin=since)
        self._liveness = _counted(spec.liveness_check, passed=True, begin=since)
        self._readiness = _counted(spec.readiness_check, passed=adopted, begin=since)
        if self._liveness is not None and not adopted:
            self._liveness.due += int(self._liveness.check.initial_delay_seconds * 1000)

    @property
    def any(self) -> bool:
        """Whether there is anything to ask."""
        return any((self._startup, self._liveness, self._readiness))

    def due(self, now: int) -> Iterator[tuple[Kind, HealthCheck]]:
        """Yield what is to be asked now."""
        for kind, counted in self._asked():
            if counted.due <= now:
                yield kind, counted.check

    def next_due(self) -> int | None:
        """Return when something is to be asked next, ms; None: never again."""
        return min((counted.due for _, counted in self._asked()), default=None)

    def answered(self, kind: Kind, now: int, problem: str | None) -> None:
        """Take the answer to a check that was asked at ``now``."""
        counted = {
            "startup": self._startup,
            "liveness": self._liveness,
            "readiness": self._readiness,
        }[kind]
        if counted is None:
            return
        counted.answered(now, problem)

    @property
    def ill(self) -> str | None:
        """Why the instance is to be ended; None while it is not."""
        liveness = self._liveness
        if liveness is not None and not liveness.passed:
            times = _times(liveness.check.failure_threshold)
            return f"its liveness check failed {times} in a row: {liveness.problem}"
        return None

    @property
    def waiting(self) -> str | None:
        """Why the instance shall get no work now; None when it may."""
        if self._startup is not None and not self._startup.passed:
            return f"its startup check has not passed yet{_because(self._startup)}"
        if self._readiness is not None and not self._readiness.passed:
            return f"its readiness check does not pass{_because(self._readiness)}"
        return None

    def _asked(self) -> Iterator[tuple[Kind, Counted]]:
        if self._startup is not None and not self._startup.passed:
            yield "startup", self._startup
            return
        if self._liveness is not None:
            yield "liveness", self._liveness
        if self._readiness is not None:
            yield "readiness", self._readiness


def _counted(check: HealthCheck | None, *, passed: bool, begin: int) -> Counted | None:
    return Counted(check, passed=passed, begin=begin) if check is not None else None


def _because(counted: Counted) -> str:
    return f": {counted.problem}" if counted.problem else ""


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
