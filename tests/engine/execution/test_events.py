"""What is said while a prompt runs, in which order, and to whom; lists."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.execution.bench import Bench, node

CHAIN = {
    "1": node("Number", value=4),
    "2": node("Add", a=["1", 0]),
    "3": node("Show", value=["2", 0]),
}


def test_a_prompt_from_start_to_end(bench: Bench) -> None:
    assert bench.events(CHAIN) == [
        "start",
        "cached",
        "state 1",
        "executing 1",
        "state 1!",
        "state 1! 2",
        "executing 2",
        "state 1! 2!",
        "state 1! 2! 3",
        "executing 3",
        "executed 3",
        "state 1! 2! 3!",
        "success",
        "executing",
    ]


def test_who_hears_what(bench: Bench) -> None:
    entry = bench.run({"1": node("Stepping", value=2), "2": node("Show", value=["1", 0])})
    assert {client for event, _, client in bench.sink.said if event != "status"} == {"me"}
    assert [data for event, data, _ in bench.sink.said if event == "status"] == [1, 1, 0]
    assert entry["prompt"][3] == {"client_id": "me"}
    bench.sink.said.clear()
    answer = bench.engine.submit(
        {"prompt": {"1": node("Stepping", value=3), "2": node("Show", value=["1", 0])}}
    )
    bench.sink.wait(lambda: ("status", 0, None) in bench.sink.said, "end")
    assert {event for event, _, _ in bench.sink.said} == {"status", "progress_state", "progress"}
    assert {client for _, _, client in bench.sink.said} == {None}
    assert bench.engine.history(answer["prompt_id"])[answer["prompt_id"]]["prompt"][3] == {}


def test_the_history_entry(bench: Bench) -> None:
    prompt_id = bench.submit(
        CHAIN, extra_data={"extra_pnginfo": {"a": 1}, "api_key_comfy_org": "k"}
    )
    entry = bench.ended(prompt_id)
    messages = entry["status"]["messages"]
    assert [kind for kind, _ in messages] == [
        "execution_start",
        "execution_cached",
        "execution_success",
    ]
    assert all(data["prompt_id"] == prompt_id for _, data in messages)
    assert all(isinstance(data["timestamp"], int) for _, data in messages)
    assert entry | {"status": {**entry["status"], "messages": []}} == {
        "prompt": [0, prompt_id, CHAIN, {"extra_pnginfo": {"a": 1}, "client_id": "me"}, ["3"]],
        "outputs": {"3": {"value": [4]}},
        "status": {"status_str": "success", "completed": True, "messages": []},
        "meta": {
            "3": {"node_id": "3", "display_node": "3", "parent_node": None, "real_node_id": "3"}
        },
    }


def test_steps(bench: Bench) -> None:
    prompt_id = bench.submit({"1": node("Stepping", value=2), "2": node("Show", value=["1", 0])})
    bench.ended(prompt_id)
    said = bench.sink.of(prompt_id)
    assert [data for event, data in said if event == "progress"] == [
        {"value": 1, "max": 2, "node": "1"},
        {"value": 2, "max": 2, "node": "1"},
    ]
    states = [data["nodes"]["1"] for event, data in said if event == "progress_state"]
    assert [(s["value"], s["max"], s["state"]) for s in states[:4]] == [
        (0.0, 1.0, "running"),
        (1, 2, "running"),
        (2, 2, "running"),
        (2, 2, "finished"),
    ]


def test_what_shows_something_soon_comes_first(bench: Bench) -> None:
    """Outputs, then what is one and two steps before one, whatever the ids."""
    prompt = {
        "far": node("Number", value=1),
        "mid": node("Add", a=["far", 0]),
        "near": node("Add", a=["mid", 0], b=1),
        "long": node("Show", value=["near", 0]),
        "b": node("Number", value=2),
        "short": node("Show", value=["b", 0]),
    }
    bench.run(prompt)
    assert bench.steering.runs == ["b", "short", "far", "mid", "near", "long"]


def test_only_what_the_targets_need_runs(bench: Bench) -> None:
    prompt = {**CHAIN, "4": node("Number", value=9), "5": node("Show", value=["4", 0])}
    entry = bench.run(prompt, partial_execution_targets=["5"])
    assert bench.steering.runs == ["4", "5"]
    assert entry["prompt"][4] == ["5"]
    assert entry["outputs"] == {"5": {"value": [9]}}


def test_twins_run_once(bench: Bench) -> None:
    """As in ComfyUI: the second of two nodes with the same inputs says that it was executed, and gives what the first gave."""
    prompt = {
        "1": node("Number", value=7),
        "2": node("Number", value=7),
        "3": node("Show", value=["1", 0]),
        "4": node("Show", value=["2", 0]),
    }
    events = bench.events(prompt)
    assert len(bench.steering.runs) == 2
    first, second = ("2", "1") if bench.steering.runs[0] == "2" else ("1", "2")
    assert [e for e in events if e.startswith("execut")] == [
        f"executing {first}",
        f"executing {'4' if first == '2' else '3'}",
        f"executed {'4' if first == '2' else '3'}",
        f"executed {second}",
        f"executed {'3' if first == '2' else '4'}",
        "executing",
    ]


LISTS: list[tuple[dict[str, Any], list[Any]]] = [
    ({"l": node("Many", value=3), "o": node("Show", value=["l", 0])}, [0, 1, 2]),
    (
        {
            "l": node("Many", value=3),
            "m": node("Many", value=2),
            "o": node("Show", value=["l", 0], other=["m", 0]),
        },
        [[0, 0], [1, 1], [2, 1]],
    ),
    (
        {
            "l": node("Many", value=3),
            "a": node("Add", a=["l", 0], b=10),
            "s": node("Sum", values=["a", 0]),
            "o": node("Show", value=["s", 0]),
        },
        [33],
    ),
    (
        {
            "l": node("Many", value=2),
            "m": node("Many", value=["l", 0]),
            "s": node("Sum", values=["m", 0]),
            "o": node("Show", value=["s", 0]),
        },
        [0],
    ),
    ({"s": node("Sum", values=5), "o": node("Show", value=["s", 0])}, [5]),
    (
        {"a": node("Any", value={"__value__": ["1", 0]}), "o": node("Show", value=["a", 0])},
        [["1", 0]],
    ),
    ({"a": node("Any", value={"__value__": 3}), "o": node("Show", value=["a", 0])}, [3]),
]


@pytest.mark.parametrize(("prompt", "shown"), LISTS)
def test_lists(bench: Bench, prompt: dict[str, Any], shown: list[Any]) -> None:
    assert bench.run(prompt)["outputs"] == {"o": {"value": shown}}


def test_how_long_a_prompt_took_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="easel.engine")
    bench.run(CHAIN)
    assert [m for m in caplog.messages if m.startswith("Prompt executed in ")] != []
