"""Bodies that must not reach a ComfyUI (comfyui.md §5.10), and those that may."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.errors import EaselError, InvalidPrompt
from easel.workflow.native import check_native_body

NODE = {"class_type": "EmptyImage", "inputs": {}}
PROMPT = {"1": NODE}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": PROMPT, "client_id": ["a"]},
        {"prompt": PROMPT, "client_id": {}},
        {"prompt": PROMPT, "client_id": 3},
        {"prompt": PROMPT, "extra_data": None},
        {"prompt": PROMPT, "extra_data": []},
        {"prompt": PROMPT, "prompt_id": ["x"]},
        {"prompt": PROMPT, "number": "nan"},
        {"prompt": PROMPT, "number": []},
        {"prompt": [1]},
        {"prompt": {"1": NODE, "2": {"class_type": "EmptyImage"}}},
        {"prompt": {"1": NODE, "2": {"class_type": "EmptyImage", "inputs": []}}},
        {"prompt": {"1": NODE, "2": {"class_type": ["x"], "inputs": {}}}},
        [],
        None,
    ],
)
def test_refused(body: Any) -> None:
    with pytest.raises(EaselError) as caught:
        check_native_body(json.dumps(body).encode())
    assert caught.value.http_status == 400


def test_the_node_is_named() -> None:
    body = {"prompt": {"1": NODE, "7": {"class_type": "EmptyImage", "inputs": None}}}
    with pytest.raises(InvalidPrompt) as caught:
        check_native_body(json.dumps(body).encode())
    assert (caught.value.node_id, caught.value.node_type) == ("7", "EmptyImage")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"client_id": "a"},
        {"prompt": {}},
        {"prompt": {"1": "x"}},
        {"prompt": {"1": {"inputs": {}}}},
        {"prompt": PROMPT, "client_id": "a", "extra_data": {"x": 1}, "number": -3, "front": True},
        {"prompt": PROMPT, "client_id": None, "prompt_id": "", "number": "4"},
    ],
)
def test_left_to_comfyui(body: Any) -> None:
    check_native_body(json.dumps(body).encode())


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    try:
        check_native_body(body)
    except EaselError as error:
        assert error.http_status == 400  # noqa: PT017 - it may also pass
