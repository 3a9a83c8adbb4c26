"""Results to which PostgreSQL appends what changes them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.errors import StoreFailed
from easel.tasks import codec
from easel.tasks.model import Ending, NewTask, Progress, TaskBody
from easel.workflow.progress import NodeProgress
from tests.tasks.test_codec import ROW, anything, json, nodes


@given(
    seeds=st.dictionaries(st.just("3.seed"), st.integers(0, 2**64 - 1)),
    first=nodes,
    second=nodes,
    node_errors=st.dictionaries(anything, json, max_size=2),
    error=st.none() | st.dictionaries(anything, json, max_size=2),
)
def test_joined_it_is_what_would_have_been_merged(
    seeds: dict[str, int],
    first: dict[str, NodeProgress],
    second: dict[str, NodeProgress],
    node_errors: dict[str, Any],
    error: dict[str, Any] | None,
) -> None:
    new = NewTask(service="", owner="", id="", signature="", body=TaskBody(prompt={}), seeds=seeds)
    merged = codec.first_result(new)
    lines = [] if merged is None else [merged]
    for said in (
        Progress(percent=1, current_node=None, nodes=first),
        Ending(state="failed", ended=5, nodes=second, node_errors=node_errors, error=error),
    ):
        change = codec.ResultChange.of(said)
        if change:
            merged = change.applied(merged)
            lines.append(change.applied(None))
    if merged is not None:
        joined = codec.joined(b"\n".join(lines))
        assert b"\n" not in joined
        for whole in (True, False):
            assert codec.read_task(ROW, joined, nodes=whole) == codec.read_task(
                ROW, merged, nodes=whole
            )


@pytest.mark.parametrize("stored", [b"{}\n", b"\n{}", b'{}\n{"nodes": 5}', b"{\n}"])
def test_what_is_damaged_is_said(stored: bytes) -> None:
    with pytest.raises(StoreFailed, match="cannot be read"):
        codec.joined(stored)
