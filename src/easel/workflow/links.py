"""Links between nodes: whether one is well formed, leads somewhere, and carries a fitting type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from easel.workflow.constants import LONG_LIST, Problem, problem, text
from easel.workflow.types import NodeId, ObjectInfo


def link_problem(
    prompt: Mapping[NodeId, Any],
    object_info: ObjectInfo,
    name: str,
    spec: Sequence[Any],
    value: list[Any],
    *,
    plain: bool = False,
) -> Problem | None:
    """Say what is wrong with a list given for an input, or None. Every node of the prompt has a known class.

    For a node that does not exist ComfyUI reports the KeyError it runs into, without the input; ``plain`` names both.
    """
    if len(value) != 2:
        return _bad_link(name, spec, value)
    source, slot = value
    if not isinstance(source, str) or source not in prompt:
        return _dangling(name, spec, value, plain=plain)
    described: object = object_info[prompt[source]["class_type"]]
    types = described.get("output") if isinstance(described, Mapping) else None
    if not isinstance(types, list | tuple):
        types = ()
    if isinstance(slot, bool) or not isinstance(slot, int) or not 0 <= slot < len(types):
        return _bad_link(name, spec, value)
    wanted, received = spec[0], types[slot]
    if fits(received, wanted):
        return None
    return problem(
        "return_type_mismatch",
        "Return type mismatch between linked nodes",
        f"{name}, received_type({_brief(received)}) mismatch input_type({_brief(wanted)})",
        input_name=name,
        input_config=_config(spec),
        received_type=_brief(received),
        linked_node=value,
    )


def _brief(kind: object) -> object:
    """A type as an error shows it: of many choices only their number, or one prompt of many faults is told in gigabytes."""
    if isinstance(kind, list) and len(kind) > LONG_LIST:
        return f"(list of length {len(kind)})"
    return kind


def _config(spec: Sequence[Any]) -> Sequence[Any] | None:
    """A declaration as an error shows it: None in the place of many choices, as for a value that is none of them."""
    options = spec[1].get("options") if len(spec) > 1 and isinstance(spec[1], Mapping) else None
    choices = spec[0] if isinstance(spec[0], list) else options
    return None if isinstance(choices, list) and len(choices) > LONG_LIST else spec


def _dangling(name: str, spec: Sequence[Any], value: list[Any], *, plain: bool) -> Problem:
    quoted = repr(value[0]) if isinstance(value[0], str) else text(value[0])
    reason = f"input {name!r} links to node {quoted}, which does not exist"
    if plain:
        return problem(
            "bad_linked_input",
            "Link to a node that does not exist",
            reason,
            input_name=name,
            input_config=_config(spec),
            received_value=value,
        )
    return problem(
        "exception_during_validation",
        "Exception when validating node",
        quoted,
        exception_type="KeyError",
        traceback=[f"  {reason}\n"],
    )


def _bad_link(name: str, spec: Sequence[Any], value: list[Any]) -> Problem:
    """Return the error for a list that is no link."""
    return problem(
        "bad_linked_input",
        "Bad linked input, must be a length-2 list of [node_id, slot_index]",
        name,
        input_name=name,
        input_config=_config(spec),
        received_value=value,
    )


def fits(received: object, wanted: object) -> bool:
    """Tell whether an output of one type may feed an input of another.

    ``*`` fits everything; types may be unions (``"INT,FLOAT"``): every type of the output must be among the input's.
    Choices (lists, ``COMBO``) take outputs that are choices, too.
    """
    if isinstance(wanted, list):
        wanted = "COMBO"
    if isinstance(received, list):
        received = "COMBO"
    if not isinstance(received, str) or not isinstance(wanted, str):
        return received == wanted
    if "*" in (received, wanted) or received == wanted:
        return True
    return {t.strip() for t in received.split(",")} <= {t.strip() for t in wanted.split(",")}
