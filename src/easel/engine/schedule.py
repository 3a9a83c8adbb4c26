"""In which order the nodes of a prompt run.

A node is ready when everything it takes inputs from has run. Among the ready ones those are preferred that show something
soon: outputs and coroutines first, then nodes one and two steps before an output; otherwise the order in which they were
found. Deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from easel.engine.caching import links
from easel.workflow.types import NodeId, Prompt


class Schedule:
    """What is left to run of a prompt."""

    def __init__(
        self,
        prompt: Prompt,
        outputs: Iterable[NodeId],
        cached: Container[NodeId],
        eager: Callable[[NodeId], bool],
        is_output: Callable[[NodeId], bool],
    ) -> None:
        """``cached`` nodes need not run (unless they are outputs); ``eager`` ones start before others."""
        self._eager = eager
        self._is_output = is_output
        self._waits_for: dict[NodeId, set[NodeId]] = {}
        self._feeds: dict[NodeId, list[NodeId]] = {}
        self._started: set[NodeId] = set()
        stack: list[NodeId] = []
        for output in outputs:
            stack.append(output)
            while stack:
                node_id = stack.pop()
                if node_id in self._waits_for:
                    continue
                needs = (
                    []
                    if node_id in cached
                    else [n for n in links(prompt[node_id]["inputs"]) if n not in cached]
                )
                self._waits_for[node_id] = set(needs)
                for other in needs:
                    self._feeds.setdefault(other, []).append(node_id)
                stack += needs

        self._ready: dict[NodeId, None] = {}
        self._position = {node_id: n for n, node_id in enumerate(self._waits_for)}
        for node_id, needs_left in self._waits_for.items():
            if not needs_left:
                self._ready[node_id] = None

    def __len__(self) -> int:
        """Nodes that have not been done."""
        return len(self._waits_for)

    def take(self) -> NodeId | None:
        """Return the next node to start, or None when every ready one has been started."""
        if not self._ready:
            return None
        ready = (
            sorted(self._ready, key=self._position.__getitem__)
            if len(self._ready) < 64
            else list(self._ready)
        )
        chosen = self._pick(ready)
        del self._ready[chosen]
        self._started.add(chosen)
        return chosen

    def done(self, node_id: NodeId) -> None:
        """A started node has run."""
        self._started.discard(node_id)
        del self._waits_for[node_id]
        for other in self._feeds.get(node_id, ()):
            waits = self._waits_for[other]
            waits.discard(node_id)
            if not waits and other not in self._started:
                self._ready[other] = None

    def _pick(self, ready: list[NodeId]) -> NodeId:
        for node_id in ready:
            if self._is_output(node_id) or self._eager(node_id):
                return node_id
        for node_id in ready:
            if any(self._is_output(n) for n in self._feeds.get(node_id, ())):
                return node_id
        for node_id in ready:
            for follower in self._feeds.get(node_id, ()):
                if any(self._is_output(n) for n in self._feeds.get(follower, ())):
                    return node_id
        return ready[0]
