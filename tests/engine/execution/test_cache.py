"""What runs again and what does not; what is kept and what is let go."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest

from tests.engine.execution.bench import Bench, error_of, node

PROMPT = {
    "1": node("Number", value=4),
    "2": node("Add", a=["1", 0]),
    "3": node("Show", value=["2", 0]),
}


def ran(bench: Bench, prompt: Any, **body: Any) -> list[str]:
    """Run a prompt and return the nodes that ran."""
    bench.steering.runs.clear()
    bench.run(prompt, **body)
    return list(bench.steering.runs)


def test_the_same_prompt_runs_nothing(bench: Bench) -> None:
    bench.run(PROMPT)
    assert bench.events(PROMPT) == [
        "start",
        "cached 1 2 3",
        "executed 3",
        "state 3!",
        "success",
        "executing",
    ]


def test_ids_do_not_matter_inputs_do(bench: Bench) -> None:
    assert ran(bench, PROMPT) == ["1", "2", "3"]
    renamed = {
        "a": node("Number", value=4),
        "b": node("Add", a=["a", 0]),
        "c": node("Show", value=["b", 0]),
    }
    assert ran(bench, renamed) == []
    assert ran(bench, {**renamed, "b": node("Add", a=["a", 0], b=1)}) == ["b", "c"]
    assert ran(bench, {**renamed, "b": node("Add", a=["a", 0], b=1, zzz=1)}) == ["b", "c"]


@pytest.mark.parametrize(
    "values",
    [
        (1, True),
        (1, 1.0),
        (0, False),
        (0.0, -0.0),
        (None, math.nan),
        ("1", 1),
        (math.inf, None),
        ([], {}),
    ],
)
def test_values_that_look_alike_are_told_apart(bench: Bench, values: tuple[Any, Any]) -> None:
    def shows(value: Any) -> dict[str, Any]:
        return {"1": node("Show", value={"__value__": value} if isinstance(value, list) else value)}

    assert ran(bench, shows(values[0])) == ["1"]
    assert ran(bench, shows(values[1])) == ["1"]
    assert ran(bench, shows(values[1])) == []


@pytest.mark.parametrize("value", [math.nan, 2**70, -(10**300), "a\ud800b", {"a\udfff": [2**64]}])
def test_odd_values_have_keys(bench: Bench, value: Any) -> None:
    prompt = {"1": node("Add", a=1), "2": node("Show", value=value, other=["1", 0])}
    assert ran(bench, prompt) == ["1", "2"]
    assert ran(bench, prompt) == []


def test_an_output_without_anything_to_show(bench: Bench) -> None:
    prompt = {"1": node("Quiet", value=1)}
    assert "executed 1" not in bench.events(prompt)
    assert bench.events(prompt) == [
        "start",
        "cached 1",
        "executed 1",
        "state 1!",
        "success",
        "executing",
    ]
    assert bench.run(prompt)["outputs"] == {}
    outputs = [data["output"] for event, data, _ in bench.sink.said if event == "executed"]
    assert outputs == [None, None]


def test_only_the_last_prompt_is_kept(bench: Bench) -> None:
    bench.run(PROMPT)
    bench.run({"1": node("Show", value=1)})
    assert ran(bench, PROMPT) == ["1", "2", "3"]


def test_another_client_gets_what_is_cached(bench: Bench) -> None:
    bench.run(PROMPT)
    bench.steering.runs.clear()
    bench.engine.submit({"prompt": PROMPT, "client_id": "other"})
    bench.sink.wait(
        lambda: bench.sink.said[-1][0] == "executing" and bench.sink.said[-1][2] == "other", "end"
    )
    assert bench.steering.runs == []


WATCHING = {"1": node("Watching", value=1), "2": node("Show", value=["1", 0])}


@pytest.mark.parametrize(
    ("first", "second", "again"),
    [
        (1, 1, False),
        (1, 2, True),
        ("a", "a", False),
        (None, math.inf, True),
        (math.nan, math.nan, True),
        (ValueError("x"), ValueError("x"), True),
        (SystemExit(2), SystemExit(2), True),
        ({"a": {2, 3}}, {"a": {3, 2}}, False),
        ({(1, 2): object}, {(1, 2): object}, True),
        (2**80, 2**80, False),
    ],
)
def test_is_changed(bench: Bench, first: Any, second: Any, again: bool) -> None:
    bench.steering.changed = first
    assert ran(bench, WATCHING) == ["1", "2"]
    bench.steering.changed = second
    assert ran(bench, WATCHING) == (["1", "2"] if again else [])


def test_is_changed_is_asked_with_declared_constants_only(bench: Bench) -> None:
    prompt = {"1": node("Watching", value=1, zzz=3), "2": node("Show", value=["1", 0])}
    assert ran(bench, prompt) == ["1", "2"]
    assert ran(bench, prompt) == []


def test_always_again_also_under_an_id_that_comes_again(bench: Bench) -> None:
    bench.steering.changed = math.nan
    assert ran(bench, WATCHING, prompt_id="same") == ["1", "2"]
    bench.sink.said.clear()
    assert ran(bench, WATCHING, prompt_id="same") == ["1", "2"]


def test_what_ran_before_an_error_is_kept(bench: Bench) -> None:
    prompt = {
        "1": node("Number", value=3),
        "2": node("Fail", kind="value"),
        "3": node("Show", value=["1", 0], other=["2", 0]),
        "4": node("Show", value=["1", 0]),
    }
    error = error_of(bench.run(prompt))
    assert {"1", "4"} >= set(error["executed"])
    before = set(error["executed"])
    bench.steering.runs.clear()
    error_of(bench.run(prompt))
    assert before.isdisjoint(bench.steering.runs)


def test_free_memory_empties_the_cache_and_unload_models_does_not(bench: Bench) -> None:
    bench.run(PROMPT)
    bench.engine.free(unload_models=True, free_memory=False)
    assert ran(bench, PROMPT) == []
    bench.engine.free(unload_models=False, free_memory=True)
    assert ran(bench, PROMPT) == ["1", "2", "3"]
    assert ran(bench, PROMPT) == []


def test_free_while_a_prompt_runs_takes_effect_before_the_next(bench: Bench) -> None:
    gated = {**PROMPT, "4": node("Gate", name="g"), "5": node("Show", value=["4", 0])}
    first = bench.submit(gated)
    bench.began("g")
    bench.engine.free(unload_models=True, free_memory=True)
    bench.steering.go["g"].set()
    bench.ended(first)
    assert set(ran(bench, gated)) == {"1", "2", "3", "5"}


HEAVY = {
    "1": node("Heavy", value=-1),
    "2": node("Use", value=["1", 0]),
    "3": node("Alive", value=["2", 0]),
    "4": node("Show", value=["3", 0]),
}


def test_values_that_nobody_can_use_again_are_let_go_at_once(bench: Bench) -> None:
    assert bench.run(HEAVY)["outputs"] == {"4": {"value": [0]}}
    kept = {**HEAVY, "1": node("Heavy", value=1)}
    assert bench.run(kept)["outputs"] == {"4": {"value": [1]}}


def test_the_next_prompt_lets_go_of_the_last_ones_values(bench: Bench) -> None:
    bench.run({**HEAVY, "1": node("Heavy", value=1)})
    assert bench.steering.made[0]() is not None
    bench.run({"1": node("Show", value=1)})
    bench.still_works()
    gc.collect()
    assert bench.steering.made[0]() is None
