"""Scaling, sample by sample as torch's ``interpolate`` (``align_corners=False``, no antialiasing) and Pillow's Lanczos do it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from easel.engine.nodes.pixels import Pixels, floats, to_bytes

METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")

_Indices = NDArray[np.intp]
_BICUBIC_A = -0.75


def scale(image: Pixels, width: int, height: int, method: str, crop: str = "disabled") -> Pixels:
    """Scale ``[batch, height, width, channels]`` to a size in pixels.

    ``crop="center"`` first cuts the middle out in the target's aspect ratio. Bicubic may leave 0..1, as it does in ComfyUI.
    Raises ValueError for a size below one pixel, given or left by cropping, and for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown scaling method {method!r}")
    if crop == "center" and height > 0:
        image = _crop_center(image, width, height)
    if min(width, height, *image.shape[1:3]) < 1:
        raise ValueError(
            f"Input and output sizes should be greater than 0, but got input (H: {image.shape[1]}, "
            f"W: {image.shape[2]}) output (H: {height}, W: {width})"
        )
    if method == "lanczos":
        return _lanczos(image, width, height)
    out = image
    # The axis that loses most goes first, so that the other pass has less to do.
    sizes = {1: height, 2: width}
    for axis in sorted(sizes, key=lambda axis: sizes[axis] / image.shape[axis]):
        out = _along(out, axis, sizes[axis], method)
    return out


def _crop_center(image: Pixels, width: int, height: int) -> Pixels:
    old_height, old_width = image.shape[1:3]
    old_aspect, new_aspect = old_width / old_height, width / height
    x = y = 0
    if old_aspect > new_aspect:
        x = round((old_width - old_width * (new_aspect / old_aspect)) / 2)
    elif old_aspect < new_aspect:
        y = round((old_height - old_height * (old_aspect / new_aspect)) / 2)
    return image[:, y : old_height - y, x : old_width - x]


def _along(image: Pixels, axis: int, size: int, method: str) -> Pixels:
    length = image.shape[axis]
    if length == size:  # every method reads each sample at its own place then
        return image
    if method == "nearest-exact":
        return np.take(image, nearest_indices(length, size), axis=axis)
    indices, weights = _TAPS[method](length, size)
    shape = [1] * image.ndim
    shape[axis] = size
    out: Pixels | None = None
    for tap in range(indices.shape[1]):
        part = np.take(image, indices[:, tap], axis=axis)
        part *= weights[:, tap].reshape(shape)
        if out is None:
            out = part
        else:
            out += part
    assert out is not None
    return out


def nearest_indices(length: int, size: int) -> _Indices:
    """Return for each of ``size`` output samples the input sample whose middle is nearest (``nearest-exact``)."""
    ratio = np.float32(length) / np.float32(size)
    places = np.floor((np.arange(size, dtype=np.float32) + np.float32(0.5)) * ratio)
    indices: _Indices = np.minimum(places.astype(np.intp), length - 1)
    return indices


def _places(length: int, size: int) -> Pixels:
    """Return where the middle of each output sample lies among the input samples."""
    ratio = np.float32(length) / np.float32(size)
    half = np.float32(0.5)
    places: Pixels = ratio * (np.arange(size, dtype=np.float32) + half) - half
    return places


def _linear(length: int, size: int) -> tuple[_Indices, Pixels]:
    places = np.maximum(_places(length, size), np.float32(0))
    left = np.minimum(places.astype(np.intp), length - 1)
    right = np.minimum(left + 1, length - 1)
    weight = np.clip(places - left.astype(np.float32), 0, 1).astype(np.float32)
    return np.stack((left, right), 1), np.stack((1 - weight, weight), 1)


def _cubic(length: int, size: int) -> tuple[_Indices, Pixels]:
    places = _places(length, size)
    floor = np.floor(places)
    t = places - floor
    a = np.float32(_BICUBIC_A)

    def near(x: Pixels) -> Pixels:
        return np.asarray(((a + 2) * x - (a + 3)) * x * x + 1, np.float32)

    def far(x: Pixels) -> Pixels:
        return np.asarray(((a * x - 5 * a) * x + 8 * a) * x - 4 * a, np.float32)

    weights = np.stack((far(t + 1), near(t), near(1 - t), far(2 - t)), 1)
    indices = floor.astype(np.intp)[:, None] + np.arange(-1, 3)
    return np.clip(indices, 0, length - 1), weights


def _boxes(length: int, size: int) -> tuple[_Indices, Pixels]:
    """Return the input samples each output sample is the mean of, and their weights (0 beyond its last)."""
    steps = np.arange(size, dtype=np.int64)
    first = steps * length // size
    end = -((-(steps + 1) * length) // size)
    counts = end - first
    taps = np.arange(int(counts.max()))
    weights = (taps < counts[:, None]) / counts[:, None].astype(np.float32)
    return np.minimum(first[:, None] + taps, length - 1), weights.astype(np.float32)


_TAPS: dict[str, Any] = {"bilinear": _linear, "bicubic": _cubic, "area": _boxes}


def _lanczos(image: Pixels, width: int, height: int) -> Pixels:
    frames = []
    for frame in to_bytes(image):
        channels = frame.shape[-1]
        # Pillow premultiplies RGBA when it resizes; ComfyUI hands it over the same way.
        resized = Image.fromarray(frame[..., 0] if channels == 1 else frame).resize(
            (width, height), resample=Image.Resampling.LANCZOS
        )
        frames.append(np.asarray(resized).reshape(height, width, channels))
    return floats(np.stack(frames))
