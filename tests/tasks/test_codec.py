from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from easel.errors import StoreFailed
from easel.tasks import codec
from easel.tasks.model import Ending, NewTask, Progress, TaskBody
from easel.workflow.progress import NodeProgress

anything = st.text(st.characters(), max_size=20) | st.sampled_from(['"', '"a"', "\ud800", "\x00"])
json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=10,
)
nodes = st.dictionaries(
    anything,
    st.builds(
        NodeProgress,
        max=st.floats(0, 1e9),
        value=st.floats(0, 1e9),
        start=st.integers(0, 2**48),
        images=st.lists(st.dictionaries(anything, json, max_size=2), max_size=2),
        results=st.lists(anything, max_size=2),
    ),
    max_size=4,
)
ROW: tuple[Any, ...] = (
    "0" * 32,
    "service",
    "owner",
    "id",
    "sig",
    "running",
    0,
    "{}",
    5,
    6,
    None,
    None,
    1,
    "i1",
    0,
    0,
    2.5,
    None,
    3,
)


def test_a_row_has_a_place_for_every_column() -> None:
    task = codec.read_task(ROW)
    for name, value in zip(codec.COLUMNS, ROW, strict=True):
        assert getattr(task, name) == ({} if name == "tags" else value)


@given(one=anything, two=anything)
def test_strings_in_columns_come_back_and_differ(one: str, two: str) -> None:
    assert codec.from_column(codec.to_column(one)) == one
    assert (codec.to_column(one) == codec.to_column(two)) == (one == two)
    codec.to_column(one).encode()
    assert "\x00" not in codec.to_column(one)


@given(inputs=st.dictionaries(anything, json, max_size=4), outputs=st.none() | st.just(["1"]))
def test_bodies_come_back(inputs: dict[str, Any], outputs: list[str] | None) -> None:
    body = TaskBody(
        prompt={"1": {"class_type": "X", "inputs": inputs}}, extra_data=inputs, outputs=outputs
    )
    assert codec.read_body(codec.encode(body)) == body


@given(
    seeds=st.dictionaries(st.just("3.seed"), st.integers(0, 2**64 - 1)),
    first=nodes,
    second=nodes,
    node_errors=st.dictionaries(anything, json, max_size=2),
    error=st.none() | st.dictionaries(anything, json, max_size=2),
)
def test_results_merge_node_by_node(
    seeds: dict[str, int],
    first: dict[str, NodeProgress],
    second: dict[str, NodeProgress],
    node_errors: dict[str, Any],
    error: dict[str, Any] | None,
) -> None:
    new = NewTask(service="", owner="", id="", signature="", body=TaskBody(prompt={}), seeds=seeds)
    stored = codec.first_result(new)
    snapshot = Progress(percent=1, current_node=None, nodes=first)
    ending = Ending(state="failed", ended=5, nodes=second, node_errors=node_errors, error=error)
    for said in (snapshot, ending):
        change = codec.ResultChange.of(said)
        if change:
            stored = change.applied(stored)
    task = codec.read_task(ROW, stored)
    assert task.seeds == seeds
    assert task.nodes == {**first, **second}
    assert task.node_errors == node_errors
    assert task.error == error
    brief = codec.read_task(ROW, stored, nodes=False)
    assert brief.nodes == {}
    assert (brief.seeds, brief.error) == (seeds, error)
    again = codec.read_task(ROW, codec.restarted_result(stored))
    assert (again.seeds, again.nodes, again.error) == (seeds, {}, None)


def test_tasks_do_not_share_their_parts() -> None:
    one, two = codec.read_task(ROW), codec.read_task(ROW)
    one.nodes["3"] = NodeProgress()
    one.seeds["3.seed"] = 1
    one.tags["a"] = "b"
    assert (two.nodes, two.seeds, two.tags) == ({}, {}, {})


@given(tags=st.dictionaries(anything, anything, max_size=3))
def test_tags_come_back_as_text_that_every_database_takes(tags: dict[str, str]) -> None:
    text = codec.encode_text(tags)
    text.encode()
    assert "\x00" not in text
    assert codec.read_task((*ROW[:7], text, *ROW[8:])).tags == tags


@pytest.mark.parametrize(
    "stored", [b"", b"{", b"[]", b'{"nodes": 5}', b'{"nodes":{"3":7}}', b"\xff"]
)
def test_what_is_damaged_is_said(stored: bytes) -> None:
    with pytest.raises(StoreFailed, match="cannot be read"):
        codec.read_task(ROW, stored)


@pytest.mark.parametrize("stored", [b"", b"{", b"[]", b'{"nodes": 5}', b"\xff"])
def test_what_is_damaged_is_not_merged_into(stored: bytes) -> None:
    with pytest.raises(StoreFailed, match="cannot be read"):
        codec.ResultChange({"3": NodeProgress()}).applied(stored)


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(StoreFailed, match="cannot be stored"):
        codec.encode(TaskBody(prompt={}, extra_data={"x": object()}))
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(StoreFailed, match="cannot be stored"):
        codec.encode(TaskBody(prompt={}, extra_data={"x": loop}))


@pytest.mark.parametrize(("value", "stored"), [(5, 5.0), (math.nan, 0.0), (math.inf, 0.0)])
def test_percentages_fit_a_column(value: float, stored: float) -> None:
    assert codec.percent_of(value) == stored


@given(
    own=st.tuples(st.integers(-5, 5), st.integers(0, 9)),
    head=st.none() | st.tuples(st.integers(-5, 5), st.integers(0, 9)),
)
def test_the_turn_before_the_head_is_the_nearest_to_its_own(
    own: tuple[int, int], head: tuple[int, int] | None
) -> None:
    assume(head is None or head[1] != own[1])  # each task has a number of its own
    turn = codec.turn_before(*own, head)
    if head is None:
        assert turn == own[0]
    else:
        assert (turn, own[1]) < head
        assert turn <= own[0]
        assert turn == own[0] or (turn + 1, own[1]) > head


def test_uids_and_leases() -> None:
    uids = [codec.new_uid(now) for now in (1, 2, 2**47)]
    assert uids == sorted(uids)
    assert all(len(uid) == 32 and int(uid, 16) > 0 for uid in uids)
    assert (
        len({codec.new_uid(5) for _ in range(100)} | {codec.new_lease() for _ in range(100)}) == 200
    )
