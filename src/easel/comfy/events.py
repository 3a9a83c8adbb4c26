"""ComfyUI's socket messages, each parsed once into one of the structs below.

Text messages are ``{"type": …, "data": {…}}``; binary ones start with a big-endian u32 that names their kind (1 a
picture, 3 a text, 4 a picture with metadata). Custom nodes send types, fields and frames of their own, so nothing here
raises: what does not fit comes out as `Unknown`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import msgspec

from easel.workflow.types import NodeId


class Message(msgspec.Struct, frozen=True, gc=False):
    """Base of all events. ``prompt_id`` is None where the message does not say which prompt it belongs to."""

    prompt_id: str | None = None


class Status(Message, frozen=True, gc=False):
    """``status``: the engine's queue changed (sent to every socket), or, with ``sid``, the greeting of a new socket."""

    queue_remaining: int = 0
    """Prompts waiting or running, of everybody."""
    sid: str | None = None
    """The client id of this socket; only in its first message."""


class FeatureFlags(Message, frozen=True, gc=False):
    """``feature_flags``: the server's answer to ours."""

    flags: dict[str, Any] = {}


class ExecutionStart(Message, frozen=True, gc=False):
    """``execution_start``: the prompt has left the waiting line."""

    timestamp: float | None = None
    """Milliseconds since the epoch, on the engine's clock."""


class ExecutionCached(Message, frozen=True, gc=False):
    """``execution_cached``: the nodes that need not run; they get no ``executing``."""

    nodes: tuple[NodeId, ...] = ()
    timestamp: float | None = None


class Executing(Message, frozen=True, gc=False):
    """``executing``: a node begins; with ``node`` None the prompt is over (sent after its history is written)."""

    node: NodeId | None = None
    display_node: NodeId | None = None


class Progress(Message, frozen=True, gc=False):
    """``progress``: a node has done ``value`` of ``max`` steps. Both are finite."""

    node: NodeId | None = None
    value: float = 0
    max: float = 1


class NodeProgress(msgspec.Struct, frozen=True, gc=False):
    """One node of `ProgressState`."""

    value: float = 0
    max: float = 1
    state: str = ""
    """``pending``, ``running``, ``finished`` or ``error``."""
    display_node_id: NodeId | None = None
    parent_node_id: NodeId | None = None
    real_node_id: NodeId | None = None


class ProgressState(Message, frozen=True, gc=False):
    """``progress_state``: all nodes that began so far. Cumulative, sent twice a node and at every step.

    It grows with the prompt and mostly says what `Executing` and `Progress` say, so it is kept as it came and decoded
    when `nodes` is read. Nodes that report only this way (ComfyUI's V3 ``set_progress``) are seen nowhere else.
    """

    raw: bytes = b""
    """The whole message."""

    @property
    def nodes(self) -> dict[NodeId, NodeProgress]:
        """Decode the nodes; entries of another shape are left out."""
        try:
            return _state_decoder.decode(self.raw).data.nodes
        except (ValueError, RecursionError):
            return _odd_nodes(self.raw)


class Executed(Message, frozen=True, gc=False):
    """``executed``: a node with a ``ui`` output is done (or was cached and says its old output again)."""

    node: NodeId | None = None
    output: dict[str, Any] | None = None
    """``{"images": [{filename, subfolder, type}], "text": […] …}``: any keys a node likes."""
    display_node: NodeId | None = None


class ExecutionSuccess(Message, frozen=True, gc=False):
    """``execution_success``: all nodes are done; the history is written a moment later."""

    timestamp: float | None = None


class ExecutionFailure(Message, frozen=True, gc=False):
    """``execution_error``: a node raised."""

    node_id: NodeId | None = None
    node_type: str | None = None
    exception_type: str | None = None
    exception_message: str | None = None
    traceback: tuple[str, ...] = ()
    executed: tuple[NodeId, ...] = ()
    timestamp: float | None = None


class ExecutionInterrupted(Message, frozen=True, gc=False):
    """``execution_interrupted``: the prompt was stopped in, or before, a node."""

    node_id: NodeId | None = None
    node_type: str | None = None
    executed: tuple[NodeId, ...] = ()
    timestamp: float | None = None


