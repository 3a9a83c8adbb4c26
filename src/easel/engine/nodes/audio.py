"""Sound: reading WAV files, writing FLAC files."""

from __future__ import annotations

import mimetypes
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from easel.engine.folders import Folders, PathEscape
from easel.engine.node import Input, NodeContext, NodeResult, Output, Registry
from easel.engine.nodes import flac, pictures
from easel.engine.nodes.declare import integer, real
from easel.engine.nodes.image_io import PNG_METADATA, metadata, temp_suffix
from easel.engine.nodes.pixels import Pixels
from easel.engine.nodes.saving import resolve, save, ui_entry

registry = Registry()

Audio: TypeAlias = Mapping[str, Any]
"""``waveform``: float32 ``[batch, channels, samples]``, -1 to 1; ``sample_rate`` in Hz."""

_MODULE = "comfy_extras.nodes_audio"


def _audio_files(folders: Folders) -> Sequence[str]:
    kinds = (
        (name, mimetypes.guess_type(name, strict=False)[0]) for name in folders.files(folders.input)
    )
    return [name for name, kind in kinds if kind and kind.startswith(("audio/", "video/"))]


def _valid(folders: Folders, audio: object) -> bool | str:
    try:
        found = isinstance(audio, str) and folders.annotated(audio).is_file()
    except PathEscape:
        found = False
    return True if found else f"Invalid audio file: {audio}"


def read_wav(path: Path) -> tuple[Pixels, int]:
    """Return a WAV file's ``[channels, samples]`` and its sample rate.

    Raises ValueError for anything but PCM of 8 to 32 bits.
    """
    try:
        with wave.open(str(path), "rb") as source:
            channels, width, rate = (
                source.getnchannels(),
                source.getsampwidth(),
                source.getframerate(),
            )
            data = source.readframes(source.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(
            f"{path.name!r} is not a WAV file that can be read here: {error}"
        ) from error
    raw = np.frombuffer(data[: len(data) - len(data) % (width * channels)], np.uint8)
    if width == 1:  # the only unsigned format
        samples = (raw.astype(np.float32) - 128) / 128
    else:
        # Into the upper bytes of 32 bits, whatever the width.
        wide = np.zeros((raw.size // width, 4), np.uint8)
        wide[:, 4 - width :] = raw.reshape(-1, width)
        samples = wide.view("<i4")[:, 0].astype(np.float32) / 2**31
    return samples.reshape(-1, channels).T.astype(np.float32), rate


@registry.node(
    "LoadAudio",
    display_name="Load Audio",
    category="audio",
    python_module=_MODULE,
    required={"audio": Input(_audio_files, {"audio_upload": True})},
    outputs=(Output("AUDIO"),),
    is_changed=lambda folders, audio: pictures.digests.of(folders.annotated(audio)),
    validate=_valid,
)
def load_audio(context: NodeContext, audio: str) -> tuple[Audio]:
    """Read a WAV file from the input folder, or from the one its annotation names."""
    waveform, rate = read_wav(context.folders.annotated(audio))
    return ({"waveform": waveform[None], "sample_rate": rate},)


@registry.node(
    "EmptyAudio",
    display_name="Empty Audio",
    category="audio",
    python_module=_MODULE,
    required={
        "duration": real(60.0, 0.0, 2**64 - 1, 0.01),
        "sample_rate": Input("INT", {"default": 44100}),
        "channels": integer(2, 1, 2),
    },
    outputs=(Output("AUDIO"),),
)
def empty_audio(
    _context: NodeContext, duration: float, sample_rate: int, channels: int
) -> tuple[Audio]:
    """Make silence of a length in seconds."""
    waveform = np.zeros((1, channels, round(duration * sample_rate)), np.float32)
    return ({"waveform": waveform, "sample_rate": sample_rate},)


def _save(context: NodeContext, audio: Audio, prefix: str, folder_type: str) -> NodeResult:
    target = resolve(prefix, context.folders.of_type(folder_type))
    results = []
    for number, waveform in enumerate(audio["waveform"]):
        samples = np.clip(np.rint(waveform * np.float32(2**15)), -(2**15), 2**15 - 1)
        data = flac.encode(samples.astype(np.int16), audio["sample_rate"], metadata(context))
        file = save(target, ".flac", lambda sink, data=data: sink.write(data), number)  # type: ignore[misc]
        results.append(ui_entry(file, target, folder_type))
    return NodeResult(ui={"audio": results})


@registry.node(
    "SaveAudio",
    display_name="Save Audio (FLAC)",
    category="audio",
    python_module=_MODULE,
    required={
        "audio": Input("AUDIO"),
        "filename_prefix": Input("STRING", {"default": "audio/ComfyUI"}),
    },
    hidden=PNG_METADATA,
    output_node=True,
)
def save_audio(context: NodeContext, audio: Audio, filename_prefix: str) -> NodeResult:
    """Write FLAC files of 16 bits into the output folder."""
    return _save(context, audio, filename_prefix, "output")


@registry.node(
    "PreviewAudio",
    display_name="Preview Audio",
    category="audio",
    python_module=_MODULE,
    required={"audio": Input("AUDIO")},
    hidden=PNG_METADATA,
    output_node=True,
)
def preview_audio(context: NodeContext, audio: Audio) -> NodeResult:
    """Write FLAC files of 16 bits into the temp folder."""
    return _save(context, audio, "ComfyUI" + temp_suffix(context), "temp")
