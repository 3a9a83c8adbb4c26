"""`easel run` against a real agent over the built-in engine: files in, pictures out, and all that can go wrong there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
from PIL import Image

from tests.cli.command import EXAMPLES, Result, easel, environment
from tests.servers import Server, running_agent, running_engine
from tests.waiting import until

GLOW = str(EXAMPLES / "photo-glow.json")
COFFEE = str(EXAMPLES / "coffee.jpg")

pytestmark = pytest.mark.timeout(120)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """An agent with the built-in engine, shared by this module's tests."""
    folder = tmp_path_factory.mktemp("cli") / "agent"
    env = {"EASEL_AGENT__SUPERVISION__RESTART_BACKOFF": "0.1"}
    async with running_agent(folder, "--engine", "builtin", "--pack", "demo", env=env) as found:
        yield found


def written(folder: Path, prompt: dict[str, Any]) -> str:
    path = folder / "workflow.json"
    path.write_text(json.dumps(prompt))
    return str(path)


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


async def run(agent: Server, folder: Path, *arguments: str) -> Result:
    return await easel("run", *arguments, "--url", agent.url, "-o", str(folder / "out"))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_photograph_goes_through(agent: Server, tmp_path: Path) -> None:
    found = await run(agent, tmp_path, GLOW, "--input", COFFEE)
    assert found.code == 0, found.err
    (path,) = found.out.split()
    with Image.open(path) as picture:
        assert picture.size == (1200, 800)
        low, high = picture.convert("L").getextrema()
        assert isinstance(low, int)
        assert isinstance(high, int)
        assert high - low > 100  # a photograph, not a plain colour
    assert "%  " in found.err
    assert "Enlarge (ImageScaleBy)" in found.err or "Result (SaveImage)" in found.err


@pytest.mark.asyncio(loop_scope="module")
async def test_values_reach_the_nodes(agent: Server, tmp_path: Path) -> None:
    found = await run(
        agent,
        tmp_path,
        GLOW,
        *("--input", f"Photo={COFFEE}", "--set", "Enlarge.scale_by=0.5"),
        *("--set", "SaveImage.filename_prefix=small", "--json", "--task-id", "small-1"),
    )
    assert found.code == 0, found.err
    assert found.json["task_id"] == "small-1"
    assert found.json["state"] == "succeeded"
    (path,) = found.json["outputs"]
    assert Path(path).name.startswith("small")
    with Image.open(path) as picture:
        assert picture.size == (300, 200)


@pytest.mark.asyncio(loop_scope="module")
async def test_texts_are_printed(agent: Server, tmp_path: Path) -> None:
    name = written(tmp_path, {"1": node("EaselText", text="", announce=False)})
    found = await run(agent, tmp_path, name, "--set", "1.text=1984")
    assert (found.code, found.out) == (0, "1984\n"), found.err


