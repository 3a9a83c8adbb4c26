"""Ten thousand nodes: deep, wide, and cycles among them. The time-outs are generous; quadratic work would not keep them."""

from __future__ import annotations

from typing import Any

import pytest

from easel.engine.engine import PromptRefused
from tests.engine.execution.bench import Bench, node

MANY = 10_000


def test_ten_thousand_deep(bench: Bench) -> None:
    prompt: dict[str, Any] = {"0": node("Number", value=1)}
    for n in range(1, MANY):
        prompt[str(n)] = node("Add", a=0, b=[str(n - 1), 0])
    prompt["end"] = node("Show", value=[str(MANY - 1), 0])
    assert bench.run(prompt)["outputs"] == {"end": {"value": [1]}}
    assert len(bench.steering.runs) == MANY + 1
    assert len(bench.run(prompt)["status"]["messages"][1][1]["nodes"]) == MANY + 1


def test_ten_thousand_wide(bench: Bench) -> None:
    prompt: dict[str, Any] = {str(n): node("Number", value=n) for n in range(MANY)}
    prompt |= {f"o{n}": node("Show", value=[str(n), 0]) for n in range(0, MANY, 2)}
    entry = bench.run(prompt)
    assert len(entry["outputs"]) == MANY // 2
    assert bench.steering.runs[:2] == [bench.steering.runs[1][1:], bench.steering.runs[1]]


def test_many_outputs_of_one_deep_chain(bench: Bench) -> None:
    prompt: dict[str, Any] = {"0": node("Number", value=1)}
    for n in range(1, 2000):
        prompt[str(n)] = node("Add", a=0, b=[str(n - 1), 0])
    prompt |= {f"o{n}": node("Show", value=n, other=["1999", 0]) for n in range(1000)}
    assert len(bench.run(prompt)["outputs"]) == 1000


def test_ten_thousand_in_a_round_with_ways_back(bench: Bench) -> None:
    prompt: dict[str, Any] = {
        str(n): node("Add", a=[str((n + 1) % MANY), 0], b=["0", 0]) for n in range(MANY)
    }
    prompt["end"] = node("Show", value=["0", 0])
    with pytest.raises(PromptRefused) as refused:
        bench.submit(prompt)
    assert refused.value.error["type"] == "prompt_outputs_failed_validation"
    bench.still_works()