class Preview(Message, frozen=True, gc=False):
    """A picture (frames 1 and 4): a sampler's preview (JPEG), or a result of SaveImageWebsocket (PNG)."""

    image_type: str = "image/jpeg"
    data: bytes = b""
    node_id: NodeId | None = None
    """None in frames of type 1, which name neither node nor prompt."""
    display_node_id: NodeId | None = None


class ProgressText(Message, frozen=True, gc=False):
    """A text a node shows while it works (frame 3, which names no prompt)."""

    node_id: NodeId | None = None
    text: str = ""


class Unknown(Message, frozen=True, gc=False):
    """Anything else: a custom node's own message, an odd shape, garbage."""

    kind: str | None = None
    """The message's ``type``; ``binary:<n>`` for frames; None when there was none to read."""
    data: Any = None
    """The decoded ``data`` where it could be decoded, else the bytes."""


Event: TypeAlias = (
    Status
    | FeatureFlags
    | ExecutionStart
    | ExecutionCached
    | Executing
    | Progress
    | ProgressState
    | Executed
    | ExecutionSuccess
    | ExecutionFailure
    | ExecutionInterrupted
    | Preview
    | ProgressText
    | Unknown
)


class _ExecInfo(msgspec.Struct, gc=False):
    queue_remaining: int = 0


class _QueueStatus(msgspec.Struct, gc=False):
    exec_info: _ExecInfo


class _StatusData(msgspec.Struct, gc=False):
    status: _QueueStatus
    sid: str | None = None


class _Wire(msgspec.Struct, tag_field="type", gc=False):
    """A text message as sent; subclasses fix ``type`` and the shape of ``data``."""


class _Status(_Wire, tag="status", gc=False):
    data: _StatusData


class _FeatureFlags(_Wire, tag="feature_flags", gc=False):
    data: dict[str, Any]


class _Start(_Wire, tag="execution_start", gc=False):
    data: ExecutionStart


class _Cached(_Wire, tag="execution_cached", gc=False):
    data: ExecutionCached


class _Executing(_Wire, tag="executing", gc=False):
    data: Executing


class _Progress(_Wire, tag="progress", gc=False):
    data: Progress


class _Executed(_Wire, tag="executed", gc=False):
    data: Executed


class _Success(_Wire, tag="execution_success", gc=False):
    data: ExecutionSuccess


class _Failure(_Wire, tag="execution_error", gc=False):
    data: ExecutionFailure


class _Interrupted(_Wire, tag="execution_interrupted", gc=False):
    data: ExecutionInterrupted


class _StateOwner(msgspec.Struct, gc=False):
    prompt_id: str | None = None


class _State(_Wire, tag="progress_state", gc=False):
    data: _StateOwner


class _StateNodes(msgspec.Struct, gc=False):
    nodes: dict[NodeId, NodeProgress]


class _FullState(msgspec.Struct, gc=False):
    data: _StateNodes


_WireMessage: TypeAlias = (
    _Status
    | _FeatureFlags
    | _Start
    | _Cached
    | _Executing
    | _Progress
    | _Executed
    | _Success
    | _Failure
    | _Interrupted
    | _State
)

_decoder = msgspec.json.Decoder(_WireMessage)
_state_decoder = msgspec.json.Decoder(_FullState)

# How ComfyUI (json.dumps) and engines with a compact encoder begin a progress_state. Reading the prompt id off the
# front spares a scan of a message that grows with the prompt and is mostly superseded before anybody looks at it.
_STATE_FRONTS = (
    b'{"type": "progress_state", "data": {"prompt_id": "',
    b'{"type":"progress_state","data":{"prompt_id":"',
)
_LONGEST_ID = 200


def parse_text(message: bytes | str) -> Event:
    """Parse a text message. Never raises."""
    raw = message.encode("utf-8", "surrogatepass") if isinstance(message, str) else bytes(message)
    for front in _STATE_FRONTS:
        if raw.startswith(front):
            end = raw.find(b'"', len(front), len(front) + _LONGEST_ID)
            prompt_id = raw[len(front) : end]
            if end > 0 and b"\\" not in prompt_id and prompt_id.isascii():
                return ProgressState(prompt_id.decode(), raw)
    try:
        return _event(_decoder.decode(raw), raw)
    except (ValueError, RecursionError):
        return _parse_odd(raw)


