"""Nodes that cut, turn, pad and join pictures without sampling them anew (but for matching sizes)."""

from __future__ import annotations

import numpy as np

from easel.engine.node import Input, NodeContext, Output, Registry
from easel.engine.nodes.declare import IMAGE, IMAGE_OUT, choice, flag, integer, pixels
from easel.engine.nodes.declare import MAX_RESOLUTION as MOST
from easel.engine.nodes.pixels import Pixels
from easel.engine.nodes.resample import scale

registry = Registry()

_EXTRAS = "comfy_extras.nodes_images"


@registry.node(
    "ImageCrop",
    display_name="Image Crop",
    category="image/transform",
    python_module=_EXTRAS,
    required={
        "image": IMAGE,
        "width": pixels(512, 1),
        "height": pixels(512, 1),
        "x": pixels(0),
        "y": pixels(0),
    },
    outputs=IMAGE_OUT,
)
def image_crop(
    _context: NodeContext, image: Pixels, width: int, height: int, x: int, y: int
) -> tuple[Pixels]:
    """Cut out a rectangle, less where it leaves the picture; a corner beyond it is moved to its last pixel."""
    left, top = min(x, image.shape[2] - 1), min(y, image.shape[1] - 1)
    return (image[:, top : top + height, left : left + width],)


@registry.node(
    "ImageRotate",
    category="image/transform",
    python_module=_EXTRAS,
    required={
        "image": IMAGE,
        "rotation": choice("none", "90 degrees", "180 degrees", "270 degrees"),
    },
    outputs=IMAGE_OUT,
)
def image_rotate(_context: NodeContext, image: Pixels, rotation: str) -> tuple[Pixels]:
    """Turn clockwise by quarter turns."""
    turns = 0 if rotation == "none" else int(rotation.split(maxsplit=1)[0]) // 90
    return (np.rot90(image, k=turns, axes=(2, 1)),)


@registry.node(
    "ImageFlip",
    category="image/transform",
    python_module=_EXTRAS,
    required={
        "image": IMAGE,
        "flip_method": choice("x-axis: vertically", "y-axis: horizontally"),
    },
    outputs=IMAGE_OUT,
)
def image_flip(_context: NodeContext, image: Pixels, flip_method: str) -> tuple[Pixels]:
    """Mirror upside down or left to right."""
    return (np.flip(image, axis=1 if flip_method.startswith("x") else 2),)


def _side() -> Input:
    return integer(0, 0, MOST, 8)


@registry.node(
    "ImagePadForOutpaint",
    display_name="Pad Image for Outpainting",
    category="image",
    required={
        "image": IMAGE,
        "left": _side(),
        "top": _side(),
        "right": _side(),
        "bottom": _side(),
        "feathering": integer(40, 0, MOST, 1),
    },
    outputs=(Output("IMAGE"), Output("MASK")),
)
def image_pad_for_outpaint(
    _context: NodeContext,
    *,
    image: Pixels,
    left: int,
    top: int,
    right: int,
    bottom: int,
    feathering: int,
) -> tuple[Pixels, Pixels]:
    """Add grey margins; the mask is 1 there and fades into the picture over ``feathering`` pixels."""
    batch, height, width, channels = image.shape
    sides = ((top, bottom), (left, right))
    shape = (height + top + bottom, width + left + right)
    out = np.full((batch, *shape, channels), 0.5, np.float32)
    inner = (slice(top, top + height), slice(left, left + width))
    out[(slice(None), *inner)] = image
    mask = np.ones(shape, np.float32)
    mask[inner] = _feather((height, width), sides, feathering)
    return (out, mask[None])


def _feather(
    size: tuple[int, int], sides: tuple[tuple[int, int], tuple[int, int]], feathering: int
) -> Pixels:
    """Return how much each pixel fades: from 1 at an edge that has a margin to 0 at ``feathering`` pixels from it, squared."""
    if feathering <= 0 or feathering * 2 >= min(size):
        return np.zeros(size, np.float32)
    distances = []
    for length, (before, after) in zip(size, sides, strict=True):
        places = np.arange(length)
        far = np.full(length, length)
        distances.append(np.minimum(places if before else far, length - places if after else far))
    nearest = np.minimum(distances[0][:, None], distances[1][None, :])
    fade = np.maximum(feathering - nearest, 0) / feathering
    return np.asarray(fade * fade, np.float32)


@registry.node(
    "ImageBatch",
    display_name="Batch Images",
    category="image",
    required={"image1": IMAGE, "image2": IMAGE},
    outputs=IMAGE_OUT,
)
def image_batch(_context: NodeContext, image1: Pixels, image2: Pixels) -> tuple[Pixels]:
    """Put two batches behind each other; the second takes the size of the first.

    Raises ValueError when one has alpha and the other not.
    """
    if image1.shape[1:] != image2.shape[1:]:
        height, width = image1.shape[1:3]
        image2 = scale(image2, width, height, "bilinear", "center")
    return (np.concatenate((image1, image2)),)


