"""Progress of a prompt, computed from the engine's events."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from easel.workflow.types import NodeId, Prompt, is_link

MOST_BEFORE_SUCCESS = 99.9
"""Whole-task percentage is at most this until the prompt has succeeded."""


class NodeProgress(msgspec.Struct, kw_only=True):
    """Progress of one node: the Function Compute agent's ``TProgress`` (eas-and-fc.md D.1). Times are ms since the epoch."""

    max: float = 0
    value: float = 0
    start: int = 0
    """When the node began, 0 before."""
    last_updated: int = 0
    images: list[dict[str, Any]] = []
    """Every output of the node whatever its kind: ``filename, subfolder, type, url, kind …``, or ``kind: "text", text``."""
    results: list[str] = []
    """Base64 of the files in ``images``, in their order; only when asked for."""


class ProgressTracker:
    """Progress of one attempt at a prompt: a reducer over the engine's events; ``now`` is ms since the epoch.

    Every call is safe with any node id and any number: ids that are not in the prompt count for the node that expanded into
    them, or are ignored. ``percent`` never goes down: each node that will run weighs the same, the fraction inside it
    counts, cached nodes are complete, and 100 means success.
    """

    def __init__(self, prompt: Prompt, outputs: Collection[NodeId] | None = None) -> None:
        """``outputs`` are the output nodes that will run (as in the engine's queue entry); without them every node counts."""
        self.nodes: dict[NodeId, NodeProgress] = {node_id: NodeProgress() for node_id in prompt}
        """Progress by node, live: encode it, do not keep it."""
        self.current_node: NodeId | None = None
        self.percent = 0.0
        self.finished = False
        self._prompt = prompt
        self._outputs = [node_id for node_id in outputs if node_id in prompt] if outputs else None
        self._fractions: dict[NodeId, float] = dict.fromkeys(
            ancestors(prompt, self._outputs) if self._outputs else prompt, 0.0
        )
        self._sum = 0.0

    def started(self, now: int) -> None:
        """The prompt began (``execution_start``)."""

    def cached(self, nodes: Iterable[NodeId], now: int) -> None:
        """These nodes are taken from the engine's cache (``execution_cached``): complete, and what only they need never runs."""
        hit = {node_id for node_id in nodes if node_id in self.nodes}
        if not hit:
            return
        for node_id in hit:
            self._complete(node_id, now)
        if self._outputs is not None:
            kept = ancestors(self._prompt, self._outputs, stop=hit)
            self._fractions = {node_id: self._fractions.get(node_id, 0.0) for node_id in kept}
            self._sum = math.fsum(self._fractions.values())
        self._update_percent()

    def executing(self, node: NodeId | None, now: int, display: NodeId | None = None) -> None:
        """A node began, so the one before it is complete; None: nothing runs any more."""
        target = self._resolve(node, display)
        before = self.current_node
        if self.finished or (node is not None and target is None):
            return  # an engine says "nothing runs" after an error too; the node that failed is not complete
        if before is not None and before != target:
            self._complete(before, now)
        self.current_node = target
        if target is not None:
            progress = self.nodes[target]
            if progress.start == 0:
                progress.start = now
                progress.max = progress.max or 1
            progress.last_updated = max(progress.last_updated, now)
        self._update_percent()

    def progress(
        self, node: NodeId, value: float, maximum: float, now: int, display: NodeId | None = None
    ) -> None:
        """A step inside a node (``progress``, or a running node of ``progress_state``)."""
        target = self._resolve(node, display)
        if target is None:
            return
        shown = self.nodes[target]
        shown.max = _number(maximum)
        shown.value = min(_number(value), shown.max)
        shown.start = shown.start or now
        shown.last_updated = max(shown.last_updated, now)
        if target == node and shown.max > 0:
            # A node that expands is not done when one of the nodes in its place is.
            self._advance(target, shown.value / shown.max)
            self._update_percent()

    def completed(self, node: NodeId, now: int) -> None:
        """A node is done (``finished`` in ``progress_state``)."""
        if node in self.nodes:
            self._complete(node, now)
            self._update_percent()

    def executed(
        self,
        node: NodeId,
        images: Sequence[dict[str, Any]],
        now: int,
        results: Sequence[str] = (),
        display: NodeId | None = None,
    ) -> None:
        """A node showed outputs. A second message of the same node replaces the first."""
        target = self._resolve(node, display)
        if target is None:
            return
        progress = self.nodes[target]
        if target == node:
            progress.images = list(images)
            progress.results = list(results)
            self._complete(target, now)
            self._update_percent()
        else:
            progress.images = progress.images + [
                item for item in images if item not in progress.images
            ]
            progress.results = progress.results + list(results)
            progress.last_updated = max(progress.last_updated, now)

    def succeeded(self, now: int) -> None:
        """The prompt is over and good: every node that ran or was to run is complete."""
        for node_id in self._fractions:
            self._complete(node_id, now)
        self.current_node = None
        self.percent = 100.0
        self.finished = True

    def failed(self, now: int) -> None:
        """The prompt is over and not good: everything stays as it is; ``current_node`` says where."""
        if self.current_node is not None:
            progress = self.nodes[self.current_node]
            progress.last_updated = max(progress.last_updated, now)
        self.finished = True

    def _resolve(self, node: NodeId | None, display: NodeId | None) -> NodeId | None:
        if node is None:
            return None
        if node in self.nodes:
            return node
        if display is not None and display in self.nodes:
            return display
        return display_node(node, self.nodes)

    def _complete(self, node_id: NodeId, now: int) -> None:
        progress = self.nodes[node_id]
        progress.max = progress.max if progress.max > 0 else 1
        progress.value = progress.max
        progress.start = progress.start or now
        progress.last_updated = max(progress.last_updated, now)
        self._advance(node_id, 1.0)

    def _advance(self, node_id: NodeId, fraction: float) -> None:
        before = self._fractions.get(node_id)
        if before is not None and fraction > before:
            self._fractions[node_id] = fraction
            self._sum += fraction - before

    def _update_percent(self) -> None:
        if self.finished or not self._fractions:
            return
        share = 100 * self._sum / len(self._fractions)
        self.percent = max(self.percent, round(min(share, MOST_BEFORE_SUCCESS), 2))