@pytest.mark.asyncio(loop_scope="module")
async def test_drawn_seeds_are_told(agent: Server, tmp_path: Path) -> None:
    prompt = {
        "1": node("PrimitiveInt", value=1),
        "2": node("EaselText", text="x", announce=False, seed=-1),
    }
    found = await run(agent, tmp_path, written(tmp_path, prompt), "--json")
    assert found.code == 0, found.err
    assert list(found.json["seeds"]) == ["2.seed"]
    assert found.json["seeds"]["2.seed"] >= 0


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("prompt", "arguments", "code", "says"),
    [
        ({"1": node("SaveImag", images=["2", 0])}, [], 2, "SaveImag"),
        ({"1": node("SaveImage", filename_prefix="x")}, [], 2, "images"),
        ({"1": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}, [], 2, "output"),
        ({"1": node("EaselText", text="x")}, ["--set", "1.txt=y"], 2, "did you mean text?"),
        ({"1": node("EaselText", text="x")}, ["--input", COFFEE], 2, "no file input"),
        ({"1": node("EaselText", text="x", announce=False)}, ["--task-id", "../x"], 2, "id"),
        (
            {"1": node("EaselFail", message="on purpose", exception="ValueError", steps=0, salt=0)},
            [],
            1,
            "on purpose",
        ),
    ],
)
async def test_what_the_agent_refuses_or_reports(  # noqa: PLR0917 - parameters
    agent: Server,
    tmp_path: Path,
    prompt: dict[str, Any],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    name = written(tmp_path, prompt)
    found = await run(agent, tmp_path, name, *arguments)
    assert found.code == code, found.err
    assert found.err.splitlines()[-1].startswith(("error: ", "hint: ", "  ")), found.err
    assert says in found.err
    assert "Traceback" not in found.err
    found = await run(agent, tmp_path, name, *arguments, "--json")
    assert found.code == code
    assert found.json["error"]["message"]
    assert found.json["state"] in ("not started", "failed")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_failure_names_its_node(agent: Server, tmp_path: Path) -> None:
    prompt = {"7": node("EaselFail", message="x", exception="KeyError", steps=2, salt=1)}
    found = await run(agent, tmp_path, written(tmp_path, prompt), "--json")
    error = found.json["error"]
    assert (error["code"], error["node_id"], error["node_type"]) == (
        "execution_failed",
        "7",
        "EaselFail",
    )
    assert error["exception_type"].endswith("KeyError")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_crashed_engine_is_told_with_its_log(agent: Server, tmp_path: Path) -> None:
    crash = node("EaselCrash", how="SIGKILL", exit_code=1, seconds=0.5, salt=5)
    found = await run(agent, tmp_path, written(tmp_path, {"1": crash}))
    assert found.code == 3, found.err
    assert "the last log lines:\n  | " in found.err
    # and the next one runs, after the restart
    found = await run(agent, tmp_path, GLOW, "--input", COFFEE)
    assert found.code == 0, found.err


async def running(agent: Server, task_id: str) -> bool:
    async with (
        aiohttp.ClientSession(agent.url) as http,
        http.get("/api/status", params={"id": task_id, "detail": "true"}) as found,
    ):
        return bool((await found.json()).get("state") == "running")


async def state(agent: Server, task_id: str) -> str:
    async with (
        aiohttp.ClientSession(agent.url) as http,
        http.get("/api/status", params={"id": task_id, "detail": "true"}) as found,
    ):
        return str((await found.json()).get("state"))


def slow(salt: int) -> dict[str, Any]:
    return {"1": node("EaselSteps", steps=10_000, seconds=0.05, preview=False, salt=salt)}


@pytest.mark.asyncio(loop_scope="module")
async def test_ctrl_c_cancels_the_task(agent: Server, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "easel", "run", written(tmp_path, slow(1)), "--url", agent.url),
        *("-o", str(tmp_path / "out"), "--task-id", "interrupted"),
        env=environment(),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await until(lambda: running(agent, "interrupted"), timeout=30)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 130
    assert b"interrupted" in err

    async def cancelled() -> bool:
        return await state(agent, "interrupted") == "cancelled"

    await until(cancelled, timeout=30)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_time_out_cancels_the_task(agent: Server, tmp_path: Path) -> None:
    name = written(tmp_path, slow(2))
    found = await run(agent, tmp_path, name, "--timeout", "1.5", "--task-id", "late", "--json")
    assert found.code == 1
    assert found.json["state"] == "cancelled"

    async def cancelled() -> bool:
        return await state(agent, "late") == "cancelled"

    await until(cancelled, timeout=30)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_same_id_again(agent: Server, tmp_path: Path) -> None:
    name = written(tmp_path, {"1": node("EaselText", text="once", announce=False)})
    for _ in range(2):
        found = await run(agent, tmp_path, name, "--task-id", "again")
        assert (found.code, found.out) == (0, "once\n"), found.err
    other = written(tmp_path, {"1": node("EaselText", text="other", announce=False)})
    found = await run(agent, tmp_path, other, "--task-id", "again", "--json")
    assert found.code == 2
    assert found.json["error"]["code"] == "task_conflict"


async def test_an_engine_is_no_agent(tmp_path: Path) -> None:
    async with running_engine(tmp_path / "engine") as engine:
        found = await run(engine, tmp_path, GLOW, "--input", COFFEE)
    assert found.code == 3
    assert "is not an Easel agent" in found.err


@pytest.fixture
def nobody_on_9000() -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 9000)) == 0:
            pytest.skip("port 9000, where easel run looks for an agent, is taken on this machine")


def descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


@pytest.mark.usefixtures("nobody_on_9000")
async def test_without_an_agent_a_private_one_is_started(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    found = await easel(
        *("run", GLOW, "--input", COFFEE, "-o", str(tmp_path / "out")),
        env={"TMPDIR": str(temporary)},
    )
    assert found.code == 0, found.err
    assert "starting a private one with the built-in engine" in found.err
    assert Path(found.out.strip()).is_file()
    assert list(temporary.iterdir()) == []  # its data are gone


@pytest.mark.usefixtures("nobody_on_9000")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_private_agent_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "easel", "run", written(tmp_path, slow(3)), "-o", str(tmp_path / "out")),
        env=environment({"TMPDIR": str(tmp_path)}),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while b"EaselSteps" not in (line := await process.stderr.readline()):
                assert line, "it ended"
        children = descendants(process.pid)
        assert len(children) >= 2  # agent and engine
        os.kill(process.pid, number)
        await asyncio.wait_for(process.wait(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == {2: 130, 15: 143, 9: -9}[number]

    async def all_gone() -> bool:
        return not any(
            child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children
        )

    await until(all_gone, timeout=30)
