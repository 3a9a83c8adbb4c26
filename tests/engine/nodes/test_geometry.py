"""Laws of scaling, blurring and growing that hold whatever the sizes and the values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from easel.engine.folders import Folders
from easel.engine.nodes import registry
from easel.engine.nodes.neighbourhood import blur, box_max, diamond_max, gaussian, running_max
from easel.engine.nodes.resample import METHODS, scale
from tests.engine.nodes.local import Context, call

SIZE = st.integers(1, 40)
METHOD = st.sampled_from(METHODS)
VALUES = st.floats(0, 1, width=32)


def images(batch: int = 2, channels: int = 3, smallest: int = 1, largest: int = 12) -> Any:
    side = st.integers(smallest, largest)
    shape = st.tuples(st.just(batch), side, side, st.just(channels))
    return arrays.arrays(np.float32, shape, elements=VALUES)


def masks(batch: int = 2) -> Any:
    shape = st.tuples(st.just(batch), st.integers(1, 9), st.integers(1, 9))
    return arrays.arrays(np.float32, shape, elements=VALUES)


def context() -> Context:
    return Context(Folders(Path("/nowhere")))


@given(images(), SIZE, SIZE, METHOD, st.sampled_from(("disabled", "center")))
@settings(max_examples=150, deadline=None)
def test_scaling(image: Any, width: int, height: int, method: str, crop: str) -> None:
    try:
        out = scale(image, width, height, method, crop)
    except ValueError:
        assert crop == "center"  # nothing of a thin picture is left in a very different shape
        return
    assert out.shape == (2, height, width, 3)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    if method in {"nearest-exact", "bilinear", "area"}:
        assert out.min() >= image.min() - 1e-5
        assert out.max() <= image.max() + 1e-5
    if method == "nearest-exact":
        assert np.isin(out, image).all()
    alone = scale(image[1:], width, height, method, crop)
    np.testing.assert_array_equal(out[1:], alone)


@given(images(), METHOD)
@settings(max_examples=60, deadline=None)
def test_scaling_to_the_same_size_changes_nothing(image: Any, method: str) -> None:
    out = scale(image, image.shape[2], image.shape[1], method)
    # Lanczos goes through 8 bits, rounded down.
    np.testing.assert_allclose(out, image, atol=1.001 / 255 if method == "lanczos" else 0)


@given(st.integers(0, 255), st.tuples(SIZE, SIZE), st.tuples(SIZE, SIZE), METHOD)
@settings(max_examples=80, deadline=None)
def test_one_colour_stays_that_colour(
    level: int, old: tuple[int, int], new: tuple[int, int], method: str
) -> None:
    image = np.full((1, *old, 3), np.float32(level) / np.float32(255), np.float32)
    out = scale(image, *new, method)
    np.testing.assert_allclose(
        out, image[0, 0, 0, 0], atol=1.001 / 255 if method == "lanczos" else 1e-5
    )


@given(images(1), SIZE, SIZE, st.sampled_from(METHODS[:4]))
@settings(max_examples=80, deadline=None)
def test_scaling_commutes_with_turning_and_mirroring(
    image: Any, width: int, height: int, method: str
) -> None:
    # Not so Lanczos: Pillow clips to 8 bits after each of its two passes, whose order is fixed.
    tolerance = 1e-4
    out = scale(image, width, height, method)
    turned = scale(image.swapaxes(1, 2), height, width, method).swapaxes(1, 2)
    np.testing.assert_allclose(out, turned, atol=tolerance)
    if method != "nearest-exact":  # of two equally near samples it takes the right one
        mirrored = scale(image[:, :, ::-1], width, height, method)[:, :, ::-1]
        np.testing.assert_allclose(out, mirrored, atol=tolerance)


@given(images(1, largest=6), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_area_and_nearest_undo_whole_enlargements(image: Any, across: int, down: int) -> None:
    large = image.repeat(down, axis=1).repeat(across, axis=2)
    height, width = image.shape[1:3]
    np.testing.assert_array_equal(
        scale(image, width * across, height * down, "nearest-exact"), large
    )
    np.testing.assert_allclose(scale(large, width, height, "area"), image, atol=1e-6)


def test_scaling_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="should be greater than 0"):
        scale(np.zeros((1, 4, 4, 3), np.float32), 0, 5, "area")


@given(images(), st.integers(1, 11), st.floats(0.1, 10))
@settings(max_examples=100, deadline=None)
def test_blurring(image: Any, radius: int, sigma: float) -> None:
    if radius >= min(image.shape[1:3]):
        with pytest.raises(ValueError, match="Padding size"):
            blur(image, radius, sigma)
        return
    out = blur(image, radius, sigma)
    assert out.shape == image.shape
    assert np.isfinite(out).all()
    assert out.min() >= image.min() - 1e-5
    assert out.max() <= image.max() + 1e-5
    np.testing.assert_allclose(out, blur_slowly(image, radius, sigma), atol=1e-5)


def blur_slowly(image: Any, radius: int, sigma: float) -> Any:
    """The definition: a sum over the square, reflected at the edges."""
    weights = np.outer(gaussian(radius, sigma), gaussian(radius, sigma))
    padded = np.pad(image, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="reflect")
    out = np.zeros_like(image)
    for row in range(2 * radius + 1):
        for column in range(2 * radius + 1):
            part = padded[:, row : row + image.shape[1], column : column + image.shape[2]]
            out += weights[row, column] * part
    return out


@given(st.lists(VALUES, min_size=1, max_size=40), st.data())
@settings(max_examples=100, deadline=None)
def test_running_maximum(values: list[float], data: st.DataObject) -> None:
    window = data.draw(st.integers(1, len(values)))
    out = running_max(np.array(values, np.float32), window, 0)
    expected = [max(values[at : at + window]) for at in range(len(values) - window + 1)]
    assert out.tolist() == expected


def reach(mask: Any, inside: Any) -> Any:
    """The definition: at each pixel the maximum over the pixels inside."""
    out = np.empty_like(mask)
    _batch, height, width = mask.shape
    rows, columns = np.mgrid[0:height, 0:width]
    for row in range(height):
        for column in range(width):
            near = inside(rows - row, columns - column)
            out[:, row, column] = mask[:, near].max(axis=1)
    return out


@given(masks(), st.integers(0, 25))
@settings(max_examples=100, deadline=None)
def test_growing_over_diamonds(mask: Any, radius: int) -> None:
    expected = reach(mask, lambda down, across: abs(down) + abs(across) <= radius)
    np.testing.assert_array_equal(diamond_max(mask, radius), expected)


@given(masks(), st.integers(1, 9), st.data())
@settings(max_examples=100, deadline=None)
def test_growing_over_squares(mask: Any, size: int, data: st.DataObject) -> None:
    before = data.draw(st.integers(0, size - 1))

    def inside(down: Any, across: Any) -> Any:
        return np.logical_and.reduce(
            [(-before <= place) & (place < size - before) for place in (down, across)]
        )

    np.testing.assert_array_equal(box_max(mask, size, before), reach(mask, inside))


@given(masks(), st.integers(0, 12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_growing_mirrors_shrinking(mask: Any, radius: int, tapered: bool) -> None:
    def grow(values: Any, expand: int) -> Any:
        return call(
            registry, "GrowMask", context(), mask=values, expand=expand, tapered_corners=tapered
        ).values[0]

    np.testing.assert_array_equal(grow(mask, -radius), -grow(-mask, radius))
    assert (grow(mask, radius) >= mask).all()
    assert (grow(mask, -radius) <= mask).all()


ANY_IMAGE = images(batch=3, smallest=4)
UNARY: list[tuple[str, dict[str, Any]]] = [
    ("ImageInvert", {}),
    ("ImageBlur", {"blur_radius": 2}),
    ("ImageSharpen", {"sharpen_radius": 2}),
    ("ImageQuantize", {"colors": 5, "dither": "bayer-4"}),
    ("Morphology", {"operation": "close"}),
    ("ImageRotate", {"rotation": "90 degrees"}),
    ("ImageFlip", {"flip_method": "x-axis: vertically"}),
    ("ImageCrop", {"width": 3, "height": 3, "x": 1, "y": 2}),
    ("ImagePadForOutpaint", {"left": 8, "feathering": 1}),
    ("ImageScaleToMaxDimension", {"upscale_method": "bicubic", "largest_size": 9}),
    ("ResizeAndPadImage", {"target_width": 9, "target_height": 7, "padding_color": "white", "interpolation": "area"}),
    ("SplitImageWithAlpha", {}),
    ("ImageRGBToYUV", {}),
]  # fmt: skip


@given(image=ANY_IMAGE, chosen=st.sampled_from(UNARY))
@settings(max_examples=200, deadline=None)
def test_images_of_a_batch_do_not_see_each_other(
    image: Any, chosen: tuple[str, dict[str, Any]]
) -> None:
    name, inputs = chosen
    before = image.copy()
    whole = call(registry, name, context(), image=image, **inputs).values[0]
    np.testing.assert_array_equal(image, before)  # never written into: it is in the cache
    assert len(whole) == 3
    assert np.isfinite(whole).all()
    for number in range(3):
        single = image[number : number + 1]
        alone = call(registry, name, context(), image=single, **inputs).values[0]
        np.testing.assert_allclose(whole[number : number + 1], alone, atol=1e-6)
