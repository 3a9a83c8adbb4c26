"""Asynchronous nodes: side by side, one end at a time."""

from __future__ import annotations

import gc

import pytest

from tests.engine.execution.bench import RAISED, Bench, error_of, node

TWO = {
    "1": node("Async", name="a"),
    "2": node("Async", name="b"),
    "3": node("Show", value=["1", 0]),
    "4": node("Show", value=["2", 0], other=2),
}


def test_two_run_at_the_same_time(bench: Bench) -> None:
    prompt_id = bench.submit(TWO)
    bench.began("a")
    bench.began("b")
    bench.steering.go["a"].set()
    bench.sink.wait(lambda: any(e == "executed" for e, _ in bench.sink.of(prompt_id)), "executed")
    assert bench.steering.runs == ["3"]
    bench.steering.go["b"].set()
    assert set(bench.ended(prompt_id)["outputs"]) == {"3", "4"}


def test_each_is_followed_by_what_it_makes_ready(bench: Bench) -> None:
    """Recorded in o2: both have ended, and yet one after the other is told."""
    bench.steering.go["a"].set()
    bench.steering.go["b"].set()
    events = bench.events(TWO)
    told = [e for e in events if e.startswith("executing ")]
    first, second = told[0][-1], told[1][-1]
    follower = {"1": "3", "2": "4"}
    assert {first, second} == {"1", "2"}
    assert events[events.index(f"executing {second}") + 1 :] == [
        f"state {first}! {second}",
        f"state {first}! {second} {follower[first]}",
        f"executing {follower[first]}",
        f"executed {follower[first]}",
        f"state {first}! {second} {follower[first]}!",
        f"state {first}! {second}! {follower[first]}!",
        f"state {first}! {second}! {follower[first]}! {follower[second]}",
        f"executing {follower[second]}",
        f"executed {follower[second]}",
        f"state {first}! {second}! {follower[first]}! {follower[second]}!",
        "success",
        "executing",
    ]


def test_other_nodes_run_meanwhile(bench: Bench) -> None:
    prompt_id = bench.submit(
        {**TWO, "5": node("Number", value=1), "6": node("Show", value=["5", 0])}
    )
    bench.sink.wait(lambda: "6" in bench.steering.runs, "node 6")
    bench.steering.go.open_all()
    bench.began("a")
    bench.began("b")
    bench.steering.go["a"].set()
    bench.steering.go["b"].set()
    assert bench.ended(prompt_id)["status"]["completed"]


def test_the_calls_of_a_list_run_at_the_same_time(bench: Bench) -> None:
    prompt_id = bench.submit(
        {
            "l": node("Many", value=3),
            "n": node("Any", value=["l", 0]),
            "a": node("Async", name=["n", 0]),
            "s": node("Sum", values=["a", 0]),
            "o": node("Show", value=["s", 0]),
        }
    )
    for call in (0, 1, 2):
        bench.began(call)
    for call in (2, 0, 1):
        bench.steering.go[call].set()
    assert bench.ended(prompt_id)["outputs"] == {"o": {"value": [3]}}


@pytest.mark.parametrize("kind", list(RAISED))
@pytest.mark.parametrize("node_class", ["FailAsync", "FailTask"])
def test_whatever_a_coroutine_raises(bench: Bench, kind: str, node_class: str) -> None:
    prompt = {
        "1": node(node_class, kind=kind),
        "2": node("Async", name="never"),
        "3": node("Show", value=["1", 0], other=["2", 0]),
    }
    error = error_of(bench.run(prompt))
    assert error["node_id"] in {"1", "2"} if node_class == "FailTask" else error["node_id"] == "1"
    bench.still_works()


def test_one_that_will_not_be_cancelled_holds_nobody_up_for_long(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easel.engine.coroutines.END_SECONDS", 0.05)
    prompt = {"1": node("Stubborn", name="s"), "2": node("Show", value=["1", 0])}
    prompt_id = bench.submit(prompt)
    bench.began("s")
    bench.engine.interrupt()
    assert bench.ended(prompt_id)["status"]["messages"][-1][0] == "execution_interrupted"
    bench.still_works()
    gc.collect()
    assert bench.steering.go["s is gone"].is_set()  # with its loop, while it still wanted to go on
    bench.steering.go["a"].set()
    again = {"1": node("Async", name="a"), "2": node("Show", value=["1", 0])}
    assert bench.run(again)["status"]["completed"]
