"""Constants as nodes, and showing any value."""

from __future__ import annotations

import json
from typing import Any

from easel.engine.node import Input, NodeContext, NodeResult, Output, Registry

registry = Registry()

_LARGEST = 2**63 - 1


def _constant(name: str, label: str, kind: str, options: dict[str, Any]) -> None:
    @registry.node(
        name,
        display_name=label,
        category="utils/primitive",
        python_module="comfy_extras.nodes_primitive",
        required={"value": Input(kind, options)},
        outputs=(Output(kind),),
        style="v3",
    )
    def constant(_context: NodeContext, value: Any) -> tuple[Any]:
        return (value,)


_constant("PrimitiveString", "String", "STRING", {"multiline": False})
_constant("PrimitiveStringMultiline", "String (Multiline)", "STRING", {"multiline": True})
_constant(
    "PrimitiveInt",
    "Int",
    "INT",
    {"min": -_LARGEST, "max": _LARGEST, "control_after_generate": True},
)
_constant("PrimitiveFloat", "Float", "FLOAT", {"min": -_LARGEST, "max": _LARGEST})
_constant("PrimitiveBoolean", "Boolean", "BOOLEAN", {})


def shown(value: Any) -> str:
    """Return a value as PreviewAny shows it: text as it is, the rest as JSON, or in Python's words."""
    if isinstance(value, str):
        return value
    if value is None:
        return "None"
    if isinstance(value, bool | int | float):
        return str(value)
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return str(value)


@registry.node(
    "PreviewAny",
    display_name="Preview Any",
    category="utils",
    python_module="comfy_extras.nodes_preview_any",
    required={"source": Input("*", {})},
    output_node=True,
)
def preview_any(_context: NodeContext, source: Any) -> NodeResult:
    """Show a value of any type as text."""
    return NodeResult(ui={"text": [shown(source)]})
