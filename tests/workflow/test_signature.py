"""The same body has the same signature, another body another."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from easel.workflow.parse import Options, parse_prompt
from easel.workflow.signature import signature
from tests.workflow.strategies import json_values, prompts


def shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, shuffled(inner, rng)) for key, inner in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(inner, rng) for inner in value] if isinstance(value, list) else value


@given(prompts, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(prompt: Any, rng: random.Random) -> None:
    parsed = parse_prompt(prompt)
    again = parse_prompt(json.dumps(shuffled(prompt, rng), indent=rng.choice([None, 2])))
    assert signature(parsed.prompt, parsed.options) == signature(again.prompt, again.options)


@given(prompts, st.data())
def test_every_value_matters(prompt: Any, data: st.DataObject) -> None:
    before = signature(prompt)
    node = data.draw(st.sampled_from(sorted(prompt)))
    new = data.draw(json_values)
    changed = {
        **prompt,
        node: {**prompt[node], "inputs": {**prompt[node]["inputs"], "fresh": new}},
    }
    assert signature(changed) != before


def test_options_matter() -> None:
    prompt = parse_prompt({"1": {"class_type": "A"}}).prompt
    every = {
        signature(prompt),
        signature(prompt, Options(output_base64=True)),
        signature(prompt, Options(extra_data={"extra_pnginfo": {}})),
    }
    assert len(every) == 3
    assert signature(prompt) == signature(prompt, Options())
    assert all(len(text) == 64 for text in every)
