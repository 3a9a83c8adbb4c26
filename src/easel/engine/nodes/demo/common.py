"""What the demo nodes share."""

from __future__ import annotations

import numpy as np

from easel.engine.node import Input
from easel.engine.nodes.declare import integer, real
from easel.engine.nodes.pixels import Pixels

CATEGORY = "easel/demo"
MODULE = "easel.engine.nodes.demo"

SALT = integer(0, 0, 2**63 - 1)
"""Changes nothing but the cache key: another number makes a node run again."""
SECONDS = real(1.0, 0.0, 86400.0, 0.01)
PASSED = {"image": Input("IMAGE")}
"""An optional image that is handed on: it puts a node behind another."""


def swatch(salt: int = 0, size: int = 64) -> Pixels:
    """Return a small picture: a gradient whose blue depends on ``salt``."""
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    blue = np.float32((salt * 37 % 256) / 255)
    down, across = np.meshgrid(ramp, ramp, indexing="ij")
    return np.stack((down, across, np.full_like(ramp, blue, shape=(size, size))), axis=-1)[None]
