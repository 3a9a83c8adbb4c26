"""Hypothesis strategies for prompts and arbitrary JSON."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
)

json_values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["prompt", "class_type", "inputs", "nodes", "links", "__value__", "1"])
            | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)

node_ids = st.text("0123456789:ab", min_size=1, max_size=4)
input_names = st.sampled_from(["image", "seed", "noise_seed", "steps", "text", "audio"])
input_values = st.one_of(
    st.integers(-2, 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12),
    st.tuples(node_ids, st.integers(0, 3)).map(list),
)
nodes: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {
        "class_type": st.sampled_from(["LoadImage", "KSampler", "SaveImage", "Anything"]),
        "inputs": st.dictionaries(input_names, input_values, max_size=4),
    },
    optional={"_meta": st.fixed_dictionaries({"title": st.text("ab c", max_size=5)})},
)
prompts: st.SearchStrategy[Any] = st.dictionaries(node_ids, nodes, min_size=1, max_size=8)
