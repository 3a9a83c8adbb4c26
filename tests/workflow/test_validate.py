"""Validation: the recorded bodies of the real ComfyUI, structure alone, and what holds for any JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easel.workflow.links import fits
from easel.workflow.validate import MOST_REVISITS, Custom, Validation, validate_prompt
from tests.conftest import FIXTURES

INFO: dict[str, Any] = json.loads((FIXTURES / "object_info.json").read_text())
RECORDED = [
    exchange
    for name in ("d_validation", "d2_partly_valid")
    for exchange in json.loads((FIXTURES / "scenarios" / f"{name}.json").read_text())["http"]
    if exchange["path"] == "/prompt"
    and isinstance(exchange.get("request_json"), dict)
    and isinstance(exchange["request_json"].get("prompt"), dict)
]


def known_files(_node_id: str, class_type: str, constants: Mapping[str, Any]) -> Custom | None:
    """What LoadImage's own validation says where there is no file."""
    if class_type != "LoadImage":
        return None
    return Custom(["image"], {"image": f"Invalid image file: {constants['image']}"})


def comparable(found: Any) -> Any:
    """Without tracebacks, which are of the program and not of the protocol, and without prose."""
    if isinstance(found, dict):
        return {k: comparable(v) for k, v in found.items() if k not in {"traceback", "tooltip"}}
    return [comparable(v) for v in found] if isinstance(found, list) else found


@pytest.mark.parametrize("exchange", RECORDED, ids=lambda e: f"{e['status']} at {e['t']}")
def test_as_recorded(exchange: dict[str, Any]) -> None:
    recorded = exchange["response_json"]
    info = copy.deepcopy(INFO)
    ckpt = ["random-sd15-full.safetensors", "random-sd15-tiny.safetensors"]
    for node in recorded["node_errors"].values():  # the models of that moment
        for error in node["errors"]:
            if error["extra_info"].get("input_name") == "ckpt_name":
                ckpt = error["extra_info"]["input_config"][0]
    info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] = ckpt
    verdict = validate_prompt(exchange["request_json"]["prompt"], info, check=known_files)
    assert (verdict.error is None) == (exchange["status"] == 200)
    assert comparable(verdict.node_errors) == comparable(recorded["node_errors"])
    if verdict.error is not None:
        assert verdict.error == recorded["error"]


SMALL: dict[str, Any] = {
    "Int": {
        "input": {"required": {"v": ["INT", {"min": 0, "max": 9}]}, "optional": {"more": ["INT"]}},
        "output": ["INT"],
    },
    "Float": {
        "input": {"required": {"v": ["FLOAT", {"min": -1.5, "max": True}]}},
        "output": ["FLOAT"],
    },
    "Text": {"input": {"required": {"v": ["STRING", {"min": 3}]}}, "output": ["STRING"]},
    "Flag": {
        "input": {"required": {"v": ["BOOLEAN", {"min": 0, "max": 0.5}]}},
        "output": ["BOOLEAN"],
    },
    "Choice": {
        "input": {
            "required": {"v": [["a", "b", 1, None, {"x": 1}]]},
            "optional": {"w": ["COMBO", {"options": ["c", [1], "d"]}]},
        },
        "output": [["a", "b"]],
    },
    "Long": {"input": {"required": {"v": [[f"c{n}" for n in range(21)]]}}, "output": []},
    "Any": {"input": {"required": {"v": ["*", {"min": "x"}]}}, "output": ["*", "INT,FLOAT"]},
    "Out": {
        "input": {
            "required": {"v": ["INT,FLOAT", {}]},
            "optional": {"w": ["*"]},
            "hidden": {"u": "UNIQUE_ID"},
        },
        "output": [],
        "output_node": True,
    },
    "Bare": {"output_node": True},
}


def errors_of(verdict: Validation, node_id: str) -> list[tuple[str, str]]:
    return [(e["type"], e["details"]) for e in verdict.node_errors[node_id]["errors"]]


