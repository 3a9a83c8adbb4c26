"""From lists of inputs to the calls of a node's function, and from what the calls return to one result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from easel.engine.caching import Result
from easel.engine.node import NodeClass, NodeResult

_encoder = msgspec.json.Encoder()


def calls(inputs: Mapping[str, list[Any]], node_class: NodeClass) -> Iterator[dict[str, Any]]:
    """Yield the arguments of each call: one for each position of the longest list, shorter ones repeat their last.

    With ``input_is_list`` there is one call with the lists themselves. Without any value there is one call without
    arguments, as in ComfyUI. Raises IndexError for an empty list beside others.
    """
    if node_class.input_is_list or not inputs:
        yield dict(inputs)
        return
    longest = max(len(values) for values in inputs.values())
    if longest == 0:
        yield {}
        return
    for name, values in inputs.items():
        if not values:
            raise IndexError(f"{node_class.name}: input {name!r} is an empty list")
    for n in range(longest):
        yield {name: values[min(n, len(values) - 1)] for name, values in inputs.items()}


def merged(node_class: NodeClass, returned: Sequence[Any]) -> Result:
    """Put the calls' values together: a list for each slot, and the concatenated ui outputs.

    Raises TypeError, which names the class, when a call did not return what is declared.
    """
    slots: list[list[Any]] = [[] for _ in node_class.outputs]
    ui: dict[str, list[Any]] | None = None
    for one in returned:
        result = _result(node_class, one)
        for slot, value in enumerate(result.values):
            if not node_class.outputs[slot].is_list:
                slots[slot].append(value)
            elif isinstance(value, list | tuple):
                slots[slot].extend(value)
            else:
                raise TypeError(
                    f"{node_class.name} returned {_kind(value)} for output {slot}, which is a list"
                )
        if result.ui is not None:
            ui = ui if ui is not None else {}
            for name, values in result.ui.items():
                if not isinstance(name, str) or not isinstance(values, list | tuple):
                    raise TypeError(f"{node_class.name} shows {_kind(values)} as {name!r}, no list")
                ui.setdefault(name, []).extend(values)
    if ui:
        _check_shown(node_class, ui)
    return Result(slots, ui)


def _result(node_class: NodeClass, returned: Any) -> NodeResult:
    """Take what a call returned as a `NodeResult` with a value for each output."""
    if isinstance(returned, NodeResult):
        result = returned
    else:
        result = NodeResult(() if returned is None else returned)
    if not isinstance(result.values, list | tuple):
        raise TypeError(f"{node_class.name} returned {_kind(result.values)}, not a tuple of values")
    declared = len(node_class.outputs)
    if len(result.values) != declared:
        raise TypeError(
            f"{node_class.name} returned {len(result.values)} values for {declared} outputs"
        )
    if result.ui is not None and not isinstance(result.ui, Mapping):
        raise TypeError(f"{node_class.name} returned {_kind(result.ui)} to be shown, not an object")
    return result


def _check_shown(node_class: NodeClass, ui: dict[str, list[Any]]) -> None:
    """See that an output can be sent and listed: one that cannot would break the history for everybody."""
    try:
        _encoder.encode(ui)
    except UnicodeEncodeError:
        return  # lone surrogates are sent escaped
    except Exception as error:
        raise TypeError(f"{node_class.name} shows what is no JSON: {error}") from error


def _kind(value: Any) -> str:
    return type(value).__name__
