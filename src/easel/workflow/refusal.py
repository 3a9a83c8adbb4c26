"""Validation's verdict as an error that names the first faulty node and input."""

from __future__ import annotations

import re
from typing import Any

from easel.errors import InvalidPrompt


def refusal(error: dict[str, Any], node_errors: dict[str, Any]) -> InvalidPrompt:
    """Return what the caller of a prompt that cannot run meets; both arguments have ComfyUI's shapes."""
    message = ": ".join(part for part in (error["message"], error["details"]) if part)
    for node_id, entry in node_errors.items():
        first = entry["errors"][0]
        return InvalidPrompt(
            f"node {node_id} ({entry['class_type']}): {first['message']}: {first['details']}",
            error=error,
            node_errors=node_errors,
            node_id=node_id,
            node_type=entry["class_type"],
            input_name=first["extra_info"].get("input_name"),
        )
    found = re.fullmatch(r"Node ID '#(.*)'", error["details"])
    return InvalidPrompt(
        message,
        error=error,
        node_id=found.group(1) if found else None,
        hint="a prompt needs a node that shows or saves something, such as SaveImage"
        if error["type"] == "prompt_no_outputs"
        else None,
    )
