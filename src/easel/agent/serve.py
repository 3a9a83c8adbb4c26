"""Run the agent as a process: store, engine, tasks, HTTP, and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from easel.agent import proxy
from easel.agent.admission import Admission
from easel.agent.app import make_app
from easel.agent.command import EngineChoice
from easel.agent.engine_files import EngineUploader
from easel.agent.first_request import FirstRequests
from easel.agent.input_files import InputFiles
from easel.agent.joining.client import LinkClient
from easel.agent.joining.joining import gateway_session, output_folder, read_joining
from easel.agent.joining.leaving import Leaving
from easel.agent.joining.start import join
from easel.agent.keeping import Keeping
from easel.agent.link import EngineLink
from easel.agent.record import ProgressStore
from easel.agent.runner import Runner
from easel.agent.state import AgentState
from easel.agent.store import open_store
from easel.agent.store.nothing import NoStore
from easel.agent.tasks import Tasks, now_ms
from easel.comfy.client import ComfyClient
from easel.comfy.process import EngineProcess
from easel.errors import ConfigurationError, EngineError
from easel.listening import listen, local_url
from easel.settings import AgentSettings
from easel.storage.outputs import OutputFiles

log = logging.getLogger(__name__)

ENGINE_TIMEOUT = 30.0
"""Seconds an engine may take for an ordinary answer."""
LINGERING = 3.0
"""Seconds a refused body is thrown away as it comes, so that its sender reads the answer before the connection ends."""


@dataclass(frozen=True, slots=True)
class RunningAgent:
    """An agent that listens."""

    url: str
    port: int
    state: AgentState
    member: LinkClient | None = None
    """Its link to the platform that it has joined."""


@contextlib.asynccontextmanager
async def running_agent(
    settings: AgentSettings,
    choice: EngineChoice,
    *,
    on_log: Callable[[str], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> AsyncIterator[RunningAgent]:
    """Serve an agent on this event loop until the block ends; the engine may still be starting when it begins.

    ``on_log`` gets the engine's lines, ``say`` ours for people. Raises ConfigurationError when the port is taken, the engine's
    command is wrong, the store cannot be opened, or what is said of joining is wrong.
    """
    async with contextlib.AsyncExitStack() as stack:
        await asyncio.to_thread(_prepare, settings)
        joining = None
        if settings.join is not None:
            joining = await asyncio.to_thread(read_joining, settings, choice.url)
            http = await stack.enter_async_context(gateway_session(joining))
        store: ProgressStore = NoStore() if settings.join else open_store(settings)
        await store.open()
        stack.push_async_callback(store.close)
        outputs = OutputFiles(output_folder(settings))
        try:
            await outputs.open(shared=settings.storage is not None)
        except OSError as error:
            raise ConfigurationError(
                f"outputs cannot be stored in {output_folder(settings)}: {error.strerror}",
                hint="choose another folder with --data-dir, with --join also with --storage",
            ) from error
        stack.push_async_callback(outputs.close)
        client = ComfyClient(choice.url, timeout=ENGINE_TIMEOUT)
        link = EngineLink(client, settings.supervision, _process(settings, choice, on_log))
        if link.process is not None:
            link.process.on_died = link.died
        inputs = InputFiles(EngineUploader(client), settings.data_dir, settings.inputs)
        await inputs.open()
        stack.push_async_callback(inputs.close)
        through = proxy.session()
        stack.push_async_callback(through.close)
        engine = Runner(settings, link, outputs, now_ms)
        tasks = Tasks(
            settings,
            Keeping(store, settings.progress_interval),
            Admission(settings, link, inputs),
            engine,
        )
        state = AgentState(settings, tasks, link, outputs, through)
        first = FirstRequests()
        runner = web.AppRunner(
            make_app(state, first),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=2.0,
            auto_decompress=False,
            lingering_time=LINGERING,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        port = await listen(runner, settings.host, settings.port)
        assert runner.server is not None
        watching = asyncio.create_task(first.watch(runner.server))
        stack.callback(watching.cancel)
        stack.push_async_callback(link.stop)
        await link.start()
        await tasks.open()
        url, member = local_url(settings.host, port), None
        if joining is not None:
            member = join(
                joining, http, url, tasks=tasks, link=link, outputs=outputs, engine=engine, say=say
            )
            stack.push_async_callback(member.close)
            stack.push_async_callback(tasks.close)
            stack.callback(member.drain)
            member.start()
        else:
            stack.push_async_callback(tasks.close)
        yield RunningAgent(url, port, state, member)


def _process(
    settings: AgentSettings, choice: EngineChoice, on_log: Callable[[str], None] | None
) -> EngineProcess | None:
    if choice.command is None:
        return None
    return EngineProcess(
        choice.command,
        url=choice.url,
        cwd=choice.cwd,
        device=settings.device,
        settings=settings.supervision,
        on_log=on_log,
    )


def _prepare(settings: AgentSettings) -> None:
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the data directory {settings.data_dir} cannot be used: {error.strerror}",
            hint="choose another with --data-dir",
        ) from error


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _engine_said(line: str) -> None:
    sys.stderr.write(f"[engine] {line}\n")


async def serve(
    settings: AgentSettings, choice: EngineChoice, *, announce: Callable[[str], None] = _say
) -> None:
    """Serve until SIGTERM or SIGINT, or until the platform that it joined wants it to end; then drain, stop the engine, return.

    Raises ConfigurationError, also when the platform does not take the agent.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")
    leaving: Leaving | None = None
    async with running_agent(settings, choice, on_log=_engine_said, say=announce) as agent:
        # What is there now stays: the collector need not look through it again, nor so often through what comes and goes.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        announce(f"Easel agent on {agent.url}, engine at {choice.url}")
        watching = asyncio.create_task(_say_when_ready(agent, announce))
        stopped = asyncio.create_task(stop.wait())
        try:
            ends: list[asyncio.Future[Any]] = [stopped]
            if agent.member is not None:
                ends.append(agent.member.left)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            stopped.cancel()
        if agent.member is not None and agent.member.left.done():
            leaving = agent.member.left.result()
        if leaving is None:
            announce("stopping: running tasks may end first")
        elif leaving.error is None:
            announce(f"stopping: {leaving.reason}")
    if leaving is not None and leaving.error is not None:
        raise leaving.error


async def _say_when_ready(agent: RunningAgent, announce: Callable[[str], None]) -> None:
    try:
        await agent.state.link.wait_ready(agent.state.settings.supervision.start_timeout)
        announce("engine ready")
    except EngineError as error:
        announce(f"engine not ready: {error}")
