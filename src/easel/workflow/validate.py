"""Validation of a prompt against `/object_info`, with ComfyUI's own error bodies.

The shapes are those that ``POST /prompt`` of ComfyUI 0.3.64 answers with: ``error`` and, for each faulty node,
``node_errors[id] = {errors, dependent_outputs, class_type}``. Only nodes that an output needs are looked at. Nothing here
recurses, so that no prompt is too deep, and no JSON makes it raise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from easel.workflow.types import NodeId, ObjectInfo

Problem: TypeAlias = dict[str, Any]
"""One entry of ``node_errors[id]["errors"]``: ``type, message, details, extra_info``."""

Check: TypeAlias = Callable[[NodeId, str, Mapping[str, Any]], "Custom | None"]
"""``check(node_id, class_type, constant_inputs)``: the class's own validation, None when it has none."""

LONG_LIST = 20
"""Choices beyond which an error says only how many there are."""


@dataclass(frozen=True, slots=True)
class Custom:
    """What a class's own validation said of the inputs it looks at; those skip the range and choice checks."""

    inputs: Collection[str]
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Input name → why it is refused."""


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
    check: Check | None = None,
) -> Validation:
    """Validate any JSON value as a prompt.

    ``targets`` restricts the outputs (``partial_execution_targets``). With ``values`` False only structure is checked
    (classes, missing inputs, links, cycles, outputs): right also with an `object_info` that is a little old. Converted values
    (``"5"`` for an INT) are written back into the prompt, as ComfyUI does.
    """
    if not isinstance(prompt, dict):
        return _refused("invalid_prompt", "The prompt is not an object of nodes.", "")
    outputs: list[NodeId] = []
    for node_id, node in prompt.items():
        problem = _unknown(node_id, node, object_info)
        if problem is not None:
            return problem
        if object_info[node["class_type"]].get("output_node") and (
            targets is None or node_id in targets
        ):
            outputs.append(node_id)
    if not outputs:
        return _refused("prompt_no_outputs", "Prompt has no outputs", "")
    return _Validator(prompt, object_info, values, check).verdict(outputs)


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
            "invalid_prompt", f"Cannot execute because node {name} does not exist.", where
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


def _problem(kind: str, message: str, details: str, **extra_info: Any) -> Problem:
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


class _Validator:
    """One run over a prompt. A node's verdict is the same for every output that needs it."""

    def __init__(
        self,
        prompt: dict[NodeId, Any],
        object_info: ObjectInfo,
        values: bool,
        check: Check | None,
    ) -> None:
        self._prompt = prompt
        self._info = object_info
        self._values = values
        self._check = check
        self._problems: dict[NodeId, list[Problem]] = {}
        """Nodes looked at, in the order they were finished."""
        self._valid: dict[NodeId, bool] = {}
        """Whether a node and all it needs is without a problem."""

    def verdict(self, outputs: list[NodeId]) -> Validation:
        """Validate each output with what it needs."""
        good: list[NodeId] = []
        details: list[str] = []
        node_errors: dict[NodeId, dict[str, Any]] = {}
        for output in outputs:
            needed = self._visit(output)
            if self._valid[output]:
                good.append(output)
                continue
            details += [f"{p['message']}: {p['details']}" for p in self._problems[output]]
            for node_id in needed:
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
        """Validate everything `output` needs, deepest first, and return those nodes in that order."""
        done: dict[NodeId, None] = {}
        path: dict[NodeId, None] = {}
        stack: list[tuple[NodeId, Iterable[NodeId]]] = [(output, iter(self._needs(output)))]
        path[output] = None
        while stack:
            node_id, needs = stack[-1]
            for other in needs:
                if other in path:
                    self._cycle(other, path)
                elif other not in done:
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

    def _cycle(self, node_id: NodeId, path: Iterable[NodeId]) -> None:
        """A node needs itself: every node on the way round is at fault."""
        around = list(path)
        around = around[around.index(node_id) :]
        shown = " -> ".join([*around[-5:], node_id])
        for member in around:
            problems = self._problems.setdefault(member, [])
            if not any(p["type"] == "dependency_cycle" for p in problems):
                problems.append(
                    _problem(
                        "dependency_cycle", "Node needs its own output", shown, cycle=around[:100]
                    )
                )

    def _needs(self, node_id: NodeId) -> list[NodeId]:
        """Existing nodes that a node's declared inputs link to, in order."""
        found: list[NodeId] = []
        inputs = self._prompt[node_id]["inputs"]
        for name in self._declared(node_id):
            value = inputs.get(name)
            if isinstance(value, list) and len(value) == 2:
                other = value[0]
                if isinstance(other, str) and other in self._prompt and other not in found:
                    found.append(other)
        return found

    def _declared(self, node_id: NodeId) -> dict[str, tuple[list[Any], bool]]:
        """Input name → its declaration and whether it is required."""
        declared = self._info[self._prompt[node_id]["class_type"]].get("input", {})
        return {
            name: (list(spec), group == "required")
            for group in ("required", "optional")
            for name, spec in declared.get(group, {}).items()
        }

    def _judge(self, node_id: NodeId) -> None:
        """Validate one node whose inputs have been judged."""
        problems = self._problems.setdefault(node_id, [])
        node = self._prompt[node_id]
        inputs: dict[str, Any] = node["inputs"]
        custom = self._custom(node_id, node, problems) if self._values else None
        whole = True
        for name, (spec, required) in self._declared(node_id).items():
            if name not in inputs:
                if required:
                    problems.append(
                        _problem(
                            "required_input_missing",
                            "Required input is missing",
                            name,
                            input_name=name,
                        )
                    )
                continue
            value = inputs[name]
            if isinstance(value, list):
                whole &= self._link(name, spec, value, problems)
            elif self._values:
                skip = custom is not None and name in custom.inputs
                _value(inputs, name, spec, skip, problems)
        if custom is not None:
            for name, reason in custom.refusals.items():
                problems.append(
                    _problem(
                        "custom_validation_failed",
                        "Custom validation failed for node",
                        f"{name} - {reason}",
                        input_name=name,
                    )
                )
        self._problems[node_id] = self._problems.pop(node_id)
        self._valid[node_id] = whole and not problems

    def _custom(
        self, node_id: NodeId, node: dict[str, Any], problems: list[Problem]
    ) -> Custom | None:
        if self._check is None:
            return None
        constants = {k: v for k, v in node["inputs"].items() if not isinstance(v, list)}
        try:
            return self._check(node_id, node["class_type"], constants)
        except Exception as error:  # noqa: BLE001 - a pack's own code
            problems.append(
                _problem(
                    "exception_during_validation",
                    "Exception when validating node",
                    str(error),
                    exception_type=type(error).__name__,
                    traceback=[],
                )
            )
            return None

    def _link(self, name: str, spec: list[Any], value: list[Any], problems: list[Problem]) -> bool:
        """Check a link; the answer is whether what it leads to is valid."""
        if len(value) != 2:
            problems.append(_bad_link(name, spec, value))
            return True
        source, slot = value
        if not isinstance(source, str) or source not in self._prompt:
            problems.append(self._dangling(name, spec, value))
            return True
        types = self._info[self._prompt[source]["class_type"]].get("output", [])
        if isinstance(slot, bool) or not isinstance(slot, int) or not 0 <= slot < len(types):
            problems.append(_bad_link(name, spec, value))
            return True
        wanted, received = spec[0], types[slot]
        if not fits(received, wanted):
            shown = "COMBO" if isinstance(wanted, list) else wanted
            problems.append(
                _problem(
                    "return_type_mismatch",
                    "Return type mismatch between linked nodes",
                    f"{name}, received_type({received}) mismatch input_type({shown})",
                    input_name=name,
                    input_config=spec,
                    received_type=received,
                    linked_node=value,
                )
            )
            return True
        return self._valid.get(source, False)

    def _dangling(self, name: str, spec: list[Any], value: list[Any]) -> Problem:
        """A link to a node that does not exist. ComfyUI reports the KeyError it runs into, without the input."""
        reason = f"input {name!r} links to node {value[0]!r}, which does not exist"
        if not self._values:
            return _problem(
                "bad_linked_input",
                "Link to a node that does not exist",
                reason,
                input_name=name,
                input_config=spec,
                received_value=value,
            )
        return _problem(
            "exception_during_validation",
            "Exception when validating node",
            repr(value[0]),
            exception_type="KeyError",
            traceback=[f"  {reason}\n"],
        )


