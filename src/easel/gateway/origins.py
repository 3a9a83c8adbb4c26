"""Which browser pages may call: the gateway's own, and the origins the operator names (CORS)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from yarl import URL

ALLOWED_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
EXPOSED_HEADERS = b"task-id, task-status, task-progress, task-current-node, task-warnings"
PREFLIGHT_SECONDS = b"600"

Headers = list[tuple[bytes, bytes]]


@lru_cache(maxsize=256)
def is_own(origin: str, host: str) -> bool:
    """Tell whether an Origin header names the host that the request was sent to."""
    try:
        url = URL(origin)
        own = URL(f"{url.scheme}://{host}")
    except ValueError:
        return False
    return bool(url.host) and url.authority.lower() == own.authority.lower()


def allowed_headers(origin: str, allowed: Sequence[str]) -> Headers | None:
    """Return the headers that let an origin's pages read an answer; None for one that was not named."""
    if origin not in allowed and "*" not in allowed:
        return None
    shown = origin if origin in allowed else "*"
    return [
        (b"access-control-allow-origin", shown.encode("latin-1")),
        (b"vary", b"Origin"),
        (b"access-control-expose-headers", EXPOSED_HEADERS),
    ]


def preflight_headers(origin: str, asked: bytes | None, allowed: Sequence[str]) -> Headers | None:
    """Return the headers that answer a preflight; None for an origin that was not named."""
    headers = allowed_headers(origin, allowed)
    if headers is None:
        return None
    headers += [
        (b"access-control-allow-methods", ALLOWED_METHODS),
        (b"access-control-max-age", PREFLIGHT_SECONDS),
    ]
    if asked:
        headers.append((b"access-control-allow-headers", asked))
    return headers
