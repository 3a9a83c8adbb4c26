"""``--set NODE.INPUT=VALUE``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

from easel.cli.addresses import find_input
from easel.cli.report import UsageError
from easel.workflow.types import NodeId, ObjectInfo, Prompt


def assign(
    prompt: Prompt, assignments: Sequence[str], object_info: ObjectInfo | None
) -> tuple[Prompt, set[tuple[NodeId, str]]]:
    """Return the prompt with the values set, and which inputs they are. Raises UsageError naming the flag."""
    result: Prompt = {
        node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in prompt.items()
    }
    changed = set()
    for text in assignments:
        address, equals, raw = text.partition("=")
        flag = f"--set {text if len(text) < 80 else text[:77] + '...'}"
        if not equals:
            raise UsageError(f"{flag}: there is no value", hint="write --set NODE.INPUT=VALUE")
        node_id, name = find_input(prompt, address.strip(), object_info, flag)
        inputs = result[node_id]["inputs"]
        declared = declared_type(prompt, node_id, name, object_info)
        inputs[name] = parse_value(raw, declared, inputs.get(name))
        changed.add((node_id, name))
    return result, changed


def declared_type(
    prompt: Prompt, node_id: NodeId, name: str, object_info: ObjectInfo | None
) -> Any:
    """Return what the node's class declares of an input: ``"INT"``, ``"STRING"``, a list of choices …, or None."""
    groups = (object_info or {}).get(prompt[node_id]["class_type"], {}).get("input", {})
    for group in ("required", "optional"):
        declaration = (groups.get(group) or {}).get(name)
        if isinstance(declaration, list) and declaration:
            return declaration[0]
    return None


def parse_value(raw: str, declared: Any, current: object) -> Any:
    """Return the value that a text on the command line means: JSON where it is JSON, else the text itself.

    Where the input holds text, only a JSON string is taken as JSON: ``--set 6.text=1984`` stays text.
    """
    try:
        value = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return _truth(raw) if declared == "BOOLEAN" else raw
    if isinstance(value, str):
        return value
    if isinstance(declared, list):
        return value if value in declared else raw
    if declared in ("STRING", "COMBO"):
        return raw
    if declared is None and isinstance(current, str):
        return raw
    return value


def _truth(raw: str) -> bool | str:
    word = raw.strip().lower()
    return {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}.get(
        word, raw
    )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
