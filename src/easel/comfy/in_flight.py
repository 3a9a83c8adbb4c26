"""The prompts in flight on one engine, and whose a message is."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator

from easel.comfy import outcome as outcomes
from easel.comfy.events import Event, Executing
from easel.comfy.outcome import Outcome
from easel.comfy.run import Run
from easel.errors import EngineError


class InFlight:
    """Runs that are not over, in the order they were submitted. An engine runs one prompt at a time: `current`."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self.current: Run | None = None
        """The run that is known to be running."""
        self.any = asyncio.Event()
        """Set while there are runs."""

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def add(self, run: Run) -> None:
        """Take a run in."""
        self._runs[run.prompt_id] = run
        self.any.set()

    def rename(self, run: Run, prompt_id: str) -> None:
        """The engine has given a run another id than ours."""
        self._runs.pop(run.prompt_id, None)
        run.prompt_id = prompt_id
        self.add(run)

    def finish(self, run: Run, outcome: Outcome) -> None:
        """A run is over."""
        run.finish(outcome)
        self.forget(run)

    def forget(self, run: Run) -> None:
        """A run is none of ours any more."""
        self._runs.pop(run.prompt_id, None)
        if self.current is run:
            self.current = None
        if not self._runs:
            self.any.clear()

    def lose(self, error: EngineError) -> None:
        """All runs are lost."""
        for run in self:
            # Each its own: an exception raised in several tasks would collect all their tracebacks.
            self.finish(run, outcomes.lost(run.prompt_id, copy.copy(error)))

    def owner(self, event: Event) -> Run | None:
        """Return the run a message belongs to; None when it is none of ours.

        A message that names no prompt belongs to the one that runs and has not told its end.
        """
        if event.prompt_id is not None:
            return self._runs.get(event.prompt_id)
        run = self.current
        if run is None and type(event) is Executing and event.node is not None:
            run = next(iter(self._runs.values()), None)  # told to the running client on a reconnect
        return None if run is None or run.ending_since is not None else run

    def begins(self, run: Run) -> Run | None:
        """Note that a run was heard of; return the one before, which is over, when this one has just begun."""
        before = self.current
        if before is None or not run.started:
            self.current = run
        return None if run.started else before
