"""``--input FILE`` and ``--input NODE.INPUT=FILE``: files that the workflow works on."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from easel.cli.addresses import find_input, find_nodes, shown
from easel.cli.report import UsageError
from easel.cli.workflow_file import read_file
from easel.workflow.inputs import file_inputs
from easel.workflow.types import NodeId, ObjectInfo, Prompt, is_link

_URL = re.compile(r"(https?://|data:)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file for an input; or, with ``data`` None, a URL that the agent fetches itself."""

    node_id: NodeId
    input_name: str
    name: str
    data: bytes | None

    def data_uri(self) -> str:
        """Return the file as a ``data:`` URI."""
        assert self.data is not None
        kind = mimetypes.guess_type(self.name)[0] or "application/octet-stream"
        return f"data:{kind};base64,{base64.b64encode(self.data).decode()}"


def candidates(prompt: Prompt, object_info: ObjectInfo | None) -> list[tuple[NodeId, str]]:
    """Return the inputs of the workflow that take a file and are not linked to another node."""
    return [
        (node_id, name)
        for node_id, node in prompt.items()
        for name in file_inputs(node["class_type"], object_info)
        if not is_link(node["inputs"].get(name))
    ]


def attach(
    prompt: Prompt,
    flags: Sequence[str],
    object_info: ObjectInfo | None,
    taken: set[tuple[NodeId, str]],
) -> list[Attachment]:
    """Find the input each flag is for and read its file. ``taken`` are inputs that ``--set`` has filled.

    Raises UsageError when an input cannot be found or is not the only one, and when a file cannot be read.
    """
    open_inputs = [place for place in candidates(prompt, object_info) if place not in taken]
    found: list[Attachment] = []
    unnamed = []
    for text in flags:
        address, equals, name = text.partition("=")
        if not equals or _URL.match(text) or _is_file(text):
            unnamed.append(text)
            continue
        place = _named(prompt, address, object_info, open_inputs, f"--input {text}")
        if place in open_inputs:
            open_inputs.remove(place)
        found.append(_read(place, name))
    if not unnamed:
        return found
    if len(unnamed) > 1 or len(open_inputs) != 1:
        raise UsageError(_ambiguous(prompt, unnamed[0], open_inputs))
    return [*found, _read(open_inputs[0], unnamed[0])]


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def _named(
    prompt: Prompt,
    address: str,
    object_info: ObjectInfo | None,
    open_inputs: list[tuple[NodeId, str]],
    flag: str,
) -> tuple[NodeId, str]:
    """Return the input an address names; a node alone is enough when it has one file input."""
    nodes = find_nodes(prompt, address)
    if len(nodes) == 1:
        own = [place for place in open_inputs if place[0] == nodes[0]]
        if len(own) == 1:
            return own[0]
        listed = ", ".join(name for _, name in own)
        raise UsageError(
            f"{flag}: node {shown(prompt, nodes[0])} has {len(own) or 'no'} file inputs"
            + (f": {listed}" if own else ""),
            hint="write --input NODE.INPUT=FILE",
        )
    return find_input(prompt, address, object_info, flag)


def _ambiguous(prompt: Prompt, name: str, open_inputs: list[tuple[NodeId, str]]) -> str:
    if not open_inputs:
        return f"--input {name}: the workflow has no file input left to put it in"
    first = ".".join(open_inputs[0])
    listed = ", ".join(f"{node}.{name} of {shown(prompt, node)}" for node, name in open_inputs)
    return (
        f"--input {name}: say which input it is for, as in --input {first}={name}; "
        f"the file inputs are {listed}"
    )


def _read(place: tuple[NodeId, str], name: str) -> Attachment:
    if _URL.match(name):
        return Attachment(*place, name, None)
    data = read_file(name, "input file")
    if not data:
        raise UsageError(f"the input file {name} is empty")
    return Attachment(*place, name, data)
