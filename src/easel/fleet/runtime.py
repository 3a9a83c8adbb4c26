"""The port behind which instances run. One contract suite (`tests/contract/test_runtime.py`) runs over every runtime."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from easel.services.model import ServiceSpec

Handle: TypeAlias = dict[str, Any]
"""A runtime's own JSON: enough to find, watch and stop what it started, also after the controller was restarted."""


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """An instance to start."""

    instance: str
    service: str
    spec: ServiceSpec
    device: str | None
    """As CUDA_VISIBLE_DEVICES takes it; None on machines without GPUs."""
    gateway_url: str
    """Where its agent dials."""
    token: str
    """The agent's own token."""


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """How a started instance does, as its runtime sees it from outside."""

    instance: str
    alive: bool
    exit: str = ""
    """Why it ended, in a word: Completed, Error, OOMKilled, Killed."""
    message: str = ""
    memory_bytes: int | None = None
    """Of all its processes together: what they hold, not what is only mapped from files (models), which the system can drop."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """Something an instance runs on."""

    id: str
    """As CUDA_VISIBLE_DEVICES takes it, or ``cpu-0`` …"""
    kind: Literal["gpu", "cpu"]
    name: str = ""
    memory_bytes: int | None = None


class Runtime(Protocol):
    """Starts, watches and stops instances. Nothing here knows tasks."""

    name: str

    async def devices(self) -> list[Device]:
        """Return what instances can be placed on; each takes one instance at a time (``cpu-…`` are slots)."""

    def start(self, launch: Launch) -> AsyncIterator[Handle]:
        """Start an instance; each handle it yields is stored at once, the last one stands for a started instance.

        When it raises, or its caller dies between two of them, `stop` with the latest handle leaves nothing behind; what
        was started just before a crash, and not yet in a handle, is found by `strays`. Raises `InstanceFailed` with reason
        and advice for what trying again will not help, any other EaselError for what it may.
        """

    async def stop(self, handle: Handle, *, grace: float) -> None:
        """Stop an instance and all it started; returns when nothing is left. Harmless when it is gone."""

    async def check(self, handles: dict[str, Handle]) -> dict[str, Vitals]:
        """Look at started instances, all at once: instance id → how it does."""

    async def logs(self, handle: Handle, *, lines: int, previous: bool = False) -> list[str]:
        """Return the last lines its processes printed; ``previous``: of the run before the last restart."""

    async def strays(self, known: Collection[str]) -> list[Handle]:
        """Return handles of running instances of this platform that are not among the known ones."""

    async def discard(self, handle: Handle) -> None:
        """Remove what a stopped instance left: temporary folders, logs. Harmless when it is gone."""
