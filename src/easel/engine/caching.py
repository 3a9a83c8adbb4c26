"""The cache across prompts: what the last prompt used, by content.

A node's key is made of its class, its constant inputs, what ``is_changed`` says, and the keys of the nodes it takes inputs
from: node ids do not matter. Like ComfyUI's default cache it keeps only what the latest prompt contains.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import msgspec

from easel.engine.folders import Folders
from easel.engine.node import NodeClass
from easel.workflow.types import Node, NodeId, Prompt, is_link, unwrapped

Key: TypeAlias = bytes

_encoder = msgspec.msgpack.Encoder(order="sorted", enc_hook=repr)
"""Tells 1, 1.0, True, null, NaN and the infinities apart, which JSON does not."""


@dataclass(slots=True)
class Result:
    """What a node gave: a list of values for each output slot, and what it showed."""

    slots: list[list[Any]]
    ui: dict[str, list[Any]] | None


class Cache:
    """Results by key. Used from the worker thread alone."""

    def __init__(self) -> None:
        self._results: dict[Key, Result] = {}

    def get(self, key: Key) -> Result | None:
        """Return the result kept under a key."""
        return self._results.get(key)

    def put(self, key: Key, result: Result) -> None:
        """Keep a result."""
        self._results[key] = result

    def keep_only(self, keys: Iterable[Key]) -> None:
        """Forget what the prompt with these keys has no use for."""
        self._results = {key: self._results[key] for key in keys if key in self._results}

    def clear(self) -> None:
        """Forget everything."""
        self._results.clear()


class Keys(NamedTuple):
    """The keys of a prompt's nodes, and which nodes no prompt to come can have the key of."""

    of: dict[NodeId, Key]
    volatile: set[NodeId]


def links(node: Node, node_class: NodeClass) -> list[NodeId]:
    """Return the nodes that the declared inputs link to, in order, each once.

    What links into inputs that the class does not have is nobody's business: it was not validated.
    """
    found = {
        value[0]: None
        for name, value in node["inputs"].items()
        if is_link(value) and node_class.declares(name)
    }
    return list(found)


def upstream_first(
    prompt: Prompt, outputs: Iterable[NodeId], classes: Mapping[NodeId, NodeClass]
) -> dict[NodeId, list[NodeId]]:
    """Return the nodes that the outputs need and what each takes inputs from, each after all it needs itself.

    The prompt has no cycles: it was validated.
    """
    order: dict[NodeId, list[NodeId]] = {}
    for output in outputs:
        stack: list[tuple[NodeId, list[NodeId] | None]] = [(output, None)]
        while stack:
            node_id, needs = stack.pop()
            if node_id in order:
                continue
            if needs is not None:
                order[node_id] = needs
                continue
            needs = links(prompt[node_id], classes[node_id])
            stack.append((node_id, needs))
            stack += [(other, None) for other in needs if other not in order]
    return order


def cache_keys(
    prompt: Prompt,
    needs: Mapping[NodeId, Sequence[NodeId]],
    classes: Mapping[NodeId, NodeClass],
    folders: Folders,
    salt: str,
) -> Keys:
    """Return the key of every needed node (given upstream first).

    ``salt`` is unique for the prompt: a node whose ``is_changed`` is NaN or raises never equals anything before or after
    it, nor does what takes inputs from it.
    """
    keys = Keys({}, set())
    for node_id, sources in needs.items():
        node, node_class = prompt[node_id], classes[node_id]
        parts: list[Any] = [node["class_type"]]
        for name, value in sorted(node["inputs"].items()):
            if not is_link(value):
                parts.append((name, 0, value))
            elif node_class.declares(name):
                parts.append((name, 1, keys.of[value[0]], value[1]))
        if node_class.is_changed is not None:
            changed = _changed(node, node_class, folders)
            if isinstance(changed, float) and math.isnan(changed):
                changed = (salt, node_id)
                keys.volatile.add(node_id)
            parts.append((2, changed))
        if "UNIQUE_ID" in node_class.hidden.values():
            parts.append((3, node_id))
        if not keys.volatile.isdisjoint(sources):
            keys.volatile.add(node_id)
        try:
            content = _encoded(parts)
        except Exception:  # noqa: BLE001 - what is_changed gave cannot be written down: it equals nothing
            content = f"{salt} {node_id!r}".encode()
            keys.volatile.add(node_id)
        keys.of[node_id] = hashlib.blake2b(content, digest_size=16).digest()
    return keys


def _changed(node: Node, node_class: NodeClass, folders: Folders) -> Any:
    """What the class says of its constants; NaN ("always run again") when it raises, as in ComfyUI."""
    assert node_class.is_changed is not None
    constants = {
        name: unwrapped(value)
        for name, value in node["inputs"].items()
        if node_class.declares(name) and not is_link(value)
    }
    try:
        return node_class.is_changed(folders, **constants)
    except BaseException:  # noqa: BLE001 - a pack's own code on the worker thread, which outlives it
        return math.nan


def _encoded(parts: list[Any]) -> bytes:
    """Serialise what a key is made of. Raises what comes of values that cannot be."""
    try:
        return _encoder.encode(parts)
    except (UnicodeEncodeError, OverflowError):
        # Lone surrogates and whole numbers beyond 64 bits, which JSON prompts may hold.
        return json.dumps(parts, sort_keys=True, default=repr).encode()
