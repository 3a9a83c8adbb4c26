"""``/healthz``, ``/readyz`` and ``/metrics``."""

from __future__ import annotations

import asyncio
import ipaddress
import logging

import msgspec
from starlette.types import Send

from easel.errors import EaselError, Unauthorized
from easel.gateway import errors
from easel.gateway.auth import check_admin
from easel.gateway.metrics import MEDIA_TYPE
from easel.gateway.request import Head
from easel.gateway.state import GatewayState

log = logging.getLogger(__name__)

PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
PATIENCE = 2.0
"""Seconds the database may take to answer."""
FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-host", b"forwarded", b"via"})

_encode = msgspec.json.Encoder().encode


async def serve(state: GatewayState, head: Head, send: Send, path: str) -> int:
    """Answer one of `PATHS`; returns the status."""
    if head.method not in ("GET", "HEAD"):
        return await errors.answer(send, head, 405, b"", errors.TEXT, [(b"allow", b"GET, HEAD")])
    if path == "/healthz":
        return await errors.answer(send, head, 200, b"ok\n", errors.TEXT)
    if path == "/readyz":
        reasons = await _unready(state)
        body = _encode({"ready": not reasons, "reasons": reasons})
        return await errors.answer(send, head, 503 if reasons else 200, body, errors.JSON)
    return await _metrics(state, head, send)


async def _unready(state: GatewayState) -> list[str]:
    reasons = ["the gateway is about to stop"] if state.draining else []
    try:
        async with asyncio.timeout(PATIENCE):
            await state.ping()
    except TimeoutError:
        reasons.append(f"the database does not answer within {PATIENCE:g} s")
    except EaselError as error:
        reasons.append(f"the database: {error}")
    return reasons


async def _metrics(state: GatewayState, head: Head, send: Send) -> int:
    """The metrics name services: they are for this machine, and for who has the admin token."""
    if not _local(head):
        try:
            check_admin(head.authorization, state.admin_token)
        except Unauthorized:
            return await errors.unauthorized(send, head, [])
    try:
        async with asyncio.timeout(PATIENCE):
            await state.refresh_gauges()
    except (EaselError, TimeoutError) as error:
        # What this process counted itself is worth having all the same.
        log.warning("states could not be counted: %s", error)
    text = await asyncio.to_thread(state.metrics.text)
    return await errors.answer(send, head, 200, text, MEDIA_TYPE)


def _local(head: Head) -> bool:
    """Tell whether a program of this machine asks, by this machine's name, and not for somebody else."""
    if any(name in FORWARDED for name, _ in head.scope["headers"]):
        return False
    host = head.host.rpartition(":")[0] if not head.host.endswith("]") else head.host
    host = (host or head.host).strip("[]").lower()
    return _loopback(head.client) and (host == "localhost" or _loopback(host))


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
