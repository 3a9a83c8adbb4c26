"""Files written into the prompt itself: ``data:`` URIs and base64. Blocking, CPU-bound: call them in a thread."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from easel.agent.fetch import too_large
from easel.errors import InputRejected

_PIECE = 1024 * 1024
_MAX_HEADER = 1024
_URL_SAFE = str.maketrans("-_", "+/")
_SPACE = re.compile(r"\s+")


def read_data_uri(value: str, limit: int) -> Iterator[bytes]:
    """Yield the content of ``data:[type][;parameters][;base64],…`` piece by piece; parameters do not matter.

    Raises `InputRejected` when it is malformed, empty or larger than ``limit`` bytes.
    """
    start = len(value) - len(value.lstrip())
    comma = value.find(",", start, start + _MAX_HEADER)
    if comma < 0:
        raise InputRejected("the data: URI has no comma before its data")
    parameters = [part.strip().lower() for part in value[start + 5 : comma].split(";")]
    data = value[comma + 1 :]
    if "base64" in parameters[1:]:
        # Escapes (%2B, %3D, %0A) are rare: copy the text only when there are any.
        text = unquote_to_bytes(data).decode("ascii", "replace") if "%" in data else data
        yield from read_base64(text, limit)
        return
    if len(data) > 3 * limit:
        raise too_large(limit)
    content = unquote_to_bytes(data.strip())
    if not content:
        raise InputRejected("the data: URI is empty")
    if len(content) > limit:
        raise too_large(limit)
    yield content


def read_base64(value: str, limit: int) -> Iterator[bytes]:
    """Yield the content of base64 piece by piece: either alphabet, padded or not, white space anywhere.

    Raises `InputRejected` when it is malformed, empty or larger than ``limit`` bytes.
    """
    rest = ""
    size = 0
    ended = False
    for start in range(0, len(value), _PIECE):
        text = rest + _SPACE.sub("", value[start : start + _PIECE]).translate(_URL_SAFE)
        last = start + _PIECE >= len(value)
        cut = len(text) if last else len(text) - len(text) % 4
        text, rest = text[:cut], text[cut:]
        if last:
            text += "=" * (-len(text) % 4)
        if ended and text:
            raise InputRejected("the base64 goes on after its padding")
        ended = text.endswith("=")
        try:
            content = binascii.a2b_base64(text, strict_mode=True) if text else b""
        except (binascii.Error, ValueError) as error:
            raise InputRejected(f"the base64 is damaged: {error}") from None
        size += len(content)
        if size > limit:
            raise too_large(limit)
        yield content
    if size == 0:
        raise InputRejected("the base64 is empty")