@registry.node(
    "RepeatImageBatch",
    category="image/batch",
    python_module=_EXTRAS,
    required={"image": IMAGE, "amount": integer(1, 1, 4096)},
    outputs=IMAGE_OUT,
)
def repeat_image_batch(_context: NodeContext, image: Pixels, amount: int) -> tuple[Pixels]:
    """Repeat the whole batch."""
    return (np.tile(image, (amount, 1, 1, 1)),)


@registry.node(
    "ImageFromBatch",
    category="image/batch",
    python_module=_EXTRAS,
    required={
        "image": IMAGE,
        "batch_index": integer(0, 0, 4095),
        "length": integer(1, 1, 4096),
    },
    outputs=IMAGE_OUT,
)
def image_from_batch(
    _context: NodeContext, image: Pixels, batch_index: int, length: int
) -> tuple[Pixels]:
    """Take some images out of a batch; an index beyond the end means the last one."""
    first = min(len(image) - 1, batch_index)
    return (image[first : first + length],)


@registry.node(
    "RebatchImages",
    display_name="Rebatch Images",
    category="image/batch",
    python_module="comfy_extras.nodes_rebatch",
    required={"images": Input("IMAGE", {}), "batch_size": integer(1, 1, 4096)},
    outputs=(Output("IMAGE", is_list=True),),
    input_is_list=True,
    style="v3",
)
def rebatch_images(
    _context: NodeContext, images: list[Pixels], batch_size: list[int]
) -> tuple[list[Pixels]]:
    """Distribute all images of a list of batches over batches of another size.

    Raises ValueError when images of different sizes would share a batch.
    """
    size = batch_size[0]
    single = [frame[None] for batch in images for frame in batch]
    return ([np.concatenate(single[at : at + size]) for at in range(0, len(single), size)],)


_COLORS: dict[str, tuple[float, float, float]] = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
}


@registry.node(
    "ImageStitch",
    display_name="Image Stitch",
    category="image/transform",
    python_module=_EXTRAS,
    required={
        "image1": IMAGE,
        "direction": choice("right", "down", "left", "up", default="right"),
        "match_image_size": flag(True),
        "spacing_width": integer(0, 0, 1024, 2),
        "spacing_color": choice(*_COLORS, default="white"),
    },
    optional={"image2": IMAGE},
    outputs=IMAGE_OUT,
)
def image_stitch(
    _context: NodeContext,
    *,
    image1: Pixels,
    direction: str,
    match_image_size: bool,
    spacing_width: int,
    spacing_color: str,
    image2: Pixels | None = None,
) -> tuple[Pixels]:
    """Put the second image beside the first, with an optional strip between them; the shorter batch repeats its last."""
    if image2 is None:
        return (image1,)
    axis = 2 if direction in {"left", "right"} else 1
    across = 3 - axis
    longest = max(len(image1), len(image2))
    image1, image2 = _lengthen(image1, longest), _lengthen(image2, longest)
    if match_image_size:
        image2 = _fit(image2, image1.shape[across], across)
    else:
        # ComfyUI fills with grey levels only: coloured spacing still pads with black.
        red, green, blue = _COLORS[spacing_color]
        fill = red if red == green == blue else 0.0
        most = max(image1.shape[across], image2.shape[across])
        image1, image2 = (_pad(image, across, most, fill) for image in (image1, image2))
    channels = max(image1.shape[-1], image2.shape[-1])
    image1, image2 = _opaque(image1, channels), _opaque(image2, channels)
    parts = [image2, image1] if direction in {"left", "up"} else [image1, image2]
    if spacing_width:
        shape = list(image1.shape)
        shape[across] = max(image1.shape[across], image2.shape[across])
        shape[axis] = spacing_width + spacing_width % 2
        color = (*_COLORS[spacing_color], 1.0)[:channels]
        parts.insert(1, np.broadcast_to(np.array(color, np.float32), shape))
    return (np.concatenate(parts, axis=axis),)


def _lengthen(image: Pixels, batch: int) -> Pixels:
    missing = batch - len(image)
    return np.concatenate((image, image[-1:].repeat(missing, axis=0))) if missing else image


def _fit(image: Pixels, length: int, axis: int) -> Pixels:
    """Scale so that one axis has a length, keeping the aspect ratio, by Lanczos."""
    height, width = image.shape[1:3]
    aspect = width / height
    size = (int(length * aspect), length) if axis == 1 else (length, int(length / aspect))
    return scale(image, *size, "lanczos")


def _pad(image: Pixels, axis: int, length: int, fill: float) -> Pixels:
    missing = length - image.shape[axis]
    if not missing:
        return image
    widths = [(0, 0)] * 4
    widths[axis] = (missing // 2, missing - missing // 2)
    return np.pad(image, widths, constant_values=fill)


def _opaque(image: Pixels, channels: int) -> Pixels:
    missing = channels - image.shape[-1]
    if not missing:
        return image
    return np.concatenate((image, np.ones((*image.shape[:-1], missing), np.float32)), axis=-1)
