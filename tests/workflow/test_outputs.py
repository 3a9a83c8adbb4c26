"""Every output of every kind is listed."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.workflow.outputs import OutputItem, collect, media_type_of, view_url
from tests.conftest import FIXTURES
from tests.workflow.strategies import json_values, prompts

PROMPT: Any = {"9": {"class_type": "SaveImage", "inputs": {}}}


def one(key: str, value: Any, **more: Any) -> OutputItem:
    (item,) = collect({"9": {key: [value], **more}}, PROMPT)
    return item


def file(name: str, **more: Any) -> dict[str, Any]:
    return {"filename": name, "subfolder": "", "type": "output", **more}


@pytest.mark.parametrize(
    ("key", "name", "kind", "media_type"),
    [
        ("images", "a.png", "image", "image/png"),
        ("images", "a.WEBP", "image", "image/webp"),
        ("gifs", "a.mp4", "video", "video/mp4"),
        ("gifs", "a.webp", "animation", "image/webp"),
        ("images", "a.gif", "animation", "image/gif"),
        ("video", "a.webm", "video", "video/webm"),
        ("audio", "a.flac", "audio", "audio/flac"),
        ("audio", "a.opus", "audio", "audio/ogg"),
        ("3d", "a.glb", "3d", "model/gltf-binary"),
        ("3d", "a.fbx", "3d", "application/octet-stream"),
        ("latents", "a.latent", "file", "application/octet-stream"),
        ("files", "noextension", "file", "application/octet-stream"),
        ("anything", "a.txt", "file", "text/plain"),
    ],
)
def test_files(key: str, name: str, kind: str, media_type: str) -> None:
    item = one(key, file(name))
    assert (item.kind, item.media_type, item.is_file) == (kind, media_type, True)
    assert (item.node_id, item.node_type, item.key) == ("9", "SaveImage", key)


def test_animated_flags_are_read_not_listed() -> None:
    assert one("images", file("a.webp"), animated=[True]).kind == "animation"
    assert one("images", file("a.png"), animated=(False,)).kind == "image"
    assert one("images", file("a.mp4"), animated=[True]).kind == "video"


def test_texts_and_other_values() -> None:
    items = collect(
        {"9": {"text": ["a", "b"], "string": "c", "bounds": [{"x": 1}, [1, 2]], "n": 3}}, PROMPT
    )
    assert [(item.kind, item.text, item.value) for item in items] == [
        ("text", "a", None),
        ("text", "b", None),
        ("text", "c", None),
        ("json", None, {"x": 1}),
        ("json", None, [1, 2]),
        ("json", None, 3),
    ]
    assert not any(item.is_file for item in items)


def test_what_else_is_said_of_a_file_is_kept() -> None:
    item = one("gifs", file("a.mp4", format="video/h264-mp4", frame_rate=8.0, workflow="a.png"))
    assert item.extra == {"format": "video/h264-mp4", "frame_rate": 8.0, "workflow": "a.png"}


def test_outputs_of_expanded_nodes_belong_to_the_node_in_the_prompt() -> None:
    (item,) = collect({"9.0.0.1": {"images": [file("a.png")]}}, PROMPT)
    assert (item.node_id, item.node_type) == ("9", "SaveImage")
    (item,) = collect({"77": {"images": [file("a.png")]}}, PROMPT)
    assert (item.node_id, item.node_type) == ("77", "")


@pytest.mark.parametrize("name", ["a_model_free", "b_sd_txt2img", "i_upload_load_image"])
def test_recorded_histories(name: str) -> None:
    recorded = json.loads((FIXTURES / "scenarios" / f"{name}.json").read_text())
    histories = [
        body
        for entry in recorded["http"]
        if entry["path"].startswith("/history/")
        for body in entry.get("response_json", {}).values()
        if body["outputs"]
    ]
    assert histories
    for body in histories:
        items = collect(body["outputs"], body["prompt"][2])
        assert items
        assert all(item.kind == "image" and item.node_type for item in items)


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=5))
def test_view_urls_are_escaped(filename: str, subfolder: str, kind: str) -> None:
    item = OutputItem(
        node_id="1",
        node_type="x",
        kind="file",
        key="k",
        filename=filename,
        subfolder=subfolder,
        type=kind,
    )
    url = view_url("http://host:1/", item)
    url.encode("ascii")
    assert url.startswith("http://host:1/view?")
    query = parse_qs(urlsplit(url).query, keep_blank_values=True)
    assert query == {"filename": [filename], "subfolder": [subfolder], "type": [kind]}


def test_a_surrogate_in_a_file_name_does_no_harm() -> None:
    assert "%3F" in view_url("", one("images", file("a\udcff.png")))


@given(st.dictionaries(st.text(max_size=6), json_values, max_size=4), prompts)
def test_arbitrary_outputs_never_raise_and_nothing_is_dropped(outputs: Any, prompt: Any) -> None:
    items = collect(outputs, prompt)
    expected = sum(
        len(values) if isinstance(values, list) else 1
        for output in outputs.values()
        if isinstance(output, dict)
        for key, values in output.items()
        if not (key == "animated" and isinstance(values, list))
    )
    assert len(items) == expected


@given(st.text(max_size=20))
def test_media_types_have_their_form(name: str) -> None:
    assert media_type_of(name).count("/") == 1
