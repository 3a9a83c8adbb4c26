"""The cache across prompts: what the last prompt used, by content.

A node's key is made of its class, its constant inputs, what ``is_changed`` says, and the keys of the nodes it takes inputs
from: node ids do not matter. Like ComfyUI's default cache it keeps only what the latest prompt contains.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from easel.engine.folders import Folders
from easel.engine.node import Registry
from easel.workflow.types import NodeId, Prompt, is_link

Key: TypeAlias = bytes

_encoder = msgspec.json.Encoder(order="sorted")


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


def links(inputs: Mapping[str, Any]) -> list[NodeId]:
    """Return the nodes that inputs link to, in order."""
    return [value[0] for value in inputs.values() if is_link(value)]


def upstream_first(prompt: Prompt, outputs: Iterable[NodeId]) -> list[NodeId]:
    """Return the nodes that the outputs need, each after all it needs itself. The prompt has no cycles."""
    order: dict[NodeId, None] = {}
    for output in outputs:
        stack: list[tuple[NodeId, bool]] = [(output, False)]
        while stack:
            node_id, ready = stack.pop()
            if node_id in order:
                continue
            if ready:
                order[node_id] = None
                continue
            stack.append((node_id, True))
            stack += [(other, False) for other in links(prompt[node_id]["inputs"])]
    return list(order)


def cache_keys(
    prompt: Prompt, needed: Iterable[NodeId], registry: Registry, folders: Folders, salt: str
) -> dict[NodeId, Key]:
    """Return the key of every needed node (given upstream first).

    ``salt`` is unique for the prompt: a node whose ``is_changed`` is NaN or raises never equals anything before or after it.
    """
    keys: dict[NodeId, Key] = {}
    for node_id in needed:
        node = prompt[node_id]
        node_class = registry.get(node["class_type"])
        assert node_class is not None
        parts: list[Any] = [node["class_type"]]
        for name, value in sorted(node["inputs"].items()):
            parts.append(
                [name, 1, keys[value[0]], value[1]] if is_link(value) else [name, 0, value]
            )
        if node_class.is_changed is not None:
            constants = {k: v for k, v in node["inputs"].items() if not is_link(v)}
            try:
                changed = node_class.is_changed(folders, **constants)
            except Exception:  # noqa: BLE001 - a pack's own code; ComfyUI takes it for "always run again", too
                changed = math.nan
            if isinstance(changed, float) and math.isnan(changed):
                changed = [salt, node_id]
            parts.append(changed)
        if "UNIQUE_ID" in node_class.hidden.values():
            parts.append(node_id)
        keys[node_id] = hashlib.blake2b(_encoded(parts), digest_size=16).digest()
    return keys


def _encoded(parts: list[Any]) -> bytes:
    """Serialise what a key is made of; texts with lone surrogates, which UTF-8 does not know, are escaped."""
    try:
        return _encoder.encode(parts)
    except UnicodeEncodeError:
        return json.dumps(parts, sort_keys=True, default=repr).encode()
