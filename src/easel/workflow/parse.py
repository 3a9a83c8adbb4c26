"""A submitted body → a prompt in canonical form.

Nothing that reaches the engine was not looked at here: ComfyUI's worker thread dies of some odd prompts (a node without
``inputs``, a list as ``inputs``), so those never leave this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn

import msgspec

from easel.errors import InvalidPrompt, NotJson, TooManyNodes, UiFormatWorkflow
from easel.workflow.types import Node, NodeId, Prompt, is_link

MAX_ID_LENGTH = 256
"""Longest node id, class name or input name, in characters."""

MAX_DEPTH = 128
"""Most levels of nesting: whatever is accepted here can be written again by any encoder at any depth of the stack."""

_EXPORT_HINT = (
    'open the workflow in ComfyUI and choose "Workflow > Export (API)" (older versions: enable dev mode, '
    'then "Save (API Format)"), then send that file'
)
_EXPLAINED = 4 * 1024 * 1024
"""Bytes of the longest body that is read a second time, slowly, to say where it is wrong."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_STRING_OR_KEY = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"([ \t\r\n]*:)?', re.DOTALL)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What an envelope says besides the prompt."""

    output_base64: bool = False
    """Return the files' content too."""
    extra_data: dict[str, Any] = {}
    """ComfyUI's ``extra_data``, always an object; ``extra_pnginfo.workflow`` is written into PNGs."""


class ParsedBody(msgspec.Struct, frozen=True, kw_only=True):
    """A body that has the form of a prompt. Whether its nodes exist is not known yet."""

    prompt: Prompt
    """Canonical: each node has ``class_type``, ``inputs`` and perhaps ``_meta``, nothing else."""
    options: Options = Options()


def parse_prompt(body: bytes | str | object, *, max_nodes: int = 5000) -> ParsedBody:
    """Read a bare prompt or an envelope ``{"prompt": {…}, "extra_data": {…}, "workflow": {…}, "output_base64": true}``.

    ``body`` is JSON text or an object decoded from it. Other keys of an envelope are ignored.
    Raises `NotJson`, `UiFormatWorkflow`, `TooManyNodes` or `InvalidPrompt`, naming node and input where there is one.
    """
    if not isinstance(body, bytes | bytearray | str):
        body = _encode(body)
    value = _decode(body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body))
    if not isinstance(value, dict):
        raise NotJson(
            f"the body is {_name_of(value)}, not a JSON object",
            hint="send the prompt (API format) as a JSON object",
        )
    _refuse_ui_format(value)
    if _is_envelope(value):
        graph, options = _open_envelope(value)
    else:
        graph, options = value, Options()
    return ParsedBody(prompt=canonical_prompt(graph, max_nodes=max_nodes), options=options)


def canonical_prompt(graph: dict[str, Any], *, max_nodes: int = 5000) -> Prompt:
    """Check the form of every node of a decoded prompt and return it in canonical form.

    Raises `TooManyNodes` or `InvalidPrompt`.
    """
    if not graph:
        raise InvalidPrompt(
            "the prompt has no nodes",
            error=_error("prompt_no_outputs", "Prompt has no outputs", ""),
            hint="send at least one node and one output node",
        )
    if len(graph) > max_nodes:
        raise TooManyNodes(
            f"the prompt has {len(graph)} nodes; at most {max_nodes} are accepted",
            hint="split the workflow, or raise the setting agent.max_nodes",
        )
    return {node_id: _canonical_node(node_id, node) for node_id, node in graph.items()}


