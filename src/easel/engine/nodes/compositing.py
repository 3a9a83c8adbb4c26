"""Putting pictures over each other, by masks and by alpha."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from easel.engine.node import Input, NodeContext, Output, Registry
from easel.engine.nodes.declare import IMAGE, IMAGE_OUT, MASK, V3_IMAGE, choice, flag, pixels
from easel.engine.nodes.pixels import Pixels, as_batch, match_channels
from easel.engine.nodes.resample import scale

registry = Registry()

_COMPOSITING = "comfy_extras.nodes_compositing"
_V3_MASK = Input("MASK", {})


def _to_batch(images: Pixels, batch: int) -> Pixels:
    """Repeat or cut a batch to a length."""
    repeats = math.ceil(batch / len(images))
    return (images if repeats == 1 else np.concatenate([images] * repeats))[:batch]


@registry.node(
    "ImageCompositeMasked",
    category="image",
    python_module="comfy_extras.nodes_mask",
    required={
        "destination": IMAGE,
        "source": IMAGE,
        "x": pixels(0),
        "y": pixels(0),
        "resize_source": flag(False),
    },
    optional={"mask": MASK},
    outputs=IMAGE_OUT,
)
def image_composite_masked(
    _context: NodeContext,
    *,
    destination: Pixels,
    source: Pixels,
    x: int,
    y: int,
    resize_source: bool,
    mask: Pixels | None = None,
) -> tuple[Pixels]:
    """Put one picture over another at a position, where the mask (scaled to the source) is 1."""
    destination, source = match_channels(destination, source)
    if resize_source:
        source = scale(source, destination.shape[2], destination.shape[1], "bilinear")
    source = _to_batch(source, len(destination))
    out = destination.copy()
    part = out[:, y : y + source.shape[1], x : x + source.shape[2]]
    rows, columns = part.shape[1:3]
    visible = source[:, :rows, :columns]
    if mask is None:
        part[...] = visible
        return (out,)
    weights = scale(as_batch(mask)[..., None], source.shape[2], source.shape[1], "bilinear")
    weights = _to_batch(weights, len(source))[:, :rows, :columns]
    part[...] = weights * visible + (1 - weights) * part
    return (out,)


@registry.node(
    "SplitImageWithAlpha",
    display_name="Split Image with Alpha",
    category="mask/compositing",
    python_module=_COMPOSITING,
    required={"image": V3_IMAGE},
    outputs=(Output("IMAGE"), Output("MASK")),
    style="v3",
)
def split_image_with_alpha(_context: NodeContext, image: Pixels) -> tuple[Pixels, Pixels]:
    """Take colours and transparency apart; without alpha nothing is transparent."""
    alpha = image[..., 3] if image.shape[-1] > 3 else np.ones(image.shape[:3], np.float32)
    return (image[..., :3], 1 - alpha)


@registry.node(
    "JoinImageWithAlpha",
    display_name="Join Image with Alpha",
    category="mask/compositing",
    python_module=_COMPOSITING,
    required={"image": V3_IMAGE, "alpha": _V3_MASK},
    outputs=IMAGE_OUT,
    style="v3",
)
def join_image_with_alpha(_context: NodeContext, image: Pixels, alpha: Pixels) -> tuple[Pixels]:
    """Make a picture transparent where the mask, scaled to it, is 1; the shorter batch decides."""
    height, width = image.shape[1:3]
    opaque = 1 - scale(as_batch(alpha)[..., None], width, height, "bilinear")
    batch = min(len(image), len(opaque))
    return (np.concatenate((image[:batch, ..., :3], opaque[:batch]), axis=-1),)


_Layer = tuple[Pixels, Pixels]
"""Colours multiplied by their alpha, and the alpha."""
_Operator = Callable[[Pixels, Pixels, Pixels, Pixels], _Layer]
"""``(source, source alpha, destination, destination alpha)`` to colours and alpha."""


def _union(sa: Pixels, da: Pixels) -> Pixels:
    return sa + da - sa * da


def _overlay(s: Pixels, sa: Pixels, d: Pixels, da: Pixels) -> _Layer:
    light = sa * da - 2 * (da - s) * (sa - d)
    return np.where(2 * d < da, 2 * s * d, light), _union(sa, da)


def _mixed(s: Pixels, sa: Pixels, d: Pixels, da: Pixels, inner: Pixels) -> _Layer:
    """Each picture alone where the other is not, and ``inner`` where both are."""
    return (1 - da) * s + (1 - sa) * d + inner, _union(sa, da)


# The operators of Porter and Duff and the separable blends of SVG, over colours multiplied by alpha.
_OPERATORS: Mapping[str, _Operator] = {
    "ADD": lambda s, sa, d, da: (np.clip(s + d, 0, 1), np.clip(sa + da, 0, 1)),
    "CLEAR": lambda _s, _sa, d, da: (np.zeros_like(d), np.zeros_like(da)),
    "DARKEN": lambda s, sa, d, da: _mixed(s, sa, d, da, np.minimum(s, d)),
    "DST": lambda _s, _sa, d, da: (d, da),
    "DST_ATOP": lambda s, sa, d, da: (sa * d + (1 - da) * s, sa),
    "DST_IN": lambda _s, sa, d, da: (d * sa, sa * da),
    "DST_OUT": lambda _s, sa, d, da: ((1 - sa) * d, (1 - sa) * da),
    "DST_OVER": lambda s, sa, d, da: (d + (1 - da) * s, da + (1 - da) * sa),
    "LIGHTEN": lambda s, sa, d, da: _mixed(s, sa, d, da, np.maximum(s, d)),
    "MULTIPLY": lambda s, sa, d, da: (s * d, sa * da),
    "OVERLAY": _overlay,
    "SCREEN": lambda s, sa, d, da: (s + d - s * d, _union(sa, da)),
    "SRC": lambda s, sa, _d, _da: (s, sa),
    "SRC_ATOP": lambda s, sa, d, da: (da * s + (1 - sa) * d, da),
    "SRC_IN": lambda s, sa, _d, da: (s * da, sa * da),
    "SRC_OUT": lambda s, sa, _d, da: ((1 - da) * s, (1 - da) * sa),
    "SRC_OVER": lambda s, sa, d, da: (s + (1 - sa) * d, sa + (1 - sa) * da),
    "XOR": lambda s, sa, d, da: ((1 - da) * s + (1 - sa) * d, (1 - da) * sa + (1 - sa) * da),
}
_NO_ALPHA = 1e-5


@registry.node(
    "PorterDuffImageComposite",
    display_name="Porter-Duff Image Composite",
    category="mask/compositing",
    python_module=_COMPOSITING,
    required={
        "source": V3_IMAGE,
        "source_alpha": _V3_MASK,
        "destination": V3_IMAGE,
        "destination_alpha": _V3_MASK,
        "mode": choice(*_OPERATORS, default="DST"),
    },
    outputs=(Output("IMAGE"), Output("MASK")),
    style="v3",
)
def porter_duff_image_composite(
    _context: NodeContext,
    *,
    source: Pixels,
    source_alpha: Pixels,
    destination: Pixels,
    destination_alpha: Pixels,
    mode: str,
) -> tuple[Pixels, Pixels]:
    """Combine two pictures by their transparency (masks, 1 where transparent), at the size of the destination.

    The shortest batch decides. Raises ValueError for pictures with different channels.
    """
    if source.shape[-1] != destination.shape[-1]:
        raise ValueError("source and destination need the same number of channels")
    inputs = (source, source_alpha[..., None], destination, destination_alpha[..., None])
    batch = min(map(len, inputs))
    height, width = destination.shape[1:3]
    s, sm, d, dm = (_fitted(image[:batch], width, height) for image in inputs)
    sa, da = 1 - sm, 1 - dm
    colors, alpha = _OPERATORS[mode](s * sa, sa, d * da, da)
    visible = alpha > _NO_ALPHA
    plain = np.where(visible, colors / np.where(visible, alpha, 1), 0)
    return (np.clip(plain, 0, 1).astype(np.float32), 1 - alpha[..., 0])


def _fitted(image: Pixels, width: int, height: int) -> Pixels:
    if image.shape[1:3] == (height, width):
        return image
    return scale(image, width, height, "bicubic", "center")
