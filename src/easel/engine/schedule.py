"""In which order the nodes of a prompt run.

A node is ready when everything it takes inputs from has run. Among the ready ones those are preferred that show something
soon: outputs and coroutines first, then nodes one and two steps before an output; otherwise the order in which they were
found. Deterministic; every step costs the logarithm of what is ready, so that ten thousand nodes side by side are no matter.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

from easel.workflow.types import NodeId


class Schedule:
    """What is left to run of a prompt."""

    def __init__(
        self,
        needs: Mapping[NodeId, Sequence[NodeId]],
        outputs: Iterable[NodeId],
        cached: Container[NodeId],
        is_output: Callable[[NodeId], bool],
        eager: Callable[[NodeId], bool],
    ) -> None:
        """``needs`` says what each node takes inputs from. ``cached`` nodes need not run (unless they are outputs);

        ``eager`` ones start before others, as outputs do.
        """
        self._waits_for: dict[NodeId, set[NodeId]] = {}
        self._feeds: dict[NodeId, list[NodeId]] = {}
        stack: list[NodeId] = []
        for output in outputs:
            stack.append(output)
            while stack:
                node_id = stack.pop()
                if node_id in self._waits_for:
                    continue
                left = [] if node_id in cached else [n for n in needs[node_id] if n not in cached]
                self._waits_for[node_id] = set(left)
                for other in left:
                    self._feeds.setdefault(other, []).append(node_id)
                stack += left
        self._place = self._places(is_output, eager)
        self._ready = [
            (*self._place[node_id], node_id)
            for node_id, left_over in self._waits_for.items()
            if not left_over
        ]
        heapq.heapify(self._ready)

    def __len__(self) -> int:
        """Nodes that have not been done."""
        return len(self._waits_for)

    def take(self) -> NodeId | None:
        """Return the next node to start, or None when every ready one has been started."""
        return heapq.heappop(self._ready)[2] if self._ready else None

    def done(self, node_id: NodeId) -> None:
        """A started node has run."""
        del self._waits_for[node_id]
        for other in self._feeds.get(node_id, ()):
            waits = self._waits_for[other]
            waits.discard(node_id)
            if not waits:
                heapq.heappush(self._ready, (*self._place[other], other))

    def _places(
        self, is_output: Callable[[NodeId], bool], eager: Callable[[NodeId], bool]
    ) -> dict[NodeId, tuple[int, int]]:
        """Give every node its rank (0: output or eager, 1 and 2: that far from an output, 3: the rest) and position."""
        shows = {node_id for node_id in self._waits_for if is_output(node_id)}
        near = self._before(shows)
        far = self._before(near)
        ranks: dict[NodeId, tuple[int, int]] = {}
        for position, node_id in enumerate(self._waits_for):
            if node_id in shows or eager(node_id):
                rank = 0
            else:
                rank = 1 if node_id in near else 2 if node_id in far else 3
            ranks[node_id] = (rank, position)
        return ranks

    def _before(self, followers: Iterable[NodeId]) -> set[NodeId]:
        """The nodes that feed any of these."""
        return {node_id for other in followers for node_id in self._waits_for[other]}
