"""Nodes, inputs and values as people write them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.cli.addresses import find_input, find_node
from easel.cli.assign import assign, parse_value
from easel.cli.report import UsageError
from easel.workflow.types import Node, Prompt


def node(class_type: str, title: str = "", **inputs: Any) -> Node:
    made: Node = {"class_type": class_type, "inputs": inputs}
    if title:
        made["_meta"] = {"title": title}
    return made


PROMPT: Prompt = {
    "3": node("KSampler", "KSampler", seed=1, steps=20, model=["4", 0]),
    "4": node("CheckpointLoaderSimple", "Load Checkpoint", ckpt_name="a.safetensors"),
    "6": node("CLIPTextEncode", "Positive", text="a cat", clip=["4", 1]),
    "7": node("CLIPTextEncode", "Negative v1.5", text="", clip=["4", 1]),
    "3:1": node("SaveImage", filename_prefix="x"),
    "KSampler": node("Note", "6", text="an id that is another's class"),
}
INFO: dict[str, Any] = {
    "KSampler": {
        "input": {
            "required": {"seed": ["INT", {}], "cfg": ["FLOAT", {}], "denoise": ["FLOAT", {}]},
            "optional": {"tiled": ["BOOLEAN", {}]},
        }
    },
    "CLIPTextEncode": {"input": {"required": {"text": ["STRING", {}]}}},
    "CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": [["a", "12"], {}]}}},
}


@pytest.mark.parametrize(
    ("name", "node_id"),
    [
        ("3", "3"),
        ("3:1", "3:1"),
        ("6", "6"),  # an id comes before a title
        ("KSampler", "KSampler"),  # and before a class
        ("Load Checkpoint", "4"),
        ("load checkpoint", "4"),
        ("SaveImage", "3:1"),
        ("checkpointloadersimple", "4"),
    ],
)
def test_a_node_by_id_title_or_class(name: str, node_id: str) -> None:
    assert find_node(PROMPT, name, "--set") == node_id


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("3.seed", ("3", "seed")),
        ("3.denoise", ("3", "denoise")),  # declared, but not in the file
        ("3.tiled", ("3", "tiled")),
        ("Negative v1.5.text", ("7", "text")),
        ("3:1.filename_prefix", ("3:1", "filename_prefix")),
    ],
)
def test_an_input(address: str, place: tuple[str, str]) -> None:
    assert find_input(PROMPT, address, INFO, "--set") == place


@pytest.mark.parametrize(
    ("address", "message", "hint"),
    [
        ("KSampler2.seed", "no node 'KSampler2'", "did you mean KSampler?"),
        ("Postive.text", "no node 'Postive'", "did you mean Positive"),
        ("99.text", "no node '99'", "its nodes are 3 (KSampler), 4 (CheckpointLoaderSimple"),
        ("3.sead", "node 3 (KSampler) has no input 'sead'", "did you mean seed?"),
        ("3.STEPS", "has no input 'STEPS'", "did you mean steps?"),
        ("3.qqqqqq", "has no input", "its inputs are seed, steps, model, cfg, denoise, tiled"),
        ("CLIPTextEncode.text", "names 2 nodes: 6 (CLIPTextEncode", "by its id"),
        ("seed", "names no input", "NODE.INPUT"),
        ("...", "names no input", "NODE.INPUT"),
        ("", "names no input", "NODE.INPUT"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(address: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_input(PROMPT, address, INFO, "--set x")
    assert caught.value.message.startswith("--set x: ")
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("raw", "declared", "current", "value"),
    [
        ("7", "INT", 1, 7),
        ("-1", "INT", 1, -1),
        ("18446744073709551615", "INT", 1, 2**64 - 1),
        ("7.5", "FLOAT", 1.0, 7.5),
        ("1e3", "FLOAT", 1.0, 1000.0),
        ("true", "BOOLEAN", None, True),
        ("False", "BOOLEAN", None, False),
        ("yes", "BOOLEAN", None, True),
        ("maybe", "BOOLEAN", None, "maybe"),
        ("null", "INT", 1, None),
        ('["4", 0]', "MODEL", None, ["4", 0]),
        ('{"a": 1}', None, None, {"a": 1}),
        ("a dog", "STRING", "a cat", "a dog"),
        ("", "STRING", "a cat", ""),
        ("1984", "STRING", "a cat", "1984"),
        ("1984", None, "a cat", "1984"),
        ("1984", None, None, 1984),
        ('"quoted"', "STRING", "a cat", "quoted"),
        ('["4", 0]', "STRING", "a cat", '["4", 0]'),
        ("NaN", "FLOAT", 1.0, "NaN"),
        ("Infinity", None, None, "Infinity"),
        ("euler", ["euler", "ddim"], "ddim", "euler"),
        ("12", ["a", "12"], "a", "12"),
        ("12", [4, 12], 4, 12),
        ("a=b", "STRING", "", "a=b"),
    ],
)
def test_values(raw: str, declared: Any, current: object, value: object) -> None:
    found = parse_value(raw, declared, current)
    assert found == value
    assert type(found) is type(value)


@given(text=st.text())
def test_any_text_can_be_set_on_a_text_input(text: str) -> None:
    import json

    made, changed = assign(PROMPT, [f"6.text={json.dumps(text)}"], INFO)
    assert made["6"]["inputs"]["text"] == text
    assert changed == {("6", "text")}


@given(text=st.text())
def test_nothing_on_the_command_line_breaks_it(text: str) -> None:
    with contextlib.suppress(UsageError):  # anything else fails
        assign(PROMPT, [text], INFO)


def test_the_file_is_not_changed() -> None:
    before = repr(PROMPT)
    assign(PROMPT, ["3.seed=5", "3.steps=6", "3.seed=7"], INFO)
    assert repr(PROMPT) == before


def test_the_last_value_counts() -> None:
    made, _ = assign(PROMPT, ["3.seed=5", "3.seed=7"], None)
    assert made["3"]["inputs"]["seed"] == 7


def test_a_value_is_needed() -> None:
    with pytest.raises(UsageError, match="no value"):
        assign(PROMPT, ["3.seed"], None)
