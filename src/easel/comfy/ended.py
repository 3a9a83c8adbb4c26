"""Why an engine's process ended, in words."""

from __future__ import annotations

import re
import signal

from easel.errors import EngineDied

_PORT_TAKEN = re.compile(r"address already in use|only one usage of each socket address", re.I)
_MISSING = re.compile(r"ModuleNotFoundError: No module named '?([\w.]+)")
_NOT_STARTED = 127


def ended_error(code: int, log: list[str]) -> EngineDied:
    """Return the error for a process that ended unasked; ``code`` is its exit code, or minus the signal's number."""
    return EngineDied(f"the engine's process {_how(code)}", hint=_hint(code, log), log=log)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}"


def _hint(code: int, log: list[str]) -> str | None:
    text = "\n".join(log)
    if _PORT_TAKEN.search(text):
        return "its port is taken by another program: stop that, or give the engine another port"
    if missing := _MISSING.search(text):
        return f"the engine's Python lacks {missing[1]}: install its requirements into it"
    if code == -signal.SIGKILL:
        return "was it killed for want of memory?"
    if code == _NOT_STARTED:
        return "is the engine's command right?"
    return None
