"""Random numbers as torch's CPU generator draws them, so that the same seed gives the same noise."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from easel.engine.nodes.pixels import Pixels

_BLOCK = 16
_HALF = _BLOCK // 2


def normal(seed: int, shape: tuple[int, ...]) -> Pixels:
    """Return standard normal numbers: ``torch.randn(shape, generator=torch.manual_seed(seed))`` to the last bits.

    A 32-bit Mersenne Twister and the Box-Muller transform, over blocks of 16 numbers; fewer than 16 are drawn one by one in
    double precision.
    """
    count = math.prod(shape)
    # The twister's own seeding takes 32 bits; torch cuts longer seeds off as well.
    twister = np.random.RandomState(seed & 0xFFFFFFFF)
    if count < _BLOCK:
        return _few(twister, count).reshape(shape)
    out = _uniform(twister, count)
    whole = count - count % _BLOCK
    out[:whole] = _box_muller(out[:whole])
    if whole != count:
        # The last block overlaps the one before it and is drawn anew.
        out[-_BLOCK:] = _box_muller(_uniform(twister, _BLOCK))
    return out.reshape(shape)


def _words(twister: np.random.RandomState, count: int) -> NDArray[np.uint32]:
    return twister.randint(0, 2**32, count, dtype=np.uint32)


def _uniform(twister: np.random.RandomState, count: int) -> Pixels:
    """Return numbers in [0, 1) from the lower 24 bits of a word each."""
    lower = _words(twister, count) & np.uint32(2**24 - 1)
    return lower.astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: Pixels) -> Pixels:
    blocks = uniform.reshape(-1, 2, _HALF)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - blocks[:, 0]))
    angle = np.float32(2 * math.pi) * blocks[:, 1]
    pairs = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return np.asarray(pairs, np.float32).reshape(-1)


def _few(twister: np.random.RandomState, count: int) -> Pixels:
    pairs = -(-count // 2)
    words = _words(twister, pairs * 4).astype(np.uint64).reshape(-1, 2)
    # Of two words the first is the upper half.
    bits = (words[:, 0] << np.uint64(32) | words[:, 1]) & np.uint64(2**53 - 1)
    first, second = (bits.astype(np.float64) * 2.0**-53).reshape(-1, 2).T
    radius = np.sqrt(-2 * np.log1p(-second))
    angle = 2 * math.pi * first
    both = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return both.reshape(-1)[:count].astype(np.float32)
