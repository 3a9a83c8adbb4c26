"""The last lines an engine printed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

LONGEST = 4096
"""Bytes kept of a line."""
CUT = " …"


class LogTail:
    """Lines out of pieces of output: the last ``keep`` of them are kept, each is handed to ``on_line``.

    A line that a progress bar writes over itself (carriage returns) counts once, as it last looked. What follows the first
    `LONGEST` bytes of a line is dropped.
    """

    def __init__(self, keep: int, on_line: Callable[[str], None] | None = None) -> None:
        self._lines: deque[str] = deque(maxlen=keep)
        self._on_line = on_line
        self._partial = b""
        self._cut = False
        self._returned = False

    def feed(self, data: bytes) -> None:
        """Take a piece of output."""
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._extend(piece)
            self._end_line()
        self._extend(rest)

    def finish(self) -> None:
        """The output is over: an unfinished line counts."""
        if self._partial:
            self._end_line()

    def tail(self, lines: int | None = None) -> list[str]:
        """Return the last lines, the unfinished one included."""
        shown = list(self._lines)
        if self._partial:
            shown.append(self._text())
        return shown if lines is None else shown[-lines:] if lines > 0 else []

    def _extend(self, piece: bytes) -> None:
        """Add to the unfinished line."""
        first, *rewritten = piece.split(b"\r")
        self._add(first)
        for text in rewritten:
            self._returned = True
            self._add(text)

    def _add(self, text: bytes) -> None:
        """Add text; after a carriage return it replaces the line. (Before a line feed a return does nothing.)"""
        if not text:
            return
        if self._returned:
            self._partial, self._cut, self._returned = b"", False, False
        room = LONGEST - len(self._partial)
        self._cut = self._cut or len(text) > room
        self._partial += text[:room]

    def _text(self) -> str:
        text = self._partial.decode(errors="replace")
        return text + CUT if self._cut else text

    def _end_line(self) -> None:
        line = self._text()
        self._partial, self._cut, self._returned = b"", False, False
        self._lines.append(line)
        if self._on_line is not None:
            self._on_line(line)
