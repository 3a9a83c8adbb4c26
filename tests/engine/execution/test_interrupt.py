"""Interrupts: whom they hit, when, and whom never."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.execution.bench import Bench, node


def interrupted(entry: dict[str, Any]) -> dict[str, Any]:
    """The ``execution_interrupted`` of a history entry."""
    kind, data = entry["status"]["messages"][-1]
    assert kind == "execution_interrupted"
    assert entry["status"]["status_str"] == "error"
    assert entry["status"]["completed"] is False
    found: dict[str, Any] = data
    return found


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("node_class", ["Sleep", "Async"])
def test_a_waiting_node_is_interrupted(bench: Bench, node_class: str, targeted: bool) -> None:
    prompt_id = bench.submit({"1": node(node_class, name="n"), "2": node("Show", value=["1", 0])})
    bench.began("n")
    bench.engine.interrupt(prompt_id if targeted else None)
    data = interrupted(bench.ended(prompt_id))
    assert (data["node_id"], data["node_type"], data["executed"]) == ("1", node_class, [])
    bench.still_works()


def test_everybody_hears_of_it_without_a_client(bench: Bench) -> None:
    bench.engine.submit(
        {"prompt": {"1": node("Sleep", name="n"), "2": node("Show", value=["1", 0])}}
    )
    bench.began("n")
    bench.engine.interrupt()
    bench.sink.wait(lambda: bench.sink.said[-1] == ("status", 0, None), "end")
    assert [c for e, _, c in bench.sink.said if e == "execution_interrupted"] == [None]


def test_a_deaf_node_ends_and_the_next_is_begun_and_not_run(bench: Bench) -> None:
    prompt_id = bench.submit({"1": node("Gate", name="g"), "2": node("Show", value=["1", 0])})
    bench.began("g")
    bench.engine.interrupt(prompt_id)
    bench.steering.go["g"].set()
    data = interrupted(bench.ended(prompt_id))
    assert (data["node_id"], data["executed"]) == ("2", ["1"])
    assert bench.steering.runs == []


def test_a_targeted_one_hits_no_other_prompt(bench: Bench) -> None:
    first = bench.submit({"1": node("Gate", name="g"), "2": node("Show", value=["1", 0])})
    second = bench.submit({"1": node("Gate", name="h"), "2": node("Show", value=["1", 0])})
    bench.began("g")
    bench.engine.interrupt(second)
    bench.engine.interrupt("unknown")
    bench.steering.go["g"].set()
    assert bench.ended(first)["status"]["completed"]
    bench.began("h")
    bench.engine.interrupt(first)
    bench.steering.go["h"].set()
    assert bench.ended(second)["status"]["completed"]


def test_it_ends_with_its_prompt(bench: Bench) -> None:
    """One that comes while the last node runs changes nothing any more, also not for the next prompt."""
    prompt_id = bench.submit({"1": node("Gate", name="g"), "2": node("Show", value=["1", 0])})
    bench.began("g")
    bench.engine.interrupt()
    bench.steering.go["g"].set()
    interrupted(bench.ended(prompt_id))
    bench.still_works()
    bench.engine.interrupt()
    bench.still_works()


def test_a_node_may_interrupt_its_prompt(bench: Bench) -> None:
    entry = bench.run({"1": node("Stop", value=1), "2": node("Show", value=["1", 0])})
    assert interrupted(entry)["node_id"] == "1"


def test_stop_interrupts_what_runs(bench: Bench) -> None:
    prompt_id = bench.submit({"1": node("Sleep", name="n"), "2": node("Show", value=["1", 0])})
    waiting = bench.submit({"1": node("Show", value=1)})
    bench.began("n")
    bench.engine.stop()
    assert bench.engine.stopped
    interrupted(bench.ended(prompt_id))
    assert bench.engine.history(waiting) == {}
