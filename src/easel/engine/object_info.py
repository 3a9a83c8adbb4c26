"""A class's entry in ``GET /object_info``, in the exact form ComfyUI 0.3.64 gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easel.engine.folders import Folders
from easel.engine.node import Input, NodeClass


def choices(declared: Input, folders: Folders) -> list[str] | None:
    """Return the choices of a combo input as they are now, or None for an input of another type."""
    if isinstance(declared.type, str):
        return None
    if callable(declared.type):
        return list(declared.type(folders))
    return list(declared.type)


def input_info(declared: Input, folders: Folders, style: str = "v1") -> list[Any]:
    """Return one input's ``[type, options]`` pair.

    v1 leaves the options out when none were declared and writes choices in the place of the type; v3 always has options
    and writes choices into them.
    """
    listed = choices(declared, folders)
    options = dict(declared.options or {})
    if style == "v3":
        if listed is None:
            return [declared.type, options]
        return ["COMBO", {**options, "multiselect": False, "options": listed}]
    shown: Any = declared.type if listed is None else listed
    return [shown] if declared.options is None else [shown, options]


def class_info(node_class: NodeClass, folders: Folders) -> dict[str, Any]:
    """Return the ``/object_info`` entry of a class; combos over files are listed anew at each call."""
    groups: dict[str, Mapping[str, Input]] = {"required": node_class.required}
    if node_class.optional:
        groups["optional"] = node_class.optional
    inputs: dict[str, Any] = {
        group: {
            name: input_info(declared, folders, node_class.style)
            for name, declared in members.items()
        }
        for group, members in groups.items()
    }
    if node_class.hidden:
        inputs["hidden"] = dict(node_class.hidden)
    v3 = node_class.style == "v3"
    info: dict[str, Any] = {
        "input": inputs,
        "input_order": {group: list(members) for group, members in inputs.items()},
        "output": [output.type for output in node_class.outputs],
        "output_is_list": [output.is_list for output in node_class.outputs],
        "output_name": [
            output.type if output.name is None else output.name for output in node_class.outputs
        ],
        "name": node_class.name,
        "display_name": node_class.display_name or (None if v3 else node_class.name),
        "description": node_class.description,
        "python_module": node_class.python_module,
        "category": node_class.category,
        "output_node": node_class.output_node,
    }
    if v3 or node_class.deprecated:
        info["deprecated"] = node_class.deprecated
    if v3 or node_class.experimental:
        info["experimental"] = node_class.experimental
    if v3:
        info["api_node"] = False
    return {**info, **node_class.extra_info}
