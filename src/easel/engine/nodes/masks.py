"""Mask nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from easel.engine.node import NodeContext, Registry
from easel.engine.nodes.basics import COLOR
from easel.engine.nodes.declare import (
    IMAGE,
    IMAGE_OUT,
    MASK,
    MASK_OUT,
    MAX_RESOLUTION,
    choice,
    flag,
    integer,
    pixels,
    real,
)
from easel.engine.nodes.neighbourhood import box_max, diamond_max
from easel.engine.nodes.pixels import Pixels, as_batch

registry = Registry()


def _node(name: str, **fields: Any) -> Callable[[Callable[..., Any]], Any]:
    return registry.node(
        name,
        category="mask",
        python_module="comfy_extras.nodes_mask",
        **{"outputs": MASK_OUT, **fields},
    )


@_node(
    "MaskToImage",
    display_name="Convert Mask to Image",
    required={"mask": MASK},
    outputs=IMAGE_OUT,
)
def mask_to_image(_context: NodeContext, mask: Pixels) -> tuple[Pixels]:
    """Show a mask as a grey picture."""
    grey = as_batch(mask)[..., None]
    return (np.broadcast_to(grey, (*grey.shape[:3], 3)),)


_CHANNELS = ("red", "green", "blue", "alpha")


@_node(
    "ImageToMask",
    display_name="Convert Image to Mask",
    required={"image": IMAGE, "channel": choice(*_CHANNELS)},
)
def image_to_mask(_context: NodeContext, image: Pixels, channel: str) -> tuple[Pixels]:
    """Take one channel as a mask.

    Raises IndexError for the alpha of a picture that has none.
    """
    return (image[..., _CHANNELS.index(channel)],)


@_node("ImageColorToMask", required={"image": IMAGE, "color": COLOR})
def image_color_to_mask(_context: NodeContext, image: Pixels, color: int) -> tuple[Pixels]:
    """Mark the pixels of one colour, compared in 8 bits."""
    wanted = np.array([color >> shift & 0xFF for shift in (16, 8, 0)], np.float32)
    samples = np.round(np.clip(image[..., :3], 0, 1) * np.float32(255.0))
    return ((samples == wanted).all(axis=-1).astype(np.float32),)


@_node(
    "SolidMask",
    required={
        "value": real(1.0, 0.0, 1.0, 0.01),
        "width": pixels(512, 1),
        "height": pixels(512, 1),
    },
)
def solid_mask(_context: NodeContext, value: float, width: int, height: int) -> tuple[Pixels]:
    """Make a mask of one value."""
    return (np.full((1, height, width), value, np.float32),)


@_node("InvertMask", required={"mask": MASK})
def invert_mask(_context: NodeContext, mask: Pixels) -> tuple[Pixels]:
    """Subtract every sample from 1."""
    return (np.float32(1.0) - mask,)


@_node(
    "CropMask",
    required={
        "mask": MASK,
        "x": pixels(0),
        "y": pixels(0),
        "width": pixels(512, 1),
        "height": pixels(512, 1),
    },
)
def crop_mask(
    _context: NodeContext, mask: Pixels, x: int, y: int, width: int, height: int
) -> tuple[Pixels]:
    """Cut out a rectangle, less where it leaves the mask."""
    return (as_batch(mask)[:, y : y + height, x : x + width],)


def _logical(operation: Callable[[Any, Any], Any]) -> Callable[[Pixels, Pixels], Pixels]:
    def combine(below: Pixels, above: Pixels) -> Pixels:
        return np.asarray(
            operation(np.round(below).astype(bool), np.round(above).astype(bool)), np.float32
        )

    return combine


_COMBINATIONS: Mapping[str, Callable[[Pixels, Pixels], Pixels]] = {
    "multiply": np.multiply,
    "add": np.add,
    "subtract": np.subtract,
    "and": _logical(np.logical_and),
    "or": _logical(np.logical_or),
    "xor": _logical(np.logical_xor),
}


@_node(
    "MaskComposite",
    required={
        "destination": MASK,
        "source": MASK,
        "x": pixels(0),
        "y": pixels(0),
        "operation": choice(*_COMBINATIONS),
    },
)
def mask_composite(
    _context: NodeContext, destination: Pixels, source: Pixels, x: int, y: int, operation: str
) -> tuple[Pixels]:
    """Combine a mask with another at a position, clipped to 0..1."""
    out, source = as_batch(destination).copy(), as_batch(source)
    part = out[:, y : y + source.shape[1], x : x + source.shape[2]]
    visible = source[:, : part.shape[1], : part.shape[2]]
    part[...] = _COMBINATIONS[operation](part, visible)
    return (np.clip(out, 0, 1),)


@_node(
    "FeatherMask",
    required={
        "mask": MASK,
        "left": pixels(0),
        "top": pixels(0),
        "right": pixels(0),
        "bottom": pixels(0),
    },
)
def feather_mask(
    _context: NodeContext, mask: Pixels, left: int, top: int, right: int, bottom: int
) -> tuple[Pixels]:
    """Fade a mask out towards its edges, over some pixels on each side.

    The fade at the right and at the bottom is shifted by one pixel, round to the opposite edge, as it is in ComfyUI.
    """
    out = as_batch(mask).copy()
    for axis, before, after in ((2, left, right), (1, top, bottom)):
        line = np.moveaxis(out, axis, -1)
        first, last = (min(length, line.shape[-1]) for length in (before, after))
        line[..., :first] *= _ramp(first)
        line[..., -np.arange(last)] *= _ramp(last)
    return (out,)


def _ramp(length: int) -> Pixels:
    return np.arange(1, length + 1, dtype=np.float32) / np.float32(max(length, 1))


@_node(
    "GrowMask",
    required={
        "mask": MASK,
        "expand": integer(0, -MAX_RESOLUTION, MAX_RESOLUTION, 1),
        "tapered_corners": flag(True),
    },
)
def grow_mask(
    _context: NodeContext, mask: Pixels, expand: int, tapered_corners: bool
) -> tuple[Pixels]:
    """Grow (or, negative, shrink) a mask by some pixels: over diamonds when tapered, else over squares."""
    batch = as_batch(mask)
    radius = min(abs(expand), sum(batch.shape[1:]))
    sign = np.float32(-1 if expand < 0 else 1)
    flipped = batch * sign
    grown = (
        diamond_max(flipped, radius)
        if tapered_corners
        else box_max(flipped, 2 * radius + 1, radius)
    )
    return (grown * sign,)


@_node("ThresholdMask", required={"mask": MASK, "value": real(0.5, 0.0, 1.0, 0.01)})
def threshold_mask(_context: NodeContext, mask: Pixels, value: float) -> tuple[Pixels]:
    """Make every sample 0 or 1: 1 above the value."""
    return ((mask > np.float32(value)).astype(np.float32),)
