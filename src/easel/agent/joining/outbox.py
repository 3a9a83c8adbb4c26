"""What is on its way to the gateway: what must arrive is numbered, kept until it is acknowledged, and sent again after a cut.

The rest is sent once, if a connection is there. Of progress and previews only the latest waits for a slow connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from easel.errors import BodyTooLarge
from easel.link import messages
from easel.link.messages import FromAgent, Progressed


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the connection."""

    data: bytes
    binary: bool = False


@dataclass(frozen=True, slots=True)
class _Kept:
    number: int
    lease: str
    data: bytes


class Outbox:
    """Messages on their way. Numbers grow by one within a boot; a lease names the attempt that a message is about."""

    def __init__(self, *, limit: int | None = None) -> None:
        """``limit``: bytes of the largest frame, if not `messages.MAX_MESSAGE`."""
        self._limit = messages.MAX_MESSAGE if limit is None else limit
        self._number = 0
        self._kept: deque[_Kept] = deque()
        """Numbered messages that were not acknowledged."""
        self._unsent: deque[bytes] = deque()
        self._progress: dict[str, Progressed] = {}
        self._previews: dict[str, bytes] = {}
        self.news = asyncio.Event()
        """Set when there is something to send."""
        self._acknowledged = asyncio.Event()

    def keep(self, lease: str, make: Callable[[int], FromAgent]) -> None:
        """Send a message until it is acknowledged; ``make`` gets its number. Progress that waits goes before it.

        Raises BodyTooLarge for one that no gateway would take: it would be sent for ever.
        """
        data = messages.encode(make(self._number + 1))
        if len(data) > self._limit:
            raise BodyTooLarge(f"a message of {len(data)} bytes is too large for the gateway")
        self._number += 1
        self._flush_progress(lease)
        self._kept.append(_Kept(self._number, lease, data))
        self._unsent.append(data)
        self.news.set()

    def say(self, message: FromAgent) -> None:
        """Send a message once."""
        self._unsent.append(messages.encode(message))
        self.news.set()

    def progress(self, message: Progressed) -> None:
        """Send progress once. It is joined to what waits of the same attempt: no node's change is lost."""
        before = self._progress.get(message.lease)
        if before is not None:
            message = msgspec.structs.replace(
                message,
                nodes={**before.nodes, **message.nodes},
                border=before.border or message.border,
            )
        self._progress[message.lease] = message
        self.news.set()

    def preview(self, lease: str, frame: bytes) -> None:
        """Send a preview once; it takes the place of one that waits."""
        if len(frame) <= self._limit:
            self._previews[lease] = frame
            self.news.set()

    def acknowledged(self, number: int) -> None:
        """Everything up to a number is stored."""
        while self._kept and self._kept[0].number <= number:
            self._kept.popleft()
        self._wake()

    async def stored(self, lease: str) -> None:
        """Wait until everything that was said of an attempt is stored or forgotten."""
        while any(one.lease == lease for one in self._kept):
            await self._acknowledged.wait()

    def forget(self, lease: str) -> None:
        """Drop what was to be said of an attempt: its task is somebody else's by now."""
        gone = {one.data for one in self._kept if one.lease == lease}
        self._kept = deque(one for one in self._kept if one.lease != lease)
        self._unsent = deque(data for data in self._unsent if data not in gone)
        self._progress.pop(lease, None)
        self._previews.pop(lease, None)
        self._wake()

    def reconnected(self) -> None:
        """A new connection is there: begin with what was not acknowledged. What else waited, the next message tells better."""
        self._unsent = deque(one.data for one in self._kept)
        self._progress.clear()
        self._previews.clear()
        self.news.set()

    def take(self) -> Iterator[Frame]:
        """Yield what is to be sent, in order; what comes meanwhile is yielded, too."""
        self.news.clear()
        while self._unsent or self._progress or self._previews:
            while self._unsent:
                yield Frame(self._unsent.popleft())
            if self._progress:
                self._flush_progress(next(iter(self._progress)))
            elif self._previews:
                yield Frame(self._previews.pop(next(iter(self._previews))), binary=True)

    def _flush_progress(self, lease: str) -> None:
        waiting = self._progress.pop(lease, None)
        if waiting is not None and len(data := messages.encode(waiting)) <= self._limit:
            self._unsent.append(data)

    def _wake(self) -> None:
        self._acknowledged.set()
        self._acknowledged = asyncio.Event()
