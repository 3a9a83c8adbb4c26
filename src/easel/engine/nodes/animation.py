"""Saving a batch as one moving picture."""

from __future__ import annotations

from typing import Any, BinaryIO

from PIL.PngImagePlugin import PngInfo

from easel.engine.node import Input, NodeContext, NodeResult, Registry
from easel.engine.nodes.declare import IMAGE, choice, flag, integer, real
from easel.engine.nodes.image_io import PNG_METADATA, metadata
from easel.engine.nodes.pixels import Pixels, picture
from easel.engine.nodes.saving import resolve, save, ui_entry

registry = Registry()

_PREFIX = Input("STRING", {"default": "ComfyUI"})
_FPS = real(6.0, 0.01, 1000.0, 0.01)
_WEBP_METHODS = {"default": 4, "fastest": 0, "slowest": 6}
_EXIF_MAKE, _EXIF_MODEL = 0x010F, 0x0110


def _save(
    context: NodeContext,
    *,
    images: Pixels,
    prefix: str,
    fps: float,
    suffix: str,
    options: dict[str, Any],
) -> NodeResult:
    height, width = images.shape[1:3]
    target = resolve(prefix, context.folders.output, width, height)
    frames = [picture(pixels) for pixels in images]

    def write(sink: BinaryIO) -> None:
        frames[0].save(
            sink, save_all=True, append_images=frames[1:], duration=int(1000.0 / fps), **options
        )

    file = save(target, suffix, write)
    return NodeResult(ui={"images": [ui_entry(file, target, "output")], "animated": [True]})


@registry.node(
    "SaveAnimatedWEBP",
    category="image/animation",
    python_module="comfy_extras.nodes_images",
    required={
        "images": IMAGE,
        "filename_prefix": _PREFIX,
        "fps": _FPS,
        "lossless": flag(True),
        "quality": integer(80, 0, 100),
        "method": choice(*_WEBP_METHODS),
    },
    hidden=PNG_METADATA,
    output_node=True,
)
def save_animated_webp(
    context: NodeContext,
    *,
    images: Pixels,
    filename_prefix: str,
    fps: float,
    lossless: bool,
    quality: int,
    method: str,
) -> NodeResult:
    """Write an animated WEBP; the prompt goes into EXIF "model", the rest into "make" and the tags below it."""
    exif = picture(images[0]).getexif()
    texts = dict(metadata(context))
    exif[_EXIF_MODEL] = "prompt:" + texts.pop("prompt")
    for below, (key, text) in enumerate(texts.items()):
        exif[_EXIF_MAKE - below] = f"{key}:{text}"
    options = {
        "format": "WEBP",
        "exif": exif,
        "lossless": lossless,
        "quality": quality,
        "method": _WEBP_METHODS[method],
    }
    return _save(
        context, images=images, prefix=filename_prefix, fps=fps, suffix=".webp", options=options
    )


@registry.node(
    "SaveAnimatedPNG",
    category="image/animation",
    python_module="comfy_extras.nodes_images",
    required={
        "images": IMAGE,
        "filename_prefix": _PREFIX,
        "fps": _FPS,
        "compress_level": integer(4, 0, 9),
    },
    hidden=PNG_METADATA,
    output_node=True,
)
def save_animated_png(
    context: NodeContext, images: Pixels, filename_prefix: str, fps: float, compress_level: int
) -> NodeResult:
    """Write an animated PNG with the metadata in ``comf`` chunks behind the first picture."""
    info = PngInfo()
    for key, text in metadata(context).items():
        info.add(b"comf", f"{key}\0{text}".encode("latin-1"), after_idat=True)
    options = {"format": "PNG", "pnginfo": info, "compress_level": compress_level}
    return _save(
        context, images=images, prefix=filename_prefix, fps=fps, suffix=".png", options=options
    )
