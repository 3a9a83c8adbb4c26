"""Task records for the tests, made by hand and by hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from easel.agent.record import TaskRecord, TaskRequest
from easel.workflow.progress import NodeProgress


def record(task_id: str, **fields: Any) -> TaskRecord:
    """Return a small queued record."""
    return TaskRecord(
        **{
            "id": task_id,
            "signature": "abc",
            "owner": "agent-1",
            "created": 1_700_000_000_000,
            **fields,
        }
    )


any_text = st.text(st.characters(exclude_categories=()), max_size=30)
"""Text with everything Python allows in it: NUL, emoji, lone surrogates."""

tricky = [
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\x00b",
    "CON",
    "nul.txt",
    "x" * 10_000,
]
alike = [
    "é",
    "e\u0301",
    "ß",
    "SS",
    "ſ",
    "\u212a",
    "K",
    "k",
    "a ",
    "a",
    "A",
    "\U0001f600",
    "%s",
    "'; --",
]
ids = st.text(max_size=200) | st.sampled_from(tricky + alike)
"""Ids that are valid Unicode, with those that file systems and databases confuse."""

finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(any_text, json_values, max_size=3)
times = st.integers(0, 2**53)

nodes = st.builds(
    NodeProgress,
    max=st.floats(allow_nan=False),
    value=st.floats(allow_nan=False),
    start=times,
    last_updated=times,
    images=st.lists(json_objects, max_size=2),
    results=st.lists(any_text, max_size=2),
)

records = st.builds(
    TaskRecord,
    id=ids,
    signature=any_text,
    owner=st.text(max_size=200),
    state=st.sampled_from(["queued", "running", "succeeded", "failed", "cancelled"]),
    created=times,
    started=st.none() | times,
    ended=st.none() | times,
    attempt=st.integers(0, 1000),
    prompt_id=st.none() | any_text,
    percent=st.floats(allow_nan=False),
    current_node=st.none() | any_text,
    nodes=st.dictionaries(any_text, nodes, max_size=2),
    seeds=st.dictionaries(any_text, st.integers(0, 2**64 - 1), max_size=2),
    node_errors=json_objects,
    error=st.none() | json_objects,
    request=st.none()
    | st.builds(
        TaskRequest,
        prompt=st.dictionaries(
            any_text,
            st.fixed_dictionaries({"class_type": any_text, "inputs": json_objects}),
            max_size=2,
        ),
        output_base64=st.booleans(),
    ),
)
"""Records with every field filled."""
