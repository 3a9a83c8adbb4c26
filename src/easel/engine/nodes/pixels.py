"""What IMAGE and MASK are here: float32 arrays, nominally 0 to 1, as ComfyUI's tensors are.

An IMAGE is ``[batch, height, width, channels]`` with 3 channels, or 4 with alpha; a MASK is ``[batch, height, width]``.
Nodes never write into arrays they were given: those are in the cache and belong to other nodes as well.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels: TypeAlias = NDArray[np.float32]
"""An IMAGE or a MASK."""

Bytes: TypeAlias = NDArray[np.uint8]


def floats(values: NDArray[Any]) -> Pixels:
    """Return 8-bit samples as floats, 255 becoming 1.0."""
    scaled: Pixels = np.divide(values, np.float32(255.0), dtype=np.float32)
    return scaled


def to_bytes(pixels: Pixels) -> Bytes:
    """Return floats as 8-bit samples, clipped and rounded down, as ComfyUI saves them.

    NaN, which no clipping removes, becomes 0.
    """
    scaled = pixels * np.float32(255.0)
    np.clip(scaled, 0.0, 255.0, out=scaled)
    with np.errstate(invalid="ignore"):
        return scaled.astype(np.uint8)


def picture(pixels: Pixels) -> Image.Image:
    """Return one frame (``[height, width, channels]`` or ``[height, width]``) as a Pillow image."""
    samples = to_bytes(pixels)
    return Image.fromarray(samples[..., 0] if samples.shape[-1:] == (1,) else samples)


def as_batch(mask: Pixels) -> Pixels:
    """Return a mask as ``[batch, height, width]``, whether or not it came with a batch."""
    return mask.reshape(-1, mask.shape[-2], mask.shape[-1])


def match_channels(destination: Pixels, source: Pixels) -> tuple[Pixels, Pixels]:
    """Bring two images to the channels of ``destination``, at most one more than those of ``source``.

    Surplus channels of the source are cut; a destination with one channel more makes the source opaque in it.
    """
    wanted, given = destination.shape[-1], source.shape[-1]
    if wanted < given:
        return destination, source[..., :wanted]
    return destination, source if wanted == given else with_alpha(source)


def with_alpha(image: Pixels) -> Pixels:
    """Return the image with one more channel, all 1."""
    return np.concatenate((image, np.ones((*image.shape[:-1], 1), np.float32)), axis=-1)
