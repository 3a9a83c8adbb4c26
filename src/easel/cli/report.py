"""How errors look on the command line, and the exit codes.

====  =====================================================================================
0     done
1     the task, or what the command looked after, failed
2     the call is wrong: flags, files, settings, the workflow; calling again will not help
3     the agent or its engine did not answer, died or was full; calling again may help
130   ended by Ctrl-C (143 by SIGTERM)
====  =====================================================================================
"""

from __future__ import annotations

import json
import sys
from typing import Any

from easel.errors import (
    BadRequest,
    ConfigurationError,
    EaselError,
    EngineError,
    InvalidPrompt,
    TaskConflict,
    TooManyTasks,
)

FAILED = 1
WRONG = 2
UNAVAILABLE = 3
INTERRUPTED = 130
TERMINATED = 143

_LOG_LINES = 15


class UsageError(BadRequest):
    """A flag or argument that cannot be used."""

    code = "usage_error"


def exit_code(error: EaselError) -> int:
    """Return the exit code of an error."""
    if isinstance(error, BadRequest | ConfigurationError | TaskConflict):
        return WRONG
    if isinstance(error, EngineError | TooManyTasks):
        return UNAVAILABLE
    return FAILED


def describe(error: EaselError) -> list[str]:
    """Return what a person reads: the error, what else is known, and what to do, a line each."""
    lines = [f"error: {_one_line(error.message)}"]
    if isinstance(error, InvalidPrompt):
        found = _node_errors(error.node_errors)
        # One alone is what the message says already.
        lines += [f"  {line}" for line in found] if len(found) > 1 else []
    if error.log:
        lines += ["the last log lines:"]
        lines += [f"  | {line.rstrip()}" for line in error.log[-_LOG_LINES:]]
    if error.hint:
        lines.append(f"hint: {_one_line(error.hint)}")
    return lines


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _node_errors(node_errors: dict[str, Any]) -> list[str]:
    lines = []
    for node_id, entry in node_errors.items():
        if not isinstance(entry, dict):
            continue
        for found in entry.get("errors") or ():
            said = ": ".join(str(found[key]) for key in ("message", "details") if found.get(key))
            lines.append(_one_line(f"node {node_id} ({entry.get('class_type')}): {said}"))
    return lines


def report(error: EaselError, *, as_json: bool, also: dict[str, Any] | None = None) -> int:
    """Print an error, for people on stderr or as one JSON object on stdout; return the exit code."""
    if as_json:
        print_json({**(also or {}), "error": error.to_json()})
    else:
        for line in describe(error):
            print(line, file=sys.stderr)
    return exit_code(error)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
    sys.stdout.flush()
