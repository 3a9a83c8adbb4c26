"""What must reach the gateway: numbered, kept until it is acknowledged, sent again after a cut."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from easel.link import messages
from easel.link.messages import FromAgent


class Outbox:
    """Messages on their way. Numbers grow by one within a boot."""

    def __init__(self) -> None:
        self._next = 1
        self._kept: deque[tuple[int, str, bytes]] = deque()
        """Numbered messages that were not acknowledged: number, uid, coded."""
        self._unsent: deque[bytes] = deque()
        self._progress: dict[str, bytes] = {}
        """The latest progress of each task that was not sent yet."""
        self._preview: dict[str, bytes] = {}
        self.news = asyncio.Event()
        self._stored = asyncio.Event()

    def keep(self, uid: str, make: Callable[[int], FromAgent]) -> None:
        """Send a message until it is acknowledged; ``make`` gets its number. What progress waits is overtaken by it."""
        number, self._next = self._next, self._next + 1
        coded = messages.encode(make(number))
        pending = self._progress.pop(uid, None)
        if pending is not None:
            self._unsent.append(pending)
        self._kept.append((number, uid, coded))
        self._unsent.append(coded)
        self.news.set()

    def say(self, message: FromAgent) -> None:
        """Send a message once, if a connection is there."""
        self._unsent.append(messages.encode(message))
        self.news.set()

    def progress(self, message: messages.Progressed) -> None:
        """Send progress; a newer one of the same task takes the place of one that waits."""
        self._progress[message.uid] = messages.encode(message)
        self.news.set()

    def preview(self, uid: str, frame: bytes) -> None:
        """Send a preview; a newer one of the same task takes the place of one that waits."""
        self._preview[uid] = frame
        self.news.set()

    def acknowledged(self, number: int) -> None:
        """Everything up to a number is stored."""
        while self._kept and self._kept[0][0] <= number:
            self._kept.popleft()
        self._wake()

    async def stored(self, uid: str) -> None:
        """Wait until everything that was said of a task is stored, or was forgotten."""
        while any(one[1] == uid for one in self._kept):
            await self._stored.wait()

    def _wake(self) -> None:
        self._stored.set()
        self._stored = asyncio.Event()

    def forget(self, uid: str) -> None:
        """Drop what was to be said of a task that is somebody else's by now."""
        self._kept = deque(one for one in self._kept if one[1] != uid)
        self._progress.pop(uid, None)
        self._preview.pop(uid, None)
        self._wake()

    @property
    def unacknowledged(self) -> bool:
        """Whether something must still reach the gateway."""
        return bool(self._kept)

    def reconnected(self) -> None:
        """A new connection is there: begin with what was not acknowledged."""
        self._unsent = deque(coded for _, _, coded in self._kept)
        self._progress.clear()
        self._preview.clear()
        self.news.set()

    def take(self) -> list[bytes | str]:
        """Return what is to be sent now: text messages as text, previews as bytes."""
        out: list[bytes | str] = [one.decode() for one in self._unsent]
        out += [one.decode() for one in self._progress.values()]
        out += self._preview.values()
        self._unsent.clear()
        self._progress.clear()
        self._preview.clear()
        return out
