"""The body of ``POST /prompt``: what is read from it, and how it is refused."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from easel.workflow.constants import text
from easel.workflow.types import NodeId

LEVELS_TO_SPARE = 100
"""How much deeper than it came a body may be written, with the stack of whoever writes it."""
_encoder = msgspec.json.Encoder()


class PromptRefused(Exception):
    """A prompt that cannot be queued: the body of a 400 in ComfyUI's shape."""

    def __init__(self, error: dict[str, Any], node_errors: dict[NodeId, Any]) -> None:
        super().__init__(error.get("message", ""))
        self.error = error
        self.node_errors = node_errors


def refusal(kind: str, message: str, details: str) -> PromptRefused:
    """Return a refusal of the request as a whole."""
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return PromptRefused(error, {})


def check_writable(body: Mapping[str, Any]) -> None:
    """See that the body can be written as JSON where it will be shown: in the queue, the history and errors.

    One that is nested too deeply would break those for everybody. Raises PromptRefused.
    """
    shown: Any = body
    for _ in range(LEVELS_TO_SPARE):
        shown = [shown]
    try:
        try:
            _encoder.encode(shown)
        except UnicodeEncodeError:  # lone surrogates are written escaped
            json.dumps(shown)
    except Exception as error:  # noqa: BLE001 - RecursionError, and ValueError of endless digits
        raise refusal(
            "invalid_request", "The request cannot be written as JSON", text(error)
        ) from None


def class_names(prompt: object) -> set[str]:
    """Class names in a prompt, whatever it is."""
    if not isinstance(prompt, dict):
        return set()
    found = (node.get("class_type") for node in prompt.values() if isinstance(node, dict))
    return {name for name in found if isinstance(name, str)}


def prompt_id_of(body: Mapping[str, Any]) -> str:
    """The id that was given, or a new one. Raises PromptRefused for what is no text or number."""
    prompt_id = body.get("prompt_id")
    if prompt_id is None or prompt_id == "":
        return str(uuid.uuid4())
    if isinstance(prompt_id, str | int | float | bool):
        return str(prompt_id)
    raise refusal("invalid_request", "prompt_id must be a string", "")


def extra_data_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """What comes with the prompt, with the client id in it. Raises PromptRefused for what kills the real ComfyUI."""
    extra_data = body.get("extra_data", {})
    if not isinstance(extra_data, dict):
        raise refusal("invalid_request", "extra_data must be an object", "")
    client_id = body.get("client_id", extra_data.get("client_id"))
    if client_id is None:
        return {k: v for k, v in extra_data.items() if k != "client_id"}
    if not isinstance(client_id, str):
        raise refusal("invalid_request", "client_id must be a string", "")
    return {**extra_data, "client_id": client_id}


def number_of(body: Mapping[str, Any], counter: int) -> float:
    """The place in the line: given, or a counter; ``front`` puts it before all counted ones.

    Raises PromptRefused for what is no finite number.
    """
    number = body.get("number")
    if number is None:
        return -counter if body.get("front") else counter
    try:
        given = float(number)
    except (TypeError, ValueError, OverflowError):
        given = math.nan
    if not math.isfinite(given):
        raise refusal("invalid_request", "number must be a finite number", "")
    return given
