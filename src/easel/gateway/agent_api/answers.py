"""Answers about a task in the Function Compute agent's shapes, with output URLs as this door serves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from easel.errors import EaselError, TaskCancelled, TaskExpired
from easel.fc import error_body
from easel.storage.outputs import OutputFiles
from easel.tasks.model import FINISHED, Task
from easel.workflow.progress import NodeProgress

BASE64_LIMIT = 256 * 1024 * 1024
"""Bytes of one file that are returned as base64."""
HIDDEN = {"uid", "signature", "owner", "service", "tags", "rear", "last_event"}
"""Fields of a task that the agent API does not show."""


def error_of(task: Task) -> Mapping[str, Any] | None:
    """Return how an ended task failed, as it is stored; None for one that succeeded or goes on."""
    if task.state not in FINISHED or task.state == "succeeded":
        return None
    if task.error is not None:
        return task.error
    error: EaselError = (
        TaskExpired("the task's deadline passed while it waited")
        if task.state == "expired"
        else TaskCancelled("the task was cancelled")
    )
    return {**error.to_json(), "http_status": error.http_status}


def nodes_of(task: Task, prefix: str) -> dict[str, NodeProgress]:
    """Return the node map with URLs below ``prefix``, the path under which the caller reaches the service."""
    if not prefix:
        return task.nodes
    return {node_id: _prefixed(node, prefix) for node_id, node in task.nodes.items()}


def _prefixed(node: NodeProgress, prefix: str) -> NodeProgress:
    if not node.images:
        return node
    images = [
        {**entry, "url": prefix + entry["url"]} if "url" in entry else entry
        for entry in node.images
    ]
    return msgspec.structs.replace(node, images=images)


async def with_base64(
    task: Task, nodes: dict[str, NodeProgress], files: OutputFiles
) -> dict[str, NodeProgress]:
    """Return the node map with the files' content in ``results``.

    Raises OutputFailed for a file that is too large, FileNotFound for one that has been removed.
    """
    full: dict[str, NodeProgress] = {}
    for node_id, node in nodes.items():
        results = []
        for entry in node.images:
            if "url" in entry:
                folder = entry["url"].split("/api/outputs/", 1)[1].split("/", 1)[0]
                results.append(await files.read_base64(folder, entry["filename"], BASE64_LIMIT))
        full[node_id] = msgspec.structs.replace(node, results=results) if results else node
    return full


async def last_message(
    task: Task, prefix: str, files: OutputFiles | None
) -> tuple[str, dict[str, Any] | dict[str, NodeProgress]]:
    """Return type and data of the message that ends a stream; ``files`` puts the outputs' content in."""
    error = error_of(task)
    if error is not None:
        return "error", error_body(error)
    nodes = nodes_of(task, prefix)
    try:
        return "result", await with_base64(task, nodes, files) if files is not None else nodes
    except EaselError as failed:
        return "error", error_body(failed)