def _event(wire: _WireMessage, raw: bytes) -> Event:
    """Turn a decoded message into its event. Raises ValueError for numbers that are none."""
    if isinstance(wire, _Status):
        status = wire.data
        return Status(None, status.status.exec_info.queue_remaining, status.sid)
    if isinstance(wire, _State):
        return ProgressState(wire.data.prompt_id, raw)
    if isinstance(wire, _FeatureFlags):
        return FeatureFlags(None, wire.data)
    if isinstance(wire, _Progress) and not _finite(wire.data):
        raise ValueError("progress is not a finite number")
    return wire.data


def _finite(progress: Progress | NodeProgress) -> bool:
    return math.isfinite(progress.value) and math.isfinite(progress.max)


def _parse_odd(raw: bytes) -> Event:
    """The slow path: ids that are numbers, numbers that are strings, NaN, types of custom nodes, garbage."""
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError):
        return Unknown(None, None, raw)
    if not isinstance(message, dict):
        return Unknown(None, None, message)
    kind, data = message.get("type"), message.get("data")
    if isinstance(data, dict):
        data = {key: _id(key, value) for key, value in data.items()}
        try:
            wire = msgspec.convert({"type": kind, "data": data}, _WireMessage, strict=False)
            return _event(cast("_WireMessage", wire), raw)
        except (ValueError, RecursionError, TypeError):
            pass
    owner = data.get("prompt_id") if isinstance(data, dict) else None
    return Unknown(
        owner if isinstance(owner, str) else None, kind if isinstance(kind, str) else None, data
    )


_ID_KEYS = frozenset({"prompt_id", "node", "node_id", "display_node"})
_ID_LISTS = frozenset({"nodes", "executed"})


def _id(key: str, value: Any) -> Any:
    """Write ids as text; nodes of some packs send their number."""
    if key in _ID_KEYS and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if key in _ID_LISTS and isinstance(value, list):
        return [str(entry) if isinstance(entry, int) else entry for entry in value]
    return value


def _odd_nodes(raw: bytes) -> dict[NodeId, NodeProgress]:
    """Read the nodes of a `progress_state` of which a part has another shape."""
    try:
        nodes = json.loads(raw)["data"]["nodes"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return {}
    found: dict[NodeId, NodeProgress] = {}
    for node_id, entry in nodes.items() if isinstance(nodes, Mapping) else ():
        try:
            progress = msgspec.convert(entry, NodeProgress, strict=False)
        except (ValueError, RecursionError):
            continue
        if _finite(progress):
            found[node_id] = progress
    return found


class _PreviewMetadata(msgspec.Struct, gc=False):
    node_id: NodeId | None = None
    prompt_id: str | None = None
    display_node_id: NodeId | None = None
    image_type: str | None = None


_metadata_decoder = msgspec.json.Decoder(_PreviewMetadata)
_IMAGE_TYPES = {1: "image/jpeg", 2: "image/png"}


def parse_binary(frame: bytes) -> Event:
    """Parse a binary frame. Never raises."""
    kind = int.from_bytes(frame[:4], "big") if len(frame) >= 8 else None
    number = int.from_bytes(frame[4:8], "big")
    if kind == 1 and number in _IMAGE_TYPES:
        return Preview(None, _IMAGE_TYPES[number], frame[8:])
    if kind in (3, 4) and 8 + number <= len(frame):
        front, rest = frame[8 : 8 + number], frame[8 + number :]
        if kind == 3:
            return ProgressText(None, front.decode(errors="replace"), rest.decode(errors="replace"))
        try:
            about = _metadata_decoder.decode(front)
        except (ValueError, RecursionError):
            return Unknown(None, "binary:4", frame)
        return Preview(
            about.prompt_id,
            about.image_type or "image/jpeg",
            rest,
            about.node_id,
            about.display_node_id,
        )
    return Unknown(None, None if kind is None else f"binary:{kind}", frame)