def n(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


ONE_NODE: list[tuple[dict[str, Any], list[str]]] = [
    (n("Int"), ["required_input_missing"]),
    (n("Int", v=9, more=10**30), []),
    (n("Int", v="7"), []),
    (n("Int", v=7.9), []),
    (n("Int", v=True), []),
    (n("Int", v=-1), ["value_smaller_than_min"]),
    (n("Int", v=10**400), ["value_bigger_than_max"]),
    (n("Int", v=float("nan")), ["invalid_input_type"]),
    (n("Int", v=float("inf")), ["invalid_input_type"]),
    (n("Int", v=None), ["invalid_input_type"]),
    (n("Int", v={}), ["invalid_input_type"]),
    (n("Int", v="x" * 5), ["invalid_input_type"]),
    (n("Int", v={"__value__": 3}), []),
    (n("Int", v={"__value__": [3]}), ["invalid_input_type"]),
    (n("Int", v="x", more="y"), ["invalid_input_type", "invalid_input_type"]),
    (n("Float", v=10**400), ["invalid_input_type"]),
    (n("Float", v=-2), ["value_smaller_than_min"]),
    (n("Float", v=1.5), ["value_bigger_than_max"]),
    (n("Float", v="nan"), []),
    (n("Text", v={"a": 1}), []),
    (n("Text", v=1), []),
    (n("Flag", v="no"), ["value_bigger_than_max"]),
    (n("Flag", v={}), []),
    (n("Choice", v="a", w=["c"]), ["bad_linked_input"]),
    (n("Choice", v={"x": 1}, w="d"), []),
    (n("Choice", v={"y": []}, w="e"), ["value_not_in_list", "value_not_in_list"]),
    (n("Choice", v="a", w={"__value__": [1]}), []),
    (n("Long", v="c21"), ["value_not_in_list"]),
    (n("Any", v={"__value__": ["1", 0]}), []),
    (n("Any", v=["1"]), ["bad_linked_input"]),
    (n("Any", v=["1", 0, 0]), ["bad_linked_input"]),
    (n("Any", v=["out", 0]), ["bad_linked_input"]),
    (n("Any", v=["1", "0"]), ["bad_linked_input", "dependency_cycle"]),
    (n("Any", v=[{}, []]), ["exception_during_validation"]),
    (n("Any", v=["gone", 0]), ["exception_during_validation"]),
]


@pytest.mark.parametrize(("node", "kinds"), ONE_NODE, ids=lambda v: str(v)[:60])
def test_one_node(node: dict[str, Any], kinds: list[str]) -> None:
    prompt = {"1": node, "out": n("Bare"), "see": n("Out", v=1, w=["1", 0])}
    outputs = SMALL["Long"] | {"output": ["INT"]}
    verdict = validate_prompt(prompt, {**SMALL, "Long": outputs})
    found = [e["type"] for e in verdict.node_errors.get("1", {"errors": []})["errors"]]
    assert sorted(found) == sorted(kinds)
    assert verdict.error is None
    assert verdict.outputs == (["out"] if kinds else ["out", "see"])


def test_converted_values_are_written_back() -> None:
    prompt = {
        "1": n("Int", v="7", more=2.9),
        "2": n("Text", v=5),
        "3": n("Flag", v=0),
        "4": n("Any", v={"__value__": ["1", 0]}),
        "o": n("Out", v=["1", 0], w={"__value__": 3}),
        "p": n("Out", v=1, w=["2", 0]),
        "q": n("Out", v=1, w=["3", 0]),
        "r": n("Out", v=1, w=["4", 0]),
    }
    assert validate_prompt(prompt, SMALL).error is None
    assert [prompt[i]["inputs"] for i in "1234o"] == [
        {"v": 7, "more": 2},
        {"v": "5"},
        {"v": False},
        {"v": {"__value__": ["1", 0]}},  # bare, it would be a link
        {"v": ["1", 0], "w": 3},
    ]


def test_structure_alone() -> None:
    prompt = {
        "1": n("Int", v="many"),
        "2": n("Long", v="new.safetensors"),
        "o": n("Out", v=["1", 0]),
    }
    before = copy.deepcopy(prompt)
    assert validate_prompt(prompt, SMALL, values=False) == Validation(None, ["o"], {})
    assert prompt == before
    broken = {**prompt, "1": n("Int"), "p": n("Out", v=["gone", 0]), "q": n("Out", v=["1", 1])}
    verdict = validate_prompt(broken, SMALL, values=False)
    assert errors_of(verdict, "1") == [("required_input_missing", "v")]
    assert errors_of(verdict, "p") == [
        ("bad_linked_input", "input 'v' links to node 'gone', which does not exist")
    ]
    assert errors_of(verdict, "q") == [("bad_linked_input", "v")]
    assert verdict.node_errors["1"]["dependent_outputs"] == ["o", "q"]


def test_cycles() -> None:
    prompt = {
        "1": n("Any", v=["2", 0]),
        "2": n("Any", v=["3", 0]),
        "3": n("Any", v=["1", 0]),
        "self": n("Any", v=["self", 0]),
        "o": n("Out", v=1, w=["1", 0]),
        "p": n("Out", v=1, w=["self", 0]),
        "q": n("Out", v=1),
    }
    verdict = validate_prompt(prompt, SMALL)
    assert verdict.outputs == ["q"]
    assert set(verdict.node_errors) == {"1", "2", "3", "self"}
    for node_id, error in verdict.node_errors.items():
        assert [e["type"] for e in error["errors"]] == ["dependency_cycle"]
        assert error["dependent_outputs"] == ["p" if node_id == "self" else "o"]


@pytest.mark.parametrize("kind", ["one fault below", "every node faulty", "a ring"])
def test_what_many_outputs_share_is_not_walked_for_each(kind: str) -> None:
    """The product of nodes and outputs took minutes, and its answer hundreds of megabytes."""
    many = 4000
    prompt = {
        str(i): n("Int", v=[str((i + 1) % many), 0], **({"more": "x"} if kind[0] == "e" else {}))
        for i in range(many)
    }
    if kind != "a ring":
        prompt[str(many - 1)] = n("Int")
    prompt |= {f"o{i}": n("Out", v=["0", 0]) for i in range(many)} | {"good": n("Out", v=1)}
    walked = 0

    def check(_node_id: str, _class_type: str, _constants: Mapping[str, Any]) -> Custom | None:
        nonlocal walked
        walked += 1
        return None

    verdict = validate_prompt(prompt, SMALL, check=check)
    assert verdict.outputs == ["good"]
    assert walked == 2 * many + 1
    told = sum(len(e["dependent_outputs"]) for e in verdict.node_errors.values())
    assert told < MOST_REVISITS + 3 * many
    assert len(json.dumps(verdict.node_errors)) < 6_000_000
    last = str(many - 1)
    assert verdict.node_errors[last]["dependent_outputs"][:3] == ["o0", "o1", "o2"]


def test_errors_do_not_repeat_long_lists_of_choices() -> None:
    prompt = {"1": n("Int", v=1), "2": n("Long", v=["1", 0]), "o": n("Out", v=["2", 0])}
    info = {**SMALL, "Long": SMALL["Long"] | {"output": ["INT"]}}
    (error,) = validate_prompt(prompt, info).node_errors["2"]["errors"]
    assert error["details"] == "v, received_type(INT) mismatch input_type((list of length 21))"
    assert error["extra_info"]["input_config"] is None
    prompt["2"] = n("Choice", v=["1", 0])
    (error,) = validate_prompt(prompt, info).node_errors["2"]["errors"]
    assert (
        error["details"]
        == "v, received_type(INT) mismatch input_type(['a', 'b', 1, None, {'x': 1}])"
    )
    assert error["extra_info"]["input_config"] == SMALL["Choice"]["input"]["required"]["v"]


def test_a_check_that_gives_no_reason() -> None:
    def check(_node_id: str, _class_type: str, _constants: Mapping[str, Any]) -> Custom | None:
        return Custom(["v"], {"v": ""})

    verdict = validate_prompt({"o": n("Out", v=1)}, SMALL, check=check)
    assert errors_of(verdict, "o") == [("custom_validation_failed", "v")]


def test_targets_restrict_the_outputs() -> None:
    prompt = {"1": n("Int", v=99), "o": n("Out", v=["1", 0]), "p": n("Out", v=1)}
    assert validate_prompt(prompt, SMALL, targets={"p"}) == Validation(None, ["p"], {})
    refused = validate_prompt(prompt, SMALL, targets=["o"]).error
    assert refused is not None
    assert refused["type"] == "prompt_outputs_failed_validation"
    for targets in ([], ["1"], ["gone"]):
        none = validate_prompt(prompt, SMALL, targets=targets).error
        assert none is not None
        assert none["type"] == "prompt_no_outputs"


def test_a_class_checks_converted_values_and_skips_the_ranges() -> None:
    seen: list[Mapping[str, Any]] = []

    def check(_node_id: str, class_type: str, constants: Mapping[str, Any]) -> Custom | None:
        if class_type != "Int":
            return None
        seen.append(dict(constants))
        return Custom(["v"], {"v": "odd"} if constants["v"] % 2 else {})

    prompt = {"1": n("Int", v="50", more=["1", 5]), "o": n("Out", v=["1", 0])}
    prompt["1"]["inputs"].pop("more")
    assert validate_prompt(prompt, SMALL, check=check).error is None
    prompt["1"] = n("Int", v="51", more="x")
    verdict = validate_prompt(prompt, SMALL, check=check)
    assert seen == [{"v": 50}, {"v": 51, "more": "x"}]
    assert [e["type"] for e in verdict.node_errors["1"]["errors"]] == [
        "invalid_input_type",
        "custom_validation_failed",
    ]


@pytest.mark.parametrize("raised", [ValueError("a\ud800"), SystemExit(2), KeyError("x")])
def test_a_check_that_raises(raised: BaseException) -> None:
    def check(_node_id: str, _class_type: str, _constants: Mapping[str, Any]) -> Custom | None:
        raise raised

    verdict = validate_prompt({"o": n("Out", v=1)}, SMALL, check=check)
    assert errors_of(verdict, "o") == [("exception_during_validation", str(raised))]


@pytest.mark.parametrize(
    ("received", "wanted", "fit"),
    [
        ("INT", "INT", True),
        ("INT", "INT,FLOAT", True),
        ("INT,FLOAT", "FLOAT, INT", True),
        ("INT,FLOAT", "INT", False),
        ("*", "IMAGE", True),
        ("IMAGE", "*", True),
        ("COMBO", ["a"], True),
        (["a"], ["b"], True),
        (["a"], "STRING", False),
        ("STRING", ["a"], False),
        (None, "INT", False),
    ],
)
def test_fits(received: object, wanted: object, fit: bool) -> None:
    assert fits(received, wanted) is fit


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(2**64), 2**63]),
    st.floats(),
    st.text(st.characters(), max_size=4),  # lone surrogates, too
    st.sampled_from(["a", "c", "1", "nan", "7", "__value__"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.just("__value__"), inner, max_size=3)
    ),
    max_leaves=6,
)
IDS = st.sampled_from(["1", "2", "3", "4", "o", "p", ""])
LINKS = st.tuples(IDS, st.integers(-1, 2)).map(list)
NODES = st.fixed_dictionaries(
    {
        "class_type": st.sampled_from([*SMALL]),
        "inputs": st.dictionaries(
            st.sampled_from(["v", "w", "more", "zzz"]), LINKS | JSON, max_size=4
        ),
    }
)
PROMPTS = st.dictionaries(IDS, NODES, max_size=7)
ODD = st.dictionaries(
    IDS,
    NODES
    | JSON
    | st.fixed_dictionaries({"class_type": JSON, "inputs": JSON})
    | st.fixed_dictionaries({"class_type": st.sampled_from([*SMALL])}),
    max_size=4,
)


