"""What a service's engines know: their ``/object_info``, asked of any ready instance and kept a few minutes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from easel.comfy.client import ComfyClient
from easel.errors import EngineError
from easel.workflow.types import ObjectInfo

log = logging.getLogger(__name__)

MAX_AGE = 300.0
"""Seconds after which it is asked for again."""
REFRESH_PAUSE = 5.0
"""Seconds between two looks for a class that was not known: unknown classes cost the engines no more than that."""
ANSWER_TIMEOUT = 30.0


class Knower(Protocol):
    """A ready instance."""

    @property
    def instance(self) -> str:
        """Its id."""

    @property
    def upstream(self) -> str:
        """Base URL of its engine."""

    @property
    def starts(self) -> int | None:
        """How often its engine was started: another start may know other nodes."""


class ReadyInstances(Protocol):
    """Who can be asked."""

    def ready(self, service: str) -> Sequence[Knower]:
        """Return the service's ready instances."""


class _Known(NamedTuple):
    info: ObjectInfo
    at: float
    source: tuple[str, int | None]


class Knowledge:
    """Node classes by service."""

    def __init__(self, instances: ReadyInstances) -> None:
        self._instances = instances
        self._known: dict[str, _Known] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def object_info(self, service: str, *, newer: bool = False) -> ObjectInfo | None:
        """Return ``/object_info`` of a service, not older than a few minutes, with ``newer`` a few seconds.

        None when no instance is ready and none ever was; an old one rather than none.
        """
        longest = REFRESH_PAUSE if newer else MAX_AGE
        async with self._locks.setdefault(service, asyncio.Lock()):
            known = self._known.get(service)
            ready = self._instances.ready(service)
            if not ready:
                return known.info if known is not None else None
            sources = {(one.instance, one.starts) for one in ready}
            fresh = known is not None and time.monotonic() - known.at < longest
            if known is not None and fresh and known.source in sources:
                return known.info
            asked = ready[0]
            client = ComfyClient(asked.upstream, timeout=ANSWER_TIMEOUT)
            try:
                info = await client.object_info()
            except EngineError as error:
                log.info("no /object_info: %s", error, extra={"service": service})
                return known.info if known is not None else None
            finally:
                await client.close()
            source = (asked.instance, asked.starts)
            self._known[service] = _Known(info, time.monotonic(), source)
            return info

    def forget(self, service: str) -> None:
        """Ask again the next time: models or nodes were added."""
        self._known.pop(service, None)
