"""Bodies of ComfyUI's own ``POST /prompt`` that must not reach it.

ComfyUI 0.3.64 accepts some odd bodies with 200 and then loses its worker thread or its process: a client id that is no
text, ``extra_data`` that is no object, a node without an object of inputs (also one nobody uses), a number that is none.
From then on nothing runs, while HTTP goes on answering.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from easel.errors import BadRequest, InvalidPrompt, NotJson


def check_native_body(body: bytes) -> None:
    """Refuse what would break the engine; everything else is the engine's to judge.

    Raises NotJson, BadRequest, or InvalidPrompt, which names the node.
    """
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise NotJson(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise NotJson("the body is not a JSON object")
    for key, kind, word in (
        ("client_id", str, "a string"),
        ("prompt_id", str, "a string"),
        ("prompt", dict, "an object of nodes"),
    ):
        if not isinstance(value.get(key), kind | None):
            raise BadRequest(f"{key} must be {word}")
    if not isinstance(value.get("extra_data", {}), dict):
        raise BadRequest("extra_data must be an object")
    if not _finite(value.get("number")):
        raise BadRequest("number must be a finite number")
    for node_id, node in (value.get("prompt") or {}).items():
        _check_node(node_id, node)


def _finite(number: Any) -> bool:
    if number is None:
        return True
    try:
        return math.isfinite(float(number))
    except (TypeError, ValueError, OverflowError):
        return False


def _check_node(node_id: str, node: Any) -> None:
    """A node without a class is left to ComfyUI, which names it; one that has a class needs an object of inputs."""
    if not isinstance(node, dict) or "class_type" not in node:
        return
    name = node["class_type"]
    if not isinstance(name, str) or not isinstance(node.get("inputs"), dict):
        raise InvalidPrompt(
            f"node {node_id} needs a class_type that is a string and inputs that are an object",
            node_id=node_id,
            node_type=name if isinstance(name, str) else None,
        )
