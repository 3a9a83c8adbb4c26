"""What is the local runtime's own, beyond the contract of runtimes (`tests/contract/test_runtime.py`)."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil
import pytest

from easel.errors import EngineUnavailable, InstanceFailed
from easel.fleet.advice import advise
from easel.fleet.runtime import Handle, Launch
from easel.fleet.runtimes import processes, starting
from easel.fleet.runtimes.local import LocalRuntime
from easel.services.model import EngineSpec, Mount
from tests.contract.runtimes import ROOT, STARTER, LocalPlace, Place, runs
from tests.waiting import until

__all__ = ["runs"]


async def failure(runtime: LocalRuntime, launch: Launch) -> InstanceFailed:
    async def start() -> None:
        async for _ in runtime.start(launch):
            pass

    with pytest.raises(InstanceFailed) as caught:
        await start()
    return caught.value


@pytest.fixture
def place(runs: Place) -> LocalPlace:
    assert isinstance(runs, LocalPlace)
    return runs


@pytest.mark.parametrize("more", [1, 0])
async def test_ended_for_want_of_memory(
    place: LocalPlace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: int
) -> None:
    """The system counts what it ends; an agent that is killed while the count grows was one of them."""
    counts = tmp_path / "vmstat"
    monkeypatch.setattr(processes, "VMSTAT", counts)
    await asyncio.to_thread(counts.write_text, "pgfault 9\noom_kill 4\n")
    runtime = place.runtime()
    handle = await place.started(runtime, place.launch())
    assert (await runtime.check({"one": handle}))["one"].alive
    await asyncio.to_thread(counts.write_text, f"pgfault 9\noom_kill {4 + more}\n")
    await asyncio.to_thread(place.kill, "one")

    async def dead() -> str:
        seen = (await runtime.check({"one": handle}))["one"]
        # The count stands for that of the moment in which it dies.
        runtime._kills = 4
        return "" if seen.alive else seen.exit

    assert await until(dead) == ("OOMKilled" if more else "Killed")
    await runtime.stop(handle, grace=0.1)


async def test_a_process_with_the_same_id_is_not_the_instance(place: LocalPlace) -> None:
    runtime = place.runtime()
    handle = await place.started(runtime, place.launch())
    other: Handle = {**handle, "instance": "other", "pid": os.getppid()}
    earlier: Handle = {**handle, "started": handle["started"] - 1}
    seen = await runtime.check({"other": other, "earlier": earlier})
    assert not seen["other"].alive
    assert not seen["earlier"].alive
    await runtime.stop(other, grace=5)
    assert psutil.pid_exists(os.getppid())
    assert (await runtime.check({"one": handle}))["one"].alive
    await runtime.stop(handle, grace=0.1)


async def test_an_instance_that_is_started_over_one_that_was_left(place: LocalPlace) -> None:
    """Its port, folder and log are not shared with what an earlier, unnoticed start left running."""
    await place.starter(place.launch(), dies_unnoticed=True)
    left = set(await asyncio.to_thread(place.running, "one"))
    assert left
    runtime = place.runtime()
    handle = await place.started(runtime, place.launch())
    now = set(await asyncio.to_thread(place.running, "one"))
    assert handle["pid"] in now
    assert not now & left
    await runtime.stop(handle, grace=0.1)


async def test_token_and_folder_are_for_this_user_alone(place: LocalPlace) -> None:
    runtime = place.runtime()
    handle = await place.started(runtime, place.launch())
    folder = place.home / "instances" / "one"

    def modes() -> list[int]:
        return [path.stat().st_mode & 0o777 for path in (folder, folder / "token")]

    assert await asyncio.to_thread(modes) == [0o700, 0o600]
    await runtime.stop(handle, grace=0.1)


async def test_a_file_where_a_folder_should_be(place: LocalPlace) -> None:
    def block() -> None:
        place.home.mkdir()
        (place.home / "instances").touch()

    await asyncio.to_thread(block)
    assert (await failure(place.runtime(), place.launch())).reason == "FileInTheWay"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_cannot_be_written(place: LocalPlace) -> None:
    await asyncio.to_thread(place.home.mkdir, 0o500)
    assert (await failure(place.runtime(), place.launch())).reason == "PermissionDenied"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "DiskFull"),
        (errno.EDQUOT, "DiskFull"),
        (errno.EROFS, "ReadOnly"),
        (errno.EACCES, "PermissionDenied"),
    ],
)
async def test_a_disk_that_refuses(
    place: LocalPlace, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def refuse(data: Path) -> None:
        raise OSError(number, os.strerror(number), str(data / "output"))

    monkeypatch.setattr(starting, "make_tree", refuse)
    failed = await failure(place.runtime(), place.launch())
    assert failed.reason == reason
    assert "/output: " in failed.message
    assert advise(failed.reason, failed.message, failed.log or [])
    assert not await asyncio.to_thread(place.running)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
async def test_what_may_be_over_the_next_time(
    place: LocalPlace, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> tuple[int, float]:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(processes.Processes, "spawn", refuse)

    async def start() -> None:
        async for _ in place.runtime().start(place.launch()):
            pass

    with pytest.raises(EngineUnavailable):
        await start()


async def test_a_data_directory_that_cannot_be_made(place: LocalPlace) -> None:
    launch = place.launch(
        mounts=[Mount(mount_path="/data", source="/proc/nowhere")], data_path="/data"
    )
    failed = await failure(place.runtime(), launch)
    assert "/proc/nowhere" in failed.message
    assert not await asyncio.to_thread(place.running)


async def test_a_missing_comfyui(place: LocalPlace) -> None:
    failed = await failure(place.runtime(), place.launch(engine=EngineSpec(kind="comfyui")))
    assert failed.reason == "ComfyUIMissing"
    assert "easel comfyui install" in (failed.hint or "")
    assert not await asyncio.to_thread(place.running)


async def test_what_a_script_exports_reaches_the_engine(place: LocalPlace) -> None:
    launch = place.launch()
    command = launch.spec.engine.command
    engine = EngineSpec(
        kind="command", command=command, prepare=["word=exported", "export GREETING=$word"]
    )
    runtime = place.runtime()
    handle = await place.started(runtime, place.launch(engine=engine))
    assert "exported" in await place.speaks(runtime, handle)
    await runtime.stop(handle, grace=0.1)


async def test_discard_leaves_other_folders_alone(place: LocalPlace, tmp_path: Path) -> None:
    runtime = place.runtime()
    other = tmp_path / "other"
    await asyncio.to_thread(other.mkdir)
    for folder in (other, place.home, place.home / "instances" / ".." / "..", Path("/")):
        await runtime.discard({"instance": "one", "folder": str(folder)})
    assert await asyncio.to_thread(other.is_dir)


async def test_a_service_says_what_it_may_of_the_environment(place: LocalPlace) -> None:
    source = place.home.parent / "storage"
    await asyncio.to_thread(source.mkdir)
    env = {
        "GREETING": "at:/mnt/data/x",
        "CUDA_VISIBLE_DEVICES": "7",
        "EASEL_AGENT__JOIN": "http://elsewhere",
        "USE_AGENT": "0",
    }
    mounts = [Mount(mount_path="/mnt/data", source=str(source))]
    launch = msgspec.structs.replace(place.launch(env=env, mounts=mounts), device="GPU-1")
    runtime = place.runtime()
    handle = await place.started(runtime, launch)
    assert f"at:{source}/x" in await place.speaks(runtime, handle)
    variables = await asyncio.to_thread(psutil.Process(handle["pid"]).environ)
    assert variables["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert "EASEL_AGENT__JOIN" not in variables
    await runtime.stop(handle, grace=0.1)


async def test_a_preparation_whose_platform_was_killed_is_a_stray(place: LocalPlace) -> None:
    launch = place.launch()
    engine = msgspec.structs.replace(launch.spec.engine, prepare=["sleep 600"])
    launch = place.launch(engine=engine)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", STARTER, str(place.home)),
        stdin=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(launch) + b"\n")

        async def preparing() -> bool:
            return bool(await asyncio.to_thread(place.running, "one"))

        await until(preparing, timeout=40)
    finally:
        process.kill()
        await process.wait()
    runtime = place.runtime()
    (stray,) = await runtime.strays(set())
    assert stray["instance"] == "one"
    await runtime.stop(stray, grace=5)
    assert not await asyncio.to_thread(place.running)


async def test_many_stops_hold_nothing_else_up(place: LocalPlace) -> None:
    """Stops that take their whole grace wait in threads of their own."""
    runtime = place.runtime()
    handles = [
        await place.started(runtime, place.launch(f"i{number}", "--stubborn"))
        for number in range(3)
    ]
    for handle in handles:
        await asyncio.to_thread(psutil.Process(handle["pid"]).suspend)
    stops = [asyncio.create_task(runtime.stop(one, grace=600)) for one in handles]
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    seen = await runtime.check({one["instance"]: one for one in handles})
    assert all(one.alive for one in seen.values())
    assert not any(stop.done() for stop in stops)
    for handle in handles:
        await asyncio.to_thread(psutil.Process(handle["pid"]).kill)
    async with asyncio.timeout(40):
        await asyncio.gather(*stops)
    assert not await asyncio.to_thread(place.running)
