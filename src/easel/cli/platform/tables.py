"""Tables for people."""

from __future__ import annotations

import time
from collections.abc import Sequence


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under their columns' names, aligned; the last column is as long as it is."""
    cells = [[str(cell) if cell is not None else "-" for cell in row] for row in rows]
    widths = [max(len(line[index]) for line in (columns, *cells)) for index in range(len(columns))]
    lines = []
    for line in (columns, *cells):
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def age(since_ms: int | None, now: float | None = None) -> str:
    """Return how long ago a time was: ``12s``, ``5m``, ``3h``, ``2d``."""
    if since_ms is None:
        return "-"
    seconds = max(0, int((now or time.time()) - since_ms / 1000))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def clock(at_ms: int) -> str:
    """Return a time of day, with the date unless it is today."""
    then = time.localtime(at_ms / 1000)
    same_day = time.strftime("%F", then) == time.strftime("%F")
    return time.strftime("%T" if same_day else "%F %T", then)
