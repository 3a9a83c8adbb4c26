"""Looking after the process of one ComfyUI: start, readiness, liveness, log, restart, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from yarl import URL

from easel.comfy.answers import QueueSnapshot
from easel.comfy.child import Child
from easel.comfy.client import ComfyClient
from easel.comfy.ended import ended_error
from easel.comfy.liveness import FAILURES, Backoff, Liveness
from easel.comfy.log_tail import LogTail
from easel.errors import (
    ConfigurationError,
    EngineDied,
    EngineError,
    EngineProtocolError,
    EngineSilent,
    EngineUnavailable,
)
from easel.settings import SupervisionSettings

log = logging.getLogger(__name__)

READY_PAUSE = 0.1
"""Seconds between two looks whether a starting engine answers."""
QUESTION_TIMEOUT = 5.0
"""Longest wait for the answer to one look."""
PORT_TIMEOUT = 15.0
"""How long a restart waits for the port of the process before."""
NOTHING = QueueSnapshot((), ())
ERROR_LINES = 20
"""Log lines that go into errors."""


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
    """It was given up after ``start_attempts`` starts in a row that never became ready; `start` and `restart` try again."""


class EngineProcess:
    """A supervised engine: keeps one process of ``command`` running and says how it does.

    ``url`` is where it will answer. ``env`` is added to our own environment; ``device`` becomes ``CUDA_VISIBLE_DEVICES``.
    ``on_died`` is called on the event loop each time a process ends unasked, is killed for silence or restarted, with
    EngineDied or EngineSilent (last log lines attached): whatever ran on it is lost. ``on_log`` gets every line it prints.
    """

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
    ) -> None:
        if not command:
            raise ConfigurationError("no command to start the engine with")
        self.command = list(command)
        self.url = url
        self.settings = settings or SupervisionSettings()
        self.last_error: EngineError | None = None
        """Why the last process ended, or why it cannot start."""
        self.starts = 0
        """Processes started so far."""
        self.activity: Callable[[], float | None] | None = None
        """Seconds since the prompt that runs for us moved, None when none does: set it to `Connection.stalled_for`."""
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        if device is not None:
            self._env["CUDA_VISIBLE_DEVICES"] = device
        self._cwd = cwd
        self.on_died = on_died
        # Short enough that silence is certain when `silent_timeout` is over.
        patience = min(QUESTION_TIMEOUT, self.settings.silent_timeout / FAILURES)
        self._client = ComfyClient(url, timeout=patience)
        self._on_log = on_log
        self._log = LogTail(self.settings.log_lines, self._forward)
        self._state = EngineState.STOPPED
        self._changed = asyncio.Event()
        self._child: Child | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._order: asyncio.Future[str] | None = None
        self._hurry = asyncio.Event()
        self._lock = asyncio.Lock()

    @property
    def state(self) -> EngineState:
        """What it is doing now."""
        return self._state

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return self._child.pid if self._child is not None else None

    async def start(self) -> None:
        """Start the process and its supervision; does not wait until it answers. Harmless when started.

        Raises ConfigurationError when the program is not found or something else listens at the URL.
        """
        async with self._lock:
            if self._keeper is not None and not self._keeper.done():
                return
            await asyncio.to_thread(self._check_command)
            if await self._port_taken():
                raise ConfigurationError(
                    f"something else listens at {self.url} already",
                    hint="stop it, or give the engine another port",
                )
            self._begin()

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the engine answers.

        Raises the last error when it has been given up, EngineUnavailable when it is stopped, EngineSilent when the time
        is over.
        """
        try:
            async with asyncio.timeout(timeout):
                while self._state is not EngineState.READY:
                    if self._state is EngineState.FAILED and self.last_error is not None:
                        raise self.last_error
                    if self._state is EngineState.STOPPED:
                        raise EngineUnavailable("the engine is stopped")
                    await self.wait_changed(self._state)
        except TimeoutError:
            raise EngineSilent(
                f"the engine was not ready within {timeout:g} s", log=self.log_tail(ERROR_LINES)
            ) from self.last_error

    async def wait_changed(self, state: EngineState, timeout: float | None = None) -> EngineState:
        """Wait until the state is another than ``state`` and return it. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while self._state is state:
                await self._changed.wait()
        return self._state

    def log_tail(self, lines: int | None = None) -> list[str]:
        """Return the engine's last log lines (all that are kept by default), also those of processes before."""
        return self._log.tail(lines)

    async def restart(self, reason: str) -> None:
        """Kill the process and start another at once; returns when the old one is gone.

        ``reason`` ends a sentence about the engine and goes into the error of what ran on it. Starts a stopped or failed one.
        """
        async with self._lock:
            if self._keeper is None or self._keeper.done():
                self._begin()
                return
            child = self._child
            self._hurry.set()
            if self._order is not None and not self._order.done():
                self._order.set_result(reason)
            while child is not None and self._child is child:
                await self._changed.wait()

    async def drain(self, timeout: float | None = None) -> bool:
        """Wait until the engine's queue is empty; False when the time (``drain_timeout``) was over before.

        An engine that is not ready has nothing to drain.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_timeout if timeout is None else timeout):
                while self._state is EngineState.READY:
                    with contextlib.suppress(EngineError):
                        if await self._client.queue_remaining() == 0:
                            return True
                    await asyncio.sleep(READY_PAUSE)
                return True
        return False

    async def stop(self) -> None:
        """Stop politely, then by force after ``stop_grace``; nothing of it survives. Harmless when stopped."""
        async with self._lock:
            keeper, self._keeper = self._keeper, None
            if keeper is not None:
                keeper.cancel()
                await asyncio.wait([keeper])
            await self._client.close()
            self._set(EngineState.STOPPED)

    # Supervision.

    def _begin(self) -> None:
        self.last_error = None
        self._set(EngineState.STARTING)
        self._keeper = asyncio.create_task(self._keep(), name="easel engine supervision")

    def _set(self, state: EngineState) -> None:
        """Change the state and wake everybody who waits for a change of state or process."""
        if state is not self._state:
            log.info("engine %s: %s", self.url, state)
        self._state = state
        self._changed.set()
        self._changed = asyncio.Event()

    async def _keep(self) -> None:
        """Start, look after, start again."""
        clock = asyncio.get_running_loop().time
        backoff = Backoff(self.settings)
        unready = 0
        while True:
            ready_at: list[float] = []
            try:
                error = await self._life(ready_at)
            except OSError as failure:
                error = EngineDied(f"the engine's process cannot be started: {failure}")
            ordered = self._hurry.is_set()
            unready = 0 if ready_at or ordered else unready + 1
            given_up = unready >= self.settings.start_attempts
            self._died(error, EngineState.FAILED if given_up else EngineState.RESTARTING)
            if given_up:
                return
            pause = backoff.pause(clock() - ready_at[0] if ready_at else 0.0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), pause)
            self._hurry.clear()

    def _died(self, error: EngineError, state: EngineState) -> None:
        """Whatever ran on the engine is lost."""
        self.last_error = error
        log.warning("engine %s: %s", self.url, error)
        self._set(state)
        if self.on_died is not None:
            try:
                self.on_died(error)
            except Exception:  # supervision goes on whatever its listener does
                log.exception("telling of the engine's death failed")

    def _forward(self, line: str) -> None:
        """Hand on a line the engine printed; a listener that raises gets no more."""
        if self._on_log is not None:
            try:
                self._on_log(line)
            except Exception:  # the engine's output must be taken all the same
                self._on_log = None
                log.exception("forwarding the engine's log failed")

    async def _life(self, ready_at: list[float]) -> EngineError:
        """One process from its start to its end; returns why it ended. ``ready_at`` gets the time it first answered."""
        await self._port_free()
        order = self._order = asyncio.get_running_loop().create_future()
        child = self._child = await Child.spawn(
            self.command, env=self._env, cwd=self._cwd, on_output=self._log.feed
        )
        self.starts += 1
        self._set(self._state)
        ended = asyncio.create_task(child.wait())
        health = asyncio.create_task(self._health(ready_at))
        try:
            await asyncio.wait((ended, health, order), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                self._log.finish()
                return ended_error(ended.result(), self.log_tail(ERROR_LINES))
            if order.done():
                error: EngineError = EngineDied(
                    f"the engine {order.result()}", log=self.log_tail(ERROR_LINES)
                )
            else:
                error = health.result()
            await child.kill()
            return error
        except asyncio.CancelledError:
            await self._end(child)
            raise
        finally:
            self._child = None
            order.cancel()
            health.cancel()
            ended.cancel()
            await asyncio.wait((ended, health))

    async def _end(self, child: Child) -> None:
        """Stop a process politely; whoever cancels us meanwhile gets it by force."""
        try:
            await child.stop(self.settings.stop_grace)
        finally:
            self._log.finish()

    async def _health(self, ready_at: list[float]) -> EngineError:
        """Watch a process; returns why it must be killed."""
        clock = asyncio.get_running_loop().time
        while True:
            try:
                async with asyncio.timeout(self.settings.start_timeout):
                    await self._answering()
            except TimeoutError:
                return EngineSilent(
                    f"the engine did not answer within {self.settings.start_timeout:g} s of its start",
                    log=self.log_tail(ERROR_LINES),
                )
            ready_at[:] = ready_at or [clock()]
            self._set(EngineState.READY)
            wrong = await self._work_moves(Liveness(self.settings, clock()))
            if wrong is not None:
                return EngineSilent(f"the engine {wrong}", log=self.log_tail(ERROR_LINES))
            error = EngineDied(
                "the engine stopped listening; it may be restarting itself",
                log=self.log_tail(ERROR_LINES),
            )
            self._died(error, EngineState.RESTARTING)

    async def _answering(self) -> None:
        """Wait for ``/system_stats`` to answer 200: its port is bound last, after all imports."""
        while True:
            with contextlib.suppress(EngineError):
                await self._client.system_stats()
                return
            await asyncio.sleep(READY_PAUSE)

    async def _work_moves(self, liveness: Liveness) -> str | None:
        """Ask regularly; returns what is wrong, or None when nothing listens any more."""
        clock = asyncio.get_running_loop().time
        remaining = 0
        while not liveness.refused:
            await asyncio.sleep(self.settings.probe_interval)
            try:
                before, remaining = remaining, await self._client.queue_remaining()
                if (
                    remaining and remaining == before
                ):  # prompts there, and none ended: is one running?
                    liveness.queue(await self._client.queue(), clock())
                elif not remaining:
                    liveness.queue(NOTHING, clock())
                liveness.answered(clock())
            except EngineProtocolError:
                liveness.answered(clock())
            except EngineError as error:
                liveness.unanswered(refused=isinstance(error, EngineUnavailable))
            wrong = liveness.verdict(clock(), self.activity() if self.activity else None)
            if wrong is not None:
                return wrong
        return None

    # Before a start.

    def _check_command(self) -> None:
        program = self.command[0]
        found = shutil.which(program, path=self._env.get("PATH"))
        if found is None and not (self._cwd and (self._cwd / program).is_file()):
            raise ConfigurationError(
                f"{program!r} is not a program that can be started",
                hint="give the engine's command as in: python main.py --port 8188",
            )
        if self._cwd is not None and not self._cwd.is_dir():
            raise ConfigurationError(f"{self._cwd} is not a folder to start the engine in")

    async def _port_taken(self) -> bool:
        """Whether something listens at the URL."""
        url = URL(self.url)
        try:
            async with asyncio.timeout(1.0):
                _, writer = await asyncio.open_connection(url.host, url.port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    async def _port_free(self) -> None:
        """Wait a little for the port. Raises OSError."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PORT_TIMEOUT):
                while await self._port_taken():  # noqa: ASYNC110 - there is no event to wait for
                    await asyncio.sleep(READY_PAUSE)
                return
        raise OSError(f"something else listens at {self.url}")
