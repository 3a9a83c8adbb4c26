"""The line and the history: order, ids, numbers, limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from easel.engine.engine import PromptRefused
from tests.engine.execution.bench import Bench, node


def shows(value: Any) -> dict[str, Any]:
    return {"1": node("Show", value=value)}


def held(bench: Bench, name: str = "g") -> str:
    """Keep the engine busy until ``go[name]`` is set."""
    prompt_id = bench.submit({"1": node("Gate", name=name), "2": node("Show", value=["1", 0])})
    bench.began(name)
    return prompt_id


def pending(bench: Bench) -> list[str]:
    return [item[1] for item in bench.engine.queue()["queue_pending"]]


def refusal(bench: Bench, **body: Any) -> str:
    with pytest.raises(PromptRefused) as refused:
        bench.submit(body.pop("prompt", shows(1)), **body)
    assert set(refused.value.error) == {"type", "message", "details", "extra_info"}
    kind: str = refused.value.error["type"]
    return kind


def test_order_of_numbers(bench: Bench) -> None:
    running = held(bench)
    bench.submit(shows(1), prompt_id="first")
    bench.submit(shows(2), prompt_id="second")
    bench.submit(shows(3), prompt_id="front", front=True)
    bench.submit(shows(4), prompt_id="given", number=-1000)
    bench.submit(shows(5), prompt_id="equal", number="1.0")
    bench.submit(shows(6), prompt_id="last", number=1e9)
    order = ["given", "front", "first", "equal", "second", "last"]
    assert pending(bench) == order
    assert [item[1] for item in bench.engine.queue()["queue_running"]] == [running]
    assert bench.engine.remaining == 7
    bench.steering.go["g"].set()
    bench.ended("last")
    assert list(bench.engine.history()) == [running, *order]
    told = [data for event, data, _ in bench.sink.said if event == "status"]
    assert told == [1, 1, 2, 3, 4, 5, 6, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0]
    assert bench.engine.queue() == {"queue_running": [], "queue_pending": []}


def test_numbers_count_only_prompts_without_one(bench: Bench) -> None:
    def number(**body: Any) -> float:
        found: float = bench.engine.submit({"prompt": shows(1), **body})["number"]
        return found

    assert [number(), number(number=50), number(), number(front=True), number()] == [
        0,
        50,
        1,
        -2,
        3,
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"number": "nan"},
        {"number": math.inf},
        {"number": "x"},
        {"number": [1]},
        {"number": 10**400},
        {"prompt_id": [1]},
        {"prompt_id": {}},
        {"client_id": ["a"]},
        {"client_id": {}},
        {"client_id": 3},
        {"extra_data": None},
        {"extra_data": [1]},
        {"extra_data": {"client_id": [1]}, "client_id": ["x"]},
        {"partial_execution_targets": 3},
        {"partial_execution_targets": [{}]},
    ],
)
def test_odd_requests_are_refused(bench: Bench, body: dict[str, Any]) -> None:
    assert refusal(bench, **body) == "invalid_request"
    assert bench.engine.remaining == 0
    bench.still_works()


@pytest.mark.parametrize("body", [None, [], "x", {}, {"promp": {}}])
def test_no_prompt(bench: Bench, body: object) -> None:
    with pytest.raises(PromptRefused) as refused:
        bench.engine.submit(body)
    assert refused.value.error["type"] == "no_prompt"


def test_what_is_nested_too_deeply_to_be_shown_is_refused(bench: Bench) -> None:
    deep: Any = 1
    for _ in range(950):
        deep = {"a": deep}
    assert refusal(bench, prompt=shows(deep)) == "invalid_request"
    assert refusal(bench, extra_data={"extra_pnginfo": deep}) == "invalid_request"
    bench.still_works()


def test_an_id_is_taken_while_it_waits_or_runs(bench: Bench) -> None:
    running = held(bench)
    bench.submit(shows(1), prompt_id="mine")
    assert refusal(bench, prompt_id="mine") == "duplicate_prompt_id"
    assert refusal(bench, prompt_id=running) == "duplicate_prompt_id"
    assert pending(bench) == ["mine"]
    bench.steering.go["g"].set()
    bench.ended("mine")
    bench.sink.said.clear()
    bench.run(shows(2), prompt_id="mine")
    assert bench.engine.history("mine")["mine"]["outputs"] == {"1": {"value": [2]}}
    assert list(bench.engine.history()) == [running, "mine"]


def test_ids_as_they_are_given(bench: Bench) -> None:
    for given, kept in (("a/b ", "a/b "), (5, "5"), ("{'a': 1}", "{'a': 1}")):
        assert bench.submit(shows(1), prompt_id=given) == kept
    assert len(bench.submit(shows(1), prompt_id="")) == 36
    assert len(bench.submit(shows(1), prompt_id=None)) == 36


def test_waiting_prompts_are_removed_and_the_running_one_is_not(bench: Bench) -> None:
    running = held(bench)
    for name in ("a", "b", "c"):
        bench.submit(shows(name), prompt_id=name)
    bench.engine.delete_pending(["b", running, "unknown"])
    assert pending(bench) == ["a", "c"]
    bench.submit(shows("b"), prompt_id="b")
    bench.engine.clear_pending()
    assert pending(bench) == []
    bench.steering.go["g"].set()
    assert bench.ended(running)["status"]["completed"]
    assert list(bench.engine.history()) == [running]


def test_the_order_holds_when_some_are_removed(bench: Bench) -> None:
    running = held(bench)
    for number in (1, 5, 2, 6, 7, 3, 4):
        bench.submit(shows(number), prompt_id=str(number), number=number)
    bench.engine.delete_pending(["1", "5"])
    assert pending(bench) == ["2", "3", "4", "6", "7"]
    bench.steering.go["g"].set()
    bench.ended("7")
    assert list(bench.engine.history()) == [running, "2", "3", "4", "6", "7"]


def test_which_node_runs_for_whom(bench: Bench) -> None:
    prompt_id = held(bench)
    assert bench.engine.running_node("me") == "1"
    assert bench.engine.running_node("other") is None
    bench.steering.go["g"].set()
    bench.ended(prompt_id)
    assert bench.engine.running_node("me") is None


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "abcde"),
        ({"max_items": 2}, "de"),
        ({"max_items": 9}, "abcde"),
        ({"max_items": 0}, ""),
        ({"max_items": 2, "offset": 1}, "bc"),
        ({"offset": 3}, "de"),
        ({"offset": 9}, ""),
        ({"max_items": -3}, ""),
        ({"max_items": 2, "offset": -7}, "de"),
    ],
)
def test_pages_of_the_history(bench: Bench, options: dict[str, int], found: str) -> None:
    for name in "abcde":
        bench.run(shows(name), prompt_id=name)
    assert list(bench.engine.history(**options)) == list(found)  # type: ignore[arg-type]


def test_the_history_forgets(start: Callable[..., Bench]) -> None:
    bench = start(history_limit=3)
    for name in "abcd":
        bench.run(shows(name), prompt_id=name)
    assert list(bench.engine.history()) == ["b", "c", "d"]
    assert bench.engine.history("a") == {}
    bench.engine.delete_history(["c", "unknown"])
    assert list(bench.engine.history()) == ["b", "d"]
    bench.engine.clear_history()
    assert bench.engine.history() == {}
