"""What the controller wants of connected agents: how they do, what they hold, that they let go."""

from __future__ import annotations

import asyncio
import contextlib

from easel.fleet.members import Members
from easel.tasks.bus import EventBus

NOT_WANTED = 4403
"""Close code of the link: the instance is not wanted any more; its agent stops."""
LOOK = 0.5
"""Seconds after which a draining agent is looked at again: that it left is not told on its queue's topic."""


class Ties:
    """The agents that are connected to this process."""

    def __init__(self, members: Members, bus: EventBus) -> None:
        self._members = members
        self._bus = bus

    def engine_ready(self, instance: str) -> bool | None:
        """Return whether an instance's engine takes prompts and its checks pass; None while its agent is not connected."""
        member = self._members.get(instance)
        return None if member is None else member.engine.ready and not member.unfit()

    def load(self, instance: str) -> int:
        """Return how many tasks an instance holds."""
        member = self._members.get(instance)
        return 0 if member is None else len(member.holds)

    async def drain(self, instance: str) -> None:
        """Have an instance give back what has not begun and end what runs, then let its agent go.

        Returns at once when it is not connected, and when it leaves. The caller sets the time-out; when it passes, the agent
        is let go with what it holds.
        """
        member = self._members.get(instance)
        if member is None:
            return
        member.drain()
        try:
            with self._bus.subscribe(f"queue:{member.service}") as news:
                while (current := self._members.get(instance)) is not None:
                    if (
                        current is not member
                    ):  # it was cut off meanwhile, and came back with what it holds
                        member = current
                        member.drain()
                    if not member.holds:
                        break
                    news.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK):
                            await news.wait()
        finally:
            member.close(NOT_WANTED, "the instance is not wanted any more")
