"""The log of an instance: its last lines, and keeping it short. Blocks: for use in a thread."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MOST_BYTES = 32 * 1024 * 1024
"""Bytes of a log from which on its older part is thrown away."""
KEPT_BYTES = 8 * 1024 * 1024
BLOCK = 64 * 1024
MOST_READ = 4 * 1024 * 1024
"""Bytes from the end in which the last lines are looked for."""
LONGEST_LINE = 4096
"""Characters of a line that are shown."""


def last_lines(path: Path, lines: int, begin: int = 0) -> list[str]:
    """Return the last lines of a file, none of one that is not there. A line that was written over counts as it last looked.

    ``begin``: the byte from which on they are looked for.
    """
    if lines <= 0:
        return []
    try:
        with path.open("rb") as log:
            at = log.seek(0, os.SEEK_END)
            data = b""
            while at > begin and data.count(b"\n") <= lines and len(data) < MOST_READ:
                start = max(begin, at - BLOCK)
                log.seek(start)
                data, at = log.read(at - start) + data, start
    except OSError:
        return []
    found = data.removesuffix(b"\n").split(b"\n") if data else []
    return [_shown(line) for line in found[-lines:]]


def _shown(line: bytes) -> str:
    text = line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
    return text if len(text) <= LONGEST_LINE else text[:LONGEST_LINE] + " …"


def shorten(path: Path, most: int = MOST_BYTES, kept: int = KEPT_BYTES) -> None:
    """Throw the older part of a long log away; its writer appends, so it goes on at the new end."""
    with contextlib.suppress(OSError):
        if path.stat().st_size <= most:
            return
        with path.open("r+b") as file:
            file.seek(-kept, os.SEEK_END)
            rest = file.read()
            file.seek(0)
            file.write(rest[rest.find(b"\n") + 1 :])
            file.truncate()
