"""One engine process, through the launcher: started, listened to, signalled, waited for."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from easel.comfy import launcher

LAUNCHER = Path(launcher.__file__)
OUTPUT_TIMEOUT = 0.5
"""Longest wait for the rest of the output of a process that has ended."""
FORCE_TIMEOUT = 5.0
"""Longest wait for the launcher to have killed everything; then it is killed itself, and the engine with it."""


class _Output(asyncio.Protocol):
    """Takes the engine's output from its pipe."""

    def __init__(self, on_data: Callable[[bytes], None]) -> None:
        self._on_data = on_data
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._on_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


class Child:
    """A started engine. Make it with `spawn`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        pid: int | None,
        lifeline: io.FileIO,
        output: _Output,
        pipe: asyncio.ReadTransport,
    ) -> None:
        self.pid = pid
        """The engine's process id (its process group's too); None when it could not be started."""
        self._process = process
        self._lifeline = lifeline
        self._output = output
        self._pipe = pipe

    @classmethod
    async def spawn(
        cls,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None,
        on_output: Callable[[bytes], None],
    ) -> Child:
        """Start ``command`` in a session of its own. Raises OSError when no process can be had."""
        with contextlib.ExitStack() as ends:
            lifeline, our_lifeline = _pipe(ends)
            our_output, output = _pipe(ends)
            our_announce, announce = _pipe(ends)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(LAUNCHER), str(announce.fileno()), *command),
                stdin=lifeline,
                stdout=output,
                stderr=output,
                pass_fds=(announce.fileno(),),
                start_new_session=True,
                env=env,
                cwd=cwd,
            )
            # From here on our end of the lifeline closing, for whatever reason, ends the process.
            for end in (lifeline, output, announce):
                end.close()
            announced = await asyncio.to_thread(our_announce.read, 32)
            transport, protocol = await asyncio.get_running_loop().connect_read_pipe(
                lambda: _Output(on_output), our_output
            )
            pid = int(announced) if announced and announced.strip().isdigit() else None
            our_announce.close()
            ends.pop_all()  # the rest is the child's now
            return cls(process, pid, our_lifeline, protocol, transport)

    async def wait(self) -> int:
        """Wait for the end; return the exit code, or minus the signal's number. Its output has been taken by then."""
        code = await self._process.wait()
        self._cut()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._output.ended.wait(), OUTPUT_TIMEOUT)
        self._pipe.close()
        return code

    async def stop(self, grace: float) -> int:
        """Ask the engine to end (SIGTERM), by force after ``grace`` seconds. Returns when nothing of it is left."""
        try:
            self._signal(signal.SIGTERM)
            async with asyncio.timeout(grace):
                return await self.wait()
        except TimeoutError:
            return await self.kill()
        finally:
            self._cut()

    async def kill(self) -> int:
        """Kill the engine and all it started. Returns when nothing of it is left."""
        self._cut()
        try:
            async with asyncio.timeout(FORCE_TIMEOUT):
                return await self.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            return await self.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _cut(self) -> None:
        """Close the lifeline: the launcher kills everything."""
        self._lifeline.close()


def _pipe(ends: contextlib.ExitStack) -> tuple[io.FileIO, io.FileIO]:
    """Return a pipe's reading and writing end, closed with the stack; closing one twice is harmless."""
    reading, writing = os.pipe()
    return ends.enter_context(io.FileIO(reading, "rb")), ends.enter_context(
        io.FileIO(writing, "wb")
    )
