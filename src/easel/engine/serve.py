"""Run the built-in engine as a process: folders, node packs, execution, HTTP, and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from aiohttp import web

from easel.engine.engine import Engine
from easel.engine.folders import Folders
from easel.engine.node import Registry
from easel.engine.server.app import make_app
from easel.engine.server.frontend import FrontendFiles
from easel.engine.server.logs import LogBook
from easel.engine.server.models import ModelFolders
from easel.engine.server.sockets import MAX_QUEUED_BYTES, SocketHub
from easel.engine.server.state import ServerState
from easel.engine.server.users import Users
from easel.errors import ConfigurationError
from easel.listening import listen, local_url
from easel.settings import EngineSettings

log = logging.getLogger(__name__)

NODES = "easel.engine.nodes:registry"
SHORT_NAMES = {
    "demo": "easel.engine.nodes.demo:registry",
    "pretend": "easel.engine.nodes.pretend:registry",
}
"""Easel's own further packs."""
STOP_SECONDS = 5.0
"""How long a stopping engine waits for the running node to notice."""
LINGER_SECONDS = 2.0
"""How long the rest of a refused body is still taken off the wire, so that its sender reads the answer."""
KEEPALIVE_SECONDS = 3630.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine that answers."""

    url: str
    port: int
    state: ServerState


def load_registry(packs: tuple[str, ...]) -> Registry:
    """Import the built-in nodes and the named packs (``module:registry``, ``demo``, ``pretend``).

    Raises ConfigurationError when a pack cannot be loaded or a node name is taken.
    """
    registry = Registry()
    for pack in (NODES, *packs):
        path = SHORT_NAMES.get(pack, pack)
        module_name, _, attribute = path.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), attribute or "registry")
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigurationError(
                f"node pack {pack!r} cannot be loaded: {error}",
                hint="name it as module:registry, or demo, or pretend",
            ) from error
        if not isinstance(found, Registry):
            raise ConfigurationError(f"node pack {pack!r} is not a node registry")
        try:
            registry.include(found)
        except ValueError as error:
            raise ConfigurationError(f"node pack {pack!r}: {error}") from error
    return registry


@contextlib.asynccontextmanager
async def running_engine(
    settings: EngineSettings,
    *,
    registry: Registry | None = None,
    frontend: FrontendFiles | None = None,
    max_queued_bytes: int = MAX_QUEUED_BYTES,
) -> AsyncIterator[RunningEngine]:
    """Serve an engine on this event loop until the block ends.

    Raises ConfigurationError when the port is taken or a pack cannot be loaded.
    """
    folders = Folders(
        settings.data_dir.absolute(),
        settings.output_directory and settings.output_directory.absolute(),
        settings.temp_directory and settings.temp_directory.absolute(),
    )
    await asyncio.to_thread(_prepare, folders)
    if registry is None:
        registry = await asyncio.to_thread(load_registry, settings.packs)
    sockets = SocketHub(asyncio.get_running_loop(), max_queued_bytes)
    logs = LogBook(sockets)
    engine = Engine(registry, folders, sockets, previews=settings.previews)
    users = await asyncio.to_thread(lambda: Users(folders, multi_user=settings.multi_user))
    state = ServerState(engine, folders, settings, sockets, logs, users, ModelFolders(folders))
    app = await asyncio.to_thread(make_app, state, frontend)
    runner = web.AppRunner(
        app,
        access_log=None,
        lingering_time=LINGER_SECONDS,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    logger = logging.getLogger("easel.engine")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(logs)
    try:
        port = await listen(runner, settings.host, settings.port)
        await asyncio.to_thread(engine.start)
        try:
            yield RunningEngine(local_url(settings.host, port), port, state)
        finally:
            await runner.cleanup()
            await asyncio.to_thread(engine.stop, STOP_SECONDS)
    finally:
        logger.removeHandler(logs)
        logger.setLevel(level)
        await runner.cleanup()


def _prepare(folders: Folders) -> None:
    try:
        folders.prepare()
    except OSError as error:
        raise ConfigurationError(
            f"the data directory {folders.base} cannot be used: {error.strerror}"
        ) from error


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends (Linux; elsewhere nothing happens).

    Call it in the main thread, early.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def _announce(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def serve(
    settings: EngineSettings,
    *,
    with_parent: bool = False,
    announce: Callable[[str], None] = _announce,
) -> None:
    """Serve until SIGTERM or SIGINT; then close the sockets, interrupt what runs, and return.

    ``announce`` is called once with one line when the engine answers. ``with_parent`` ends the process when its
    parent dies. The log goes to stderr. Raises ConfigurationError.
    """
    if with_parent:
        die_with_parent()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    try:
        async with running_engine(settings) as running:
            announce(f"Easel built-in engine (not ComfyUI) ready on {running.url}")
            await stop.wait()
            log.info("stopping")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
