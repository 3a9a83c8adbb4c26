"""The agent's one engine: its process (where it is ours to supervise), its connection, what it knows of its nodes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from easel.comfy.client import ComfyClient
from easel.comfy.connection import Connection
from easel.comfy.process import EngineProcess, EngineState
from easel.errors import EngineError, EngineUnavailable
from easel.settings import SupervisionSettings
from easel.workflow.types import ObjectInfo

log = logging.getLogger(__name__)

INFO_AGE = 300.0
"""Seconds after which ``/object_info`` is asked for again (lists of files and models are not read from it)."""
REFRESH_PAUSE = 5.0
"""Seconds between two looks for a class that was not known: unknown classes cost the engine no more than that."""
RETRY_PAUSE = 0.5
LOOK = 0.2
"""Seconds between two looks whether the connection to the engine is there."""


class EngineLink:
    """An engine to run prompts on. ``process`` is None for one that somebody else looks after."""

    def __init__(
        self,
        client: ComfyClient,
        settings: SupervisionSettings,
        process: EngineProcess | None = None,
    ) -> None:
        self.client = client
        self.process = process
        self._settings = settings
        self.connection = Connection(client, silent_timeout=settings.silent_timeout)
        if process is not None:
            process.activity = self.connection.stalled_for
        self._opener: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()
        self._info: ObjectInfo | None = None
        self._info_at = 0.0
        self._info_starts = -1
        self._info_lock = asyncio.Lock()

    @property
    def ready(self) -> bool:
        """Whether prompts can be given to the engine now."""
        if self.process is not None and self.process.state is not EngineState.READY:
            return False  # its socket may not have noticed yet
        return self._opened.is_set() and self.connection.connected

    @property
    def state(self) -> str:
        """What the engine does, in a word."""
        if self.process is not None:
            return str(self.process.state)
        return "ready" if self.ready else "unreachable"

    async def wait_changed(self) -> None:
        """Wait until the engine's process changes its state, at most a moment: its connection changes without a word."""
        if self.process is None:
            await asyncio.sleep(LOOK)
            return
        with contextlib.suppress(TimeoutError):
            await self.process.wait_changed(self.process.state, LOOK)

    def forget_info(self) -> None:
        """Ask for ``/object_info`` again the next time."""
        self._info = None

    def log_tail(self, lines: int) -> list[str]:
        """The engine's last log lines; none for an engine that is not ours."""
        return self.process.log_tail(lines) if self.process is not None else []

    def died(self, error: EngineError) -> None:
        """The engine's process has ended or was killed: what ran on it is lost (`EngineProcess` calls this)."""
        self._info = None
        self.connection.lose(error)

    async def start(self) -> None:
        """Start the process and begin to connect; does not wait. Raises ConfigurationError."""
        if self.process is not None:
            await self.process.start()
        self._opener = asyncio.create_task(self._open(), name="easel engine connection")

    async def wait_ready(self, timeout: float) -> None:
        """Wait until prompts can be given to the engine.

        Raises EngineError when it was given up or the time is over.
        """
        if self.ready:
            return
        try:
            async with asyncio.timeout(timeout):
                if self.process is not None:
                    await self.process.wait_ready()
                await self._opened.wait()
                await self.connection.wait_connected(timeout)
        except TimeoutError:
            raise EngineUnavailable(
                f"the engine was not ready within {timeout:g} s",
                hint="is ComfyUI running, and is its address right?",
                log=self.log_tail(20) or None,
            ) from None

    async def object_info(self, timeout: float, *, newer: bool = False) -> ObjectInfo | None:
        """Return ``/object_info``, not older than the process and a few minutes, with ``newer`` a few seconds.

        None when it is not to be had; an old one rather than none.
        """
        longest = REFRESH_PAUSE if newer else INFO_AGE
        if self._fresh(longest):
            return self._info
        try:
            # Over the lock, too: who asks for a moment does not wait behind one who waits for an engine to start.
            async with asyncio.timeout(timeout), self._info_lock:
                if not self._fresh(longest):
                    await self.wait_ready(timeout)
                    starts = self._starts
                    self._info = await self.client.object_info()
                    self._info_at, self._info_starts = time.monotonic(), starts
        except (EngineError, TimeoutError) as error:
            log.info("no /object_info yet: %s", error)
        return self._info

    @property
    def _starts(self) -> int:
        return self.process.starts if self.process is not None else 0

    def _fresh(self, longest: float) -> bool:
        return (
            self._info is not None
            and self._info_starts == self._starts
            and time.monotonic() - self._info_at < longest
        )

    async def restart(self, reason: str) -> bool:
        """Kill a supervised engine and start it again; False when it is not ours."""
        if self.process is None:
            return False
        await self.process.restart(reason)
        return True

    async def stop(self) -> None:
        """Disconnect, and stop the process if it is ours."""
        opener, self._opener = self._opener, None
        if opener is not None:
            opener.cancel()
            await asyncio.wait([opener])
        await self.connection.close()
        if self.process is not None:
            await self.process.stop()
        await self.client.close()

    async def _open(self) -> None:
        """Open the connection once the engine answers; from then on it keeps itself open."""
        while True:
            with contextlib.suppress(EngineError):
                if self.process is not None:
                    await self.process.wait_ready()
                await self.connection.open(self._settings.start_timeout)
                self._opened.set()
                return
            await asyncio.sleep(RETRY_PAUSE)
