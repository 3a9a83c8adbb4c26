"""The demo pack: work that takes time, faults on purpose, and outputs of every kind.

For tests, demonstrations and benchmarks; off by default. Most nodes are output nodes and give an IMAGE as well, so that one
is a prompt by itself and several can be chained.
"""

from __future__ import annotations

from easel.engine.node import Registry
from easel.engine.nodes.demo import faults, outputs, work

registry = Registry()
"""The demo pack."""

for _part in (work, faults, outputs):
    registry.include(_part.registry)

__all__ = ["registry"]
