"""Which engine an agent gets, what the reference image's variables do, and what is said when something does not fit."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from easel.agent.command import EngineChoice, agent_wanted, choose, with_extra_args
from easel.agent.serve import running_agent
from easel.errors import ConfigurationError
from easel.settings import AgentSettings, EngineSettings
from tests.agent.agents import QUICK, noop, picture
from tests.servers import free_port
from tests.servers import running as engine_process
from tests.waiting import until


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, True),
        ("1", True),
        ("true", True),
        ("yes", True),
        ("0", False),
        ("False", False),
        ("no", False),
        ("", False),
        (" off ", False),
    ],
)
def test_use_agent(value: str | None, wanted: bool) -> None:
    assert agent_wanted({} if value is None else {"USE_AGENT": value}) is wanted


def test_extra_args_are_split_like_a_shell_does() -> None:
    environ = {"EXTRA_ARGS": "--disable-cuda-malloc  --output-directory 'my files'"}
    assert with_extra_args(["python", "main.py"], environ) == [
        "python",
        "main.py",
        "--disable-cuda-malloc",
        "--output-directory",
        "my files",
    ]
    assert with_extra_args(["x"], {}) == ["x"]
    with pytest.raises(ConfigurationError, match="EXTRA_ARGS"):
        with_extra_args(["x"], {"EXTRA_ARGS": "'open"})


def chosen(*command: str, environ: dict[str, str] | None = None, **flags: Any) -> EngineChoice:
    named: dict[str, Any] = {"engine": None, "comfyui": None, **flags}
    return choose(
        command=command,
        builtin=EngineSettings(packs=("demo",)),
        data_dir=Path("data"),
        environ=environ or {},
        **named,
    )


@pytest.mark.parametrize(
    ("words", "url"),
    [
        ("main.py", "http://127.0.0.1:8188"),
        ("main.py --port 8000", "http://127.0.0.1:8000"),
        ("main.py --port=8000", "http://127.0.0.1:8000"),
        ("main.py --port 1 --port 8001", "http://127.0.0.1:8001"),
        ("main.py --listen", "http://127.0.0.1:8188"),
        ("main.py --listen --port 8000", "http://127.0.0.1:8000"),
        ("main.py --listen 0.0.0.0", "http://127.0.0.1:8188"),
        ("main.py --listen 0.0.0.0,::", "http://127.0.0.1:8188"),
        ("main.py --listen 10.0.0.5 --port 9", "http://10.0.0.5:9"),
        ("main.py --listen=::1", "http://[::1]:8188"),
        ("main.py --listen fd00::7,127.0.0.1", "http://[fd00::7]:8188"),
    ],
)
def test_where_a_command_is_reached(words: str, url: str) -> None:
    choice = chosen("python", *words.split())
    assert choice.url == url
    assert choice.command == ["python", *words.split()]
    assert choice.cwd is None


def test_extra_args_count_for_where_it_is_reached() -> None:
    assert chosen("main.py", environ={"EXTRA_ARGS": "--port 8007"}).url == "http://127.0.0.1:8007"


def test_comfyuis_own_folder() -> None:
    assert chosen("python", "/opt/ComfyUI/main.py").cwd == Path("/opt/ComfyUI")


@pytest.mark.parametrize("port", ["x", "0", "70000", "-1", ""])
def test_ports_that_are_none(port: str) -> None:
    with pytest.raises(ConfigurationError, match="--port"):
        chosen("main.py", f"--port={port}")


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ((), {}),
        (("main.py",), {"engine": "builtin"}),
        (("main.py",), {"comfyui": "http://x"}),
        ((), {"engine": "builtin", "comfyui": "http://x"}),
        (("main.py",), {"engine": "builtin", "comfyui": "http://x"}),
    ],
)
def test_exactly_one_engine(command: tuple[str, ...], flags: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="exactly one") as caught:
        chosen(*command, **flags)
    assert caught.value.hint


def test_named_engines() -> None:
    assert chosen(comfyui="http://gpu:8188") == EngineChoice("http://gpu:8188", None)
    builtin = chosen(engine="builtin", environ={"EXTRA_ARGS": "--previews"})
    assert builtin.command is not None
    assert builtin.command[-3:] == ["--pack", "demo", "--previews"]
    with pytest.raises(ConfigurationError, match="unknown engine"):
        chosen(engine="other")


async def easel(*words: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run the command to its end; return its exit code and what it said on standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "easel",
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    flags = ["--port", str(port), "--data-dir", str(tmp_path), "--engine", "builtin"]
    async with server:
        code, said = await easel("agent", *flags)
    assert code != 0
    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "said_of"),
    [
        (["--", "/nowhere/python", "main.py"], "/nowhere/python"),
        ([], "exactly one engine"),
        (["--engine", "builtin", "--comfyui", "http://x"], "exactly one engine"),
        (["--comfyui", "nonsense"], "nonsense"),
    ],
)
async def test_what_cannot_be_started(tmp_path: Path, words: list[str], said_of: str) -> None:
    flags = ["--port", "0", "--data-dir", str(tmp_path)]
    code, said = await easel("agent", *flags, *words)
    assert code != 0
    assert said_of in said
    assert "Traceback" not in said


async def test_without_the_agent_the_engine_has_its_port(tmp_path: Path) -> None:
    """``USE_AGENT=0``: the command becomes the engine, on the agent's port, with ``EXTRA_ARGS``."""
    env = {"USE_AGENT": "0", "EXTRA_ARGS": "'an argument'"}
    code, said = await easel(
        "agent",
        "--port",
        "9123",
        "--data-dir",
        str(tmp_path),
        "--",
        sys.executable,
        "-c",
        "import sys; sys.stderr.write(repr(sys.argv[1:])); sys.exit(7)",
        env=env,
    )
    assert (code, said) == (7, "['an argument', '--port', '9123']")


async def test_an_engine_that_is_started_after_its_agent(tmp_path: Path) -> None:
    """Tasks wait for it, then run; the agent says meanwhile that it is not ready."""
    port = free_port()
    settings = AgentSettings(port=0, data_dir=tmp_path / "agent", supervision=QUICK)
    choice = EngineChoice(f"http://127.0.0.1:{port}", None)
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        running_agent(settings, choice) as running,
        aiohttp.ClientSession(running.url, timeout=timeout) as http,
    ):
        blocking = asyncio.ensure_future(http.post("/api/run", json=picture()))
        headers = {"X-Fc-Invocation-Type": "Async", "task-id": "later"}
        async with http.post("/api/run", json=noop(), headers=headers) as answer:
            assert answer.status == 202
        async with http.get("/api/status?id=later") as answer:
            assert answer.headers["task-status"] == "queued"
        async with http.get("/api/agent") as answer:
            assert answer.status == 503
        assert not blocking.done()
        command = [sys.executable, "-m", "easel", "engine", "--port", str(port)]
        command += ["--data-dir", str(tmp_path / "engine"), "--pack", "demo"]
        async with engine_process(choice.url, "/system_stats", command, tmp_path / "engine.log"):
            async with await blocking as answer:
                assert answer.status == 200, await answer.text()

            async def ran() -> bool:
                async with http.get("/api/status?id=later") as answer:
                    return answer.headers["task-status"] == "succeeded"

            await until(ran, timeout=20)
