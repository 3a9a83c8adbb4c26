"""The body of ``POST /prompt``, always built here.

One odd body can end a ComfyUI for good: a ``client_id`` that is no string ends the process; an ``extra_data`` that is no
object, a node without ``inputs`` or a ``number`` used twice kills its worker thread while HTTP goes on answering.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from easel.errors import InvalidPrompt
from easel.workflow.types import NodeId, Prompt

_encoder = msgspec.json.Encoder()


def prompt_body(
    prompt: Prompt,
    *,
    client_id: str,
    prompt_id: str,
    extra_data: Mapping[str, Any] | None = None,
    targets: Sequence[NodeId] | None = None,
) -> bytes:
    """Build the body: the ids given, no ``number``, ``extra_data`` an object, every node ``{class_type, inputs, _meta?}``.

    Raises InvalidPrompt for a node of another shape and for what JSON cannot carry.
    """
    body: dict[str, Any] = {
        "prompt": {node_id: _node(node_id, node) for node_id, node in prompt.items()},
        "client_id": client_id,
        "prompt_id": prompt_id,
        "extra_data": dict(extra_data or {}),
    }
    if targets is not None:
        body["partial_execution_targets"] = [str(target) for target in targets]
    try:
        return _encoder.encode(body)
    except (TypeError, ValueError, OverflowError):
        pass  # integers beyond 64 bits and lone surrogates: json has an encoding for them
    try:
        return json.dumps(body).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPrompt(f"the prompt cannot be written as JSON: {error}") from error


def _node(node_id: object, node: object) -> dict[str, Any]:
    if not isinstance(node_id, str) or not isinstance(node, Mapping):
        raise _odd(node_id, "is not an object")
    class_type, inputs, meta = node.get("class_type"), node.get("inputs"), node.get("_meta")
    if not isinstance(class_type, str):
        raise _odd(node_id, "has no class_type")
    if not isinstance(inputs, Mapping):
        raise _odd(node_id, "has no inputs object")
    if meta is None:
        return {"class_type": class_type, "inputs": inputs}
    if not isinstance(meta, Mapping):
        raise _odd(node_id, "has a _meta that is no object")
    return {"class_type": class_type, "inputs": inputs, "_meta": meta}


def _odd(node_id: object, what: str) -> InvalidPrompt:
    return InvalidPrompt(
        f"node {node_id!r} of the prompt {what}",
        hint="an API-format node is {class_type: string, inputs: object}",
        node_id=str(node_id),
    )
