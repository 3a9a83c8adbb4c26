"""Seeds of -1 become random numbers."""

from __future__ import annotations

from typing import Any, Protocol

from easel.workflow.types import Node, ObjectInfo, Prompt

SEED_INPUTS = ("seed", "noise_seed")

UNKNOWN_MAX = 2**32 - 1
"""Largest seed where the class does not say what it allows."""

EXACT_MAX = 2**53 - 1
"""Largest seed at all: JavaScript clients cannot write larger integers exactly."""


class RandomNumbers(Protocol):
    """Where seeds are drawn from: ``random.SystemRandom()``, or ``random.Random(7)`` in a test."""

    def randint(self, a: int, b: int, /) -> int:
        """Return a number between ``a`` and ``b``, both included."""


def randomise(
    prompt: Prompt, rng: RandomNumbers, object_info: ObjectInfo | None = None
) -> tuple[Prompt, dict[str, int]]:
    """Replace every ``seed`` and ``noise_seed`` of -1 (also ``-1.0`` and ``"-1"``) by a random number.

    Returns the prompt (the same object when nothing changed; the argument is never changed) and ``"node.input"`` → the
    number drawn. The number lies in 0 … the maximum that ``object_info`` gives for the input; links stay.
    """
    drawn: dict[str, int] = {}
    result = prompt
    for node_id, node in prompt.items():
        for name in SEED_INPUTS:
            if not _is_minus_one(node["inputs"].get(name)):
                continue
            top = _largest(object_info, node["class_type"], name)
            if top is None:
                continue
            if result is prompt:
                result = dict(prompt)
            number = rng.randint(0, top)
            drawn[f"{node_id}.{name}"] = number
            changed: Node = {
                **result[node_id],
                "inputs": {**result[node_id]["inputs"], name: number},
            }
            result[node_id] = changed
    return result, drawn


def _is_minus_one(value: object) -> bool:
    if isinstance(value, str):
        return value.strip() == "-1"
    return isinstance(value, int | float) and not isinstance(value, bool) and value == -1


def _largest(object_info: ObjectInfo | None, class_type: str, name: str) -> int | None:
    """Return the largest number to draw, or None when the class declares the input as no number."""
    declaration = declared_input(object_info, class_type, name)
    if declaration is None:
        return UNKNOWN_MAX
    kind = declaration[0]
    if isinstance(kind, str) and kind not in {"INT", "FLOAT", "NUMBER", "*"}:
        return None
    options = declaration[1] if len(declaration) > 1 else None
    top = options.get("max") if isinstance(options, dict) else None
    if isinstance(top, bool) or not isinstance(top, int | float) or not top >= 0:
        return UNKNOWN_MAX
    return int(min(top, EXACT_MAX))


def declared_input(object_info: ObjectInfo | None, class_type: str, name: str) -> list[Any] | None:
    """Return the ``/object_info`` declaration of an input (``[type, options?]``), or None when it is not declared."""
    info = (object_info or {}).get(class_type)
    groups = info.get("input") if isinstance(info, dict) else None
    if not isinstance(groups, dict):
        return None
    for group in ("required", "optional"):
        inputs = groups.get(group)
        declared = inputs.get(name) if isinstance(inputs, dict) else None
        if isinstance(declared, list | tuple) and declared:
            return list(declared)
    return None
