"""Demo nodes that give outputs of every kind, in the forms that ComfyUI's and the common custom nodes use."""

from __future__ import annotations

import base64
import binascii
import re
import wave
from typing import BinaryIO

import numpy as np
from PIL import Image

from easel.engine.node import Input, NodeContext, NodeResult, Output, Registry
from easel.engine.nodes.declare import choice, flag, integer, real
from easel.engine.nodes.demo.common import CATEGORY, MODULE, SALT, swatch
from easel.engine.nodes.pixels import Pixels, picture
from easel.engine.nodes.saving import resolve, save, ui_entry

registry = Registry()

SAMPLE_RATE = 44100
_FOLDERS = choice("output", "temp")


def _prefix(default: str) -> Input:
    return Input("STRING", {"default": default})


@registry.node(
    "EaselText",
    display_name="Text",
    category=CATEGORY,
    python_module=MODULE,
    description="Gives a text as its result; can also announce it while it runs.",
    required={
        "text": Input("STRING", {"default": "", "multiline": True}),
        "announce": flag(False),
    },
    outputs=(Output("STRING"),),
    output_node=True,
)
def text_output(context: NodeContext, text: str, announce: bool) -> NodeResult:
    """Give ``text``; announced, it also goes out as a progress text and as the event ``easel.text``, to everybody."""
    if announce:
        context.send_text(text)
        context.send_event("easel.text", {"node": context.node_id, "text": text})
    return NodeResult((text,), ui={"text": [text]})


@registry.node(
    "EaselAudio",
    display_name="Audio",
    category=CATEGORY,
    python_module=MODULE,
    description="Saves a tone as a WAV file.",
    required={
        "frequency": real(440.0, 1.0, 20_000.0, 0.1),
        "seconds": real(1.0, 0.01, 600.0, 0.01),
        "filename_prefix": _prefix("audio/Easel"),
        "folder": _FOLDERS,
    },
    output_node=True,
)
def audio(
    context: NodeContext, frequency: float, seconds: float, filename_prefix: str, folder: str
) -> NodeResult:
    """Write 16-bit mono samples; the result is under ``audio``."""
    times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    samples = (np.sin(2 * np.pi * frequency * times) * 0.5 * 32767).astype("<i2")

    def write(sink: BinaryIO) -> None:
        with wave.open(sink, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(SAMPLE_RATE)
            out.writeframes(samples.tobytes())

    target = resolve(filename_prefix, context.folders.of_type(folder))
    return NodeResult(ui={"audio": [ui_entry(save(target, ".wav", write), target, folder)]})


_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,16}")


@registry.node(
    "EaselFile",
    display_name="File",
    category=CATEGORY,
    python_module=MODULE,
    description="Saves any bytes under any extension, as a result under any name.",
    required={
        "content": Input("STRING", {"default": "", "multiline": True}),
        "encoding": choice("text", "base64"),
        "extension": Input("STRING", {"default": ".txt"}),
        "result_key": Input("STRING", {"default": "files"}),
        "filename_prefix": _prefix("files/Easel"),
        "folder": _FOLDERS,
    },
    output_node=True,
)
def file(
    context: NodeContext,
    *,
    content: str,
    encoding: str,
    extension: str,
    result_key: str,
    filename_prefix: str,
    folder: str,
) -> NodeResult:
    """Write a file and name it under ``result_key``: ``files``, ``3d``, ``video``, ``latents`` …

    Raises ValueError for an extension that is none, and for broken base64.
    """
    if not _EXTENSION.fullmatch(extension):
        raise ValueError(f"not a file extension: {extension!r}")
    data = content.encode()
    if encoding == "base64":
        try:
            data = base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise ValueError(f"content is not base64: {error}") from error
    target = resolve(filename_prefix, context.folders.of_type(folder))
    name = save(target, extension, lambda sink: sink.write(data))
    return NodeResult(ui={result_key: [ui_entry(name, target, folder)]})


_VIDEOS = {"image/webp": "WEBP", "image/gif": "GIF"}


@registry.node(
    "EaselVideo",
    display_name="Video",
    category=CATEGORY,
    python_module=MODULE,
    description="Saves a moving picture as a result under 'gifs', the way the video helper nodes do.",
    required={
        "frames": integer(8, 1, 1000),
        "frame_rate": real(8.0, 1.0, 100.0, 0.1),
        "format": choice(*_VIDEOS),
        "filename_prefix": _prefix("video/Easel"),
        "folder": _FOLDERS,
        "salt": SALT,
    },
    optional={"images": Input("IMAGE")},
    output_node=True,
)
def video(
    context: NodeContext,
    *,
    frames: int,
    frame_rate: float,
    format: str,  # noqa: A002 - the input's name on the wire
    filename_prefix: str,
    folder: str,
    salt: int,
    images: Pixels | None = None,
) -> NodeResult:
    """Write ``images``, or ``frames`` pictures of a changing colour, as one animation."""
    moving: list[Image.Image] = []
    count = frames if images is None else len(images)
    for step in range(count):
        moving.append(picture(swatch(salt + step)[0] if images is None else images[step]))
        context.progress(step + 1, count, moving[-1])
    target = resolve(filename_prefix, context.folders.of_type(folder), *moving[0].size)
    kind = _VIDEOS[format]

    def write(sink: BinaryIO) -> None:
        moving[0].save(
            sink,
            format=kind,
            save_all=True,
            append_images=moving[1:],
            duration=round(1000 / frame_rate),
            loop=0,
        )

    name = save(target, f".{kind.lower()}", write)
    entry = {**ui_entry(name, target, folder), "format": format, "frame_rate": frame_rate}
    return NodeResult(ui={"gifs": [entry]})
