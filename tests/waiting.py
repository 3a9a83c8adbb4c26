"""Waiting for a thing that sends no event: asked again until it is there, never slept for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

Found = TypeVar("Found")


async def until(
    look: Callable[[], Awaitable[Found | None]], *, timeout: float = 60, pause: float = 0.05
) -> Found:
    """Call `look` until it returns something truthy, and return that.

    Raises TimeoutError when it does not within `timeout` seconds.
    """
    async with asyncio.timeout(timeout):
        while not (found := await look()):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(pause)
        return found
