"""What a workflow needs and the engine lacks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.workflow.needs import loaders, missing
from tests.conftest import FIXTURES


@pytest.fixture(scope="module")
def info() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FIXTURES / "object_info.json").read_text())
    return found


def lack(info: dict[str, Any], class_type: str, **inputs: Any) -> Any:
    (found,) = missing({"7": {"class_type": class_type, "inputs": inputs}}, info)
    return found


def test_a_model_that_is_not_there_names_its_folder_and_similar_ones(info: dict[str, Any]) -> None:
    found = lack(info, "CheckpointLoaderSimple", ckpt_name="random-sd15-tini.safetensors")
    assert (found.kind, found.folder, found.node_id) == ("model", "models/checkpoints", "7")
    assert "random-sd15-tiny.safetensors" in found.advice


def test_an_unknown_class_is_named(info: dict[str, Any]) -> None:
    found = lack(info, "KSamplr")
    assert (found.kind, found.folder) == ("node", "custom_nodes")
    assert "KSampler" in found.advice


def test_a_file_and_a_choice(info: dict[str, Any]) -> None:
    assert lack(info, "LoadImage", image="nothing.png").kind == "file"
    assert lack(info, "KSampler", sampler_name="eular").kind == "choice"


def test_what_is_there_is_not_missing(info: dict[str, Any]) -> None:
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    assert missing(prompt, info) == []  # type: ignore[arg-type]


def test_every_model_folder_has_its_loader(info: dict[str, Any]) -> None:
    found = loaders(info)
    assert "CheckpointLoaderSimple.ckpt_name" in found["checkpoints"]
    assert found["clip_vision"] == ["CLIPVisionLoader.clip_name"]
    assert "CLIPLoader.clip_name" in found["text_encoders"]
    assert "UpscaleModelLoader.model_name" in found["upscale_models"]


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_odd_declarations_raise_nothing(spec: Any) -> None:
    info: Any = {"A": {"input": {"required": {"ckpt_name": spec}}}, "B": {"input": spec}, "C": {}}
    prompt: Any = {name: {"class_type": name, "inputs": {"ckpt_name": 1}} for name in "ABC"}
    missing(prompt, info)
    loaders(info)