def ancestors(
    prompt: Prompt, outputs: Iterable[NodeId], stop: Collection[NodeId] = ()
) -> list[NodeId]:
    """List the nodes that ``outputs`` need, themselves included, in the order of the prompt.

    The walk does not go beyond nodes in ``stop``; links to nodes that do not exist and cycles do no harm.
    """
    seen: set[NodeId] = set()
    stack = [node_id for node_id in outputs if node_id in prompt]
    while stack:
        node_id = stack.pop()
        if node_id in seen:
            continue
        seen.add(node_id)
        if node_id in stop:
            continue
        stack.extend(
            value[0]
            for value in prompt[node_id]["inputs"].values()
            if is_link(value) and value[0] in prompt
        )
    return [node_id for node_id in prompt if node_id in seen]


def display_node(node_id: NodeId, known: Mapping[NodeId, object]) -> NodeId | None:
    """Return the node of the prompt that a node id belongs to: itself, or the node that expanded into it, or None.

    ComfyUI names expanded nodes ``<node>.<call>.<graph>.<name>``; subgraphs of the front end use ``<node>:<name>``.
    """
    candidate = node_id
    while candidate not in known:
        cut = max(candidate.rfind("."), candidate.rfind(":"))
        if cut < 0:
            return None
        candidate = candidate[:cut]
    return candidate


def _number(value: object) -> float:
    """Make a progress value that is safe to divide and to write as JSON: finite and not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    try:
        return value if math.isfinite(value) and value > 0 else 0
    except OverflowError:
        return 0
