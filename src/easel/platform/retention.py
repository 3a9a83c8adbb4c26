"""Ended tasks and their outputs are kept as long as their service says, and then removed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from easel.errors import EaselError
from easel.services.store import ServiceStore
from easel.storage.outputs import OutputFiles
from easel.tasks.tasks import Tasks, now_ms

log = logging.getLogger(__name__)

PAUSE = 300.0
"""Seconds between two looks."""
AT_ONCE = 500
"""Tasks removed in one go."""


class Retention:
    """Removes what is too old."""

    def __init__(
        self,
        tasks: Tasks,
        services: ServiceStore,
        files: Callable[[str], OutputFiles],
        *,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._tasks = tasks
        self._services = services
        self._files = files
        self._clock = clock

    async def run(self) -> None:
        """Look again and again."""
        while True:
            try:
                await self.sweep()
            except EaselError as error:
                log.warning("old tasks could not be removed: %s", error)
            await asyncio.sleep(PAUSE)

    async def sweep(self) -> int:
        """Remove what is too old now; returns how many tasks. Raises StoreFailed."""
        removed = 0
        for service in await self._services.all():
            revision = await self._services.revision(service.name, service.revision)
            kept = revision.spec.retention_seconds or self._tasks.settings.retention_seconds
            before = self._clock() - int(kept * 1000)
            gone = AT_ONCE
            while gone == AT_ONCE:
                forgotten = await self._tasks.store.forget(
                    service.name, ended_before=before, limit=AT_ONCE
                )
                gone = len(forgotten)
                removed += gone
            # By their age, not by name: what a crash left between the two goes, too.
            await self._files(service.name).expire(before / 1000)
        return removed
