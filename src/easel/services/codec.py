"""Rows of the service tables as structs, and back. Nothing here touches a database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from easel.errors import StoreFailed
from easel.services.model import Instance, Revision, Service, ServiceEvent, ServiceSpec

T = TypeVar("T")

LARGEST = 2**31 - 1
"""What an integer column takes."""
LARGEST_KEY = 2**63 - 1
"""What a numbering column takes."""

_OUTSIDE = {"name", "id", "service", "created", "updated"}
_SERVICE_COLUMNS = frozenset(Service.__struct_fields__) - _OUTSIDE
_INSTANCE_COLUMNS = frozenset(Instance.__struct_fields__) - _OUTSIDE

_encoder = msgspec.json.Encoder()
_JSON_COLUMNS: dict[str, msgspec.json.Decoder[Any]] = {
    "spec": msgspec.json.Decoder(ServiceSpec),
    "warnings": msgspec.json.Decoder(list[str]),
    "handle": msgspec.json.Decoder(dict[str, Any]),
    "log": msgspec.json.Decoder(list[str]),
}
_FLAGS = frozenset({"failed"})
"""Truth values, which are 0 and 1 in the tables."""


def text(said: str) -> str:
    """Return what text columns take of any string: NUL and halves of surrogate pairs are replaced."""
    if "\x00" in said:
        said = said.replace("\x00", "\ufffd")
    return said.encode(errors="surrogatepass").decode(errors="replace")


def columns_of_service(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that change with these fields. Raises TypeError for those that cannot."""
    return _checked(fields, _SERVICE_COLUMNS, "a service")


def columns_of_instance(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that change with these fields. Raises TypeError for those that cannot."""
    return _checked(fields, _INSTANCE_COLUMNS, "an instance")


def to_row(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields as their columns' values. Raises StoreFailed when one has no JSON form."""
    return {name: _to_column(name, value) for name, value in fields.items()}


def read_service(row: Mapping[str, Any]) -> Service:
    """Return a service."""
    return Service(**row)


def read_revision(row: Mapping[str, Any]) -> Revision:
    """Return a revision. Raises StoreFailed when what is stored cannot be read."""
    return Revision(**_read(row))


def read_instance(row: Mapping[str, Any]) -> Instance:
    """Return an instance. Raises StoreFailed when what is stored cannot be read."""
    return Instance(**_read(row))


def read_event(row: Mapping[str, Any]) -> ServiceEvent:
    """Return an event. Raises StoreFailed when what is stored cannot be read."""
    return ServiceEvent(**_read(row))


def _checked(fields: Mapping[str, Any], allowed: frozenset[str], of: str) -> dict[str, Any]:
    if unknown := sorted(set(fields) - allowed):
        raise TypeError(f"{', '.join(unknown)} cannot be changed of {of}")
    return to_row(fields)


def _to_column(name: str, value: Any) -> Any:
    if name in _JSON_COLUMNS:
        return _encode(value)
    if name in _FLAGS:
        return int(value)
    return text(value) if isinstance(value, str) else value


def _encode(value: object) -> str:
    try:
        return _encoder.encode(value).decode()
    except (UnicodeEncodeError, OverflowError):
        pass  # half a surrogate pair, as in names of files, or a number of more than 64 bits
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreFailed(f"the service cannot be stored: {error}") from error
    try:
        return json.dumps(msgspec.to_builtins(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreFailed(f"the service cannot be stored: {error}") from error


def _read(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(row)
    for name in _FLAGS & fields.keys():
        fields[name] = bool(fields[name])
    for name in _JSON_COLUMNS.keys() & fields.keys():
        fields[name] = _decode(_JSON_COLUMNS[name], fields[name])
    return fields


def _decode(decoder: msgspec.json.Decoder[T], stored: str) -> T:
    try:
        return decoder.decode(stored)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as first:
        try:  # what only the standard library reads: halves of surrogate pairs
            return msgspec.convert(json.loads(stored), decoder.type)
        except (ValueError, TypeError, RecursionError):
            raise StoreFailed(
                f"a stored service cannot be read: {first}", hint="the database is damaged"
            ) from first
