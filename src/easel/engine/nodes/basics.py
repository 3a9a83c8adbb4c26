"""The plainest image nodes: make one, invert it, ask for its size."""

from __future__ import annotations

import numpy as np

from easel.engine.node import NodeContext, Output, Registry
from easel.engine.nodes.declare import IMAGE, IMAGE_OUT, integer, pixels
from easel.engine.nodes.pixels import Pixels

registry = Registry()

COLOR = integer(0, 0, 0xFFFFFF, 1, display="color")


@registry.node(
    "EmptyImage",
    category="image",
    required={
        "width": pixels(512, 1),
        "height": pixels(512, 1),
        "batch_size": integer(1, 1, 4096),
        "color": COLOR,
    },
    outputs=IMAGE_OUT,
)
def empty_image(
    _context: NodeContext, width: int, height: int, batch_size: int, color: int
) -> tuple[Pixels]:
    """Make a batch of one colour (``0xRRGGBB``)."""
    out = np.empty((batch_size, height, width, 3), np.float32)
    out[:] = [(color >> shift & 0xFF) / 0xFF for shift in (16, 8, 0)]
    return (out,)


@registry.node(
    "ImageInvert",
    display_name="Invert Image",
    category="image",
    required={"image": IMAGE},
    outputs=IMAGE_OUT,
)
def image_invert(_context: NodeContext, image: Pixels) -> tuple[Pixels]:
    """Subtract every sample from 1, alpha included."""
    return (np.float32(1.0) - image,)


@registry.node(
    "GetImageSize",
    display_name="Get Image Size",
    category="image",
    python_module="comfy_extras.nodes_images",
    required={"image": IMAGE},
    hidden={"unique_id": "UNIQUE_ID"},
    outputs=(Output("INT", "width"), Output("INT", "height"), Output("INT", "batch_size")),
)
def get_image_size(context: NodeContext, image: Pixels) -> tuple[int, int, int]:
    """Return width, height and batch size, and show them on the node."""
    batch, height, width = image.shape[:3]
    context.send_text(f"width: {width}, height: {height}\n batch size: {batch}")
    return (width, height, batch)
