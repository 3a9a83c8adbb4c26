"""The commands in the documentation: found, run as they stand, compared with the output shown beneath them.

A fenced ``console`` block holds commands (lines that begin with ``$ ``) and, beneath each, what it prints: every line shown
must come, in that order; ``...`` stands for anything. A comment on the line before a block changes how it is run::

    <!-- exit: 2 -->             the last command ends with this code (else 0)
    <!-- not run: the reason --> the block is not run
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_FENCE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--\s*(exit|not run):\s*((?:(?!-->).)*?)\s*-->\s*\Z", re.DOTALL)


@dataclass
class Step:
    """One command and what is shown beneath it."""

    command: str
    shown: list[str] = field(default_factory=list)
    code: int = 0


@dataclass
class Block:
    """One fenced block."""

    line: int
    steps: list[Step]
    not_run: str | None = None
    """Why it is not run."""


def blocks(page: str) -> list[Block]:
    """Return the ``console`` blocks of a Markdown page."""
    found = []
    for fence in _FENCE.finditer(page):
        comment = _COMMENT.search(page[: fence.start()])
        block = Block(page.count("\n", 0, fence.start()) + 1, steps(fence[1]))
        if comment and comment[1] == "not run":
            block.not_run = comment[2]
        elif comment:
            block.steps[-1].code = int(comment[2])
        found.append(block)
    return found


def steps(text: str) -> list[Step]:
    """Return the commands of a block; a line that ends with a backslash goes on."""
    found: list[Step] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:]))
        elif not found:
            raise ValueError(f"a console block begins with a command, not with {line!r}")
        elif found[-1].command.endswith("\\"):
            found[-1].command += "\n" + line
        elif line.strip():
            found[-1].shown.append(line)
    return found


def missing(shown: list[str], printed: str) -> str | None:
    """Return the first shown line that is not printed in its order; None when all are."""
    lines = iter(printed.splitlines())
    for line in shown:
        if line.strip() in ("...", "…"):
            continue
        pattern = re.compile(
            ".*".join(re.escape(part) for part in re.split(r"\.\.\.|…", line.rstrip()))
        )
        if not any(pattern.fullmatch(candidate.rstrip()) for candidate in lines):
            return line
    return None


def pages(root: Path) -> list[Path]:
    """Return the pages users read."""
    return [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]