def _canonical_node(node_id: NodeId, node: object) -> Node:
    if _odd(node_id):
        raise InvalidPrompt(
            f"node id {_short(node_id)} is too long or has control characters",
            error=_error("invalid_prompt", "Invalid node ID", f"Node ID '#{_short(node_id)}'"),
            node_id=_short(node_id),
        )
    class_type = node.get("class_type") if isinstance(node, dict) else None
    if not isinstance(node, dict) or not isinstance(class_type, str) or not class_type:
        wrong = isinstance(node, dict) and class_type is not None
        raise InvalidPrompt(
            f"node {node_id!r}: class_type must be the name of a node class"
            if wrong
            else f"node {node_id!r} has no class_type",
            error=_error(
                "invalid_prompt",
                "Cannot execute because a node is missing the class_type property.",
                f"Node ID '#{node_id}'",
            ),
            hint='every node is {"class_type": "…", "inputs": {…}}',
            node_id=node_id,
        )
    if _odd(class_type):
        raise InvalidPrompt(
            f"node {node_id!r}: the class name is too long or has control characters",
            node_id=node_id,
            node_type=_short(class_type),
        )
    inputs = node.get("inputs")
    if inputs is None:
        inputs = {}
    elif not isinstance(inputs, dict):
        _refuse_node(
            node_id, class_type, f"inputs is {_name_of(inputs)}, not an object", "invalid_inputs"
        )
    result: Node = {
        "class_type": class_type,
        "inputs": {
            name: value
            if name.isidentifier()
            and len(name) <= MAX_ID_LENGTH
            and not isinstance(value, dict | list)
            else _canonical_input(node_id, class_type, name, value)
            for name, value in inputs.items()
        },
    }
    meta = node.get("_meta")
    if isinstance(meta, dict):
        result["_meta"] = meta
    return result


def _odd(name: str) -> bool:
    return len(name) > MAX_ID_LENGTH or (
        not name.isprintable() and _CONTROL.search(name) is not None
    )


def _canonical_input(node_id: NodeId, class_type: str, name: str, value: Any) -> Any:
    if _odd(name):
        _refuse_node(
            node_id,
            class_type,
            f"input name {_short(name)} is too long or has control characters",
            "invalid_input_name",
        )
    # The front end wraps list values so; the engine unwraps one level. Other wrapped values are unwrapped wholly here,
    # so that nothing that looks at an input later can be passed by.
    while isinstance(value, dict) and "__value__" in value:
        inner = value["__value__"]
        if isinstance(inner, list):
            return {"__value__": inner}
        value = inner
    if isinstance(value, list) and not is_link(value):
        detail = {
            "type": "bad_linked_input",
            "message": "Bad linked input, must be a length-2 list of [node_id, slot_index]",
            "details": name,
            "extra_info": {"input_name": name, "received_value": value if len(value) < 8 else None},
        }
        raise InvalidPrompt(
            f"node {node_id!r} ({class_type}), input {name!r}: a list must be a link [node_id, slot_index]",
            error=_error(
                "prompt_outputs_failed_validation",
                "Prompt outputs failed validation",
                f"{detail['message']}: {name}",
            ),
            node_errors={
                node_id: {"errors": [detail], "dependent_outputs": [], "class_type": class_type}
            },
            hint='a link is ["<node id>", <output index>]; a list value is {"__value__": […]}',
            node_id=node_id,
            node_type=class_type,
            input_name=name,
        )
    return value


def _refuse_node(node_id: NodeId, class_type: str, problem: str, kind: str) -> NoReturn:
    detail = {"type": kind, "message": problem, "details": "", "extra_info": {}}
    raise InvalidPrompt(
        f"node {node_id!r} ({class_type}): {problem}",
        error=_error(
            "prompt_outputs_failed_validation", "Prompt outputs failed validation", problem
        ),
        node_errors={
            node_id: {"errors": [detail], "dependent_outputs": [], "class_type": class_type}
        },
        node_id=node_id,
        node_type=class_type,
    )


def _is_envelope(value: dict[str, Any]) -> bool:
    """Tell an envelope from a prompt that has a node called "prompt"."""
    if "prompt" not in value:
        return False
    inner = value["prompt"]
    return not (isinstance(inner, dict) and isinstance(inner.get("class_type"), str))


def _open_envelope(value: dict[str, Any]) -> tuple[dict[str, Any], Options]:
    graph = value["prompt"]
    if not isinstance(graph, dict):
        raise InvalidPrompt(
            f"prompt is {_name_of(graph)}, not an object",
            error=_error("no_prompt", "No prompt provided", "No prompt provided"),
            hint='send {"prompt": {"<node id>": {"class_type": "…", "inputs": {…}}}}',
        )
    _refuse_ui_format(graph)
    for key, other in value.items():
        if key != "prompt" and isinstance(other, dict) and isinstance(other.get("class_type"), str):
            raise InvalidPrompt(
                f"the body is half an envelope and half a prompt: node {_short(key)} lies beside the key 'prompt'",
                hint="put every node inside 'prompt'",
                node_id=_short(key),
            )
    extra = _object(value, "extra_data")
    info = {**_object(extra, "extra_pnginfo"), **_object(value, "extra_pnginfo")}
    workflow = _object(value, "workflow")
    if workflow:
        info["workflow"] = workflow
    if info or "extra_pnginfo" in extra:
        extra = {**extra, "extra_pnginfo": info}
    wanted = value.get("output_base64")
    if wanted is not None and not isinstance(wanted, bool):
        raise InvalidPrompt(f"output_base64 is {_name_of(wanted)}, not true or false")
    return graph, Options(output_base64=bool(wanted), extra_data=extra)


