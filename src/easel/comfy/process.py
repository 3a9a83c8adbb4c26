"""Looking after the process of one ComfyUI: start, readiness, liveness, log, restart, drain, stop."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from easel.errors import EngineError
from easel.settings import SupervisionSettings


class EngineState(enum.StrEnum):
    """What a supervised engine is doing."""

    STOPPED = "stopped"
    """Not started yet, or stopped on purpose."""
    STARTING = "starting"
    """The first process has been started and does not answer yet."""
    READY = "ready"
    """It answers."""
    RESTARTING = "restarting"
    """It died or was killed; the next one is on its way, perhaps after a pause."""
    FAILED = "failed"
    """It was given up after starts in a row that never became ready; `EngineProcess.restart` tries again."""


class EngineProcess:
    """A supervised engine: keeps one process of ``command`` running and says how it does.

    ``device`` becomes ``CUDA_VISIBLE_DEVICES``. ``on_died`` is called on the event loop, at once, with EngineDied or
    EngineSilent (last log lines attached) each time a process ends unasked or is killed for silence; also at `restart`.
    """

    state: EngineState
    last_error: EngineError | None
    """Why the last process ended, or why it cannot start."""
    pid: int | None
    starts: int
    """Processes started so far."""
    activity: Callable[[], float | None] | None
    """Seconds since the running prompt last moved, None when none runs: set it to `Connection.stalled_for`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        url: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        device: str | None = None,
        settings: SupervisionSettings | None = None,
        on_died: Callable[[EngineError], None] | None = None,
        on_log: Callable[[str], None] | None = None,
    ) -> None: ...

    async def start(self) -> None:
        """Start the process and its supervision; does not wait until it answers.

        Raises ConfigurationError when the program is not found or something else listens at the URL.
        """

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the engine answers.

        Raises the last error when it has failed, EngineUnavailable when it is stopped, EngineSilent when the time is over.
        """

    async def wait_changed(self, state: EngineState, timeout: float | None = None) -> EngineState:
        """Wait until the state is another than ``state`` and return it. Raises TimeoutError."""
        raise NotImplementedError

    def log_tail(self, lines: int | None = None) -> list[str]:
        """Return the engine's last log lines (all that are kept by default)."""
        raise NotImplementedError

    async def restart(self, reason: str) -> None:
        """Kill the process and start another at once; returns when the old one is gone."""

    async def drain(self, timeout: float | None = None) -> bool:
        """Wait until the engine's queue is empty; False when the time was over (default ``drain_timeout``)."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop politely, then by force after ``stop_grace``; nothing of it survives. Harmless when stopped."""
