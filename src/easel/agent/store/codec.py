"""Task records as JSON, and task ids as names that every file system and database can hold."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

import msgspec

from easel.agent.record import TaskRecord
from easel.errors import InvalidTaskId, StoreFailed

_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,100}", re.ASCII)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(TaskRecord)


class DamagedRecordError(Exception):
    """What is stored under an id is not that id's record: torn, foreign or of another version."""


def utf8(text: str) -> bytes:
    """Return an id's or owner's bytes. Raises InvalidTaskId for lone surrogates, which no store can keep."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidTaskId("the id is not valid Unicode: it contains a lone surrogate") from None


def digest(text: str) -> str:
    """Return 64 hexadecimal digits that stand for the text: the same in every process, different for every text."""
    return hashlib.sha256(utf8(text)).hexdigest()


def database_key(text: str) -> str:
    """Return what stands for an id in a database column: plain short ids as they are, others by their digest.

    ASCII, at most 100 characters, never the same for two texts.
    """
    return text if _PLAIN.fullmatch(text) else f"sha256:{digest(text)}"


def file_stem(text: str) -> str:
    """Return a file name for an id: readable beginning, then digest. Safe on every file system, case-insensitive too."""
    readable = re.sub(r"[^a-z0-9]+", "_", text[:200].lower(), flags=re.ASCII).strip("_")[:40]
    return f"{readable or 'id'}-{digest(text)[:40]}"


def encode(record: TaskRecord) -> bytes:
    """Return the record as JSON. Raises StoreFailed when a value has no JSON form.

    msgspec is quick, but refuses lone surrogates (file names in error messages have them) and writes NaN as null; the
    standard library takes over there.
    """
    try:
        if _finite(record):
            return _encoder.encode(record)
    except (UnicodeEncodeError, OverflowError):
        pass
    except TypeError as error:
        raise StoreFailed(f"task {record.id!r} cannot be stored: {error}") from error
    try:
        return json.dumps(msgspec.to_builtins(record)).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreFailed(f"task {record.id!r} cannot be stored: {error}") from error


def decode(data: bytes | str, task_id: str | None = None) -> TaskRecord:
    """Return the record of this id (any when None). Raises DamagedRecordError when the data is not that."""
    try:
        record = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        record = _decode_slowly(data, error)
    if task_id is not None and record.id != task_id:
        raise DamagedRecordError(f"it holds the record of {record.id!r}")
    return record


def _finite(record: TaskRecord) -> bool:
    """Tell whether the record's own numbers are, so that msgspec's JSON gives them back."""
    return math.isfinite(record.percent) and all(
        math.isfinite(node.value) and math.isfinite(node.max) for node in record.nodes.values()
    )


def _decode_slowly(data: bytes | str, first: Exception) -> TaskRecord:
    """Decode what only the standard library can: escaped lone surrogates, NaN and infinity."""
    try:
        plain: Any = json.loads(data)
        return msgspec.convert(plain, TaskRecord)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise DamagedRecordError(str(error or first)) from error
