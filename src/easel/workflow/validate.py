"""Validation of a prompt against `/object_info`, with ComfyUI's own error bodies.

The shapes are those that ``POST /prompt`` of ComfyUI 0.3.64 answers with: ``error`` and, for each faulty node,
``node_errors[id] = {errors, dependent_outputs, class_type}``. Only nodes that an output needs are looked at. Nothing here
recurses, so that no prompt is too deep, and no JSON makes it raise, as a prompt or as an `object_info`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from easel.workflow.constants import LONG_LIST, Problem, convert, judge, problem, text
from easel.workflow.links import link_problem
from easel.workflow.types import NodeId, ObjectInfo, unwrapped

MOST_REVISITS = 20_000
"""How often nodes known to be faulty are walked over again to name the outputs that depend on them. What costs nodes times
outputs ends here: outputs that come later are judged all the same, and missing in ``dependent_outputs`` of nodes before them."""

Check: TypeAlias = Callable[[NodeId, str, Mapping[str, Any]], "Custom | None"]
"""``check(node_id, class_type, constant_inputs)``: the class's own validation, None when it has none."""


@dataclass(frozen=True, slots=True)
class Custom:
    """What a class's own validation said of the inputs it looks at; those skip the range and choice checks."""

    inputs: Collection[str]
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Input name → why it is refused; empty when the class only says that it is."""


@dataclass(frozen=True, slots=True)
class Validation:
    """The verdict: ``error`` is None when at least one output can run; ``outputs`` are those that can."""

    error: dict[str, Any] | None
    outputs: list[NodeId]
    node_errors: dict[NodeId, dict[str, Any]]


def validate_prompt(
    prompt: object,
    object_info: ObjectInfo,
    *,
    targets: Collection[NodeId] | None = None,
    values: bool = True,
    types: bool = False,
    check: Check | None = None,
) -> Validation:
    """Validate any JSON value as a prompt.

    ``targets`` restricts the outputs (``partial_execution_targets``). With ``values`` False only structure is checked
    (classes, missing inputs, links, cycles, outputs), and with ``types`` besides whether numbers are numbers: right also
    with an `object_info` that is a little old. Converted values (``"5"`` for an INT) are written back into the prompt, as
    ComfyUI does.
    """
    if not isinstance(prompt, dict):
        return _refused("invalid_prompt", "The prompt is not an object of nodes.", "")
    outputs: list[NodeId] = []
    for node_id, node in prompt.items():
        refused = _unknown(node_id, node, object_info)
        if refused is not None:
            return refused
        described: object = object_info[node["class_type"]]
        if (
            isinstance(described, Mapping)
            and described.get("output_node")
            and (targets is None or node_id in targets)
        ):
            outputs.append(node_id)
    if not outputs:
        return _refused("prompt_no_outputs", "Prompt has no outputs", "")
    return _Validator(prompt, object_info, values, types, check).verdict(outputs)


def _unknown(node_id: object, node: object, object_info: ObjectInfo) -> Validation | None:
    """Refuse what is no node of a known class."""
    where = f"Node ID '#{node_id}'"
    if not isinstance(node, dict) or "class_type" not in node:
        return _refused(
            "invalid_prompt",
            "Cannot execute because a node is missing the class_type property.",
            where,
        )
    name = node["class_type"]
    if not isinstance(name, str) or name not in object_info:
        return _refused(
            "invalid_prompt", f"Cannot execute because node {text(name)} does not exist.", where
        )
    if not isinstance(node.get("inputs"), dict):
        return _refused(
            "invalid_prompt",
            "Cannot execute because a node's inputs are not an object.",
            where,
        )
    return None


def _refused(kind: str, message: str, details: str) -> Validation:
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return Validation(error, [], {})


class _Validator:
    """One run over a prompt. A node's verdict is the same for every output that needs it."""

    def __init__(
        self,
        prompt: dict[NodeId, Any],
        object_info: ObjectInfo,
        values: bool,
        types: bool,
        check: Check | None,
    ) -> None:
        self._prompt = prompt
        self._info = object_info
        self._values = values
        self._types = types
        self._check = check
        self._declarations: dict[str, dict[str, tuple[list[Any], bool]]] = {}
        self._problems: dict[NodeId, list[Problem]] = {}
        """Nodes looked at, in the order they were finished."""
        self._valid: dict[NodeId, bool] = {}
        """Whether a node and all it needs is without a problem."""
        self._revisits = 0

    def verdict(self, outputs: list[NodeId]) -> Validation:
        """Validate each output with what it needs."""
        good: list[NodeId] = []
        details: list[str] = []
        node_errors: dict[NodeId, dict[str, Any]] = {}
        for output in outputs:
            faulty = self._visit(output)
            if self._valid[output]:
                good.append(output)
                continue
            details += [f"{p['message']}: {p['details']}" for p in self._problems[output]]
            for node_id in faulty:
                if self._problems[node_id]:
                    entry = node_errors.setdefault(
                        node_id,
                        {
                            "errors": self._problems[node_id],
                            "dependent_outputs": [],
                            "class_type": self._prompt[node_id]["class_type"],
                        },
                    )
                    entry["dependent_outputs"].append(output)
        if good:
            return Validation(None, good, node_errors)
        error = {
            "type": "prompt_outputs_failed_validation",
            "message": "Prompt outputs failed validation",
            "details": "\n".join(details),
            "extra_info": {},
        }
        return Validation(error, [], node_errors)

    def _visit(self, output: NodeId) -> list[NodeId]:
        """Validate everything `output` needs, deepest first, and return what is not valid of it in that order.

        What was found faulty for an earlier output is walked over again, up to `MOST_REVISITS`.
        """
        done: dict[NodeId, None] = {}
        path: dict[NodeId, None] = {output: None}
        stack: list[tuple[NodeId, Iterator[NodeId]]] = [(output, iter(self._needs(output)))]
        round_found = False
        while stack:
            node_id, needs = stack[-1]
            for other in needs:
                if other in path:
                    if not round_found:
                        round_found = True
                        self._cycle(other, path)
                elif other not in done and self._leads_to_faults(other):
                    path[other] = None
                    stack.append((other, iter(self._needs(other))))
                    break
            else:
                stack.pop()
                del path[node_id]
                done[node_id] = None
                if node_id not in self._valid:
                    self._judge(node_id)
        return list(done)

    def _leads_to_faults(self, node_id: NodeId) -> bool:
        """Whether to walk to a node: it has not been judged, or something in it or behind it is faulty."""
        valid = self._valid.get(node_id)
        if valid is False:
            self._revisits += 1
            return self._revisits <= MOST_REVISITS
        return valid is None

    def _cycle(self, node_id: NodeId, path: Iterable[NodeId]) -> None:
        """A node needs itself: every node on the way round is at fault. One way round is told for each output."""
        around = list(path)
        around = around[around.index(node_id) :]
        shown = " -> ".join([*around[-5:], node_id])
        told = around[:LONG_LIST]  # the answer has it once for every node on the way
        for member in around:
            problems = self._problems.setdefault(member, [])
            if not any(p["type"] == "dependency_cycle" for p in problems):
                problems.append(
                    problem("dependency_cycle", "Node needs its own output", shown, cycle=told)
                )

    def _needs(self, node_id: NodeId) -> list[NodeId]:
        """Existing nodes that a node's declared inputs link to, in order."""
        found: dict[NodeId, None] = {}
        inputs = self._prompt[node_id]["inputs"]
        for name in self._declared(node_id):
            value = inputs.get(name)
            if isinstance(value, list) and len(value) == 2:
                other = value[0]
                if isinstance(other, str) and other in self._prompt:
                    found[other] = None
        return list(found)

    def _declared(self, node_id: NodeId) -> dict[str, tuple[list[Any], bool]]:
        """Input name → its declaration and whether it is required."""
        name = self._prompt[node_id]["class_type"]
        known = self._declarations.get(name)
        if known is None:
            known = self._declarations[name] = _declarations(self._info[name])
        return known

    def _judge(self, node_id: NodeId) -> None:
        """Validate one node whose inputs have been judged."""
        problems = self._problems.setdefault(node_id, [])
        node = self._prompt[node_id]
        inputs: dict[str, Any] = node["inputs"]
        declared = self._declared(node_id)
        unfit: dict[str, Problem] = {}
        custom = None
        if self._values or self._types:
            for name, (spec, _) in declared.items():
                if name in inputs and not isinstance(inputs[name], list):
                    failure = convert(inputs, name, spec)
                    if failure is not None:
                        unfit[name] = failure
        whole = True
        later: list[Problem] = []
        if self._check is not None and self._values:
            custom = self._custom(node_id, node, later)
        for name, (spec, required) in declared.items():
            if name not in inputs:
                if required:
                    problems.append(_missing(name))
                continue
            value = inputs[name]
            if isinstance(value, list):
                fault = link_problem(
                    self._prompt, self._info, name, spec, value, plain=not self._values
                )
                if fault is None:
                    whole &= self._valid.get(value[0], False)
                else:
                    problems.append(fault)
            elif name in unfit:
                problems.append(unfit[name])
            elif self._values and (custom is None or name not in custom.inputs):
                fault = judge(value, name, spec)
                if fault is not None:
                    problems.append(fault)
        problems += later
        self._problems[node_id] = self._problems.pop(node_id)
        self._valid[node_id] = whole and not problems

    def _custom(
        self, node_id: NodeId, node: dict[str, Any], problems: list[Problem]
    ) -> Custom | None:
        """Ask the class's own validation; what it refuses goes to the problems."""
        assert self._check is not None
        constants = {k: unwrapped(v) for k, v in node["inputs"].items() if not isinstance(v, list)}
        try:
            custom = self._check(node_id, node["class_type"], constants)
        except (Exception, SystemExit, GeneratorExit) as error:  # noqa: BLE001 - a pack's own code
            reason = text(error)
            problems.append(
                problem(
                    "exception_during_validation",
                    "Exception when validating node",
                    reason,
                    exception_type=type(error).__name__,
                    traceback=[],
                )
            )
            return None
        if custom is not None:
            problems += [
                problem(
                    "custom_validation_failed",
                    "Custom validation failed for node",
                    f"{name} - {reason}" if reason else name,
                    input_name=name,
                )
                for name, reason in custom.refusals.items()
            ]
        return custom


def _missing(name: str) -> Problem:
    return problem("required_input_missing", "Required input is missing", name, input_name=name)


def _declarations(described: object) -> dict[str, tuple[list[Any], bool]]:
    """Input name → declaration and whether it is required. What has no such shape is taken as an input of any type."""
    inputs = described.get("input") if isinstance(described, Mapping) else None
    found: dict[str, tuple[list[Any], bool]] = {}
    for group in ("required", "optional"):
        members = inputs.get(group) if isinstance(inputs, Mapping) else None
        if isinstance(members, Mapping):
            for name, spec in members.items():
                shaped = isinstance(spec, list | tuple) and spec
                found[name] = (list(spec) if shaped else ["*"], group == "required")
    return found
