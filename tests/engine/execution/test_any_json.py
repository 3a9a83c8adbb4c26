"""Whatever JSON comes as the body of ``POST /prompt``: it is refused in ComfyUI's shape, or it runs to an end.

One engine takes it all: a body that harmed it would fail the examples after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easel.engine.engine import PromptRefused
from easel.engine.folders import Folders
from easel.engine.server.bodies import encode
from tests.engine.execution.bench import RAISED, RETURNED, Bench, node

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(2**64), 1e308]),
    st.floats(),
    st.text(st.characters(), max_size=4),
    st.sampled_from(["1", "2", "value", "nan", *RAISED, *RETURNED]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.just("__value__"), inner, max_size=3)
    ),
    max_leaves=5,
)
IDS = st.sampled_from(["1", "2", "3", "4", "5"])
LINKS = st.tuples(IDS, st.integers(0, 1)).map(list)
CLASSES = [
    "Number",
    "Add",
    "Any",
    "Many",
    "Sum",
    "Show",
    "Quiet",
    "Watching",
    "Checked",
    "Stepping",
]
RAISING = ["Fail", "FailAsync", "FailTask", "Stop", "Odd", "Heavy", "Use", "Alive"]
SMALL = st.integers(0, 9)
NAMES = ["value", "a", "b", "values", "other", "free", "kind", "what", "zzz"]
NODES = st.fixed_dictionaries(
    {
        "class_type": st.sampled_from(CLASSES + RAISING),
        "inputs": st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, LINKS | SMALL | SCALARS))
        | st.fixed_dictionaries(dict.fromkeys(NAMES[:6], LINKS | SMALL)),
    }
)
KINDS = st.builds(lambda kind: node("Fail", kind=kind), st.sampled_from([*RAISED])) | st.builds(
    lambda what: node("Odd", what=what), st.sampled_from([*RETURNED])
)
SHOWS = st.builds(
    lambda value, other: node("Show", value=value, other=other), LINKS | JSON, LINKS | JSON
)
PROMPTS = st.dictionaries(IDS, NODES | KINDS | SHOWS, min_size=1, max_size=5)
BODIES = st.fixed_dictionaries(
    {"prompt": PROMPTS | JSON},
    optional={
        "client_id": st.just("me") | JSON,
        "prompt_id": JSON,
        "number": JSON,
        "front": JSON,
        "extra_data": st.dictionaries(st.sampled_from(["extra_pnginfo", "client_id"]), JSON) | JSON,
        "partial_execution_targets": st.lists(IDS) | JSON,
    },
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folders = Folders(tmp_path_factory.mktemp("engine"))
    folders.prepare()
    bench = Bench(folders, history_limit=50)
    yield bench
    bench.engine.stop()
    assert bench.engine.stopped


def takes(bench: Bench, body: Any) -> bool:
    """Submit a body; what is accepted is waited for. The answer is whether it was."""
    bench.sink.said.clear()
    try:
        answer = bench.engine.submit(body)
    except PromptRefused as refused:
        encode({"error": refused.error, "node_errors": refused.node_errors})
        bench.refused(refused)
        return False
    encode(answer)
    bench.sink.wait(lambda: ("status", 0, None) in bench.sink.said, f"end of {body}")
    entry = bench.engine.history(answer["prompt_id"])[answer["prompt_id"]]
    encode(entry)
    assert entry["status"]["messages"][-1][0] in {
        "execution_success",
        "execution_error",
        "execution_interrupted",
    }
    assert bench.engine.queue() == {"queue_running": [], "queue_pending": []}
    return True


@settings(max_examples=300, suppress_health_check=[*HealthCheck], deadline=None)
@given(BODIES | JSON)
def test_any_body(shared: Bench, body: Any) -> None:
    takes(shared, body)


INPUTS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "Number": {"value": st.integers()},
    "Add": {"a": SMALL, "b": st.integers()},
    "Any": {"value": JSON},
    "Many": {"value": st.integers(0, 3)},
    "Sum": {"values": SMALL},
    "Use": {"value": SCALARS},
    "Heavy": {"value": st.integers(-1, 1)},
    "Watching": {"value": SMALL},
    "Checked": {"value": SMALL, "free": st.integers(0, 3)},
    "Stepping": {"value": st.integers(0, 3)},
    "Alive": {"value": SMALL},
    "Show": {"value": JSON, "other": JSON},
    "Quiet": {"value": JSON},
    "Fail": {"kind": st.sampled_from([*RAISED])},
    "FailAsync": {"kind": st.sampled_from([*RAISED])},
    "FailTask": {"kind": st.sampled_from([*RAISED])},
    "Stop": {"value": SMALL},
    "Odd": {"what": st.sampled_from([*RETURNED])},
}
CALM = [*INPUTS][:13]
CONSTANT = {"Many", "Stepping", "Fail", "FailAsync", "FailTask", "Odd"}
"""Classes that get no links: any number from elsewhere would keep them busy."""


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    """A prompt whose links lead back to earlier nodes: most are accepted, and one in three has a node that goes wrong."""
    prompt: dict[str, Any] = {}
    sources: list[str] = []
    wrong = draw(st.integers(0, 2)) == 0
    for number in range(draw(st.integers(2, 8))):
        name = draw(st.sampled_from([*INPUTS] if wrong else CALM))
        inputs = {
            key: [draw(st.sampled_from(sources)), 0]
            if sources and name not in CONSTANT and draw(st.booleans())
            else draw(constant)
            for key, constant in INPUTS[name].items()
        }
        prompt[str(number)] = node(name, **inputs)
        if name not in {"Show", "Quiet"}:
            sources.append(str(number))
    for number, source in enumerate(sources[-2:]):
        prompt[f"end {number}"] = node(
            "Show", value=[source, 0], other=[draw(st.sampled_from(sources)), 0]
        )
    return prompt


@settings(max_examples=400, suppress_health_check=[*HealthCheck], deadline=None)
@given(
    graphs(), st.booleans(), st.sampled_from([0, float("nan"), {"a": {1}}, SystemExit(1), 2**70])
)
def test_any_graph(shared: Bench, prompt: Any, listening: bool, changed: Any) -> None:
    shared.steering.changed = changed
    shared.steering.made.clear()
    before = json.loads(json.dumps(prompt))
    if takes(shared, {"prompt": prompt, **({"client_id": "me"} if listening else {})}):
        # What has run may come from the cache; it does not run into anything either.
        assert takes(shared, {"prompt": before, "client_id": "me"})


def test_it_still_works_after_all_that(shared: Bench) -> None:
    shared.sink.said.clear()
    shared.still_works()
