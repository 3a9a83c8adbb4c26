"""A submitted body becomes a canonical prompt or a typed error, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.errors import EaselError, InvalidPrompt, NotJson, TooManyNodes, UiFormatWorkflow
from easel.workflow.parse import canonical_prompt, parse_prompt
from tests.conftest import FIXTURES
from tests.workflow.strategies import json_values, prompts

NODE = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}


def test_bare_prompt_and_envelope_give_the_same_prompt() -> None:
    body = json.loads((FIXTURES / "workflows" / "model_free.api.json").read_text())
    bare = parse_prompt(json.dumps(body).encode())
    assert bare.prompt == parse_prompt(json.dumps({"prompt": body})).prompt
    assert bare.prompt == parse_prompt({"prompt": body, "client_id": "x"}).prompt
    assert bare.options.output_base64 is False
    assert bare.options.extra_data == {}


def test_envelope_options() -> None:
    parsed = parse_prompt(
        {
            "prompt": {"9": NODE},
            "output_base64": True,
            "extra_data": {"api_key_comfy_org": "k", "extra_pnginfo": {"a": 1}},
            "extra_pnginfo": {"b": 2},
            "workflow": {"nodes": [], "links": []},
        }
    )
    assert parsed.options.output_base64 is True
    assert parsed.options.extra_data == {
        "api_key_comfy_org": "k",
        "extra_pnginfo": {"a": 1, "b": 2, "workflow": {"nodes": [], "links": []}},
    }


def test_a_node_may_be_called_prompt() -> None:
    assert parse_prompt({"prompt": NODE, "1": NODE}).prompt.keys() == {"prompt", "1"}


def test_nodes_are_canonical() -> None:
    parsed = parse_prompt(
        {
            "1": {"class_type": "A", "inputs": None, "is_changed": [1], "_meta": {"title": "t"}},
            "2": {"class_type": "B", "_meta": 3},
            "3": {"class_type": "C", "inputs": {"x": {"__value__": {"__value__": "../x"}}}},
            "4": {"class_type": "C", "inputs": {"x": {"__value__": [1, 2, 3]}}},
        }
    )
    assert parsed.prompt == {
        "1": {"class_type": "A", "inputs": {}, "_meta": {"title": "t"}},
        "2": {"class_type": "B", "inputs": {}},
        "3": {"class_type": "C", "inputs": {"x": "../x"}},
        "4": {"class_type": "C", "inputs": {"x": {"__value__": [1, 2, 3]}}},
    }


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "Expecting value"),
        (b"{not json", "line 1, column 2"),
        (b'{"1": {"class_type": "A",\n "inputs": {"x": ]}}}', "line 2, column 18"),
        (b'{"1": NaN}', "NaN"),
        (b'{"1": {"class_type": "A", "inputs": {"x": -Infinity}}}', "Infinity"),
        (b'{"1": 1e999}', "out of range"),
        (b'{"1": ' + b"9" * 5000 + b"}", "out of range"),
        (b'"\\ud800"', "surrogate"),
        (b'{"1": "\\udead x"}', ""),
        (b"\xff\xfe{}", "UTF-8"),
        (b'{"1": "\xed\xa0\x80"}', "UTF-8"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 100_000, "nested"),
        (b"[" * 200 + b"]" * 200, "nested"),
        (b"[1, 2]", "a list"),
        (b'"text"', "a string"),
        (b"null", "null"),
        (b'{"1": {"class_type": "A", "class_type": "B"}}', "class_type"),
        (b'{"1":{"class_type":"A","inputs":{"x":{"deep":[{"k":1,"k":2}]}}}}', "'k'"),
        (b'{"1": {"class_type": "A"}} trailing', ""),
    ],
)
def test_what_is_not_a_json_object(body: bytes, words: str) -> None:
    with pytest.raises(NotJson) as caught:
        parse_prompt(body)
    assert words in caught.value.message
    assert caught.value.http_status == 400
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    "body", [float("nan"), {"1": float("inf")}, {"1": b"bytes"}, object(), {"1": "\ud800"}]
)
def test_objects_that_no_json_could_give(body: object) -> None:
    with pytest.raises(EaselError):
        parse_prompt(body)


def test_escaped_quotes_and_colons_are_no_keys() -> None:
    text = 'say "a": 1, \\ "b" :\n{"c": 2} \\\\": é'
    parsed = parse_prompt(json.dumps({"1": {"class_type": "A", "inputs": {text[:9]: text}}}))
    assert parsed.prompt["1"]["inputs"] == {text[:9]: text}


@pytest.mark.parametrize(
    "body",
    [
        {"nodes": [{"id": 1, "type": "SaveImage"}], "links": [], "version": 0.4},
        {"prompt": {"nodes": [], "links": []}},
        {"workflow": {"nodes": [], "links": []}},
    ],
)
def test_ui_format_says_how_to_export(body: Any) -> None:
    with pytest.raises(UiFormatWorkflow) as caught:
        parse_prompt(body)
    assert "Export (API)" in str(caught.value.hint)
    assert caught.value.to_json()["code"] == "ui_format_workflow"


@pytest.mark.parametrize(
    ("body", "node"),
    [
        ({}, None),
        ({"prompt": {}}, None),
        ({"prompt": None}, None),
        ({"prompt": [1, 2]}, None),
        ({"prompt": {"1": NODE}, "extra_data": []}, None),
        ({"prompt": {"1": NODE}, "output_base64": 1}, None),
        ({"prompt": {"1": NODE}, "2": NODE}, "'2'"),
        ({"1": "x"}, "1"),
        ({"1": {"inputs": {}}}, "1"),
        ({"1": {"class_type": 5}}, "1"),
        ({"1": {"class_type": ""}}, "1"),
        ({"1": {"class_type": "A", "inputs": []}}, "1"),
        ({"1": {"class_type": "A", "inputs": "x"}}, "1"),
        ({"a\0b": NODE}, "'a\\x00b'"),
        ({"a\nb": NODE}, "'a\\nb'"),
        ({"x" * 300: NODE}, ascii("x" * 57 + "…")),
        ({"1": {"class_type": "A\r\n", "inputs": {}}}, "1"),
        ({"1": {"class_type": "A", "inputs": {"a\nb": 1}}}, "1"),
    ],
)
def test_what_is_no_prompt(body: Any, node: str | None) -> None:
    with pytest.raises(InvalidPrompt) as caught:
        parse_prompt(body)
    assert caught.value.node_id == node
    assert set(caught.value.error) == {"type", "message", "details", "extra_info"}


@pytest.mark.parametrize(
    "value", [[], [1], ["1"], ["1", 0, 2], [1, 0], ["1", "0"], ["1", 0.5], ["1", True], [["1", 0]]]
)
def test_a_list_where_a_link_belongs(value: list[Any]) -> None:
    with pytest.raises(InvalidPrompt) as caught:
        parse_prompt({"7": {"class_type": "SaveImage", "inputs": {"images": value}}})
    error = caught.value
    assert (error.node_id, error.node_type, error.input_name) == ("7", "SaveImage", "images")
    detail = error.node_errors["7"]["errors"][0]
    assert detail["type"] == "bad_linked_input"
    assert detail["extra_info"]["input_name"] == "images"
    assert error.to_json()["node_errors"]["7"]["class_type"] == "SaveImage"


def test_missing_class_type_reads_as_comfyui_writes_it() -> None:
    recorded = json.loads((FIXTURES / "scenarios" / "d_validation.json").read_text())
    bodies = {
        entry["response_json"]["error"]["message"]: entry
        for entry in recorded["http"]
        if "response_json" in entry and "error" in entry["response_json"]
    }
    entry = bodies["Cannot execute because a node is missing the class_type property."]
    with pytest.raises(InvalidPrompt) as caught:
        parse_prompt(entry["request_json"])
    assert caught.value.error == entry["response_json"]["error"]


def test_too_many_nodes() -> None:
    body = {str(number): NODE for number in range(10_000)}
    with pytest.raises(TooManyNodes) as caught:
        parse_prompt(body, max_nodes=5000)
    assert "10000" in caught.value.message
    assert len(parse_prompt(body, max_nodes=10_000).prompt) == 10_000


@given(json_values)
def test_arbitrary_json_never_raises_anything_else(value: Any) -> None:
    text = json.dumps(value)
    try:
        from_text = parse_prompt(text).prompt
    except EaselError as error:
        msgspec.json.encode(error.to_json())
        with pytest.raises(type(error)):
            parse_prompt(value)
    else:
        assert parse_prompt(value).prompt == from_text


@given(st.binary(max_size=60))
def test_arbitrary_bytes_never_raise_anything_else(body: bytes) -> None:
    with pytest.raises(EaselError):
        parse_prompt(body)


@given(prompts)
def test_canonical_form_is_a_fixed_point(prompt: Any) -> None:
    once = parse_prompt(prompt).prompt
    assert canonical_prompt(dict(once)) == once
    assert parse_prompt({"prompt": once}).prompt == once
    for node in once.values():
        assert {"class_type", "inputs"} <= node.keys() <= {"class_type", "inputs", "_meta"}
