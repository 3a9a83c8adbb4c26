"""Loading, saving and previewing pictures."""

from __future__ import annotations

import json
import mimetypes
import random
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from easel.engine.folders import Folders
from easel.engine.node import Input, NodeContext, NodeResult, Output, Registry
from easel.engine.nodes import pictures
from easel.engine.nodes.pixels import Pixels, as_batch, picture
from easel.engine.nodes.saving import resolve, save, ui_entry

registry = Registry()

PNG_METADATA = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
"""Hidden inputs of the nodes that write the prompt and the workflow into their files."""

_TEMP_LETTERS = "abcdefghijklmnopqrstupvxyz"
_PROCESS = random.SystemRandom().getrandbits(64)


def temp_suffix(context: NodeContext) -> str:
    """Return what a preview node appends to its prefix: random, and the same for a node as long as the process lives."""
    letters = random.Random(f"{_PROCESS}:{context.node_id}").choices(_TEMP_LETTERS, k=5)  # noqa: S311
    return "_temp_" + "".join(letters)


def metadata(context: NodeContext) -> Mapping[str, str]:
    """Return what goes into saved files, as JSON texts: ``prompt`` and each key of ``extra_pnginfo`` (``workflow``)."""
    extra = context.extra_pnginfo or {}
    return {
        "prompt": json.dumps(context.prompt),
        **{str(key): json.dumps(value) for key, value in extra.items()},
    }


def save_pngs(
    context: NodeContext, images: Pixels, prefix: str, folder_type: str, compress_level: int
) -> NodeResult:
    """Write each image of a batch as PNG and return them as ``images``."""
    height, width = images.shape[1:3]
    target = resolve(prefix, context.folders.of_type(folder_type), width, height)
    info = PngInfo()
    for key, text in metadata(context).items():
        info.add_text(key, text)
    results = []
    for number, pixels in enumerate(images):
        image = picture(pixels)

        def write(sink: BinaryIO, image: Image.Image = image) -> None:
            image.save(sink, format="PNG", pnginfo=info, compress_level=compress_level)

        if number:  # never after the last: what is written whole has succeeded
            context.check_interrupt()
        results.append(ui_entry(save(target, ".png", write, number), target, folder_type))
    return NodeResult(ui={"images": results})


@registry.node(
    "SaveImage",
    display_name="Save Image",
    category="image",
    required={
        "images": Input("IMAGE", {}),
        "filename_prefix": Input("STRING", {"default": "ComfyUI"}),
    },
    hidden=PNG_METADATA,
    output_node=True,
)
def save_image(context: NodeContext, images: Pixels, filename_prefix: str) -> NodeResult:
    """Write PNGs into the output folder."""
    return save_pngs(context, images, filename_prefix, "output", 4)


@registry.node(
    "PreviewImage",
    display_name="Preview Image",
    category="image",
    required={"images": Input("IMAGE")},
    hidden=PNG_METADATA,
    output_node=True,
)
def preview_image(context: NodeContext, images: Pixels) -> NodeResult:
    """Write PNGs into the temp folder."""
    return save_pngs(context, images, "ComfyUI" + temp_suffix(context), "temp", 1)


@registry.node(
    "MaskPreview",
    category="mask",
    python_module="comfy_extras.nodes_mask",
    required={"mask": Input("MASK")},
    hidden=PNG_METADATA,
    output_node=True,
)
def mask_preview(context: NodeContext, mask: Pixels) -> NodeResult:
    """Write a mask as grey PNGs into the temp folder."""
    grey = as_batch(mask)[..., None].repeat(3, axis=-1)
    return save_pngs(context, grey, "ComfyUI" + temp_suffix(context), "temp", 4)


@registry.node(
    "SaveImageWebsocket",
    category="api/image",
    python_module="custom_nodes.websocket_image_save",
    required={"images": Input("IMAGE")},
    output_node=True,
    is_changed=lambda _folders, **_inputs: float("nan"),
)
def save_image_websocket(context: NodeContext, images: Pixels) -> NodeResult:
    """Send the pictures over the WebSocket instead of writing files."""
    for step, pixels in enumerate(images):
        context.send_image(picture(pixels), step, len(images))
    return NodeResult()


def input_pictures(folders: Folders) -> Sequence[str]:
    """List the files of the input folder whose names say that they are pictures."""
    return [name for name in folders.files(folders.input) if _is_picture(name)]


def _is_picture(name: str) -> bool:
    kind, _ = mimetypes.guess_type(name, strict=False)
    return kind is not None and kind.startswith("image/")


mimetypes.add_type("image/webp", ".webp")
mimetypes.add_type("image/avif", ".avif")


def _digest(folders: Folders, image: str, **_others: Any) -> str:
    return pictures.digests.of(folders.annotated(image))


def _known(folders: Folders, image: object) -> bool | str:
    return pictures.valid_name(folders, image)


def _load(context: NodeContext, image: str) -> tuple[Pixels, Pixels]:
    return pictures.load(context.folders.annotated(image))


_IMAGE_AND_MASK = (Output("IMAGE"), Output("MASK"))


@registry.node(
    "LoadImage",
    display_name="Load Image",
    category="image",
    required={"image": Input(input_pictures, {"image_upload": True})},
    outputs=_IMAGE_AND_MASK,
    is_changed=_digest,
    validate=_known,
)
def load_image(context: NodeContext, image: str) -> tuple[Pixels, Pixels]:
    """Read a picture from the input folder, or from the one its annotation names."""
    return _load(context, image)


@registry.node(
    "LoadImageMask",
    display_name="Load Image (as Mask)",
    category="mask",
    required={
        "image": Input(lambda folders: folders.files(folders.input), {"image_upload": True}),
        "channel": Input(("alpha", "red", "green", "blue")),
    },
    outputs=(Output("MASK"),),
    is_changed=_digest,
    validate=_known,
)
def load_image_mask(context: NodeContext, image: str, channel: str) -> tuple[Pixels]:
    """Read one channel of a picture."""
    return (pictures.load_channel(context.folders.annotated(image), channel),)


@registry.node(
    "LoadImageOutput",
    display_name="Load Image (from Outputs)",
    category="image",
    required={
        "image": Input(
            "COMBO",
            {
                "image_upload": True,
                "image_folder": "output",
                "remote": {
                    "route": "/internal/files/output",
                    "refresh_button": True,
                    "control_after_refresh": "first",
                },
            },
        )
    },
    outputs=_IMAGE_AND_MASK,
    experimental=True,
    is_changed=_digest,
    validate=_known,
)
def load_image_output(context: NodeContext, image: str) -> tuple[Pixels, Pixels]:
    """Read a picture that the front end picked among the outputs (``"x.png [output]"``)."""
    return _load(context, image)
