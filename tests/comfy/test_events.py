"""Every message the real ComfyUI was heard to send, and anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.comfy import events
from easel.comfy.events import (
    Executing,
    ExecutionFailure,
    NodeProgress,
    Preview,
    Progress,
    ProgressState,
    ProgressText,
    Status,
    Unknown,
    parse_binary,
    parse_text,
)
from tests.conftest import FIXTURES

SCENARIOS = sorted((FIXTURES / "scenarios").glob("*.json"))
KINDS = {
    "status": Status,
    "feature_flags": events.FeatureFlags,
    "execution_start": events.ExecutionStart,
    "execution_cached": events.ExecutionCached,
    "executing": Executing,
    "progress": Progress,
    "progress_state": ProgressState,
    "executed": events.Executed,
    "execution_success": events.ExecutionSuccess,
    "execution_error": ExecutionFailure,
    "execution_interrupted": events.ExecutionInterrupted,
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=12,
)
fields = st.sampled_from(
    [
        "prompt_id",
        "node",
        "nodes",
        "value",
        "max",
        "output",
        "status",
        "sid",
        "traceback",
        "node_id",
    ]
)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_recorded_message_is_understood(path: Any) -> None:
    clients = json.loads(path.read_text()).get("clients")
    for client in clients.values() if isinstance(clients, dict) else ():
        for message in client["messages"]:
            if message["dir"] != "server->client" or message["type"] != "text":
                continue
            kind, data = message["data"]["type"], message["data"]["data"]
            for raw in (json.dumps(message["data"]), json.dumps(message["data"]).encode()):
                event = parse_text(raw)
                assert type(event) is KINDS.get(kind, Unknown)
                assert event.prompt_id == data.get("prompt_id")
            if isinstance(event, Unknown):
                assert (event.kind, event.data) == (kind, data)
            if isinstance(event, Progress | Executing):
                assert event.node == data["node"]
            if isinstance(event, ProgressState):
                assert event.nodes == {
                    key: NodeProgress(
                        node["value"],
                        node["max"],
                        node["state"],
                        node["display_node_id"],
                        node["parent_node_id"],
                        node["real_node_id"],
                    )
                    for key, node in data["nodes"].items()
                }
            if isinstance(event, ExecutionFailure):
                assert event.exception_type == data["exception_type"]
                assert list(event.traceback) == data["traceback"]


@pytest.mark.parametrize("path", sorted((FIXTURES / "binary").glob("*.bin")), ids=lambda p: p.stem)
def test_every_recorded_frame_is_understood(path: Any) -> None:
    frame = path.read_bytes()
    event = parse_binary(frame)
    if path.stem.startswith("o_"):
        assert event == ProgressText(None, "2", "héllo")
        return
    assert isinstance(event, Preview)
    picture = b"\x89PNG" if event.image_type == "image/png" else b"\xff\xd8"
    assert event.data.startswith(picture)
    with_metadata = frame[3] == 4
    assert (event.node_id is not None) == with_metadata
    assert (event.prompt_id is not None) == with_metadata


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_any_text_is_an_event(message: bytes | str) -> None:
    event = parse_text(message)
    assert isinstance(event, events.Message)


@given(st.binary(max_size=300))
def test_any_frame_is_an_event(frame: bytes) -> None:
    for kind in range(6):
        assert isinstance(parse_binary(bytes([0, 0, 0, kind]) + frame), events.Message)
    assert isinstance(parse_binary(frame), events.Message)


@given(
    st.sampled_from([*KINDS, "custom"]) | json_values,
    json_values | st.dictionaries(fields, json_values),
    st.booleans(),
)
def test_any_shape_is_an_event(kind: Any, data: Any, compact: bool) -> None:
    separators = (",", ":") if compact else (", ", ": ")
    raw = json.dumps({"type": kind, "data": data}, separators=separators)
    event = parse_text(raw)
    known = KINDS.get(kind, Unknown) if isinstance(kind, str) else Unknown
    assert isinstance(event, (known, Unknown))
    if isinstance(event, ProgressState):
        assert all(isinstance(node, NodeProgress) for node in event.nodes.values())
    if isinstance(event, Progress):
        assert event.value - event.value == 0  # finite
        assert event.max - event.max == 0


@given(
    st.dictionaries(
        st.text(max_size=8), json_values | st.fixed_dictionaries({"value": json_values})
    )
)
def test_odd_nodes_in_a_progress_state_hide_no_others(odd: dict[str, Any]) -> None:
    good = {"value": 1, "max": 3, "state": "running", "node_id": "7"}
    raw = json.dumps(
        {"type": "progress_state", "data": {"prompt_id": "p", "nodes": {**odd, "7": good}}}
    )
    event = parse_text(raw)
    assert isinstance(event, ProgressState)
    assert event.prompt_id == "p"
    assert event.nodes["7"] == NodeProgress(1, 3, "running")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ('{"type":"executing","data":{"node":3,"prompt_id":"p"}}', Executing("p", "3")),
        ('{"data":{"node":"3"},"type":"executing"}', Executing(None, "3")),
        (
            '{"type":"progress","data":{"node":3,"value":"1.5","max":4,"prompt_id":"p"}}',
            Progress("p", "3", 1.5, 4),
        ),
        (
            '{"type":"execution_cached","data":{"nodes":[1,"2"],"prompt_id":"p","timestamp":NaN}}',
            None,
        ),
        ('{"type":"progress","data":{"node":"3","value":1e999,"max":4}}', Unknown),
        ('{"type":"progress","data":{"node":"3","value":null,"max":4}}', Unknown),
        ("[" * 100_000, Unknown),
        ('{"type":"executing","data":' + "[" * 100_000, Unknown),
    ],
)
def test_odd_messages(message: str, expected: Any) -> None:
    event = parse_text(message)
    if expected is Unknown:
        assert isinstance(event, Unknown)
    elif expected is None:
        assert isinstance(event, events.ExecutionCached)
        assert event.nodes == ("1", "2")
    else:
        assert event == expected


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0\0\0\1",
        b"\0\0\0\1\0\0\0\3webp?",
        b"\0\0\0\4\xff\xff\xff\xff{}",
        b"\0\0\0\4\0\0\0\2[]x",
        b"\0\0\0\2\0\0\0\1x",
        b"\0\0\0\3\0\0\0\x09short",
    ],
)
def test_odd_frames_are_unknown(frame: bytes) -> None:
    event = parse_binary(frame)
    assert isinstance(event, Unknown)
    assert event.data == frame
