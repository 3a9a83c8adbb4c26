"""The last log lines, kept for ``/internal/logs`` and sent to those who subscribed."""

from __future__ import annotations

import logging
import threading
from collections import deque
from datetime import datetime
from typing import TypedDict

from easel.engine.server.sockets import SocketHub

CAPACITY = 300


class LogEntry(TypedDict):
    """One line as ComfyUI's front end reads it."""

    t: str
    """Local time, ISO 8601."""
    m: str
    """The line with its line end."""


class LogBook(logging.Handler):
    """Keeps the last lines logged by the engine and passes new ones on."""

    def __init__(self, sockets: SocketHub, capacity: int = CAPACITY) -> None:
        super().__init__(logging.INFO)
        self._sockets = sockets
        self._guard = threading.Lock()
        self._entries: deque[LogEntry] = deque(maxlen=capacity)
        self._subscribers: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record and send it to the subscribers that are still connected."""
        when = datetime.fromtimestamp(record.created).isoformat()  # noqa: DTZ006 - local, as ComfyUI
        entry = LogEntry(t=when, m=self.format(record) + "\n")
        with self._guard:
            self._entries.append(entry)
            subscribers = list(self._subscribers)
        for client_id in subscribers:
            if self._sockets.connected(client_id):
                self._sockets.send("logs", {"entries": [entry], "size": None}, client_id)
            else:
                self.unsubscribe(client_id)

    def entries(self) -> list[LogEntry]:
        """Return the kept lines, oldest first."""
        with self._guard:
            return list(self._entries)

    def subscribe(self, client_id: str) -> None:
        """Send new lines to this client from now on."""
        with self._guard:
            self._subscribers.add(client_id)

    def unsubscribe(self, client_id: str) -> None:
        """Stop sending lines to this client."""
        with self._guard:
            self._subscribers.discard(client_id)
