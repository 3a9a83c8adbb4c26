"""Operations over each pixel's neighbourhood: Gaussian blur, running maxima in squares and diamonds."""

from __future__ import annotations

import numpy as np

from easel.engine.nodes.pixels import Pixels

_BLOCK = 64


def gaussian(radius: int, sigma: float) -> Pixels:
    """Return one axis of ComfyUI's Gaussian: ``sigma`` is in units of the radius, whatever the radius; the sum is 1."""
    places = np.linspace(-1, 1, 2 * radius + 1, dtype=np.float32)
    weights = np.exp(-(places * places) / np.float32(2.0 * sigma * sigma))
    return np.asarray(weights / weights.sum(), np.float32)


def blur(image: Pixels, radius: int, sigma: float) -> Pixels:
    """Blur ``[batch, height, width, channels]``, reflecting at the edges (the edge pixel itself is not repeated).

    Raises ValueError for a radius that does not fit into the picture, as ComfyUI's padding does.
    """
    _batch, height, width, channels = image.shape
    if radius >= min(height, width):
        raise ValueError(
            f"Padding size should be less than the corresponding input dimension, but got a radius of "
            f"{radius} for a picture of {width}x{height}"
        )
    weights = gaussian(radius, sigma)
    frames = []
    for frame in image:
        down = _convolve_rows(frame.reshape(height, width * channels), weights)
        turned = down.reshape(height, width, channels).swapaxes(0, 1)
        across = _convolve_rows(turned.reshape(width, height * channels), weights)
        frames.append(across.reshape(width, height, channels).swapaxes(0, 1))
    return np.stack(frames)


def _convolve_rows(rows: Pixels, weights: Pixels) -> Pixels:
    """Convolve along the first axis, as products of matrices of a band: much faster than tap by tap."""
    length = len(rows)
    radius = len(weights) // 2
    padded = np.pad(rows, ((radius, radius), (0, 0)), mode="reflect")
    size = min(_BLOCK, length)
    band = np.zeros((size, size + 2 * radius), np.float32)
    for row in range(size):
        band[row, row : row + len(weights)] = weights
    out = np.empty_like(rows)
    for start in range(0, length, size):
        count = min(size, length - start)
        np.matmul(
            band[:count, : count + 2 * radius],
            padded[start : start + count + 2 * radius],
            out=out[start : start + count],
        )
    return out


def running_max(values: Pixels, window: int, axis: int) -> Pixels:
    """Return the maximum over ``window`` samples beginning at each one; the result is ``window - 1`` shorter.

    Doubles the window, so that the cost grows with its logarithm.
    """
    moved = np.moveaxis(values, axis, 0)
    done = 1
    while done < window:
        step = min(done, window - done)
        moved = np.maximum(moved[:-step], moved[step:])
        done += step
    return np.moveaxis(moved, 0, axis)


def box_max(values: Pixels, size: int, before: int) -> Pixels:
    """Return the maximum over squares in the axes 1 and 2 of ``[batch, height, width, …]``; outside counts for nothing.

    A square reaches ``before`` pixels up and left, and the rest down and right.
    """
    for axis in (1, 2):
        widths = [(0, 0)] * values.ndim
        widths[axis] = (before, size - 1 - before)
        padded = np.pad(values, widths, constant_values=-np.inf)
        values = running_max(padded, size, axis)
    return values


def diamond_max(values: Pixels, radius: int) -> Pixels:
    """Return the maximum over all pixels within ``radius`` steps up, down, left or right in ``[batch, height, width]``."""
    if radius == 0:
        return values
    _batch, height, width = values.shape
    radius = min(radius, height + width)
    padded = np.pad(values, ((0, 0), (radius, radius), (radius, radius)), constant_values=-np.inf)
    # A diamond is one step in each direction, then a diagonal line, then one along the other diagonal.
    middle = padded[:, 1:-1, 1:-1]
    cross = np.maximum(middle, padded[:, :-2, 1:-1])
    for side in (padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]):
        np.maximum(cross, side, out=cross)
    falling = _diagonal_max(cross, radius)
    return _diagonal_max(falling[:, :, ::-1], radius)[:, :, ::-1]


def _diagonal_max(values: Pixels, window: int) -> Pixels:
    """Return the maximum over ``window`` pixels going down and right from each one."""
    done = 1
    while done < window:
        step = min(done, window - done)
        values = np.maximum(values[:, :-step, :-step], values[:, step:, step:])
        done += step
    return values
