"""How a joined agent ends: drained, stopped, refused, orphaned."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from easel.agent.serve import running_agent
from easel.errors import ConfigurationError
from easel.link import messages
from easel.link.messages import Drain, Finished, Hello, Report, Returned, Started
from easel.settings import AgentSettings
from tests.agent.agents import QUICK, noop, sleep, steps, supervised
from tests.agent.joining.gateways import TOKEN, Gateway, Member, gateway, member
from tests.agent.test_command import easel
from tests.servers import free_port
from tests.waiting import until


async def _in_engine(joined: Member, running: int, waiting: int) -> None:
    async def so() -> bool:
        return await joined.queue() == (running, waiting)

    await until(so)


async def test_a_drained_agent_gives_back_what_has_not_begun(joined: Member) -> None:
    at = joined.gateway
    running = await at.assign(sleep(0.5))
    await at.heard(Started, running.uid)
    waiting = await at.assign(sleep(60))
    await _in_engine(joined, 1, 1)
    await at.say(Drain())
    back = await at.heard(Returned, waiting.uid)
    assert not back.counted
    late = await at.assign(noop())
    assert not (await at.heard(Returned, late.uid)).counted
    assert (await at.ended(running)).state == "succeeded"
    await at.holds()
    client = joined.agent.running.member
    assert client is not None
    assert not client.left.done()
    # It lasts as long as the connection: another gateway decides afresh.
    await at.cut()
    await at.connected(2)
    assert (await at.ended(await at.assign(noop()))).state == "succeeded"


async def test_a_drained_agent_that_is_to_stop_ends_when_all_is_stored(joined: Member) -> None:
    at, client = joined.gateway, joined.agent.running.member
    assert client is not None
    running = await at.assign(steps(20, 0.01))
    await at.heard(Started, running.uid)
    at.acknowledges = False
    await at.say(Drain(stop=True))
    ended = await at.ended(running)
    assert ended.state == "succeeded"
    await at.holds(running)
    assert not client.left.done()
    # A cut changes nothing.
    await at.cut()
    hello = await at.connected(2)
    assert not hello.engine.ready
    await at.heard(Finished, running.uid, count=2)
    await at.say(messages.Acknowledge(n=ended.n))
    leaving = await asyncio.wait_for(client.left, 20)
    assert leaving.error is None


async def test_an_idle_agent_that_is_to_stop_ends_at_once(joined: Member) -> None:
    client = joined.agent.running.member
    assert client is not None
    await joined.gateway.say(Drain(stop=True))
    assert (await asyncio.wait_for(client.left, 20)).error is None


async def test_a_stopping_agent_ends_what_runs_and_gives_back_the_rest(tmp_path: Path) -> None:
    async with member(tmp_path) as joined:
        at = joined.gateway
        running = await at.assign(steps(30, 0.01))
        await at.heard(Started, running.uid)
        waiting = await at.assign(sleep(60))
        await _in_engine(joined, 1, 1)
    # Its block has ended: so has the agent.
    assert at.all(Finished, running.uid)[0].state == "succeeded"
    back = at.all(Returned, waiting.uid)[0]
    assert not back.counted
    # Nobody gives it anything any more.
    said = [one for one in at.said if isinstance(one, Report | Returned)]
    stopping = next(one for one in said if isinstance(one, Report) and not one.engine.ready)
    assert said.index(stopping) < said.index(back)
    assert stopping.engine.state == "stopping"


async def test_what_does_not_end_in_time_is_given_back_uncounted(tmp_path: Path) -> None:
    quick = QUICK.model_copy(update={"drain_timeout": 0.1})
    async with member(tmp_path, supervision=quick) as joined:
        at = joined.gateway
        running = await at.assign(sleep(60))
        await at.heard(Started, running.uid)
    back = at.all(Returned, running.uid)[0]
    assert not back.counted
    assert back.error is not None
    assert not at.all(Finished)


async def test_a_stopping_agent_does_not_wait_for_a_gateway_that_is_gone(tmp_path: Path) -> None:
    async with member(tmp_path) as joined:
        at = joined.gateway
        at.acknowledges = False
        await at.ended(await at.assign(noop()))
        await at.stop()
        client = joined.agent.running.member
        assert client is not None

        async def noticed() -> bool:
            return not client.connected

        await until(noticed)
        async with asyncio.timeout(3):
            await client.close()


async def test_an_orphan_ends_once_it_has_nothing_to_do(tmp_path: Path) -> None:
    async with member(tmp_path, orphan_timeout=0.2) as joined:
        at, client = joined.gateway, joined.agent.running.member
        assert client is not None
        assign = await at.assign(sleep(0.6))
        await at.heard(Started, assign.uid)
        await at.stop()
        leaving = await asyncio.wait_for(client.left, 20)
        assert leaving.error is None
        assert "0.2 s" in leaving.reason
        assert await joined.agent.executed() == 1


async def test_an_agent_that_is_no_orphan_waits(tmp_path: Path) -> None:
    async with member(tmp_path) as joined:
        client = joined.agent.running.member
        assert client is not None
        await joined.gateway.stop()
        await until(lambda: _attempted(joined), timeout=20)
        assert not client.left.done()
        await joined.gateway.start()
        await joined.gateway.connected(2)


async def _attempted(joined: Member) -> bool:
    """Whether the agent has found nobody at the gateway's port."""
    called = asyncio.Event()

    def take(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", joined.gateway.port)
    async with server:
        await asyncio.wait_for(called.wait(), 20)
    return True


# As a process.


@contextlib.asynccontextmanager
async def process(
    at: Gateway, folder: Path, *flags: str, **env: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `easel agent --join` until the block ends."""
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "easel", "agent", "--join", at.url, "--name", "box"),
        *("--data-dir", str(folder / "agent"), "--engine", "builtin", "--pack", "demo", *flags),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "EASEL_AGENT__SUPERVISION__DRAIN_TIMEOUT": "5", **env},
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def ended(started: asyncio.subprocess.Process) -> tuple[int, str]:
    """Wait for the end of a process; return its exit code and what it said."""
    said, _ = await asyncio.wait_for(started.communicate(), 30)
    assert started.returncode is not None
    return started.returncode, said.decode()


async def test_an_agent_from_anywhere(tmp_path: Path) -> None:
    """The token from a file, everything else by its defaults: outputs go over the link."""
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    async with gateway() as at, process(at, tmp_path, "--token-file", str(token)) as agent:
        hello = await at.connected()
        assert hello.engine.state == "starting"
        await at.ready()
        assert not hello.shares_storage
        assign = await at.assign({"1": {"class_type": "EaselNoop", "inputs": {"text": "x"}}})
        assert (await at.ended(assign)).state == "succeeded"
        long = await at.assign(steps(30, 0.01))
        await at.heard(Started, long.uid)
        agent.terminate()
        code, said = await ended(agent)
        assert code == 0, said
        assert "Traceback" not in said
        assert f"joined tested at {at.url}" in said
        assert at.all(Finished, long.uid)[0].state == "succeeded"


async def test_the_settings_of_an_agent_by_its_environment(tmp_path: Path) -> None:
    async with gateway() as at:
        env = {"EASEL_AGENT__TOKEN": TOKEN, "EASEL_AGENT__ORPHAN_TIMEOUT": "0.2"}
        async with process(at, tmp_path, "--instance", "i-9", "--engine-hidden", **env) as agent:
            hello = await at.connected()
            assert (hello.instance, hello.engine_url) == ("i-9", None)
            await at.ready()
            await at.stop()
            code, said = await ended(agent)
            assert code == 0, said
            assert "its gateway has not answered for 0.2 s" in said


async def test_an_agent_that_is_told_to_stop(tmp_path: Path) -> None:
    async with gateway() as at, process(at, tmp_path, "--token", TOKEN) as agent:
        await at.connected()
        await at.say(Drain(stop=True))
        code, said = await ended(agent)
        assert code == 0, said
        assert "the platform wants it to stop" in said


async def test_a_wrong_token_is_one_clear_line(tmp_path: Path) -> None:
    async with gateway() as at:
        flags = ["--join", at.url, "--token", "wrong", "--data-dir", str(tmp_path)]
        code, said = await easel("agent", *flags, "--engine", "builtin")
    assert code != 0
    lines = [one for one in said.splitlines() if not one.startswith("[engine]")]
    assert lines[0] == f"error: the gateway at {at.url} refuses the token"
    assert lines[1].startswith("hint: ")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"join": "gateway:8500"}, "is not a gateway's URL"),
        ({"join": "ftp://gateway"}, "is not a gateway's URL"),
        ({"token": None}, "no token"),
        ({"token": "two words"}, "odd characters"),
        ({"token_file": "nowhere"}, "cannot be read"),
        ({"storage": "nowhere"}, "is not there"),
    ],
)
async def test_what_is_wrong_is_said_before_anything_starts(
    tmp_path: Path, changes: dict[str, str | None], words: str
) -> None:
    fields = {"join": f"http://127.0.0.1:{free_port()}", "token": TOKEN, **changes}
    settings = AgentSettings(port=0, data_dir=tmp_path / "agent", **fields)
    with pytest.raises(ConfigurationError, match=words):
        async with running_agent(settings, supervised(tmp_path)):
            pass
    assert not (tmp_path / "supervised").exists()


async def test_an_agent_waits_for_a_gateway_that_is_not_there_yet(tmp_path: Path) -> None:
    at = Gateway()
    at.port = free_port()
    async with process(at, tmp_path, "--token", TOKEN) as agent:
        assert agent.stdout is not None
        async with asyncio.timeout(30):
            while b"no gateway at" not in (line := await agent.stdout.readline()):
                assert line
        await at.start()
        try:
            hello = await at.connected()
            assert at.all(Hello) == [hello]
        finally:
            await at.stop()
