"""Rows of the task tables as `Task`, and back: shared by every store. Nothing here touches a database.

What callers named (owner, id, node) may be any string, which PostgreSQL's text is not: `to_column` and `from_column` are
one-to-one. Encoding and decoding are pure and quick for their size; stores do both outside of their transactions.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from easel.errors import EaselError, StoreFailed, TaskExpired, TaskLost
from easel.tasks.model import Ending, NewTask, Progress, Task, TaskBody, TaskEvent
from easel.workflow.progress import NodeProgress
from easel.workflow.types import NodeId

T = TypeVar("T")

COLUMNS = (
    "uid",
    "service",
    "owner",
    "id",
    "signature",
    "state",
    "priority",
    "tags",
    "created",
    "started",
    "ended",
    "deadline",
    "attempt",
    "instance",
    "cancelling",
    "rear",
    "percent",
    "current_node",
    "last_event",
)
"""The columns of ``tasks`` that `read_task` takes, in order."""

_encoder = msgspec.json.Encoder()


class _Result(msgspec.Struct, omit_defaults=True):
    """The content of ``task_results``, as a reader takes it."""

    nodes: dict[NodeId, NodeProgress] = {}
    seeds: dict[str, int] = {}
    node_errors: dict[str, Any] = {}
    error: dict[str, Any] | None = None


class _Brief(msgspec.Struct):
    """The same without the nodes, for lists of tasks."""

    seeds: dict[str, int] = {}
    node_errors: dict[str, Any] = {}
    error: dict[str, Any] | None = None


class _Parts(msgspec.Struct, omit_defaults=True):
    """The same as a writer takes it: what it does not change stays the bytes that it is."""

    nodes: dict[NodeId, msgspec.Raw] = {}
    seeds: dict[str, msgspec.Raw] = {}
    node_errors: dict[str, msgspec.Raw] = {}
    error: dict[str, msgspec.Raw] | None = None


_results = msgspec.json.Decoder(_Result)
_briefs = msgspec.json.Decoder(_Brief)
_parts = msgspec.json.Decoder(_Parts)
_bodies = msgspec.json.Decoder(TaskBody)
_tags = msgspec.json.Decoder(dict[str, str])
_data = msgspec.json.Decoder(dict[str, Any])


# Names and numbers


def new_uid(now: int) -> str:
    """Return 32 hexadecimal digits that no other task has: 48 bits of time, so that they sort by it, and 80 random ones."""
    return f"{now & 0xFFFFFFFFFFFF:012x}{secrets.token_hex(10)}"


def new_lease() -> str:
    """Return a lease token: 128 random bits in hexadecimal."""
    return secrets.token_hex(16)


def to_column(text: str) -> str:
    """Return what stands for any string in a text column: itself, or JSON where it has NUL or half a surrogate pair."""
    if text.startswith('"') or "\x00" in text or not _is_unicode(text):
        return json.dumps(text)
    return text


def from_column(text: str) -> str:
    """Undo `to_column`."""
    return str(json.loads(text)) if text.startswith('"') else text


def turn_before(turn: int, seq: int, head: tuple[int, int] | None) -> int:
    """Return the turn with which a task that is given back is claimed next, as near to its own as can be.

    ``head`` is the (turn, seq) of the first waiting task of its service and priority. Newcomers line up with the head, so
    it must not be moved further to the front than is needed.
    """
    if head is None or (turn, seq) < head:
        return turn
    return head[0] if seq < head[1] else head[0] - 1


# Writing


def encode(value: object) -> bytes:
    """Return a value as JSON. Raises StoreFailed when it has no JSON form."""
    try:
        return _encoder.encode(value)
    except (UnicodeEncodeError, OverflowError):
        pass  # half a surrogate pair, as in names of files: escaped by the standard library
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreFailed(f"the task cannot be stored: {error}") from error
    try:
        return json.dumps(msgspec.to_builtins(value)).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreFailed(f"the task cannot be stored: {error}") from error


def encode_text(value: object) -> str:
    """Return a value as JSON text (tags, the data of events)."""
    return "{}" if value == {} else encode(value).decode()


def first_result(new: NewTask) -> bytes | None:
    """Return the result row that a task begins with; None: none is needed yet."""
    return encode(_Result(seeds=new.seeds)) if new.seeds else None


def percent_of(value: float) -> float:
    """Return a percentage that a column takes."""
    return float(value) if math.isfinite(value) else 0.0


class ResultChange:
    """What a snapshot or an ending changes in the result row: encoded when made, applied where the row is locked."""

    def __init__(
        self,
        nodes: Mapping[NodeId, NodeProgress] | None = None,
        *,
        node_errors: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        self._nodes = {
            name: msgspec.Raw(encode(_finite(node))) for name, node in (nodes or {}).items()
        }
        self._node_errors = {k: msgspec.Raw(encode(v)) for k, v in (node_errors or {}).items()}
        self._error = (
            None if error is None else {k: msgspec.Raw(encode(v)) for k, v in error.items()}
        )

    @classmethod
    def of(cls, said: Progress | Ending) -> ResultChange:
        """Return the change that a snapshot or an ending makes."""
        if isinstance(said, Progress):
            return cls(said.nodes)
        return cls(said.nodes, node_errors=said.node_errors, error=said.error)

    def __bool__(self) -> bool:
        """Tell whether it changes anything."""
        return bool(self._nodes or self._node_errors or self._error is not None)

    def applied(self, stored: bytes | None) -> bytes:
        """Return the new content of the row. Raises StoreFailed when the stored one cannot be read."""
        parts = _Parts() if stored is None else _decode(_parts, stored, _Parts)
        parts.nodes = {**parts.nodes, **self._nodes}
        if self._node_errors:
            parts.node_errors = self._node_errors
        if self._error is not None:
            parts.error = self._error
        return _encode_parts(parts)


def joined(stored: bytes) -> bytes:
    """Return one result row of several, one a line, of which later ones change earlier ones (PostgreSQL appends ends)."""
    if b"\n" not in stored:
        return stored
    result, *changes = (_decode(_parts, line, _Parts) for line in stored.split(b"\n"))
    for change in changes:
        result.nodes = {**result.nodes, **change.nodes}
        result.node_errors = change.node_errors or result.node_errors
        result.error = result.error if change.error is None else change.error
    return _encode_parts(result)


def restarted_result(stored: bytes | None) -> bytes | None:
    """Return the result row of a task that goes back in line: its seeds, None when it has none."""
    if stored is None:
        return None
    seeds = _decode(_parts, stored, _Parts).seeds
    return _encode_parts(_Parts(seeds=seeds)) if seeds else None


def error_json(error: EaselError) -> dict[str, Any]:
    """Return an error as tasks keep it."""
    return {**error.to_json(), "http_status": error.http_status}


def lost(attempts: int, reason: str) -> dict[str, Any]:
    """Return the error of a task of the rear queue."""
    return error_json(
        TaskLost(
            f"the task was given up after {attempts} attempt{'s' if attempts > 1 else ''}: {reason}",
            hint="look at the instances' events; the task is kept in the rear queue",
        )
    )


def expired() -> dict[str, Any]:
    """Return the error of a task that waited past its deadline."""
    return error_json(TaskExpired("the task's deadline passed while it waited"))


# Reading


def read_task(row: Sequence[Any], result: bytes | None = None, *, nodes: bool = True) -> Task:
    """Return a task from `COLUMNS` and its result row; without ``nodes`` for lists.

    Raises StoreFailed when what is stored cannot be read.
    """
    found: _Result | _Brief = _Brief()
    if result is not None:
        found = _decode(_results, result, _Result) if nodes else _decode(_briefs, result, _Brief)
    return Task(
        uid=row[0],
        service=row[1],
        owner=from_column(row[2]),
        id=from_column(row[3]),
        signature=row[4],
        state=row[5],
        priority=row[6],
        tags={} if row[7] == "{}" else _decode(_tags, row[7], dict[str, str]),
        created=row[8],
        started=row[9],
        ended=row[10],
        deadline=row[11],
        attempt=row[12],
        instance=row[13],
        cancelling=bool(row[14]),
        rear=bool(row[15]),
        percent=row[16],
        current_node=None if row[17] is None else from_column(row[17]),
        nodes=found.nodes if isinstance(found, _Result) else {},
        seeds=found.seeds,
        node_errors=found.node_errors,
        error=found.error,
        last_event=row[18],
    )


def read_body(data: bytes) -> TaskBody:
    """Return a body. Raises StoreFailed when it cannot be read."""
    return _decode(_bodies, data, TaskBody)


def read_event(row: Sequence[Any]) -> TaskEvent:
    """Return an event from ``number, at, kind, data``."""
    data = {} if row[3] == "{}" else _decode(_data, row[3], dict[str, Any])
    return TaskEvent(number=row[0], at=row[1], kind=row[2], data=data)


def assigned_data(instance: str, attempt: int) -> str:
    """Return the data of the event ``assigned``."""
    return encode_text({"instance": instance, "attempt": attempt})


def _decode(decoder: msgspec.json.Decoder[T], data: bytes | str, type_: type[T]) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as first:
        try:  # what only the standard library reads: halves of surrogate pairs, escaped
            return msgspec.convert(
                _raw(json.loads(data)) if type_ is _Parts else json.loads(data), type_
            )
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise StoreFailed(
                f"a stored task cannot be read: {first}", hint="the database is damaged"
            ) from first


def _raw(fields: dict[str, dict[str, Any] | None]) -> _Parts:
    return _Parts(
        **{
            field: {name: msgspec.Raw(json.dumps(part).encode()) for name, part in parts.items()}
            for field, parts in fields.items()
            if parts is not None
        }
    )


def _encode_parts(parts: _Parts) -> bytes:
    try:
        return _encoder.encode(parts)
    except UnicodeEncodeError:  # half a surrogate pair in the name of a part
        named = msgspec.structs.asdict(parts).items()
        return json.dumps(
            {
                field: {name: json.loads(bytes(raw)) for name, raw in values.items()}
                for field, values in named
                if values is not None
            }
        ).encode("ascii")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(node: NodeProgress) -> NodeProgress:
    if math.isfinite(node.value) and math.isfinite(node.max):
        return node
    return msgspec.structs.replace(node, value=percent_of(node.value), max=percent_of(node.max))