def consistent(verdict: Validation, prompt: Any) -> None:
    """What holds of every verdict."""
    json.dumps([verdict.error, verdict.outputs, verdict.node_errors])
    assert (verdict.error is None) == bool(verdict.outputs)
    for node_id, entry in verdict.node_errors.items():
        assert entry["class_type"] == prompt[node_id]["class_type"]
        assert entry["errors"]
        assert set(verdict.outputs).isdisjoint(entry["dependent_outputs"])
        for error in entry["errors"]:
            assert set(error) == {"type", "message", "details", "extra_info"}


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(JSON | ODD, st.booleans())
def test_any_json(prompt: Any, values: bool) -> None:
    consistent(validate_prompt(prompt, SMALL, values=values), prompt)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(PROMPTS)
def test_any_prompt(prompt: Any) -> None:
    original = copy.deepcopy(prompt)
    structure = validate_prompt(original, SMALL, values=False)
    consistent(structure, original)
    verdict = validate_prompt(prompt, SMALL)
    consistent(verdict, prompt)
    assert set(verdict.outputs) <= set(structure.outputs)
    again = validate_prompt(prompt, SMALL)  # converted values stay as they are
    assert again.outputs == verdict.outputs
    assert set(again.node_errors) == set(verdict.node_errors)
    for output in verdict.outputs:  # an output's verdict is its own
        assert validate_prompt(prompt, SMALL, targets=[output]).outputs == [output]


SPECS = st.lists(JSON, max_size=2) | st.tuples(st.sampled_from(["INT", "*"]), JSON).map(list) | JSON
GROUPS = st.dictionaries(st.sampled_from(["v", "w"]), SPECS, max_size=2) | JSON
DESCRIBED = st.fixed_dictionaries(
    {},
    optional={
        "input": st.fixed_dictionaries({}, optional=dict.fromkeys(["required", "optional"], GROUPS))
        | JSON,
        "output": st.lists(JSON, max_size=2) | JSON,
        "output_node": st.just(True) | JSON,
    },
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    PROMPTS,
    st.dictionaries(st.sampled_from(["Int", "Out", "Any"]), DESCRIBED | JSON, min_size=1),
    st.booleans(),
    st.booleans(),
)
def test_any_object_info(prompt: Any, info: Any, values: bool, types: bool) -> None:
    """Other people's packs describe their classes as they like."""
    consistent(validate_prompt(prompt, SMALL | info, values=values, types=types), prompt)
