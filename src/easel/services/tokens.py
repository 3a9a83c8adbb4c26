"""Tokens: drawn, stored as a hash where only somebody else needs them, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets


def new_token() -> str:
    """Draw a token: 256 random bits as 64 hexadecimal digits, safe in shells, headers and URLs."""
    return secrets.token_hex(32)


def token_hash(token: str) -> str:
    """Return the SHA-256 of a token: all that is kept of tokens which only others need to know."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def same_token(given: str, expected: str) -> bool:
    """Compare without telling by the time it takes how much of it was right. An empty one matches nothing."""
    if not expected:
        return False
    return hmac.compare_digest(
        given.encode(errors="surrogatepass"), expected.encode(errors="surrogatepass")
    )
