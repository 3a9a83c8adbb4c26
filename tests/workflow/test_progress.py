"""Progress by node and as a whole, whatever the engine says."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.workflow.progress import NodeProgress, ProgressTracker, ancestors, display_node
from tests.conftest import FIXTURES
from tests.workflow.strategies import prompts

CHAIN: Any = {
    "1": {"class_type": "Load", "inputs": {}},
    "2": {"class_type": "Sample", "inputs": {"x": ["1", 0], "y": ["1", 1]}},
    "3": {"class_type": "Save", "inputs": {"x": ["2", 0]}},
    "4": {"class_type": "Unused", "inputs": {"x": ["1", 0]}},
}


def test_a_run_from_start_to_success() -> None:
    tracker = ProgressTracker(CHAIN, ["3"])
    tracker.started(1000)
    tracker.cached([], 1000)
    assert (tracker.percent, tracker.current_node) == (0, None)
    tracker.executing("1", 1001)
    assert (tracker.percent, tracker.current_node) == (0, "1")
    tracker.executing("2", 1010)
    assert tracker.percent == pytest.approx(33.33)
    tracker.progress("2", 1, 4, 1020)
    assert tracker.percent == pytest.approx(100 * 1.25 / 3, abs=0.01)
    assert tracker.nodes["2"] == NodeProgress(max=4, value=1, start=1010, last_updated=1020)
    tracker.executing("3", 1030)
    assert tracker.nodes["2"] == NodeProgress(max=4, value=4, start=1010, last_updated=1030)
    tracker.executed("3", [{"filename": "a.png"}], 1040, results=["QQ=="])
    assert tracker.percent == 99.9
    tracker.executing(None, 1050)
    tracker.succeeded(1060)
    assert (tracker.percent, tracker.current_node, tracker.finished) == (100, None, True)
    assert tracker.nodes["3"].images == [{"filename": "a.png"}]
    assert tracker.nodes["3"].results == ["QQ=="]
    assert tracker.nodes["4"] == NodeProgress()


def test_cached_nodes_are_complete_and_what_only_they_need_does_not_count() -> None:
    tracker = ProgressTracker(CHAIN, ["3"])
    tracker.cached(["2", "elsewhere"], 5)
    assert tracker.nodes["2"] == NodeProgress(max=1, value=1, start=5, last_updated=5)
    assert tracker.percent == 50
    tracker.executing("3", 6)
    tracker.succeeded(7)
    assert tracker.nodes["1"] == NodeProgress()


def test_a_fully_cached_prompt() -> None:
    tracker = ProgressTracker(CHAIN, ["3"])
    tracker.cached(["1", "2", "3"], 5)
    tracker.executed("3", [{"filename": "a.png"}], 6)
    assert tracker.percent == 99.9
    tracker.succeeded(7)
    assert all(tracker.nodes[node].value == tracker.nodes[node].max == 1 for node in "123")


def test_a_failure_leaves_the_place_where_it_happened() -> None:
    tracker = ProgressTracker(CHAIN, ["3"])
    tracker.executing("1", 1)
    tracker.executing("2", 2)
    tracker.progress("2", 1, 2, 3)
    tracker.failed(4)
    assert tracker.current_node == "2"
    assert tracker.percent == 50
    assert tracker.finished
    tracker.executing(None, 5)
    assert (tracker.percent, tracker.current_node) == (50, "2")
    assert tracker.nodes["2"].value == 1


@pytest.mark.parametrize(
    ("value", "maximum", "shown"),
    [
        (3, 0, (0, 0)),
        (5, 4, (4, 4)),
        (-1, 4, (0, 4)),
        (0.5, 2.5, (0.5, 2.5)),
        (float("nan"), 4, (0, 4)),
        (1, float("inf"), (0, 0)),
        (10**400, 4, (0, 4)),
    ],
)
def test_odd_numbers(value: float, maximum: float, shown: tuple[float, float]) -> None:
    tracker = ProgressTracker(CHAIN, ["3"])
    tracker.progress("2", value, maximum, 1)
    assert (tracker.nodes["2"].value, tracker.nodes["2"].max) == shown


def test_a_node_that_goes_back_does_not_take_the_whole_back() -> None:
    tracker = ProgressTracker(CHAIN, ["3"])
    tracker.progress("2", 3, 4, 1)
    before = tracker.percent
    tracker.progress("2", 1, 4, 2)
    assert tracker.nodes["2"].value == 1
    assert tracker.percent == before


def test_expanded_nodes_belong_to_the_node_they_came_from() -> None:
    tracker = ProgressTracker(CHAIN, ["3"])
    tracker.executing("2", 1)
    tracker.executing("2.0.0.1", 2, display="2")
    tracker.progress("2.0.0.1", 4, 4, 3)
    tracker.executed("2.0.0.9", [{"filename": "a"}], 4)
    tracker.executed("2.0.0.9", [{"filename": "a"}], 4)
    assert tracker.current_node == "2"
    assert tracker.percent == 0
    assert tracker.nodes["2"].images == [{"filename": "a"}]
    tracker.progress("nowhere", 1, 2, 5)
    tracker.executing("nowhere", 5)
    tracker.executed("nowhere", [], 5)
    tracker.completed("nowhere", 5)
    assert tracker.current_node == "2"
    assert list(tracker.nodes) == list(CHAIN)


def test_display_node() -> None:
    known = dict.fromkeys(["3", "3:1", "a.b"])
    assert display_node("3:1", known) == "3:1"
    assert display_node("3:1.0.0.4", known) == "3:1"
    assert display_node("3:7:2", known) == "3"
    assert display_node("a.b.0", known) == "a.b"
    assert display_node("9.0.0.1", known) is None


def test_without_outputs_every_node_counts() -> None:
    tracker = ProgressTracker(CHAIN)
    tracker.completed("4", 1)
    assert tracker.percent == 25


def test_cycles_and_links_to_nowhere_do_no_harm() -> None:
    prompt: Any = {
        "1": {"class_type": "A", "inputs": {"x": ["2", 0], "y": ["9", 0]}},
        "2": {"class_type": "A", "inputs": {"x": ["1", 0]}},
    }
    assert ancestors(prompt, ["2", "8"]) == ["1", "2"]


def test_snapshots_are_json() -> None:
    tracker = ProgressTracker(CHAIN)
    tracker.progress("2", 1, 2, 3)
    assert json.loads(msgspec.json.encode(tracker.nodes))["2"] == {
        "max": 2,
        "value": 1,
        "start": 3,
        "last_updated": 3,
        "images": [],
        "results": [],
    }


def apply(tracker: ProgressTracker, kind: str, data: dict[str, Any], now: int) -> None:
    if kind == "execution_start":
        tracker.started(now)
    elif kind == "execution_cached":
        tracker.cached(data["nodes"], now)
    elif kind == "executing":
        tracker.executing(data["node"], now, data.get("display_node"))
    elif kind == "progress":
        tracker.progress(data["node"], data["value"], data["max"], now)
    elif kind == "executed":
        tracker.executed(data["node"], [data["output"]], now, display=data["display_node"])
    elif kind == "execution_success":
        tracker.succeeded(now)
    elif kind in {"execution_error", "execution_interrupted"}:
        tracker.failed(now)


@pytest.mark.parametrize(
    "name",
    ["a_model_free", "b_sd_txt2img", "c_cached", "c3_partly_cached", "e_execution_error"],
)
def test_recorded_event_streams(name: str) -> None:
    recorded = json.loads((FIXTURES / "scenarios" / f"{name}.json").read_text())
    posts = [
        entry
        for entry in recorded["http"]
        if entry["path"] == "/prompt" and entry["method"] == "POST" and entry["status"] == 200
    ]
    seen = 0
    for post in posts:
        prompt_id = post["response_json"]["prompt_id"]
        prompt = post["request_json"]["prompt"]
        tracker = ProgressTracker(prompt)
        percents = [0.0]
        for client in recorded["clients"].values():
            for message in client["messages"]:
                text = message["data"] if message["type"] == "text" else {}
                if text.get("data", {}).get("prompt_id") == prompt_id:
                    apply(tracker, text["type"], text["data"], seen)
                    percents.append(tracker.percent)
                    seen += 1
        assert percents == sorted(percents)
        if tracker.finished and name != "e_execution_error":
            assert tracker.percent == 100
            assert all(node.value == node.max for node in tracker.nodes.values())
    assert seen


numbers = st.one_of(st.integers(), st.floats(), st.just(0))


@st.composite
def events(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    ids = st.sampled_from(["0", "1", "2", "0.0.0.1", "1:2", "zz", "9"])
    return draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("started")),
                st.tuples(st.just("cached"), st.lists(ids, max_size=3)),
                st.tuples(st.just("executing"), ids | st.none()),
                st.tuples(st.just("progress"), ids, numbers, numbers),
                st.tuples(st.just("completed"), ids),
                st.tuples(st.just("executed"), ids, st.just([{"kind": "text"}])),
                st.tuples(st.just("failed")),
            ),
            max_size=25,
        )
    )


@given(prompts, st.booleans(), events())
def test_percent_is_monotone_and_100_is_success(
    prompt: Any, with_outputs: bool, calls: list[tuple[Any, ...]]
) -> None:
    tracker = ProgressTracker(prompt, list(prompt)[-1:] if with_outputs else None)
    last = 0.0
    for now, (name, *arguments) in enumerate(calls):
        getattr(tracker, name)(*arguments, now)
        assert last <= tracker.percent < 100
        last = tracker.percent
        assert tracker.current_node is None or tracker.current_node in prompt
        for node in tracker.nodes.values():
            assert math.isfinite(node.max)
            assert 0 <= node.value <= node.max
    assert set(tracker.nodes) == set(prompt)
    tracker.succeeded(100)
    assert tracker.percent == 100
    msgspec.json.encode(tracker.nodes)
