"""What every runtime must do (`fleet/runtime.py`), with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import msgspec
import psutil
import pytest

from easel.errors import EaselError, InstanceFailed
from easel.fleet.runtime import Handle, Runtime, Vitals
from easel.services.model import Mount
from tests.contract.runtimes import GRACE, NOWHERE, Place
from tests.waiting import until


async def running(place: Place, instance: str | None = None) -> list[int]:
    return await asyncio.to_thread(place.running, instance)


async def vitals(runtime: Runtime, handle: Handle) -> Vitals:
    key = handle["instance"]
    return (await runtime.check({key: handle}))[key]


async def dead(runtime: Runtime, handle: Handle) -> Vitals:
    """Wait until an instance is seen dead."""

    async def look() -> Vitals | None:
        found = await vitals(runtime, handle)
        return None if found.alive else found

    return await until(look, timeout=40)


async def test_devices_are_told_apart(runs: Place) -> None:
    devices = await runs.runtime().devices()
    assert devices
    assert len({one.id for one in devices}) == len(devices)
    assert {one.kind for one in devices} <= {"gpu", "cpu"}


async def test_a_life(runs: Place) -> None:
    runtime = runs.runtime()
    handles: list[Handle] = []
    async for handle in runtime.start(runs.launch()):
        assert json.loads(json.dumps(handle)) == handle
        assert handle["instance"] == "one"
        if not handles:
            assert not await running(runs), "the first handle comes before anything runs"
        handles.append(handle)
    assert len(handles) >= 2
    assert await running(runs, "one")
    line = await runs.speaks(runtime, handles[-1])
    seen = await vitals(runtime, handles[-1])
    assert seen.alive
    assert seen.memory_bytes
    await runtime.stop(handles[-1], grace=GRACE)
    assert not await running(runs)
    child = int(line.partition("child=")[2].split()[0])
    assert child not in psutil.pids()
    assert any("engine leaves" in one for one in await runtime.logs(handles[-1], lines=50))
    assert not (await vitals(runtime, handles[-1])).alive
    await runtime.discard(handles[-1])
    assert not runs.files("one")


async def test_stop_from_every_checkpoint_leaves_nothing(runs: Place) -> None:
    runtime = runs.runtime()
    reached, checkpoints = 0, 1
    while reached < checkpoints:
        launch = runs.launch(f"at-{reached}")
        handles = cast("AsyncGenerator[Handle, None]", runtime.start(launch))
        seen = []
        async for handle in handles:
            seen.append(handle)
            if len(seen) > reached:
                break
        else:
            break
        await handles.aclose()
        await runtime.stop(seen[-1], grace=0.5)
        assert not await running(runs)
        await runtime.discard(seen[-1])
        assert not runs.files(launch.instance)
        reached, checkpoints = reached + 1, reached + 2
    assert reached >= 2


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20, 100, 400])
async def test_a_start_that_is_cancelled_leaves_nothing(runs: Place, turns: int) -> None:
    runtime = runs.runtime()
    stored: list[Handle] = []
    begun = asyncio.Event()

    async def start() -> None:
        async for handle in runtime.start(runs.launch()):
            stored.append(handle)
            begun.set()

    task = asyncio.create_task(start())
    await begun.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await runtime.stop(stored[-1], grace=0.2)
    assert not await running(runs)


@pytest.mark.parametrize("killed", [False, True])
async def test_stop_ends_what_ignores_it_and_hides(runs: Place, killed: bool) -> None:
    runtime = runs.runtime()
    handle = await runs.started(runtime, runs.launch("one", "--stubborn"))
    line = await runs.speaks(runtime, handle)
    child = psutil.Process(int(line.partition("child=")[2].split()[0]))
    if killed:
        await asyncio.to_thread(runs.kill, "one")
        await dead(runtime, handle)
    await runtime.stop(handle, grace=0.1)
    if killed:  # by whom the instance's own part left behind, which may still be about it
        await asyncio.to_thread(psutil.wait_procs, [child], 10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not await running(runs)


async def test_stopping_and_discarding_again_is_harmless(runs: Place) -> None:
    runtime = runs.runtime()
    handles = cast("AsyncGenerator[Handle, None]", runtime.start(runs.launch("never")))
    first = await anext(handles)
    await handles.aclose()
    last = await runs.started(runtime, runs.launch("one"))
    for handle in (first, last):
        for _ in range(2):
            await runtime.stop(handle, grace=0.2)
        for _ in range(2):
            await runtime.discard(handle)
        assert await runtime.logs(handle, lines=5) == []
        assert not (await vitals(runtime, handle)).alive
        await runtime.stop(handle, grace=0.2)
    assert not await running(runs)


async def test_all_are_looked_at_at_once(runs: Place) -> None:
    runtime = runs.runtime()
    failing = msgspec.structs.replace(runs.launch("fails"), gateway_url="ftp://nowhere")
    launches = [runs.launch("lives"), runs.launch("dies"), failing]
    handles = dict(
        zip(
            ("lives", "dies", "fails"),
            await asyncio.gather(*(runs.started(runtime, one) for one in launches)),
            strict=True,
        )
    )
    for key in ("lives", "dies"):
        await runs.speaks(runtime, handles[key])
    await asyncio.to_thread(runs.kill, "dies")
    await dead(runtime, handles["dies"])
    await dead(runtime, handles["fails"])
    seen = await runtime.check(handles)
    assert {key: one.alive for key, one in seen.items()} == {
        "lives": True,
        "dies": False,
        "fails": False,
    }
    assert all(one.instance == key for key, one in seen.items())
    assert seen["dies"].exit == "Killed"
    assert seen["fails"].exit == "Error"
    assert seen["dies"].message
    assert seen["fails"].message
    assert await runtime.check({}) == {}
    for handle in handles.values():
        await runtime.stop(handle, grace=0.2)
    assert not await running(runs)


async def test_memory_is_what_all_its_processes_hold(runs: Place, tmp_path: Path) -> None:
    runtime = runs.runtime()
    small = await runs.started(runtime, runs.launch("small"))
    large = await runs.started(runtime, runs.launch("large", "--big", "200"))
    model = tmp_path / "model"
    await asyncio.to_thread(model.write_bytes, bytes(200 * 2**20))
    reads = await runs.started(runtime, runs.launch("reads", "--maps", str(model)))
    for handle in (small, large, reads):
        await runs.speaks(runtime, handle)
    seen = await runtime.check({"small": small, "large": large, "reads": reads})
    less, more = seen["small"].memory_bytes, seen["large"].memory_bytes
    assert less is not None
    assert more is not None
    assert 150 * 2**20 < more - less < 260 * 2**20
    assert (seen["reads"].memory_bytes or 0) - less < 50 * 2**20, "a model's file is not held"
    for handle in (small, large, reads):
        await runtime.stop(handle, grace=0.1)


async def test_logs_are_the_last_lines_of_this_run_or_the_one_before(runs: Place) -> None:
    runtime = runs.runtime()
    handle = await runs.started(
        runtime, runs.launch("one", "--chatty", env={"GREETING": "the first time"})
    )
    await runs.speaks(runtime, handle)
    assert await runtime.logs(handle, lines=5, previous=True) == []
    lines = await runtime.logs(handle, lines=1000)
    assert len(lines) == 1000
    assert any("line 1999" in line for line in lines)
    assert not any("line 17" in line.split("engine]")[-1].split(",") for line in lines)
    assert await runtime.logs(handle, lines=0) == []
    await runtime.stop(handle, grace=0.1)
    handle = await runs.started(runtime, runs.launch("one", env={"GREETING": "the second time"}))
    assert "the second time" in await runs.speaks(runtime, handle)
    now = await runtime.logs(handle, lines=5000)
    before = await runtime.logs(handle, lines=5000, previous=True)
    assert not any("the first time" in line for line in now)
    assert any("the first time" in line for line in before)
    await runtime.stop(handle, grace=0.1)


async def test_an_instance_survives_its_starter_and_is_adopted(runs: Place) -> None:
    stored = await runs.starter(runs.launch())
    handle = stored[-1]
    runtime = runs.runtime()
    assert (await vitals(runtime, handle)).alive
    assert await runtime.strays({"one"}) == []
    await runs.speaks(runtime, handle)
    assert (await vitals(runtime, handle)).alive
    await runtime.stop(handle, grace=GRACE)
    assert not await running(runs)
    assert any("engine leaves" in line for line in await runtime.logs(handle, lines=50))
    await runtime.discard(handle)
    assert not runs.files("one")


async def test_the_end_of_an_adopted_one_is_seen(runs: Place) -> None:
    handle = (await runs.starter(runs.launch()))[-1]
    runtime = runs.runtime()
    await runs.speaks(runtime, handle)
    await asyncio.to_thread(runs.kill, "one")
    seen = await dead(runtime, handle)
    assert seen.exit
    assert seen.message
    await runtime.stop(handle, grace=0.2)
    assert not await running(runs)


async def test_what_was_started_unnoticed_is_a_stray(runs: Place) -> None:
    stored = await runs.starter(runs.launch(), dies_unnoticed=True)
    assert await running(runs, "one")
    runtime = runs.runtime()
    assert not (await vitals(runtime, stored[-1])).alive
    known = await runs.started(runtime, runs.launch("two"))
    (stray,) = await runtime.strays({"two"})
    assert stray["instance"] == "one"
    assert (await vitals(runtime, stray)).alive
    await runtime.stop(stray, grace=GRACE)
    assert not await running(runs, "one")
    assert await runtime.strays({"two"}) == []
    assert (await vitals(runtime, known)).alive
    await runtime.discard(stray)
    assert not runs.files("one")
    await runtime.stop(known, grace=0.2)


async def test_the_last_stored_handle_stops_what_was_started_unnoticed(runs: Place) -> None:
    stored = await runs.starter(runs.launch(), dies_unnoticed=True)
    assert await running(runs, "one")
    await runs.runtime().stop(stored[-1], grace=GRACE)
    assert not await running(runs)


async def test_a_mount_that_is_not_there(
    runs: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("storage") / "models"
    mounts = [Mount(mount_path="/models", source=str(folder), read_only=True)]
    runtime = runs.runtime()
    handle: Handle = {}

    async def start() -> None:
        nonlocal handle
        async for one in runtime.start(runs.launch(mounts=mounts)):
            handle = one

    with pytest.raises(InstanceFailed) as caught:
        await start()
    assert caught.value.reason == "MountMissing"
    assert str(folder) in caught.value.message
    await runtime.stop(handle, grace=0.2)
    assert not await running(runs)
    folder.mkdir()
    handle = await runs.started(runtime, runs.launch(mounts=mounts))
    await runs.speaks(runtime, handle)
    await runtime.stop(handle, grace=0.2)
    await runtime.discard(handle)
    assert folder.is_dir()


async def test_an_empty_folder_lives_as_long_as_its_instance(runs: Place) -> None:
    mounts = [
        Mount(mount_path="/scratch", source=None),
        Mount(mount_path="/quick", source=None, memory=True),
    ]
    launch = runs.launch("one", mounts=mounts, env={"GREETING": "plain"})
    command = [*launch.spec.engine.command, "--scratch", "/scratch/x", "--quick", "/quick/x"]
    engine = msgspec.structs.replace(launch.spec.engine, command=command)
    spec = msgspec.structs.replace(launch.spec, engine=engine)
    runtime = runs.runtime()
    handle = await runs.started(runtime, msgspec.structs.replace(launch, spec=spec))
    line = await runs.speaks(runtime, handle)
    assert "plain" in line

    def folders() -> list[str]:
        for pid in runs.running("one"):
            with contextlib.suppress(psutil.Error):
                words = psutil.Process(pid).cmdline()
                if "--scratch" in words and "agent" not in words:
                    return [words[words.index(flag) + 1] for flag in ("--scratch", "--quick")]
        return []

    found = [Path(path).parent for path in await asyncio.to_thread(folders)]
    assert len(set(found)) == 2
    assert all(one.is_dir() for one in found)
    assert not any(str(one) in {"/scratch", "/quick"} for one in found)
    await runtime.stop(handle, grace=0.2)
    assert all(one.is_dir() for one in found)
    await runtime.discard(handle)
    assert not any(one.exists() for one in found)


async def test_secrets_stay_where_they_are(runs: Place, secrets_of_the_platform: list[str]) -> None:
    runtime = runs.runtime()
    launch = runs.launch()
    handle = await runs.started(runtime, launch)
    await runs.speaks(runtime, handle)

    def words() -> tuple[str, str]:
        lines: list[str] = []
        variables: list[str] = []
        for pid in runs.running("one"):
            with contextlib.suppress(psutil.Error):
                lines += psutil.Process(pid).cmdline()
                variables += psutil.Process(pid).environ().values()
        return "\n".join(lines), "\n".join(variables)

    lines, variables = await asyncio.to_thread(words)
    assert NOWHERE in lines
    assert launch.token not in lines + variables
    assert not any(secret in lines + variables for secret in secrets_of_the_platform)
    await runtime.stop(handle, grace=0.2)


async def test_two_platforms_do_not_see_each_other(
    runs: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = type(runs)(tmp_path_factory.mktemp("other"))  # type: ignore[call-arg]
    runtime, neighbour = runs.runtime(), other.runtime()
    handle = await runs.started(runtime, runs.launch())
    assert await neighbour.strays(set()) == []
    with contextlib.suppress(EaselError):
        await neighbour.stop({"instance": "one", "folder": str(runs.files("one")[0])}, grace=0.1)
    assert (await vitals(runtime, handle)).alive
    await runtime.stop(handle, grace=0.2)
