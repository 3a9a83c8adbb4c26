"""The signature that the vendor's SDK puts into ``Authorization: EAS <signature>`` (eas-and-fc.md C). Pure.

``base64(HMAC-SHA1(key=token, "POST\\n" + Content-MD5 + "\\n" + Content-Type + "\\n" + Date + "\\n" + resource))``, where the
resource is the path, with some clients also the query, as the client wrote it before anything was percent-encoded. The body
is covered by its MD5, as hexadecimal digits without leading zeros from some clients.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote_to_bytes

SCHEME = b"EAS "
DATE_FORMAT = "%a, %d %b %Y %H:%M:%S GMT"
OLDEST = timedelta(hours=24)
"""Clients write local time and call it GMT: what is off by less may just be far away."""


def sign(
    token: bytes, *, method: bytes, md5: bytes, content_type: bytes, date: bytes, resource: bytes
) -> bytes:
    """Return the signature in base64."""
    text = b"\n".join((method, md5, content_type, date, resource)).strip()
    return base64.b64encode(hmac.new(token, text, hashlib.sha1).digest())


def resources(path: bytes, query: bytes) -> list[bytes]:
    """Return what a client may have signed for a request: with and without query, percent-encoded or not."""
    plain = unquote_to_bytes(path)
    found = [path] if plain == path else [path, plain]
    if query:
        full = path + b"?" + query
        found += [full] if unquote_to_bytes(full) == full else [full, unquote_to_bytes(full)]
    return found


def verify(
    given: bytes,
    token: bytes,
    *,
    method: bytes,
    md5: bytes,
    content_type: bytes,
    date: bytes,
    resources: Iterable[bytes],
) -> bool:
    """Tell whether a signature was made with this token for one of these resources, in constant time for each."""
    fits = False
    for one in resources:
        made = sign(
            token, method=method, md5=md5, content_type=content_type, date=date, resource=one
        )
        fits |= hmac.compare_digest(made, given)
    return fits


def is_outdated(date: bytes, now_ms: int) -> bool:
    """Tell whether a signed date is a day or more away: a signature that was overheard is not good for ever.

    One that cannot be read (another language's month names) is not judged: it is signed all the same.
    """
    try:
        at = datetime.strptime(date.decode("ascii"), DATE_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return False
    return abs(datetime.fromtimestamp(now_ms / 1000, UTC) - at) >= OLDEST


def normal_md5(header: bytes) -> str | None:
    """Return a Content-MD5 as 32 lower-case hexadecimal digits, None for anything else."""
    text = header.decode("latin-1").strip().lower()
    if not 0 < len(text) <= 32 or set(text) - set("0123456789abcdef"):
        return None
    return text.rjust(32, "0")


class BodyCheck:
    """Compares a body with the MD5 that was signed for it, piece by piece."""

    def __init__(self, md5: str) -> None:
        self._expected = md5
        self._sum = hashlib.md5(usedforsecurity=False)

    def add(self, piece: bytes) -> None:
        """Take in the next piece."""
        self._sum.update(piece)

    def matches(self) -> bool:
        """Tell whether this was the body that was signed."""
        return hmac.compare_digest(self._sum.hexdigest(), self._expected)
