"""Supervision of real child processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest

from easel.comfy.process import EngineProcess, EngineState
from easel.errors import (
    ConfigurationError,
    EngineDied,
    EngineError,
    EngineSilent,
    EngineUnavailable,
)
from easel.settings import SupervisionSettings
from tests.servers import free_port
from tests.waiting import until

STAND_IN = Path(__file__).with_name("stand_in.py")
QUICK = {"probe_interval": 0.1, "restart_backoff": 0.05, "stop_grace": 5.0}


@contextlib.asynccontextmanager
async def engine(
    *behaviours: str, device: str | None = None, **settings: float
) -> AsyncIterator[tuple[EngineProcess, list[EngineError]]]:
    """A supervised stand-in (not started), and the deaths it tells of."""
    port = free_port()
    deaths: list[EngineError] = []
    supervised = EngineProcess(
        [sys.executable, str(STAND_IN), str(port), *behaviours],
        url=f"http://127.0.0.1:{port}",
        settings=SupervisionSettings.model_validate({**QUICK, **settings}),
        device=device,
        on_died=deaths.append,
    )
    try:
        yield supervised, deaths
    finally:
        await supervised.stop()
        assert supervised.state is EngineState.STOPPED
        assert supervised.pid is None


async def gone(pid: int | None) -> None:
    """Wait until a process is no more (or a zombie)."""

    async def look() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    await until(look, timeout=10)


async def again(supervised: EngineProcess, starts: int) -> None:
    """Wait until so many processes were started and the last one is ready."""

    async def look() -> bool:
        return supervised.starts >= starts and supervised.state is EngineState.READY

    await until(look, timeout=20)


async def test_it_starts_answers_and_stops() -> None:
    async with engine() as (supervised, deaths):
        assert supervised.state is EngineState.STOPPED
        with pytest.raises(EngineUnavailable, match="stopped"):
            await supervised.wait_ready(1)
        await supervised.start()
        assert str(supervised.state) == "starting"
        await supervised.start()  # harmless
        await supervised.wait_ready(20)
        pid = supervised.pid
        assert pid is not None
        assert os.getpgid(pid) == pid
        assert "starting" in supervised.log_tail()
        assert await supervised.drain(5)
        await supervised.stop()
        await gone(pid)
        await supervised.stop()  # harmless
        await supervised.start()
        await supervised.wait_ready(20)
        assert supervised.starts == 2
        assert deaths == []


async def test_one_device_each() -> None:
    async with engine(device="3") as (supervised, _), aiohttp.ClientSession() as session:
        await supervised.start()
        await supervised.wait_ready(20)
        async with session.get(supervised.url + "/system_stats") as response:
            assert (await response.json(content_type=None))["system"]["cuda"] == "3"


async def test_a_crash_is_noticed_told_and_mended() -> None:
    # A probe every ten minutes notices nothing: the process itself is waited for.
    async with engine(probe_interval=600) as (supervised, deaths):
        await supervised.start()
        await supervised.wait_ready(20)
        async with aiohttp.ClientSession() as session:
            with contextlib.suppress(aiohttp.ClientError):
                await session.get(supervised.url + "/crash")
        await again(supervised, 2)
        (error,) = deaths
        assert isinstance(error, EngineDied)
        assert "exit code 77" in str(error)
        assert error.log is not None
        assert error.log[-1] == "fatal: the GPU fell off the bus"
        assert supervised.last_error is error


async def test_a_killed_engine_is_started_again() -> None:
    async with engine() as (supervised, deaths):
        await supervised.start()
        await supervised.wait_ready(20)
        assert supervised.pid is not None
        os.kill(supervised.pid, signal.SIGKILL)
        await again(supervised, 2)
        assert "SIGKILL" in str(deaths[0])
        assert "memory" in (deaths[0].hint or "")


async def test_a_stopped_engine_is_hung_and_killed() -> None:
    async with engine(silent_timeout=0.5) as (supervised, deaths):
        await supervised.start()
        await supervised.wait_ready(20)
        pid = supervised.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await again(supervised, 2)
        await gone(pid)
        assert isinstance(deaths[0], EngineSilent)
        assert "has not answered" in str(deaths[0])


async def test_a_dead_worker_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easel.comfy.liveness.IDLE_WORKER_SECONDS", 0.3)
    async with engine("dead-worker") as (supervised, deaths):
        await supervised.start()
        await supervised.wait_ready(20)
        await again(supervised, 2)
        assert isinstance(deaths[0], EngineSilent)
        assert "worker is dead" in str(deaths[0])
        assert not await supervised.drain(0.2)


async def test_a_prompt_that_does_not_move_is_found_out() -> None:
    async with engine(stall_timeout=5) as (supervised, deaths):
        supervised.activity = lambda: 7.0 if supervised.starts == 1 else None
        await supervised.start()
        await again(supervised, 2)
        assert isinstance(deaths[0], EngineSilent)
        assert "not moved for 7 s" in str(deaths[0])


async def test_a_crash_at_start_is_given_up_after_some_attempts() -> None:
    async with engine("crash-at-start", start_attempts=3) as (supervised, deaths):
        await supervised.start()
        with pytest.raises(EngineDied, match="exit code 1") as raised:
            await supervised.wait_ready(20)
        assert supervised.state is EngineState.FAILED
        assert supervised.starts == len(deaths) == 3
        assert raised.value.hint is not None
        assert "torch" in raised.value.hint
        supervised.command = supervised.command[:-1]  # the operator has installed torch
        await supervised.restart("is tried again")
        await supervised.wait_ready(20)


async def test_a_start_that_takes_too_long_is_ended() -> None:
    async with engine("never-ready", start_timeout=0.3, start_attempts=1) as (supervised, _):
        await supervised.start()
        with pytest.raises(EngineSilent, match=r"0\.3 s of its start") as raised:
            await supervised.wait_ready(20)
        assert raised.value.log == ["starting"]


async def test_waiting_has_an_end() -> None:
    async with engine("never-ready") as (supervised, _):
        await supervised.start()
        with pytest.raises(EngineSilent, match="not ready within"):
            await supervised.wait_ready(0.3)
        with pytest.raises(TimeoutError):
            await supervised.wait_changed(EngineState.STARTING, 0.1)


async def test_what_is_deaf_is_stopped_by_force() -> None:
    async with engine("deaf", stop_grace=0.3) as (supervised, _):
        await supervised.start()
        await supervised.wait_ready(20)
        pid = supervised.pid
        await supervised.stop()
        await gone(pid)


async def test_a_restart_on_demand() -> None:
    async with engine("deaf", restart_backoff=30, stop_grace=0.3) as (supervised, deaths):
        await supervised.start()
        for starts in (2, 3, 4):  # without the pauses of restarts in a row
            await supervised.wait_ready(20)
            pid = supervised.pid
            await supervised.restart("was told to")
            await gone(pid)
            await again(supervised, starts)
        assert [str(death) for death in deaths] == ["the engine was told to"] * 3


async def test_nothing_of_it_survives() -> None:
    async with engine("grandchild") as (supervised, _):
        await supervised.start()
        await supervised.wait_ready(20)
        grandchildren = pids(supervised.log_tail())
        assert len(grandchildren) == 2
        assert supervised.pid is not None
        os.kill(supervised.pid, signal.SIGKILL)
        await again(supervised, 2)
        for pid in grandchildren:
            await gone(pid)
        grandchildren = pids(supervised.log_tail()[-2:])
        await supervised.stop()
        for pid in grandchildren:
            await gone(pid)


async def test_an_engine_does_not_outlive_its_launcher() -> None:
    async with engine() as (supervised, deaths):
        await supervised.start()
        await supervised.wait_ready(20)
        pid = supervised.pid
        launcher = psutil.Process(pid).parent()
        assert launcher is not None
        assert "launcher" in " ".join(launcher.cmdline())
        launcher.kill()
        await gone(pid)
        await again(supervised, 2)
        assert isinstance(deaths[0], EngineDied)


def pids(log: list[str]) -> list[int]:
    """The grandchildren the stand-in names."""
    return [int(line.split()[1]) for line in log if line.startswith("grandchild")]


OWNER = """
import asyncio, sys, uvloop
from easel.comfy.process import EngineProcess

