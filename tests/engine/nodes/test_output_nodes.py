"""What output nodes write and show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from easel.engine.nodes import registry
from tests.engine.nodes.local import Context, call, context

PROMPT = {"1": {"class_type": "SaveImage", "inputs": {"text": "é"}}}
WORKFLOW = {"workflow": {"nodes": [1, 2]}, "more": "text"}


def written(tmp_path: Path) -> Context:
    return context(tmp_path, prompt=PROMPT, extra_pnginfo=WORKFLOW)


def batch(count: int = 2, channels: int = 3) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(1).random((count, 4, 5, channels), np.float32)


def test_save_image(tmp_path: Path) -> None:
    ctx = written(tmp_path)
    images = batch()
    images[0, 0, 0] = (-1, 2, 0.9999)
    result = call(registry, "SaveImage", ctx, images=images, filename_prefix="sub/%width%")
    assert result.values == ()
    assert result.ui == {
        "images": [
            {"filename": "5_00001_.png", "subfolder": "sub", "type": "output"},
            {"filename": "5_00002_.png", "subfolder": "sub", "type": "output"},
        ]
    }
    for number in (0, 1):
        saved = Image.open(ctx.folders.output / "sub" / f"5_0000{number + 1}_.png")
        np.testing.assert_array_equal(
            np.array(saved), np.clip(images[number] * 255, 0, 255).astype(np.uint8)
        )
        assert saved.text == {  # type: ignore[attr-defined]
            "prompt": json.dumps(PROMPT),
            "workflow": json.dumps(WORKFLOW["workflow"]),
            "more": '"text"',
        }
    assert np.array(Image.open(ctx.folders.output / "sub" / "5_00001_.png"))[0, 0].tolist() == [
        0, 255, 254,
    ]  # fmt: skip


def test_save_image_outside_is_refused(tmp_path: Path) -> None:
    ctx = written(tmp_path / "data")
    with pytest.raises(Exception, match="Saving image outside the output folder") as raised:
        call(registry, "SaveImage", ctx, images=batch(), filename_prefix="../escape")
    # As recorded (d_validation); clients see the type and the words.
    assert raised.type is Exception
    assert str(raised.value) == (
        "**** ERROR: Saving image outside the output folder is not allowed."
        f"\n full_output_folder: {tmp_path}/data\n         output_dir: {tmp_path}/data/output"
        f"\n         commonpath: {tmp_path}/data"
    )
    assert not list((tmp_path).rglob("escape*"))


def test_alpha_and_grey_are_kept(tmp_path: Path) -> None:
    ctx = written(tmp_path)
    for channels, mode in ((4, "RGBA"), (1, "L")):
        call(registry, "SaveImage", ctx, images=batch(1, channels), filename_prefix=mode)
        with Image.open(ctx.folders.output / f"{mode}_00001_.png") as saved:
            assert saved.mode == mode


def test_previews_go_to_temp_under_a_name_of_their_own(tmp_path: Path) -> None:
    ctx = written(tmp_path)
    names = []
    for node_id in ("1", "1", "2"):
        ctx.node_id = node_id
        result = call(registry, "PreviewImage", ctx, images=batch(1))
        assert result.ui is not None
        (entry,) = result.ui["images"]
        assert entry["type"] == "temp"
        assert entry["subfolder"] == ""
        assert (ctx.folders.temp / entry["filename"]).exists()
        names.append(entry["filename"])
    matches = [re.fullmatch(r"ComfyUI_temp_([a-z]{5})_(\d{5})_\.png", name) for name in names]
    parts = [match.groups() for match in matches if match]
    assert [number for _, number in parts] == ["00001", "00002", "00001"]
    assert parts[0][0] == parts[1][0] != parts[2][0]
    mask = batch(1)[..., 0]
    result = call(registry, "MaskPreview", ctx, mask=mask)
    assert result.ui is not None
    saved = np.array(Image.open(ctx.folders.temp / result.ui["images"][0]["filename"]))
    np.testing.assert_array_equal(
        saved, np.repeat((mask[0] * 255).astype(np.uint8)[..., None], 3, -1)
    )


def test_websocket_images_are_steps(tmp_path: Path) -> None:
    ctx = written(tmp_path)
    result = call(registry, "SaveImageWebsocket", ctx, images=batch(3))
    assert result.ui is None
    # As recorded (h_save_image_websocket): the steps are counted from 0.
    assert [(value, most) for _image, value, most in ctx.images] == [(0, 3), (1, 3), (2, 3)]
    assert all(image.size == (5, 4) for image, _value, _most in ctx.images)


def test_animated_webp(tmp_path: Path) -> None:
    ctx = written(tmp_path)
    images = batch(3)
    result = call(
        registry,
        "SaveAnimatedWEBP",
        ctx,
        images=images,
        fps=8.0,
        filename_prefix="a",
        lossless=True,
        quality=80,
        method="default",
    )
    assert result.ui == {
        "images": [{"filename": "a_00001_.webp", "subfolder": "", "type": "output"}],
        "animated": [True],
    }
    with Image.open(ctx.folders.output / "a_00001_.webp") as saved:
        assert saved.n_frames == 3  # type: ignore[attr-defined]
        for number in range(3):
            saved.seek(number)
            saved.load()
            assert saved.info["duration"] == 125
            np.testing.assert_array_equal(
                np.array(saved.convert("RGB")), (images[number] * 255).astype(np.uint8)
            )
        exif = saved.getexif()
    assert exif[0x0110] == "prompt:" + json.dumps(PROMPT)
    assert exif[0x010F] == "workflow:" + json.dumps(WORKFLOW["workflow"])
    assert exif[0x010E] == 'more:"text"'


def test_animated_png(tmp_path: Path) -> None:
    ctx = written(tmp_path)
    images = batch(3)
    result = call(
        registry,
        "SaveAnimatedPNG",
        ctx,
        images=images,
        fps=10.0,
        filename_prefix="a",
        compress_level=4,
    )
    assert result.ui == {
        "images": [{"filename": "a_00001_.png", "subfolder": "", "type": "output"}],
        "animated": [True],
    }
    file = ctx.folders.output / "a_00001_.png"
    with Image.open(file) as saved:
        assert saved.n_frames == 3  # type: ignore[attr-defined]
        for number in range(3):
            saved.seek(number)
            np.testing.assert_array_equal(
                np.array(saved.convert("RGB")), (images[number] * 255).astype(np.uint8)
            )
    assert b"comfprompt\0" + json.dumps(PROMPT).encode() in file.read_bytes()


def test_size_is_shown_on_the_node(tmp_path: Path) -> None:
    ctx = written(tmp_path)
    assert call(registry, "GetImageSize", ctx, image=batch(2)).values == (5, 4, 2)
    assert ctx.texts == ["width: 5, height: 4\n batch size: 2"]


def test_preview_of_anything(tmp_path: Path) -> None:
    ctx = written(tmp_path)
    for value, text in (
        ("é", "é"), (1.5, "1.5"), (True, "True"), (None, "None"), ({"a": [1]}, '{"a": [1]}'), ({1}, "{1}"),
    ):  # fmt: skip
        assert call(registry, "PreviewAny", ctx, source=value).ui == {"text": [text]}


def test_rebatching(tmp_path: Path) -> None:
    ctx = written(tmp_path)
    images = batch(5)
    (batches,) = call(
        registry, "RebatchImages", ctx, images=[images[:2], images[2:]], batch_size=[3]
    ).values
    assert [len(part) for part in batches] == [3, 2]
    np.testing.assert_array_equal(np.concatenate(batches), images)


def test_picture_too_large_for_the_memory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match="Unable to allocate"):
        call(
            registry,
            "EmptyImage",
            written(tmp_path),
            width=16384,
            height=16384,
            batch_size=4096,
            color=0,
        )
