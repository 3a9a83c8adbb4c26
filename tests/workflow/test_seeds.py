"""Seeds of -1 are drawn, everything else stays."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import given

from easel.workflow.seeds import EXACT_MAX, UNKNOWN_MAX, randomise
from tests.workflow.strategies import json_values, prompts


def prompt_with(value: Any, name: str = "seed", class_type: str = "KSampler") -> Any:
    return {"3": {"class_type": class_type, "inputs": {name: value, "steps": -1}}}


def info(options: Any, kind: Any = "INT", name: str = "seed") -> Any:
    return {"KSampler": {"input": {"required": {name: [kind, options]}}}}


@pytest.mark.parametrize("value", [-1, -1.0, "-1", " -1 "])
@pytest.mark.parametrize("name", ["seed", "noise_seed"])
def test_minus_one_is_drawn(value: Any, name: str) -> None:
    before = prompt_with(value, name)
    kept = copy.deepcopy(before)
    after, seeds = randomise(before, random.Random(1))
    assert before == kept
    number = seeds[f"3.{name}"]
    assert after["3"]["inputs"] == {name: number, "steps": -1}
    assert type(number) is int
    assert 0 <= number <= UNKNOWN_MAX


@pytest.mark.parametrize("value", [0, 1, -2, "x", True, None, ["1", 0], {"a": -1}, -1.5])
def test_everything_else_stays(value: Any) -> None:
    before = prompt_with(value)
    after, seeds = randomise(before, random.Random(1))
    assert after is before
    assert seeds == {}


@pytest.mark.parametrize(
    ("options", "top"),
    [
        ({"max": 2**64 - 1}, EXACT_MAX),
        ({"max": 10}, 10),
        ({"max": 0}, 0),
        ({"max": 7.9}, 7),
        ({"max": -5}, UNKNOWN_MAX),
        ({"max": "x"}, UNKNOWN_MAX),
        ({"max": True}, UNKNOWN_MAX),
        ({"max": float("inf")}, EXACT_MAX),
        ({"max": float("nan")}, UNKNOWN_MAX),
        ({}, UNKNOWN_MAX),
        (None, UNKNOWN_MAX),
    ],
)
def test_the_declared_maximum_bounds_it(options: Any, top: int) -> None:
    class Highest:
        def randint(self, a: int, b: int, /) -> int:
            return b

    _, seeds = randomise(prompt_with(-1), Highest(), info(options))
    assert seeds == {"3.seed": top}


def test_a_text_input_called_seed_stays() -> None:
    before = prompt_with("-1")
    assert randomise(before, random.Random(1), info({}, "STRING"))[0] is before


def test_real_declarations_are_read(object_info: Any) -> None:
    drawn = [
        randomise(prompt_with(-1), random.Random(number), object_info)[1]["3.seed"]
        for number in range(50)
    ]
    assert max(drawn) > UNKNOWN_MAX
    assert max(drawn) <= EXACT_MAX


@given(prompts, json_values)
def test_any_declaration_is_survived(prompt: Any, declaration: Any) -> None:
    for info in (
        {"Anything": declaration},
        {"Anything": {"input": declaration}},
        {"Anything": {"input": {"required": {"seed": declaration}}}},
    ):
        _, seeds = randomise(prompt, random.Random(1), info)
        assert all(0 <= number <= EXACT_MAX for number in seeds.values())


@given(prompts)
def test_drawing_twice_changes_nothing(prompt: Any) -> None:
    kept = copy.deepcopy(prompt)
    once, seeds = randomise(prompt, random.Random(3))
    assert prompt == kept
    assert randomise(once, random.Random(4)) == (once, {})
    for place, number in seeds.items():
        node, _, name = place.rpartition(".")
        assert once[node]["inputs"][name] == number
