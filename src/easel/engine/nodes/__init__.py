"""The built-in engine's nodes on Pillow and NumPy, under ComfyUI's names.

`registry` holds the base pack, on in every engine. ``demo`` and ``pretend`` beside it are packs of their own, off by default.
"""

from __future__ import annotations

from easel.engine.node import Registry
from easel.engine.nodes import (
    animation,
    audio,
    basics,
    compositing,
    filters,
    image_io,
    masks,
    primitives,
    scaling,
    strings,
    transforms,
)

registry = Registry()
"""The base pack."""

for _part in (
    image_io,
    basics,
    scaling,
    transforms,
    filters,
    masks,
    compositing,
    animation,
    audio,
    primitives,
    strings,
):
    registry.include(_part.registry)

__all__ = ["registry"]
