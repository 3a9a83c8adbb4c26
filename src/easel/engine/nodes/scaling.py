"""Nodes that change a picture's size by sampling it anew."""

from __future__ import annotations

import math

import numpy as np

from easel.engine.node import Input, NodeContext, Registry
from easel.engine.nodes.declare import IMAGE, IMAGE_OUT, V3_IMAGE, choice, pixels, real
from easel.engine.nodes.pixels import Pixels
from easel.engine.nodes.resample import METHODS, scale

registry = Registry()

_METHOD = Input(METHODS)


@registry.node(
    "ImageScale",
    display_name="Upscale Image",
    category="image/upscaling",
    required={
        "image": IMAGE,
        "upscale_method": _METHOD,
        "width": pixels(512),
        "height": pixels(512),
        "crop": choice("disabled", "center"),
    },
    outputs=IMAGE_OUT,
)
def image_scale(
    _context: NodeContext, image: Pixels, upscale_method: str, width: int, height: int, crop: str
) -> tuple[Pixels]:
    """Scale to a size; a 0 keeps the aspect ratio, two of them the picture."""
    old_height, old_width = image.shape[1:3]
    if width == 0 and height == 0:
        return (image,)
    if width == 0:
        width = max(1, round(old_width * height / old_height))
    elif height == 0:
        height = max(1, round(old_height * width / old_width))
    return (scale(image, width, height, upscale_method, crop),)


@registry.node(
    "ImageScaleBy",
    display_name="Upscale Image By",
    category="image/upscaling",
    required={"image": IMAGE, "upscale_method": _METHOD, "scale_by": real(1.0, 0.01, 8.0, 0.01)},
    outputs=IMAGE_OUT,
)
def image_scale_by(
    _context: NodeContext, image: Pixels, upscale_method: str, scale_by: float
) -> tuple[Pixels]:
    """Scale by a factor."""
    height, width = image.shape[1:3]
    return (scale(image, round(width * scale_by), round(height * scale_by), upscale_method),)


@registry.node(
    "ImageScaleToTotalPixels",
    category="image/upscaling",
    python_module="comfy_extras.nodes_post_processing",
    required={
        "image": V3_IMAGE,
        "upscale_method": _METHOD,
        "megapixels": real(1.0, 0.01, 16.0, 0.01),
    },
    outputs=IMAGE_OUT,
    style="v3",
)
def image_scale_to_total_pixels(
    _context: NodeContext, image: Pixels, upscale_method: str, megapixels: float
) -> tuple[Pixels]:
    """Scale to a number of megapixels (of 1024x1024), keeping the aspect ratio."""
    height, width = image.shape[1:3]
    by = math.sqrt(int(megapixels * 1024 * 1024) / (width * height))
    return (scale(image, round(width * by), round(height * by), upscale_method),)


@registry.node(
    "ImageScaleToMaxDimension",
    category="image/upscaling",
    python_module="comfy_extras.nodes_images",
    required={
        "image": IMAGE,
        "upscale_method": choice(
            "area", "lanczos", "bilinear", "nearest-exact", "bilinear", "bicubic"
        ),
        "largest_size": pixels(512),
    },
    outputs=IMAGE_OUT,
)
def image_scale_to_max_dimension(
    _context: NodeContext, image: Pixels, upscale_method: str, largest_size: int
) -> tuple[Pixels]:
    """Scale so that the longer side has a length."""
    height, width = image.shape[1:3]
    if height > width:
        size = (round((width / height) * largest_size), largest_size)
    elif width > height:
        size = (largest_size, round((height / width) * largest_size))
    else:
        size = (largest_size, largest_size)
    return (scale(image, *size, upscale_method),)


@registry.node(
    "ResizeAndPadImage",
    category="image/transform",
    python_module="comfy_extras.nodes_images",
    required={
        "image": IMAGE,
        "target_width": pixels(512, 1),
        "target_height": pixels(512, 1),
        "padding_color": choice("white", "black"),
        "interpolation": choice("area", "bicubic", "nearest-exact", "bilinear", "lanczos"),
    },
    outputs=IMAGE_OUT,
)
def resize_and_pad_image(
    _context: NodeContext,
    image: Pixels,
    target_width: int,
    target_height: int,
    padding_color: str,
    interpolation: str,
) -> tuple[Pixels]:
    """Scale to fit into a size and fill the rest with a colour."""
    batch, height, width, channels = image.shape
    by = min(target_width / width, target_height / height)
    new_width, new_height = int(width * by), int(height * by)
    fill = 0.0 if padding_color == "black" else 1.0
    out = np.full((batch, target_height, target_width, channels), fill, np.float32)
    if not (new_width and new_height):  # a line in a very different shape: nothing of it is left
        return (out,)
    top, left = (target_height - new_height) // 2, (target_width - new_width) // 2
    out[:, top : top + new_height, left : left + new_width] = scale(
        image, new_width, new_height, interpolation
    )
    return (out,)
