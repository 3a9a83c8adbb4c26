"""Nodes that go wrong: a typed error that names them, and an engine that goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.engine.execution.bench import RAISED, RETURNED, Bench, error_of, node


@pytest.mark.parametrize("kind", RAISED)
def test_whatever_a_node_raises(bench: Bench, kind: str) -> None:
    prompt = {"1": node("Fail", kind=kind), "2": node("Show", value=["1", 0])}
    error = error_of(bench.run(prompt))
    raised = type(RAISED[kind]())
    assert error["node_id"] == "1"
    assert error["node_type"] == "Fail"
    assert error["exception_type"].endswith(raised.__qualname__)
    assert error["current_inputs"] == {"kind": [kind]}
    assert error["executed"] == []
    assert sorted(error["current_outputs"]) == ["1", "2"]
    assert error["exception_message"].endswith("\n")
    assert "bench.py" in "".join(error["traceback"])
    json.dumps(bench.engine.history())
    bench.still_works()


def test_types_of_other_modules_have_their_modules_name(bench: Bench) -> None:
    error = error_of(
        bench.run({"1": node("Fail", kind="unprintable"), "2": node("Show", value=["1", 0])})
    )
    assert error["exception_type"] == "tests.engine.execution.bench.Unprintable"
    error = error_of(
        bench.run({"1": node("Fail", kind="value"), "2": node("Show", value=["1", 0])})
    )
    assert (error["exception_type"], error["exception_message"]) == ("ValueError", "wrong\n")


@pytest.mark.parametrize("what", RETURNED)
def test_what_is_not_what_was_declared(bench: Bench, what: str) -> None:
    prompt = {"1": node("Odd", what=what), "2": node("Show", value=["1", 0], other=["1", 1])}
    error = error_of(bench.run(prompt))
    assert error["node_id"] == "1"
    assert error["exception_type"] == "TypeError"
    assert error["exception_message"].startswith("Odd ")
    bench.still_works()
    error_of(bench.run(prompt))


def test_what_is_no_json_does_not_get_into_the_history_of_nobody(bench: Bench) -> None:
    prompt = {
        "1": node("Odd", what="shown is no JSON"),
        "2": node("Show", value=["1", 0], other=["1", 1]),
    }
    answer = bench.engine.submit({"prompt": prompt})
    bench.sink.wait(lambda: ("status", 0, None) in bench.sink.said, "end")
    assert error_of(bench.engine.history()[answer["prompt_id"]])["node_id"] == "1"
    json.dumps(bench.engine.history())


def test_an_empty_list_where_a_value_is_needed(bench: Bench) -> None:
    prompt = {
        "1": node("Many", value=0),
        "2": node("Add", a=["1", 0]),
        "3": node("Show", value=["2", 0]),
    }
    error = error_of(bench.run(prompt))
    assert (error["node_id"], error["exception_type"]) == ("2", "TypeError")
    prompt = {**prompt, "2": node("Add", a=["1", 0], b=2)}
    error = error_of(bench.run(prompt))
    assert (error["node_id"], error["exception_type"]) == ("2", "IndexError")


def test_undeclared_inputs(bench: Bench) -> None:
    """As in ComfyUI: constants are left out, links are passed on and refused by the function; where to does not matter."""
    assert bench.run({"1": node("Show", value=1, zzz=[3])})["status"]["completed"]
    for link in (["1", 0], ["2", 0], ["gone", 5], ["1", -3]):
        error = error_of(
            bench.run({"1": node("Add", a=1), "2": node("Show", value=["1", 0], zzz=link)})
        )
        assert error["node_id"] == "2"
        assert "unexpected keyword argument 'zzz'" in error["exception_message"]
    bench.still_works()


def test_an_error_after_an_output(bench: Bench) -> None:
    prompt = {
        "1": node("Show", value=1),
        "2": node("Fail", kind="value"),
        "3": node("Show", value=["2", 0]),
    }
    entry = bench.run(prompt)
    assert error_of(entry)["executed"] == ["1"]
    assert entry["outputs"] == {"1": {"value": [1]}}


def test_a_sink_that_fails_ends_the_prompt_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = bench.sink.send

    def failing(event: str, data: Mapping[str, Any], client_id: str | None) -> None:
        if event == "executed":
            raise RuntimeError("full")
        said(event, data, client_id)

    monkeypatch.setattr(bench.sink, "send", failing)
    error = error_of(bench.run({"1": node("Show", value=1)}))
    assert error["exception_message"] == "full\n"
    monkeypatch.undo()
    bench.still_works()


@pytest.mark.parametrize("event", ["execution_start", "execution_cached", "execution_error"])
def test_a_prompt_that_cannot_even_say_so_is_in_the_history(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    said = bench.sink.send

    def failing(kind: str, data: Mapping[str, Any], client_id: str | None) -> None:
        if kind in {event, "execution_error"}:
            raise MemoryError
        said(kind, data, client_id)

    monkeypatch.setattr(bench.sink, "send", failing)
    entry = bench.run({"1": node("Fail", kind="value"), "2": node("Show", value=["1", 0])})
    assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("error", False)
    monkeypatch.undo()
    bench.still_works()