def _bad_link(name: str, spec: list[Any], value: list[Any]) -> Problem:
    return _problem(
        "bad_linked_input",
        "Bad linked input, must be a length-2 list of [node_id, slot_index]",
        name,
        input_name=name,
        input_config=spec,
        received_value=value,
    )


def fits(received: object, wanted: object) -> bool:
    """Tell whether an output of one type may feed an input of another.

    ``*`` fits everything; types may be unions (``"INT,FLOAT"``): every type of the output must be among the input's.
    Choices (lists, ``COMBO``) take outputs that are choices, too.
    """
    if isinstance(wanted, list):
        wanted = "COMBO"
    if isinstance(received, list):
        received = "COMBO"
    if not isinstance(received, str) or not isinstance(wanted, str):
        return received == wanted
    if "*" in (received, wanted) or received == wanted:
        return True
    return {t.strip() for t in received.split(",")} <= {t.strip() for t in wanted.split(",")}


def _convert(kind: object, value: Any) -> Any:
    """Convert a constant as ComfyUI does. Raises ValueError, TypeError or OverflowError."""
    if kind == "INT":
        return int(value)
    if kind == "FLOAT":
        return float(value)
    if kind == "STRING":
        return str(value)
    if kind == "BOOLEAN":
        return bool(value)
    return value


