"""The messages of the agent link: JSON text frames on ``GET /easel/link``, previews as binary frames.

The agent dials, with ``Authorization: Bearer <token>``. It says `Hello`, the gateway `Welcome` (or closes with a code of
`CLOSES`). From then on:

- The gateway sends `Assign`, at most ``capacity`` tasks at a time: one running, one prefetched. The agent answers each with
  `Started`, `Progressed`, and in the end `Finished` or `Returned`.
- What must not be lost (`Started`, `Finished`, `Returned`) carries a number ``n`` that grows by one within a boot of the
  agent; the gateway answers `Acknowledge` when it is stored. After a cut the agent connects again and sends what was not
  acknowledged once more, in order, before anything else; repeating is harmless.
- Leases: the agent sends `Renew` every ``renew_seconds`` with all it holds; the gateway answers `Renewed`. A task whose lease
  is lost is stopped and forgotten: somebody else has it.
- Every preview is one binary frame: `preview_frame`.

Times are ms since the epoch. Unknown fields are ignored and unknown types skipped, so that either side may be newer.
"""

from __future__ import annotations

import struct
from typing import Any, Literal, TypeAlias

import msgspec

from easel.errors import BadRequest
from easel.workflow.progress import NodeProgress
from easel.workflow.types import NodeId, Prompt

PATH = "/easel/link"
"""Where the gateway takes agents."""
FILES_PATH = "/easel/link/files"
"""``PUT {FILES_PATH}/{folder}/{name}``: an output, streamed into the service's storage, for agents that do not mount it.

With the link's ``Authorization`` and the task's lease as `LEASE_HEADER`. 201: stored; 401: wrong token; 404: not a name for a
file; 409: the lease is not held here (now); 413: too large; 5xx: not stored, try again.
"""
LEASE_HEADER = "Easel-Lease"
TUNNEL_PATH = "/easel/link/tunnel"
"""``GET {TUNNEL_PATH}/{id}`` (WebSocket): one TCP connection to the engine, as binary frames, dialled on `OpenTunnel`."""

VERSION = 1
MOST_TASKS = 16
"""Tasks one agent may have at a time, whatever it says."""
MAX_MESSAGE = 256 * 1024 * 1024
"""Largest frame: a prompt with inline files, or a large preview."""

CLOSES: dict[int, str] = {
    1001: "the gateway stops; connect again",
    4401: "the token is wrong; do not come back",
    4403: "the instance is not wanted any more; stop",
    4409: "another connection of the same instance replaced this one",
    4426: "the gateway speaks another version of the link",
}


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A task the agent has, by its lease."""

    uid: str
    lease: str


class EngineReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine does."""

    state: str
    """`EngineLink.state`: starting, ready, restarting, failed, unreachable …"""
    ready: bool
    starts: int | None = None
    error: dict[str, Any] | None = None
    """`EaselError.to_json` of why it ended last, with log lines."""


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """The agent's first message."""

    version: int = VERSION
    instance: str | None = None
    """Its id, where it was started by the platform; None for one that joins by itself."""
    name: str
    """A name for people: host name or the operator's choice."""
    boot: str
    """Drawn at the agent's start: another boot has forgotten what this one held."""
    easel: str
    """The agent's version of Easel."""
    capacity: int
    """Tasks it takes at a time; a gateway gives at most `MOST_TASKS`."""
    engine: EngineReport
    engine_url: str | None = None
    """Where the engine answers, for a gateway on the same machine; None makes the gateway open tunnels."""
    agent_url: str | None = None
    shares_storage: bool = False
    """Whether outputs are written to the service's storage directly."""
    device: str | None = None
    held: list[Held] = []


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag="welcome"):
    """The gateway's answer."""

    instance: str
    service: str
    renew_seconds: float
    lease_seconds: float
    task_timeout: float | None = None
    """Longest execution of one task, in seconds."""


class Report(msgspec.Struct, frozen=True, kw_only=True, tag="report"):
    """The engine's state changed."""

    engine: EngineReport


class Assign(msgspec.Struct, frozen=True, kw_only=True, tag="assign"):
    """Run this."""

    uid: str
    lease: str
    attempt: int
    prompt: Prompt
    extra_data: dict[str, Any] = {}
    outputs: list[NodeId] | None = None
    folder: str
    """Where the attempt's outputs go in the service's storage: ``<uid>.<attempt>.<mark of the lease>``, never used twice."""
    previews: bool = False
    """Whether anybody wants previews now; `Watch` says when that changes."""


class Watch(msgspec.Struct, frozen=True, kw_only=True, tag="watch"):
    """Whether anybody wants the previews of a task."""

    uid: str
    previews: bool


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """End a task; it still ends with `Finished` (cancelled)."""

    uid: str
    lease: str


class Recall(msgspec.Struct, frozen=True, kw_only=True, tag="recall"):
    """Give a task back if it has not begun, for an instance that has nothing to do: `Returned` (not counted), or no answer."""

    uid: str
    lease: str


