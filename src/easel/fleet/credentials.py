"""Whose token it is that an agent shows."""

from __future__ import annotations

from easel.services.model import Instance, Service
from easel.services.store import ServiceStore
from easel.services.tokens import same_token, token_hash


def bearer(headers: list[tuple[bytes, bytes]]) -> str:
    """Return the token of an ``Authorization: Bearer`` header; empty where there is none."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return ""


async def identify(store: ServiceStore, token: str) -> Instance | Service | None:
    """Find the instance that has this token, or the service that may be joined with it. Raises StoreFailed.

    It takes the same time whichever it is, and whether it is any.
    """
    if not token:
        return None
    digest = token_hash(token)
    found: Instance | Service | None = None
    for service in await store.all():
        if same_token(token, service.join_token):
            found = service
    for instance in await store.instances():
        if same_token(digest, instance.token_hash):
            found = instance
    return found
