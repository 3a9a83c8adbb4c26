"""What is read from picture files, and what is refused."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from easel.engine.folders import Folders
from easel.engine.nodes import pictures, registry
from easel.engine.nodes.pictures import BrokenPicture, Digests
from tests.engine.nodes.graphs import write_inputs
from tests.engine.nodes.local import call, context

STRIPES = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def test_plain_picture(tmp_path: Path) -> None:
    Image.fromarray(STRIPES).save(tmp_path / "a.png")
    image, mask = pictures.load(tmp_path / "a.png")
    assert image.shape == (1, 4, 6, 3)
    assert image.dtype == mask.dtype == np.float32
    np.testing.assert_array_equal(image[0], STRIPES.astype(np.float32) / 255)
    assert mask.shape == (1, 64, 64)
    assert not mask.any()


def test_alpha_becomes_a_mask_of_what_is_transparent(tmp_path: Path) -> None:
    alpha = np.array([[0, 255], [51, 204]], np.uint8)
    rgba = np.dstack((np.zeros((2, 2, 3), np.uint8), alpha))
    Image.fromarray(rgba).save(tmp_path / "a.png")
    _image, mask = pictures.load(tmp_path / "a.png")
    np.testing.assert_allclose(mask[0], np.array([[1, 0], [0.8, 0.2]]), atol=1e-6)


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(STRIPES).save(tmp_path / "a.png", exif=exif)
    image, _mask = pictures.load(tmp_path / "a.png")
    np.testing.assert_array_equal(image[0] * 255, np.rot90(STRIPES, k=-1))


def test_some_frames_with_alpha_and_some_without(tmp_path: Path) -> None:
    frames = [Image.new("RGBA", (3, 2), (255, 0, 0, 0)), Image.new("RGB", (3, 2))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image, mask = pictures.load(tmp_path / "a.gif")
    assert image.shape == (2, 2, 3, 3)
    assert mask.shape == (2, 2, 3)


def test_truncated_picture_is_refused(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp", "gif"):
        sink = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        kind = "JPEG" if suffix == "jpg" else suffix.upper()
        Image.fromarray(noise).save(sink, format=kind)
        (tmp_path / f"a.{suffix}").write_bytes(sink.getvalue()[: len(sink.getvalue()) // 2])
        with pytest.raises(OSError, match=f"a.{suffix}"):
            pictures.load(tmp_path / f"a.{suffix}")
        with pytest.raises(OSError, match=f"a.{suffix}"):
            pictures.load_channel(tmp_path / f"a.{suffix}", "red")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("originals")
    write_inputs(folder)
    return sorted(file for file in folder.iterdir() if file.stat().st_size < 4096)


@given(data=st.data())
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_pictures_give_pixels_or_a_clear_error(
    tmp_path: Path, originals: list[Path], data: st.DataObject
) -> None:
    original = bytearray(data.draw(st.sampled_from(originals)).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(original) - 1))
        original[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    (tmp_path / "a.png").write_bytes(original)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd headers
        try:
            image, mask = pictures.load(tmp_path / "a.png")
        except (BrokenPicture, UnidentifiedImageError, Image.DecompressionBombError):
            return
    assert image.ndim == 4
    assert mask.ndim == 3
    assert np.isfinite(image).all()
    assert 0 <= image.min() <= image.max() <= 1


def test_no_picture_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("these are only some words")
    with pytest.raises(UnidentifiedImageError, match="cannot identify image file"):
        pictures.load(tmp_path / "a.png")


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more than there is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_decompression_bomb_is_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bomb(100_000, 100_000))
    with pytest.raises(Image.DecompressionBombError, match="exceeds limit"):
        pictures.load(tmp_path / "a.png")


def test_too_many_pixels_in_all_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (10, 10), (n, 0, 0)) for n in range(5)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(pictures, "MAX_FRAMES_PIXELS", 450)
    with pytest.raises(BrokenPicture, match="450 pixels"):
        pictures.load(tmp_path / "a.gif")


def test_names_are_checked_against_their_folder(tmp_path: Path) -> None:
    ctx = context(tmp_path / "data")
    (tmp_path / "secret.png").touch()
    for folder in ("input", "output", "temp"):
        Image.fromarray(STRIPES).save(ctx.folders.base / folder / f"{folder}.png")
    (ctx.folders.input / "link.png").symlink_to(tmp_path / "secret.png")
    valid = registry.get("LoadImage")
    assert valid is not None
    assert valid.validate is not None
    for name in ("input.png", "output.png [output]", "temp.png [temp]", "input.png [input]"):
        assert valid.validate(ctx.folders, image=name) is True
        assert call(registry, "LoadImage", ctx, image=name).values[0].shape == (1, 4, 6, 3)
    refused: tuple[object, ...] = (
        "missing.png", "output.png", "../secret.png", "../input/../../secret.png", str(tmp_path / "secret.png"),
        "link.png", "", ".", "a\0b", "input.png [nowhere]", 7, None,
    )  # fmt: skip
    for wrong in refused:
        assert valid.validate(ctx.folders, image=wrong) == f"Invalid image file: {wrong}"


def test_choices_are_pictures_only(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    folders.prepare()
    for name in ("b.png", "a.webp", "c.txt", "d.JPG", "e"):
        (folders.input / name).touch()
    for class_type, expected in (
        ("LoadImage", ["a.webp", "b.png", "d.JPG"]),
        ("LoadImageMask", ["a.webp", "b.png", "c.txt", "d.JPG", "e"]),
    ):
        node_class = registry.get(class_type)
        assert node_class is not None
        choices = node_class.required["image"].type
        assert callable(choices)
        assert list(choices(folders)) == expected


def test_is_changed_follows_the_content(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    node_class = registry.get("LoadImageMask")
    assert node_class is not None
    assert node_class.is_changed is not None

    def mark() -> object:
        assert node_class is not None
        assert node_class.is_changed is not None
        return node_class.is_changed(ctx.folders, image="a.png", channel="red")

    (ctx.folders.input / "a.png").write_bytes(b"one")
    first = mark()
    (ctx.folders.input / "a.png").write_bytes(b"two")
    assert mark() != first
    (ctx.folders.input / "a.png").write_bytes(b"one")
    assert mark() == first


def test_digests_are_remembered_only_of_settled_files(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    always = Digests(settled=-1e9)
    first = always.of(file)
    old = file.stat()
    assert always.of(file) == first
    # The same size, and the times put back: the change time gives it away.
    file.write_bytes(b"two")
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert always.of(file) != first
    never = Digests(settled=1e9)
    never.of(file)
    assert not never._known
