"""How the engine does, said to the gateway whenever that changes."""

from __future__ import annotations

from easel.agent.joining.outbox import Outbox
from easel.agent.link import EngineLink
from easel.link.messages import EngineReport, Report

STOPPING = "stopping"
"""The state of an agent that stops: its engine takes nothing more, however it does."""


class EngineWatch:
    """Looks at the engine, and knows what was said of it last."""

    def __init__(self, link: EngineLink, outbox: Outbox) -> None:
        self._link = link
        self._outbox = outbox
        self._stopping = False
        self._said: EngineReport | None = None

    def look(self) -> EngineReport:
        """Return how the engine does, to be said now."""
        self._said = self._report()
        return self._said

    def ready(self) -> bool:
        """Say how the engine does, if that has changed; tell whether it takes prompts."""
        before = self._said
        now = self.look()
        if before is not None and now != before:
            self._outbox.say(Report(engine=now))
        return now.ready

    def stop(self) -> None:
        """The agent stops: say that nothing more is taken."""
        self._stopping = True
        self.ready()

    async def report_changes(self) -> None:
        """Say every change, for ever."""
        while True:
            self.ready()
            await self._link.wait_changed()

    def _report(self) -> EngineReport:
        process = self._link.process
        error = process.last_error if process is not None else None
        return EngineReport(
            state=STOPPING if self._stopping else self._link.state,
            ready=self._link.ready and not self._stopping,
            starts=process.starts if process is not None else None,
            error=error.to_json() if error is not None else None,
        )
