"""The vocabulary of ComfyUI's API format (`/prompt`, `/object_info`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypeAlias, TypedDict, TypeGuard

NodeId: TypeAlias = str
"""A node's key in the prompt. Any string; the front end writes decimal numbers, subgraphs ``"3:1"``."""


class Node(TypedDict):
    """One node of a prompt. Input values are JSON values or links ``[node_id, output_index]``."""

    class_type: str
    inputs: dict[str, Any]
    _meta: NotRequired[dict[str, Any]]


Prompt: TypeAlias = dict[NodeId, Node]
"""A workflow in API format: what is executed."""

ObjectInfo: TypeAlias = Mapping[str, Mapping[str, Any]]
"""What ``GET /object_info`` answers: class name → inputs, outputs, category …"""


def is_link(value: object) -> TypeGuard[list[Any]]:
    """Tell whether an input value is a link: a list of a node id (str) and an output index (int).

    ComfyUI treats every list in an input as a link and refuses lists of another shape (``bad_linked_input``).
    """
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


def unwrapped(value: Any) -> Any:
    """Return a constant as it is meant: ComfyUI writes lists that are values, not links, as ``{"__value__": [...]}``."""
    if isinstance(value, dict) and "__value__" in value:
        return value["__value__"]
    return value
