"""File inputs are found by what /object_info says of them, and values told apart."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.workflow.inputs import (
    KNOWN_LOADERS,
    classify,
    file_inputs,
    replace_inputs,
    upload_inputs,
)
from tests.workflow.strategies import json_values, prompts


def declared(*declaration: Any, group: str = "required") -> Any:
    return {"Custom": {"input": {group: {"thing": list(declaration)}}}}


def test_every_upload_of_the_real_comfyui_is_found(object_info: Any) -> None:
    found = {
        (name, field): kind
        for name in object_info
        for field, kind in file_inputs(name, object_info).items()
    }
    assert found == {
        ("LoadImage", "image"): "image",
        ("LoadImageMask", "image"): "mask",
        ("LoadImageOutput", "image"): "image",
        ("LoadAudio", "audio"): "audio",
        ("LoadVideo", "file"): "video",
        ("LoadLatent", "latent"): "file",
        ("Load3D", "model_file"): "file",
        ("Load3D", "image"): "file",
        ("Load3DAnimation", "model_file"): "file",
        ("Load3DAnimation", "image"): "file",
    }


def test_known_loaders_need_no_object_info() -> None:
    for name, fields in KNOWN_LOADERS.items():
        assert fields.items() <= file_inputs(name).items()
        assert fields.items() <= file_inputs(name, {name: {"input": {"required": {}}}}).items()


@pytest.mark.parametrize(
    ("declaration", "kind"),
    [
        ([["a.png"], {"image_upload": True}], "image"),
        ([["a.gif"], {"animated_image_upload": True}], "image"),
        ([["a.wav"], {"audio_upload": True}], "audio"),
        (["COMBO", {"options": [], "video_upload": True}], "video"),
        (["COMBO", {"options": [], "file_upload": True}], "file"),
        (["COMBO", {"upload": True, "options": []}], "file"),
        (["COMBO", {"remote": {"route": "/internal/files/output"}}], "file"),
        ([["a"], {"image_upload": False}], None),
        (["COMBO", {"remote": {"route": "/models"}}], None),
        (["COMBO", {"remote": 3}], None),
        ([["a"]], None),
        ([], None),
        (["STRING", {"default": ""}], None),
    ],
)
@pytest.mark.parametrize("group", ["required", "optional"])
def test_declarations_of_both_styles(declaration: list[Any], kind: str | None, group: str) -> None:
    found = file_inputs("Custom", declared(*declaration, group=group))
    assert found == ({"thing": kind} if kind else {})


def test_links_and_other_values_are_left_out() -> None:
    prompt: Any = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png", "upload": "image"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "LoadImage", "inputs": {"image": 5}},
        "4": {"class_type": "LoadImage", "inputs": {}},
        "5": {"class_type": "Other", "inputs": {"image": "a.png"}},
    }
    assert [(one.node_id, one.input_name, one.value) for one in upload_inputs(prompt)] == [
        ("1", "image", "a.png")
    ]


def test_file_names_inside_load3ds_viewport_are_inputs_too() -> None:
    prompt: Any = {
        "1": {
            "class_type": "Load3D",
            "inputs": {
                "model_file": "3d/a.glb",
                "image": {"image": "x [temp]", "mask": "../m", "recording": "", "camera_info": {}},
            },
        }
    }
    found = upload_inputs(prompt)
    assert [(one.input_name, one.key, one.kind, one.value) for one in found] == [
        ("model_file", None, "file", "3d/a.glb"),
        ("image", "image", "image", "x [temp]"),
        ("image", "mask", "image", "../m"),
    ]
    changed = replace_inputs(prompt, [(found[1], "new.png"), (found[2], "mask.png")])
    assert changed["1"]["inputs"]["image"] == {
        "image": "new.png",
        "mask": "mask.png",
        "recording": "",
        "camera_info": {},
    }
    assert prompt["1"]["inputs"]["image"]["image"] == "x [temp]"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("http://h/x.png", "url"),
        (" HTTPS://h/x", "url"),
        ("file:///etc/passwd", "url"),
        ("oss://bucket/x", "url"),
        ("data:image/png;base64,AAAA", "data_uri"),
        ("DATA:,x", "data_uri"),
        ("example.png", "name"),
        ("sub/folder/x.png [output]", "name"),
        ("abcd", "name"),
        ("A" * 63, "name"),
        ("A" * 64, "base64"),
        ("A" * 64 + ".png", "name"),
        ("A" * 60 + "\n" + "B" * 20 + "==\n", "base64"),
        ("-_" * 40, "base64"),
        (hashlib.sha256(b"x").hexdigest(), "name"),
        ("with spaces " * 10 + "é", "name"),
        ("C:\\x.png", "name"),
        ("", "name"),
        ("pasted/image (1).png", "name"),
    ],
)
def test_classify(value: str, kind: str) -> None:
    assert classify(value) == kind


@given(st.binary(min_size=48, max_size=9000))
def test_base64_of_anything_is_base64(content: bytes) -> None:
    for text in (base64.b64encode(content), base64.urlsafe_b64encode(content).rstrip(b"=")):
        assert classify(text.decode()) == "base64"
    assert classify(base64.encodebytes(content).decode()) == "base64"


@given(st.text("abcABC019/_- ", max_size=90), st.sampled_from([".png", ".wav", ".x"]))
def test_a_name_with_an_extension_is_a_name(stem: str, extension: str) -> None:
    assert classify(stem + extension) == "name"


@given(prompts, json_values)
def test_any_declaration_is_survived(prompt: Any, declaration: Any) -> None:
    for info in (
        {"Anything": declaration},
        {"Anything": {"input": declaration}},
        {"Anything": {"input": {"required": {"image": declaration}}}},
    ):
        for upload in upload_inputs(prompt, info):
            assert prompt[upload.node_id]["inputs"][upload.input_name] == upload.value


@given(prompts)
def test_replacing_changes_what_is_listed_and_nothing_else(prompt: Any) -> None:
    found = upload_inputs(prompt)
    changed = replace_inputs(prompt, [(upload, "new") for upload in found])
    assert [upload.value for upload in upload_inputs(changed)] == ["new"] * len(found)
    back = replace_inputs(changed, [(upload, upload.value) for upload in found])
    assert back == prompt
