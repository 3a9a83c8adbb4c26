"""Threads for the stores' blocking calls."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from easel.errors import StoreFailed

T = TypeVar("T")


class Lanes:
    """A few threads; calls for one key run one after the other, in the order in which they were made.

    The order holds even when the caller of an earlier call stopped waiting for it: a late snapshot of a task can
    never overwrite a newer one.
    """

    def __init__(self, count: int) -> None:
        self._threads = [ThreadPoolExecutor(1, f"easel-store-{n}") for n in range(count)]
        self._closed = False

    async def run(self, key: str, call: Callable[[], T]) -> T:
        """Run a blocking call in the key's thread. Raises StoreFailed after `close`."""
        if self._closed:
            raise StoreFailed("the progress store is closed")
        lane = zlib.crc32(key.encode(errors="replace")) % len(self._threads)
        return await asyncio.get_running_loop().run_in_executor(self._threads[lane], call)

    async def close(self, finish: Callable[[], None] | None = None) -> None:
        """Refuse further calls, wait for those that were made, then call `finish` off the loop. Safe to call twice."""
        self._closed = True
        for thread in self._threads:
            await asyncio.to_thread(thread.shutdown)
        if finish is not None:
            await asyncio.to_thread(finish)
