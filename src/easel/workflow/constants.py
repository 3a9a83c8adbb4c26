"""Constant inputs of a node: what ComfyUI converts them to, and what it says of values it refuses.

Pure, and total: no JSON value makes anything here raise.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

from easel.workflow.types import unwrapped

Problem: TypeAlias = dict[str, Any]
"""One entry of ``node_errors[id]["errors"]``: ``type, message, details, extra_info``."""

LONG_LIST = 20
"""Choices beyond which an error says only how many there are."""


def problem(kind: str, message: str, details: str, **extra_info: Any) -> Problem:
    """Return an error entry."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


def text(value: object) -> str:
    """Return ``str(value)``; values that cannot be written (nested too deeply, endless digits) have their type's name."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - ValueError and RecursionError of JSON, anything of a pack's own objects
        return f"<{type(value).__name__}>"


def _converted(kind: object, value: Any) -> Any:
    """Convert as ComfyUI does. Raises ValueError, TypeError, OverflowError or RecursionError."""
    if kind == "INT":
        return int(value)
    if kind == "FLOAT":
        return float(value)
    if kind == "STRING":
        return str(value)
    if kind == "BOOLEAN":
        return bool(value)
    return value


def convert(inputs: MutableMapping[str, Any], name: str, spec: Sequence[Any]) -> Problem | None:
    """Convert one constant in place, or say why it cannot be.

    A list that was given as a value (``{"__value__": [...]}``) stays wrapped: bare, it would be taken for a link.
    """
    value = unwrapped(inputs[name])
    try:
        converted = _converted(spec[0], value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        return problem(
            "invalid_input_type",
            f"Failed to convert an input value to a {spec[0]} value",
            f"{name}, {text(value)}, {error}",
            input_name=name,
            input_config=spec,
            received_value=value,
            exception_message=str(error),
        )
    if not isinstance(converted, list):
        inputs[name] = converted
    return None


def judge(value: Any, name: str, spec: Sequence[Any]) -> Problem | None:
    """Say what is wrong with a converted constant: its range, or that it is no choice."""
    kind = spec[0]
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    value = unwrapped(value)
    if isinstance(value, int | float):
        lowest, highest = options.get("min"), options.get("max")
        broken: tuple[str, str, Any] | None = None
        if isinstance(lowest, int | float) and value < lowest:
            broken = ("value_smaller_than_min", "smaller than min", lowest)
        elif isinstance(highest, int | float) and value > highest:
            broken = ("value_bigger_than_max", "bigger than max", highest)
        if broken is not None:
            kind_of_error, words, limit = broken
            return problem(
                kind_of_error,
                f"Value {text(value)} {words} of {limit}",
                name,
                input_name=name,
                input_config=spec,
                received_value=value,
            )
    choices = options.get("options") if kind == "COMBO" else kind
    if not isinstance(choices, list) or value in choices:
        return None
    long = len(choices) > LONG_LIST
    shown = f"(list of length {len(choices)})" if long else str(choices)
    return problem(
        "value_not_in_list",
        "Value not in list",
        f"{name}: '{text(value)}' not in {shown}",
        input_name=name,
        input_config=None if long else spec,
        received_value=value,
    )
