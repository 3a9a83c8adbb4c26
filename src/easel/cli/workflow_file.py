"""A workflow file, read and checked before anything is sent."""

from __future__ import annotations

import sys
from pathlib import Path

from easel.cli.report import UsageError
from easel.errors import BadRequest, NotJson
from easel.workflow.parse import ParsedBody, parse_prompt

NODE_LIMIT = 1_000_000
"""How many nodes are accepted is the agent's decision."""


def read_workflow(name: str) -> ParsedBody:
    """Read a workflow in API format from a file, or from standard input for ``-``.

    Raises UsageError when there is no such file, and what `parse_prompt` raises, naming the file.
    """
    data = sys.stdin.buffer.read() if name == "-" else read_file(name, "workflow file")
    shown = "standard input" if name == "-" else name
    if not data.strip():
        raise NotJson(f"{shown} is empty", hint="a workflow in API format is a JSON object")
    try:
        return parse_prompt(data, max_nodes=NODE_LIMIT)
    except BadRequest as error:
        error.message = f"{shown}: {error.message.replace('the body', 'the file', 1)}"
        error.args = (error.message,)
        raise


def read_file(name: str, kind: str) -> bytes:
    """Return a file's bytes. Raises UsageError that says what is in the way."""
    path = Path(name)
    try:
        if path.is_dir():
            raise UsageError(f"{name} is a folder, not a {kind}")
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no {kind} {name}", hint=_near(path)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the {kind} {name} cannot be read: {reason}") from None


def _near(path: Path) -> str | None:
    """Suggest files of the same folder whose names are alike."""
    import difflib

    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        return f"there is no folder {path.parent} either"
    close = difflib.get_close_matches(path.name, names, n=3)
    return (
        f"did you mean {' or '.join(str(path.parent / name) for name in close)}?" if close else None
    )