async def main():
    engine = EngineProcess(sys.argv[2:], url=sys.argv[1], on_log=lambda line: print(line, flush=True))
    await engine.start()
    await engine.wait_ready(20)
    print("engine", engine.pid, flush=True)
    await asyncio.Event().wait()

{"asyncio": asyncio.run, "uvloop": uvloop.run}[sys.argv.pop(1)](main())
"""


@pytest.mark.parametrize(
    ("loop", "number"),
    [("asyncio", signal.SIGKILL), ("uvloop", signal.SIGKILL), ("asyncio", signal.SIGTERM)],
)
async def test_nothing_survives_its_owner(loop: str, number: signal.Signals) -> None:
    port = free_port()
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OWNER, loop, f"http://127.0.0.1:{port}"),
        *(sys.executable, str(STAND_IN), str(port), "grandchild", "deaf"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert owner.stdout is not None
    found: list[tuple[str, int]] = []
    async with asyncio.timeout(20):
        while not found or found[-1][0] != "engine":
            line = (await owner.stdout.readline()).decode().split()
            assert line, "the owner ended"
            if len(line) == 2:
                found.append((line[0], int(line[1])))
    assert len(found) == 3
    owner.send_signal(number)
    await asyncio.wait_for(owner.wait(), 10)
    for _, pid in found:
        await gone(pid)
    await owner.stdout.read()


async def test_a_flooded_log_is_bounded_and_its_end_kept() -> None:
    async with engine("flood", log_lines=50) as (supervised, _):
        await supervised.start()
        await supervised.wait_ready(30)
        tail = supervised.log_tail()
        assert tail[-1].endswith("30%")
        assert tail[-2].startswith("no end no end")
        assert len(tail[-2]) < 5000
        assert tail[-3] == "line 199999"
        assert len(tail) == 51
        assert supervised.log_tail(2) == tail[-2:]


async def test_a_taken_port_is_told_before_the_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        supervised = EngineProcess(
            [sys.executable, str(STAND_IN), str(port)], url=f"http://127.0.0.1:{port}"
        )
        with pytest.raises(ConfigurationError, match="listens"):
            await supervised.start()
        assert supervised.starts == 0


async def test_a_port_taken_meanwhile_is_told_from_the_log() -> None:
    with socket.socket() as taken:
        taken.bind(
            ("127.0.0.1", 0)
        )  # bound and not listening: the look before the start finds nothing
        port = taken.getsockname()[1]
        supervised = EngineProcess(
            [sys.executable, str(STAND_IN), str(port)],
            url=f"http://127.0.0.1:{port}",
            settings=SupervisionSettings(start_attempts=1),
        )
        await supervised.start()
        with pytest.raises(EngineDied) as raised:
            await supervised.wait_ready(20)
        assert "port is taken" in (raised.value.hint or "")
        await supervised.stop()


@pytest.mark.parametrize("command", [["/nowhere/python", "main.py"], ["no-such-program"]])
async def test_a_program_that_is_not_there_is_told(command: list[str]) -> None:
    supervised = EngineProcess(command, url="http://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="not a program"):
        await supervised.start()


async def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    supervised = EngineProcess(["ls"], url="http://127.0.0.1:1", cwd=tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="not a folder"):
        await supervised.start()
    with pytest.raises(ConfigurationError, match="no command"):
        EngineProcess([], url="http://127.0.0.1:1")


async def test_a_listener_that_raises_does_not_end_supervision() -> None:
    async with engine() as (supervised, _):

        def listener(error: EngineError) -> None:
            raise RuntimeError("a fault of the listener")

        supervised.on_died = listener
        await supervised.start()
        await supervised.wait_ready(20)
        assert supervised.pid is not None
        os.kill(supervised.pid, signal.SIGKILL)
        await again(supervised, 2)
