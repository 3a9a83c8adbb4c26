"""Nodes and inputs as people name them: ``3.seed``, ``"Positive prompt.text"``, ``KSampler.steps``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from easel.cli.report import UsageError
from easel.workflow.types import NodeId, ObjectInfo, Prompt


def title_of(prompt: Prompt, node_id: NodeId) -> str:
    """Return a node's title, or "" when it has none of its own."""
    title = prompt[node_id].get("_meta", {}).get("title")
    return title if isinstance(title, str) else ""


def shown(prompt: Prompt, node_id: NodeId) -> str:
    """Return a node for people: ``3 (KSampler "Sampler")``."""
    class_type, title = prompt[node_id]["class_type"], title_of(prompt, node_id)
    return f"{node_id} ({class_type}" + (f' "{title}")' if title not in ("", class_type) else ")")


def find_nodes(prompt: Prompt, name: str) -> list[NodeId]:
    """Return the nodes of this id; else of this title; else of this class. Case counts only for ids."""
    if name in prompt:
        return [name]
    wanted = name.casefold()
    return [node for node in prompt if title_of(prompt, node).casefold() == wanted] or [
        node for node in prompt if prompt[node]["class_type"].casefold() == wanted
    ]


def find_node(prompt: Prompt, name: str, flag: str) -> NodeId:
    """Return the one node of this name. Raises UsageError that lists the candidates or the nearest names."""
    found = find_nodes(prompt, name)
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(shown(prompt, node) for node in found)
        raise UsageError(
            f"{flag}: {name!r} names {len(found)} nodes: {listed}", hint="name the node by its id"
        )
    raise UsageError(
        f"{flag}: the workflow has no node {name!r}",
        hint=_suggest(name, _names(prompt)) or f"its nodes are {_list(prompt)}",
    )


def find_input(
    prompt: Prompt, address: str, object_info: ObjectInfo | None, flag: str
) -> tuple[NodeId, str]:
    """Return node and input of an address ``NODE.INPUT``. NODE may itself contain dots.

    Raises UsageError for an unknown or ambiguous node and for an input that the node does not have.
    """
    splits = [
        (address[:at], address[at + 1 :]) for at, letter in enumerate(address) if letter == "."
    ]
    if not splits or not address.strip("."):
        raise UsageError(
            f"{flag}: {address!r} names no input", hint="write NODE.INPUT, such as 3.seed"
        )
    nodes = [(node, name) for node, name in splits if find_nodes(prompt, node)]
    for node, name in nodes:
        for node_id in find_nodes(prompt, node):
            if name in known_inputs(prompt, node_id, object_info):
                return find_node(prompt, node, flag), name
    node, name = nodes[0] if nodes else splits[-1]
    node_id = find_node(prompt, node, flag)
    known = known_inputs(prompt, node_id, object_info)
    raise UsageError(
        f"{flag}: node {shown(prompt, node_id)} has no input {name!r}",
        hint=_suggest(name, known) or f"its inputs are {', '.join(known) or 'none'}",
    )


def known_inputs(prompt: Prompt, node_id: NodeId, object_info: ObjectInfo | None) -> list[str]:
    """Return the inputs a node has: those the file gives and those its class declares."""
    node = prompt[node_id]
    names = dict.fromkeys(node["inputs"])
    declared = (object_info or {}).get(node["class_type"], {}).get("input", {})
    for group in ("required", "optional"):
        names.update(dict.fromkeys(declared.get(group) or {}))
    return list(names)


def _names(prompt: Prompt) -> list[str]:
    names: dict[str, None] = {}
    for node in prompt:
        names.update(dict.fromkeys((node, title_of(prompt, node), prompt[node]["class_type"])))
    return [name for name in names if name]


def _list(prompt: Prompt) -> str:
    nodes = list(prompt)
    more = f" and {len(nodes) - 12} more" if len(nodes) > 12 else ""
    return ", ".join(shown(prompt, node) for node in nodes[:12]) + more


def _suggest(name: str, names: Iterable[str]) -> str | None:
    """Return "did you mean …?" with the nearest names, whatever their case."""
    known = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(name.casefold(), known, n=3)
    return f"did you mean {' or '.join(known[key] for key in close)}?" if close else None