def _value(
    inputs: dict[str, Any], name: str, spec: list[Any], skip: bool, problems: list[Problem]
) -> None:
    """Check a constant: type, range, choice."""
    kind = spec[0]
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    value = inputs[name]
    if isinstance(value, dict) and "__value__" in value:
        # A list as a value, not as a link, is written so.
        value = inputs[name] = value["__value__"]
    try:
        value = inputs[name] = _convert(kind, value)
    except (ValueError, TypeError, OverflowError) as error:
        problems.append(
            _problem(
                "invalid_input_type",
                f"Failed to convert an input value to a {kind} value",
                f"{name}, {value}, {error}",
                input_name=name,
                input_config=spec,
                received_value=value,
                exception_message=str(error),
            )
        )
        return
    if skip:
        return
    if isinstance(value, int | float):
        lowest, highest = options.get("min"), options.get("max")
        limit: Any = None
        if isinstance(lowest, int | float) and value < lowest:
            kind_of, word, limit = "value_smaller_than_min", "smaller than min", lowest
        elif isinstance(highest, int | float) and value > highest:
            kind_of, word, limit = "value_bigger_than_max", "bigger than max", highest
        if limit is not None:
            problems.append(
                _problem(
                    kind_of,
                    f"Value {value} {word} of {limit}",
                    name,
                    input_name=name,
                    input_config=spec,
                    received_value=value,
                )
            )
            return
    choices = (
        kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
    )
    if isinstance(choices, list) and value not in choices:
        long = len(choices) > LONG_LIST
        shown = f"(list of length {len(choices)})" if long else str(choices)
        problems.append(
            _problem(
                "value_not_in_list",
                "Value not in list",
                f"{name}: '{value}' not in {shown}",
                input_name=name,
                input_config=None if long else spec,
                received_value=value,
            )
        )
