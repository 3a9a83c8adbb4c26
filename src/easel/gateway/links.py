"""Signed links: a service's WebUI without a login, for a while.

A link carries ``?easel_link=<service, expiry, signature>``. Opening it sets a cookie with the same content, for the service's
path alone; the cookie opens ComfyUI's own pages and routes, not the agent API. The key is made of the gateway's secret and the
service's token: another token ends every link.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

from itsdangerous import BadData, URLSafeSerializer

PARAMETER = "easel_link"
COOKIE = "easel_link_"
"""The name of a service's cookie begins with this."""


def now_ms() -> int:
    """Return the time in ms since the epoch."""
    return time.time_ns() // 1_000_000


class Links:
    """Makes links and judges them."""

    def __init__(self, secret: str, *, clock: Callable[[], int] = now_ms) -> None:
        self._secret = secret.encode()
        self._clock = clock

    def sign(self, service: str, token: bytes, seconds: float) -> str:
        """Return what proves for ``seconds`` that its bearer may open a service."""
        expires = self._clock() + int(seconds * 1000)
        return str(self._serializer(token).dumps({"s": service, "e": expires}))

    def seconds_left(self, proof: str, service: str, token: bytes) -> float:
        """Return how long a proof is good for: 0 for one that expired, is another service's, or was not made here."""
        try:
            said: Any = self._serializer(token).loads(proof)
        except BadData:
            return 0.0
        if not isinstance(said, dict) or said.get("s") != service:
            return 0.0
        return max(0.0, (int(said["e"]) - self._clock()) / 1000)

    def _serializer(self, token: bytes) -> URLSafeSerializer:
        key = hmac.new(self._secret, token, hashlib.sha256).digest()
        return URLSafeSerializer(
            key,
            salt="easel signed link",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )


def query(proof: str) -> str:
    """Return the query string of a link."""
    return urlencode({PARAMETER: proof})


def split_query(query_string: bytes) -> tuple[str | None, str]:
    """Take the proof out of a query string: the proof, and what is left of the query."""
    if PARAMETER.encode() not in query_string:
        return None, query_string.decode("latin-1")
    pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)
    proof = next((value for name, value in pairs if name == PARAMETER), None)
    return proof, urlencode([pair for pair in pairs if pair[0] != PARAMETER])