def _object(container: dict[str, Any], key: str) -> dict[str, Any]:
    """Return an optional object; the engine's worker dies of ``extra_data: null`` and fails on lists."""
    value = container.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidPrompt(f"{key} is {_name_of(value)}, not an object")
    return value


def _refuse_ui_format(value: dict[str, Any]) -> None:
    for candidate in (value, value.get("workflow")):
        if (
            isinstance(candidate, dict)
            and isinstance(candidate.get("nodes"), list)
            and (candidate is value or "prompt" not in value)
        ):
            raise UiFormatWorkflow(
                "this is a workflow in the front end's format (it has lists of nodes and links), not in API format",
                hint=_EXPORT_HINT,
            )


def _decode(raw: bytes) -> Any:
    if raw.startswith(b"\xef\xbb\xbf"):  # Windows editors put a byte order mark before JSON
        raw = raw[3:]
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise NotJson(
            f"the body is not JSON: {_explain(raw, error)}", hint="send the prompt as JSON text"
        ) from None
    except RecursionError:
        raise NotJson("the body is nested too deeply") from None
    keys = sum(1 for match in _STRING_OR_KEY.finditer(raw) if match[1])
    if keys != _count_keys(value):
        raise NotJson(
            _name_duplicate(raw), hint="every node id and input name may occur once in its object"
        )
    return value


def _encode(value: object) -> bytes:
    """JSON text of a decoded body, so that both kinds of body pass the same checks."""
    try:
        return json.dumps(value, allow_nan=False).encode()
    except RecursionError:
        raise NotJson("the body is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise NotJson(f"the body cannot be written as JSON: {error}") from None


def _count_keys(value: Any) -> int:
    """Count the keys of every object inside, level by level. Raises `NotJson` when there are too many levels."""
    count = 0
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                count += len(item)
                children: Iterable[Any] = item.values()
            else:
                children = item
            deeper.extend(child for child in children if isinstance(child, dict | list))
        if not deeper:
            return count
        level = deeper
    raise NotJson("the body is nested too deeply", hint=f"at most {MAX_DEPTH} levels are accepted")


def _name_duplicate(raw: bytes) -> str:
    names: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in pairs:
            if name in result:
                names.append(name)
            result[name] = value
        return result

    if len(raw) <= _EXPLAINED:
        json.loads(raw, object_pairs_hook=collect)
    named = f"the key {_short(names[0])}" if names else "a key"
    return f"the body has {named} twice in one object"


def _explain(raw: bytes, error: Exception) -> str:
    """Say what is wrong and where; msgspec is fast but gives byte offsets only."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as better:
        return f"it is not UTF-8 text (byte {better.start})"
    if len(raw) > _EXPLAINED:
        return str(error)
    try:
        json.loads(text)
    except json.JSONDecodeError as better:
        return f"{better.msg} at line {better.lineno}, column {better.colno}"
    except (ValueError, RecursionError):
        pass
    surrogate = re.search(r"\\u[dD][89abAB]", text)
    constant = re.search(r"-?\b(?:NaN|Infinity)\b", text)
    if isinstance(error, msgspec.ValidationError):
        return f"a number is {str(error).lower()}"
    found = surrogate or constant
    if found and surrogate:
        return f"half of a surrogate pair in a string (character {found.start()})"
    if found:
        return f"{found[0]} is not a JSON number (character {found.start()})"
    return str(error)


def _error(kind: str, message: str, details: str) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": {}}


def _short(text: str) -> str:
    """Quote a name of any length and content for an error message."""
    return ascii(text if len(text) <= 60 else text[:57] + "…")


def _name_of(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return (
        "null"
        if value is None
        else names.get(
            type(value), "a number" if isinstance(value, int | float) else type(value).__name__
        )
    )