class Drain(msgspec.Struct, frozen=True, kw_only=True, tag="drain"):
    """Give back what has not begun, end what runs, take nothing more. ``stop``: then leave and end the process."""

    stop: bool = False


class Refresh(msgspec.Struct, frozen=True, kw_only=True, tag="refresh"):
    """Restart the engine's process (``restart``), or forget what is known of its nodes and models."""

    restart: bool = False
    reason: str = ""


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """The engine began to execute a task."""

    n: int
    uid: str
    lease: str
    at: int


class Progressed(msgspec.Struct, frozen=True, kw_only=True, tag="progressed"):
    """How far a task is. Not repeated after a cut: the next one says more."""

    uid: str
    lease: str
    percent: float
    current_node: NodeId | None
    nodes: dict[NodeId, NodeProgress]
    """The nodes that changed since the last one; all of them in the first after `Hello`."""
    border: bool
    """Whether another node began: worth storing now."""


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """How a task ended. ``nodes`` holds every node; outputs have been stored before."""

    n: int
    uid: str
    lease: str
    state: Literal["succeeded", "failed", "cancelled"]
    started: int | None
    ended: int
    nodes: dict[NodeId, NodeProgress]
    node_errors: dict[str, Any] = {}
    error: dict[str, Any] | None = None


class Returned(msgspec.Struct, frozen=True, kw_only=True, tag="returned"):
    """The task was not finished here and may run elsewhere (engine died, agent stops or drains)."""

    n: int
    uid: str
    lease: str
    reason: str
    counted: bool
    """Whether the attempt counts: the engine died while this task ran; False when it had not begun."""
    error: dict[str, Any] | None = None


class Acknowledge(msgspec.Struct, frozen=True, kw_only=True, tag="ack"):
    """Everything up to ``n`` of this boot is stored."""

    n: int


class Renew(msgspec.Struct, frozen=True, kw_only=True, tag="renew"):
    """The agent is alive and holds these."""

    held: list[Held]


class Renewed(msgspec.Struct, frozen=True, kw_only=True, tag="renewed"):
    """Leases that are lost: stop these tasks, report nothing of them."""

    lost: list[Held] = []


class OpenTunnel(msgspec.Struct, frozen=True, kw_only=True, tag="tunnel"):
    """Dial `TUNNEL_PATH` with this id and connect it to the engine."""

    id: str


class Log(msgspec.Struct, frozen=True, kw_only=True, tag="log"):
    """Lines the engine printed, for agents whose output the platform does not read itself."""

    lines: list[str]


FromAgent: TypeAlias = Hello | Report | Started | Progressed | Finished | Returned | Renew | Log
FromGateway: TypeAlias = (
    Welcome
    | Assign
    | Watch
    | Cancel
    | Recall
    | Drain
    | Refresh
    | Acknowledge
    | Renewed
    | OpenTunnel
)

_encode = msgspec.json.Encoder().encode
_from_agent: msgspec.json.Decoder[FromAgent] = msgspec.json.Decoder(FromAgent)
_from_gateway: msgspec.json.Decoder[FromGateway] = msgspec.json.Decoder(FromGateway)


class _AnyTag(msgspec.Struct):
    type: str


def encode(message: FromAgent | FromGateway) -> bytes:
    """Return a message as JSON."""
    return _encode(message)


def _decode(decoder: msgspec.json.Decoder[Any], data: bytes | str, known: set[str]) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        try:
            if msgspec.json.decode(data, type=_AnyTag).type not in known:
                return None
        except msgspec.DecodeError:
            pass
        raise BadRequest(f"not a message of the agent link: {error}") from error


_AGENT_TAGS = {"hello", "report", "started", "progressed", "finished", "returned", "renew", "log"}
_GATEWAY_TAGS = {
    "welcome",
    "assign",
    "watch",
    "cancel",
    "recall",
    "drain",
    "refresh",
    "ack",
    "renewed",
    "tunnel",
}


def from_agent(data: bytes | str) -> FromAgent | None:
    """Read what an agent sent; None for a type that this side does not know. Raises BadRequest."""
    found: FromAgent | None = _decode(_from_agent, data, _AGENT_TAGS)
    return found


def from_gateway(data: bytes | str) -> FromGateway | None:
    """Read what a gateway sent; None for a type that this side does not know. Raises BadRequest."""
    found: FromGateway | None = _decode(_from_gateway, data, _GATEWAY_TAGS)
    return found


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a preview frame."""

    uid: str
    node: NodeId | None
    image_type: str


def preview_frame(preview: Preview, image: bytes) -> bytes:
    """Return a binary frame: u32 (big-endian) length of the head, the head as JSON, the picture."""
    head = _encode(preview)
    return struct.pack(">I", len(head)) + head + image


def read_preview(frame: bytes) -> tuple[Preview, bytes]:
    """Take a preview frame apart. Raises BadRequest."""
    try:
        (size,) = struct.unpack_from(">I", frame)
        head = msgspec.json.decode(frame[4 : 4 + size], type=Preview)
    except (struct.error, msgspec.DecodeError) as error:
        raise BadRequest(f"not a preview frame: {error}") from error
    return head, frame[4 + size :]
