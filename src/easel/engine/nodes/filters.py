"""Blending, blurring, sharpening, quantizing, morphology, colour spaces and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from easel.engine.node import NodeContext, Output, Registry
from easel.engine.nodes.declare import IMAGE, IMAGE_OUT, V3_IMAGE, choice, integer, real
from easel.engine.nodes.neighbourhood import blur, box_max
from easel.engine.nodes.pixels import Pixels, floats, match_channels, to_bytes
from easel.engine.nodes.random import normal
from easel.engine.nodes.resample import scale

registry = Registry()

_POST = "comfy_extras.nodes_post_processing"
_MORPHOLOGY = "comfy_extras.nodes_morphology"

_Blend = Callable[[Pixels, Pixels], Pixels]


def _overlay(below: Pixels, above: Pixels) -> Pixels:
    return np.where(below <= 0.5, 2 * below * above, 1 - 2 * (1 - below) * (1 - above))


def _soft_light(below: Pixels, above: Pixels) -> Pixels:
    darker = below - (1 - 2 * above) * below * (1 - below)
    lifted = np.where(
        below <= 0.25, ((16 * below - 12) * below + 4) * below, np.sqrt(np.maximum(below, 0))
    )
    return np.where(above <= 0.5, darker, below + (2 * above - 1) * (lifted - below))


_BLENDS: Mapping[str, _Blend] = {
    "normal": lambda _below, above: above,
    "multiply": lambda below, above: below * above,
    "screen": lambda below, above: 1 - (1 - below) * (1 - above),
    "overlay": _overlay,
    "soft_light": _soft_light,
    "difference": lambda below, above: below - above,
}


@registry.node(
    "ImageBlend",
    category="image/postprocessing",
    python_module=_POST,
    required={
        "image1": V3_IMAGE,
        "image2": V3_IMAGE,
        "blend_factor": real(0.5, 0.0, 1.0, 0.01),
        "blend_mode": choice(*_BLENDS),
    },
    outputs=IMAGE_OUT,
    style="v3",
)
def image_blend(
    _context: NodeContext, image1: Pixels, image2: Pixels, blend_factor: float, blend_mode: str
) -> tuple[Pixels]:
    """Blend the second picture over the first, at the first one's size."""
    image1, image2 = match_channels(image1, image2)
    if image1.shape[1:3] != image2.shape[1:3]:
        height, width = image1.shape[1:3]
        image2 = scale(image2, width, height, "bicubic", "center")
    blended = _BLENDS[blend_mode](image1, image2)
    mixed = image1 * np.float32(1 - blend_factor) + blended * np.float32(blend_factor)
    return (np.clip(mixed, 0, 1),)


@registry.node(
    "ImageBlur",
    category="image/postprocessing",
    python_module=_POST,
    required={
        "image": V3_IMAGE,
        "blur_radius": integer(1, 1, 31, 1),
        "sigma": real(1.0, 0.1, 10.0, 0.1),
    },
    outputs=IMAGE_OUT,
    style="v3",
)
def image_blur(
    _context: NodeContext, image: Pixels, blur_radius: int, sigma: float
) -> tuple[Pixels]:
    """Blur with a Gaussian."""
    return (blur(image, blur_radius, sigma) if blur_radius else image,)


@registry.node(
    "ImageSharpen",
    category="image/postprocessing",
    python_module=_POST,
    required={
        "image": V3_IMAGE,
        "sharpen_radius": integer(1, 1, 31, 1),
        "sigma": real(1.0, 0.1, 10.0, 0.01),
        "alpha": real(1.0, 0.0, 5.0, 0.01),
    },
    outputs=IMAGE_OUT,
    style="v3",
)
def image_sharpen(
    _context: NodeContext, image: Pixels, sharpen_radius: int, sigma: float, alpha: float
) -> tuple[Pixels]:
    """Add ten times ``alpha`` of what a blur takes away."""
    if not sharpen_radius:
        return (image,)
    amount = np.float32(alpha * 10)
    sharp = image + amount * (image - blur(image, sharpen_radius, sigma))
    return (np.clip(sharp, 0, 1),)


def _bayer(order: int) -> Pixels:
    """Return the threshold matrix of side ``2 ** order``, centred on 0 and below 1 in size."""
    if order == 0:
        return np.zeros((1, 1), np.float32)
    count = np.float32(4**order)
    finer = count * _bayer(order - 1)
    rows = [[finer - 1.5, finer + 0.5], [finer + 1.5, finer - 0.5]]
    return np.asarray(np.block(rows) / count, np.float32)


