"""Binary WebSocket frames 1, 3 and 4 (comfyui.md §3), big-endian.

::

    1  PREVIEW_IMAGE                u32 format (1 JPEG, 2 PNG), image
    3  TEXT                         u32 length of node id, node id, UTF-8 text
    4  PREVIEW_IMAGE_WITH_METADATA  u32 length of JSON, JSON, image
"""

from __future__ import annotations

import json
import struct
from io import BytesIO

from PIL import Image, ImageOps

from easel.engine.events import Preview

PREVIEW_IMAGE = 1
TEXT = 3
PREVIEW_IMAGE_WITH_METADATA = 4

_FORMATS = {"JPEG": 1, "PNG": 2}
_QUALITY = 95


def encode_image(preview: Preview) -> bytes:
    """Scale and encode the picture as ComfyUI does: it is scaled up, too, to fit ``max_size``."""
    image = preview.image
    if preview.max_size is not None:
        box = (preview.max_size, preview.max_size)
        image = ImageOps.contain(image, box, Image.Resampling.BILINEAR)
    if preview.image_format == "JPEG" and image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    buffer = BytesIO()
    image.save(buffer, format=preview.image_format, quality=_QUALITY, compress_level=1)
    return buffer.getvalue()


def plain_preview(preview: Preview, encoded: bytes) -> bytes:
    """Return frame 1 around an encoded picture."""
    return struct.pack(">II", PREVIEW_IMAGE, _FORMATS[preview.image_format]) + encoded


def described_preview(preview: Preview, encoded: bytes) -> bytes:
    """Return frame 4 around an encoded picture: which prompt and node it belongs to."""
    metadata = json.dumps(
        {
            "node_id": preview.node_id,
            "prompt_id": preview.prompt_id,
            "display_node_id": preview.node_id,
            "parent_node_id": None,
            "real_node_id": preview.node_id,
            "image_type": f"image/{preview.image_format.lower()}",
        }
    ).encode()
    return struct.pack(">II", PREVIEW_IMAGE_WITH_METADATA, len(metadata)) + metadata + encoded


def text(node_id: str, content: str) -> bytes:
    """Return frame 3."""
    name = node_id.encode("utf-8", "replace")
    return struct.pack(">II", TEXT, len(name)) + name + content.encode("utf-8", "replace")
