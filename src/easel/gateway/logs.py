"""Structured logs: one JSON object a line, with service, task and instance where they are known.

Every module logs through the standard library (``extra={"service": …}``); structlog renders. Writing happens in a thread: a
full pipe holds up nobody. Lines about requests are many, so they are encoded directly and handed over together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import queue
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TextIO

import msgspec
import structlog

FIELDS = ("service", "instance", "task", "owner", "revision")
"""What ``extra`` may carry."""
FLUSH = 0.25
"""Seconds until lines about requests are written."""
LAST_LINES = 2.0
"""Seconds that what was logged has to be written when the logs end."""
TOGETHER = 512
"""Lines that are written together at most."""

_encode = msgspec.json.Encoder().encode


def formatter() -> structlog.stdlib.ProcessorFormatter:
    """Return what makes a log record a line of JSON."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(allow=FIELDS),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(
                serializer=lambda value, **_: _encode(_plain(value)).decode()
            ),
        ],
    )


def _plain(value: object) -> object:
    """Make a value that msgspec can encode: names of odd characters must not lose a line."""
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (int, float, bool)) or value is None:
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


class _Writer(logging.Handler):
    """Writes rendered records, and lines that are lines already."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write one."""
        text = record.msg if record.name == AccessLog.NAME else self.format(record) + "\n"
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


class _Queued(logging.handlers.QueueHandler):
    """Hands records over as they are: they are rendered where they are written."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Fix the message; its arguments may change later."""
        record.msg = record.getMessage()
        record.args = None
        return record


def _write(lines: queue.SimpleQueue[logging.LogRecord | None], writer: logging.Handler) -> None:
    while (record := lines.get()) is not None:
        writer.handle(record)


@contextlib.contextmanager
def structured_logs(stream: TextIO | None = None, level: int = logging.INFO) -> Iterator[AccessLog]:
    """Log as JSON lines to a stream (standard error) until the block ends, and give the log of requests."""
    lines: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
    writer = _Writer(stream or sys.stderr)
    writer.setFormatter(formatter())
    thread = threading.Thread(target=_write, args=(lines, writer), name="easel logs", daemon=True)
    root = logging.getLogger()
    before, before_level = root.handlers[:], root.level
    root.handlers = [_Queued(lines)]
    root.setLevel(level)
    for loud in ("uvicorn", "asyncio", "alembic", "aiohttp.access"):
        logging.getLogger(loud).setLevel(logging.WARNING)
    thread.start()
    access = AccessLog(lines)
    try:
        yield access
    finally:
        access.flush()
        lines.put(None)
        # A reader that does not take the last lines keeps no process from ending.
        thread.join(LAST_LINES)
        root.handlers = before
        root.setLevel(before_level)


class _Line(msgspec.Struct, omit_defaults=True):
    event: str
    level: str
    logger: str
    timestamp: str
    door: str
    method: str
    path: str
    status: int
    ms: float
    client: str
    service: str = ""
    instance: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    reason: str = ""


class AccessLog:
    """One line a request. Without a queue (tests, other hosts) nothing is logged."""

    NAME = "easel.access"

    def __init__(self, lines: queue.SimpleQueue[logging.LogRecord | None] | None = None) -> None:
        self._lines = lines
        self._waiting: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def request(
        self,
        *,
        door: str,
        method: str,
        path: bytes,
        status: int,
        seconds: float,
        client: str,
        service: str,
        instance: str,
        bytes_up: int,
        bytes_down: int,
        reason: str,
    ) -> None:
        """Note a request. The query is left out: it may carry a signed link."""
        if self._lines is None:
            return
        line = _Line(
            "request",
            "info",
            self.NAME,
            datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds"),
            door,
            method,
            path.decode("latin-1"),
            status,
            round(seconds * 1000, 3),
            client,
            service,
            instance,
            bytes_up,
            bytes_down,
            reason,
        )
        self._waiting.append(_encode(line))
        if len(self._waiting) >= TOGETHER:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH, self.flush)

    def flush(self) -> None:
        """Hand over what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and self._lines is not None:
            self._waiting.append(b"")
            text = b"\n".join(self._waiting).decode()
            self._waiting = []
            self._lines.put(logging.LogRecord(self.NAME, logging.INFO, "", 0, text, None, None))
