"""Why an agent leaves its platform."""

from __future__ import annotations

from dataclasses import dataclass

from easel.errors import ConfigurationError, EaselError
from easel.link import messages

WRONG_TOKEN = 4401
NOT_WANTED = 4403
REPLACED = 4409
OTHER_VERSION = 4426
FOR_GOOD = frozenset({WRONG_TOKEN, NOT_WANTED, REPLACED, OTHER_VERSION})
"""Close codes after which an agent does not come back."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """An agent leaves: because that is wanted, or because of an ``error`` that its operator must know of."""

    reason: str
    error: EaselError | None = None


def closed_for_good(code: int, said: str, url: str) -> Leaving:
    """Return why a close code (`messages.CLOSES`) ends the agent; ``said`` is the gateway's own reason."""
    reason = said or messages.CLOSES[code]
    if code == WRONG_TOKEN:
        message = f"the gateway at {url} refuses the token"
        return Leaving(
            message,
            ConfigurationError(
                message,
                hint="--token or --token-file: `easel join-token SERVICE` prints a service's; it may have been reset",
            ),
        )
    if code == REPLACED:
        message = f"another agent has joined {url} in this one's place"
        return Leaving(
            message,
            ConfigurationError(message, hint="agents of one service need different names: --name"),
        )
    if code == OTHER_VERSION:
        message = (
            f"the gateway at {url} does not speak version {messages.VERSION} of the link: {reason}"
        )
        return Leaving(
            message, ConfigurationError(message, hint="install the same version of Easel on both")
        )
    return Leaving(reason)