def _quantize(samples: Pixels, colors: int, dither: str) -> Image.Image:
    picture = Image.fromarray(to_bytes(samples))
    palette = picture.quantize(colors=colors)
    if dither == "floyd-steinberg":
        return picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    if dither.startswith("bayer"):
        spread = 2 * 256 / (len(palette.getpalette() or ()) // 3)
        order = int(math.log2(int(dither.removeprefix("bayer-"))))
        matrix = np.float32(spread) * _bayer(order) + np.float32(0.5)
        height, width = samples.shape[:2]
        side = len(matrix)
        tiled = np.tile(matrix, (math.ceil(height / side), math.ceil(width / side)))
        shifted = np.asarray(picture, np.float32) + tiled[:height, :width, None]
        picture = Image.fromarray(np.clip(shifted, 0, 255).astype(np.uint8))
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


@registry.node(
    "ImageQuantize",
    category="image/postprocessing",
    python_module=_POST,
    required={
        "image": V3_IMAGE,
        "colors": integer(256, 1, 256, 1),
        "dither": choice("none", "floyd-steinberg", "bayer-2", "bayer-4", "bayer-8", "bayer-16"),
    },
    outputs=IMAGE_OUT,
    style="v3",
)
def image_quantize(_context: NodeContext, image: Pixels, colors: int, dither: str) -> tuple[Pixels]:
    """Reduce each image to a palette of its own; alpha stays as it is."""
    out = image.copy()
    for number, frame in enumerate(image):
        reduced = _quantize(frame[..., :3], colors, dither)
        out[number, ..., :3] = floats(np.asarray(reduced.convert("RGB")))
    return (out,)


def _dilate(image: Pixels, size: int) -> Pixels:
    # An even square has no middle: it leans to one side here and, mirrored, to the other when eroding.
    return box_max(image, size, (size - 1) // 2)


def _erode(image: Pixels, size: int) -> Pixels:
    return -box_max(-image, size, size // 2)


_OPERATIONS: Mapping[str, Callable[[Pixels, int], Pixels]] = {
    "erode": _erode,
    "dilate": _dilate,
    "open": lambda image, size: _dilate(_erode(image, size), size),
    "close": lambda image, size: _erode(_dilate(image, size), size),
    "gradient": lambda image, size: _dilate(image, size) - _erode(image, size),
    "bottom_hat": lambda image, size: _erode(_dilate(image, size), size) - image,
    "top_hat": lambda image, size: image - _dilate(_erode(image, size), size),
}


@registry.node(
    "Morphology",
    display_name="ImageMorphology",
    category="image/postprocessing",
    python_module=_MORPHOLOGY,
    required={
        "image": V3_IMAGE,
        "operation": choice(*_OPERATIONS),
        "kernel_size": integer(3, 3, 999, 1),
    },
    outputs=IMAGE_OUT,
    style="v3",
)
def morphology(
    _context: NodeContext, image: Pixels, operation: str, kernel_size: int
) -> tuple[Pixels]:
    """Grow or shrink what is bright, channel by channel, over a square."""
    return (_OPERATIONS[operation](image, kernel_size),)


_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
"""How bright each colour counts (ITU-R BT.601)."""
_U, _V = 0.564, 0.713
"""What brings the two colour differences into 0..1."""


@registry.node(
    "ImageRGBToYUV",
    category="image/batch",
    python_module=_MORPHOLOGY,
    required={"image": V3_IMAGE},
    outputs=(Output("IMAGE", "Y"), Output("IMAGE", "U"), Output("IMAGE", "V")),
    style="v3",
)
def image_rgb_to_yuv(_context: NodeContext, image: Pixels) -> tuple[Pixels, Pixels, Pixels]:
    """Split into brightness and two colour differences (full range, middle 0.5), each as a grey picture.

    Raises ValueError for a picture with alpha.
    """
    if image.shape[-1] != 3:
        raise ValueError(f"needs 3 channels, got a picture of shape {image.shape}")
    red, green, blue = np.moveaxis(image, -1, 0)
    y = np.float32(_RED) * red + np.float32(_GREEN) * green + np.float32(_BLUE) * blue
    u = (blue - y) * np.float32(_U) + np.float32(0.5)
    v = (red - y) * np.float32(_V) + np.float32(0.5)
    first, second, third = (np.broadcast_to(part[..., None], image.shape) for part in (y, u, v))
    return (first, second, third)


@registry.node(
    "ImageYUVToRGB",
    category="image/batch",
    python_module=_MORPHOLOGY,
    required={"Y": V3_IMAGE, "U": V3_IMAGE, "V": V3_IMAGE},
    outputs=IMAGE_OUT,
    style="v3",
)
def image_yuv_to_rgb(
    _context: NodeContext,
    Y: Pixels,  # noqa: N803 - the inputs' names on the wire
    U: Pixels,  # noqa: N803
    V: Pixels,  # noqa: N803
) -> tuple[Pixels]:
    """Put together what `image_rgb_to_yuv` split."""
    half = np.float32(0.5)
    y, u, v = Y.mean(axis=-1), U.mean(axis=-1) - half, V.mean(axis=-1) - half
    red = y + v / np.float32(_V)
    blue = y + u / np.float32(_U)
    green = (y - np.float32(_RED) * red - np.float32(_BLUE) * blue) / np.float32(_GREEN)
    return (np.clip(np.stack((red, green, blue), axis=-1), 0, 1),)


@registry.node(
    "ImageAddNoise",
    category="image",
    python_module="comfy_extras.nodes_images",
    required={
        "image": IMAGE,
        "seed": integer(0, 0, 2**64 - 1, control_after_generate=True),
        "strength": real(0.5, 0.0, 1.0, 0.01),
    },
    outputs=IMAGE_OUT,
)
def image_add_noise(
    _context: NodeContext, image: Pixels, seed: int, strength: float
) -> tuple[Pixels]:
    """Add the normal noise that torch draws for this seed and shape."""
    noisy = image + np.float32(strength) * normal(seed, image.shape)
    return (np.clip(noisy, 0, 1),)
