"""``--input``: which input a file is for."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from easel.cli.attach import attach
from easel.cli.report import UsageError
from easel.workflow.types import Prompt
from tests.cli.test_addresses import node

ONE: Prompt = {
    "1": node("LoadImage", "Photo", image="a.png"),
    "2": node("SaveImage", images=["1", 0]),
}
TWO: Prompt = {
    **ONE,
    "3": node("LoadImageMask", "Mask", image="m.png", channel="alpha"),
    "4": node("Custom", clip="x.mp4", still="y.png", other="z"),
    "5": node("LoadImage", "linked", image=["9", 0]),
}
INFO: dict[str, Any] = {
    "Custom": {
        "input": {
            "required": {
                "clip": [["x.mp4"], {"video_upload": True}],
                "still": [["y.png"], {"image_upload": True}],
                "other": ["STRING", {}],
            }
        }
    }
}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"not really")
    return path


def test_a_file_goes_to_the_only_input(photo: Path) -> None:
    (found,) = attach(ONE, [str(photo)], None, set())
    assert (found.node_id, found.input_name, found.data) == ("1", "image", b"not really")
    encoded = base64.b64encode(b"not really").decode()
    assert found.data_uri() == f"data:image/jpeg;base64,{encoded}"


def test_a_url_is_left_to_the_agent() -> None:
    for url in ("https://example.com/a.png?x=1", "data:image/png;base64,AAAA"):
        (found,) = attach(ONE, [url], None, set())
        assert (found.name, found.data) == (url, None)
        (found,) = attach(TWO, [f"1.image={url}"], INFO, set())
        assert (found.node_id, found.name, found.data) == ("1", url, None)


def test_named_inputs(photo: Path) -> None:
    flags = [f"Photo={photo}", f"3.image={photo}", f"4.still={photo}", f"4.clip={photo}"]
    found = attach(TWO, flags, INFO, set())
    assert [(file.node_id, file.input_name) for file in found] == [
        ("1", "image"),
        ("3", "image"),
        ("4", "still"),
        ("4", "clip"),
    ]


def test_the_last_free_input_needs_no_name(photo: Path) -> None:
    flags = [str(photo), f"1.image={photo}", f"3={photo}", f"4.clip={photo}"]
    found = attach(TWO, flags, INFO, set())
    assert (found[-1].node_id, found[-1].input_name) == ("4", "still")
    found = attach(TWO, [str(photo)], INFO, {("1", "image"), ("3", "image"), ("4", "clip")})
    assert [(file.node_id, file.input_name) for file in found] == [("4", "still")]


def test_a_name_with_an_equals_sign_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "1.image=x.png"
    path.write_bytes(b"x")
    (found,) = attach(ONE, [str(path)], None, set())
    assert found.name == str(path)


@pytest.mark.parametrize(
    ("prompt", "flag", "says"),
    [
        (TWO, "{photo}", 'the file inputs are 1.image of 1 (LoadImage "Photo"), 3.image of'),
        (TWO, "{photo}", "--input 1.image={photo}"),
        ({"2": node("SaveImage")}, "{photo}", "no file input left"),
        (TWO, "4={photo}", "has 2 file inputs: clip, still"),
        (TWO, "5={photo}", "has no file inputs"),
        (TWO, "9.image={photo}", "no node '9'"),
        (ONE, "1.imag={photo}", "no input 'imag'"),
        (ONE, "{photo}.gone", "there is no input file"),
        (ONE, "{folder}", "is a folder, not a input file"),
        (ONE, "{empty}", "is empty"),
        (ONE, "\x00", "cannot be read"),
        (ONE, "x" * 5000, "cannot be read"),
    ],
)
def test_what_cannot_be_attached(
    prompt: Prompt, flag: str, says: str, photo: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    words = {"photo": photo, "folder": tmp_path, "empty": empty}
    with pytest.raises(UsageError) as caught:
        attach(prompt, [flag.format(**words)], INFO, set())
    assert says.format(**words) in caught.value.message


def test_two_files_without_names(photo: Path) -> None:
    with pytest.raises(UsageError, match="say which input"):
        attach(ONE, [str(photo), str(photo)], None, set())


def test_a_misspelt_file_gets_a_suggestion(photo: Path) -> None:
    with pytest.raises(UsageError) as caught:
        attach(ONE, [str(photo.with_name("photos.jpg"))], None, set())
    assert caught.value.hint == f"did you mean {photo}?"
