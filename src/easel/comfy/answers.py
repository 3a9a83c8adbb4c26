"""What ComfyUI's HTTP routes answer, decoded leniently: other people's prompts are in there too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import msgspec

from easel.comfy.events import Event, parse_text
from easel.errors import EngineProtocolError
from easel.workflow.types import NodeId

Answer = TypeVar("Answer")


class FileRef(msgspec.Struct, frozen=True):
    """A file in one of the engine's folders."""

    filename: str
    subfolder: str = ""
    type: str = "output"
    """``output``, ``input`` or ``temp``."""


class Accepted(msgspec.Struct, frozen=True):
    """The answer to ``POST /prompt`` when at least one output of the prompt is valid."""

    prompt_id: str
    number: Any = None
    node_errors: dict[NodeId, Any] = {}


class QueueSnapshot(msgspec.Struct, frozen=True):
    """Prompt ids in the engine's queue. ``pending`` is in the order of execution."""

    running: tuple[str, ...]
    pending: tuple[str, ...]

    def __contains__(self, prompt_id: object) -> bool:
        return prompt_id in self.running or prompt_id in self.pending

    @property
    def remaining(self) -> int:
        """How many wait or run: what ``status`` messages count."""
        return len(self.running) + len(self.pending)


class HistoryEntry(msgspec.Struct, frozen=True):
    """How a prompt ended, in the engine's memory."""

    outputs: dict[NodeId, dict[str, Any]]
    meta: dict[NodeId, dict[str, Any]]
    status: str
    """``success`` or ``error`` (interrupted prompts too); empty when the engine did not say."""
    messages: tuple[Event, ...]
    """The ``execution_*`` messages, whoever was connected."""


class _QueueItem(msgspec.Struct, array_like=True, gc=False):
    number: Any = 0
    prompt_id: Any = None  # the rest (prompt, extra_data, output ids) is skipped undecoded


class _Queue(msgspec.Struct, gc=False):
    queue_running: list[_QueueItem] = []
    queue_pending: list[_QueueItem] = []


class _Accepted(msgspec.Struct, gc=False):
    prompt_id: str
    number: Any = None
    node_errors: Any = None  # an empty list in some versions


class _HistoryMessage(msgspec.Struct, array_like=True, gc=False):
    kind: str = ""
    data: msgspec.Raw = msgspec.Raw(b"{}")


class _HistoryStatus(msgspec.Struct, gc=False):
    status_str: str | None = None
    messages: list[_HistoryMessage] = []


class _History(msgspec.Struct, gc=False):
    outputs: dict[str, Any] = {}
    meta: dict[str, Any] | None = None
    status: _HistoryStatus | None = None


_queue = msgspec.json.Decoder(_Queue)
_history = msgspec.json.Decoder(dict[str, _History])
_accepted = msgspec.json.Decoder(_Accepted)
_file = msgspec.json.Decoder(dict[str, Any])


def decode(raw: bytes, decoder: msgspec.json.Decoder[Answer], what: str) -> Answer:
    """Decode an answer; JSON with ``NaN`` in it, which ComfyUI does send, is read too.

    Raises EngineProtocolError.
    """
    try:
        return decoder.decode(raw)
    except (ValueError, RecursionError) as error:
        try:
            lenient = msgspec.json.encode(json.loads(raw, parse_constant=lambda _: None))
            return decoder.decode(lenient)
        except (ValueError, RecursionError, TypeError):
            raise EngineProtocolError(
                f"the engine's answer to {what} cannot be read: {error}"
            ) from error


def decode_accepted(raw: bytes) -> Accepted:
    """Decode the answer to ``POST /prompt``."""
    answer = decode(raw, _accepted, "POST /prompt")
    errors = answer.node_errors
    return Accepted(answer.prompt_id, answer.number, errors if isinstance(errors, dict) else {})


def decode_queue(raw: bytes) -> QueueSnapshot:
    """Decode ``GET /queue``: the pending part comes as a heap and is sorted here."""
    queue = decode(raw, _queue, "GET /queue")
    pending = queue.queue_pending
    if all(isinstance(item.number, int | float) for item in pending):
        pending = sorted(pending, key=lambda item: cast("float", item.number))
    return QueueSnapshot(
        tuple(str(item.prompt_id) for item in queue.queue_running),
        tuple(str(item.prompt_id) for item in pending),
    )


def decode_history(raw: bytes, prompt_id: str) -> HistoryEntry | None:
    """Decode ``GET /history/<id>``: None when it is not (yet) there."""
    entry = decode(raw, _history, "GET /history/<id>").get(prompt_id)
    if entry is None:
        return None
    status = entry.status or _HistoryStatus()
    return HistoryEntry(
        _objects(entry.outputs),
        _objects(entry.meta or {}),
        status.status_str or "",
        tuple(
            parse_text(
                b'{"type":%b,"data":%b}' % (msgspec.json.encode(message.kind), bytes(message.data))
            )
            for message in status.messages
        ),
    )


def decode_upload(raw: bytes) -> FileRef:
    """Decode the answer to an upload: ``{name, subfolder, type}``. Raises EngineProtocolError."""
    answer = decode(raw, _file, "the upload")
    name = answer.get("name")
    if not isinstance(name, str):
        raise EngineProtocolError("the engine's answer to the upload names no file")
    return FileRef(name, str(answer.get("subfolder") or ""), str(answer.get("type") or "input"))


def _objects(mapping: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Keep the entries that are objects."""
    return {key: value for key, value in mapping.items() if isinstance(value, dict)}
