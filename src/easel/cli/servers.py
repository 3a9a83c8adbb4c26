"""`easel engine` and `easel agent`: settings from the flags, then serve until a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

from easel.settings import load


def given(**flags: Any) -> dict[str, Any]:
    """Return the flags that were given; the others are left to environment, file and defaults."""
    return {
        name: value for name, value in flags.items() if value not in (None, (), []) and value != {}
    }


def engine(*, with_parent: bool, **flags: Any) -> int:
    """Serve the built-in engine. Raises ConfigurationError."""
    settings = load(engine=given(**flags)).engine
    from easel.engine.serve import serve

    run_server(serve(settings, with_parent=with_parent))
    return 0


def agent(
    *,
    engine: str | None,
    comfyui: str | None,
    command: Sequence[str],
    packs: tuple[str, ...],
    with_parent: bool,
    **flags: Any,
) -> int:
    """Serve the agent; with ``USE_AGENT=0`` become the engine instead. Raises ConfigurationError."""
    settings = load(agent=given(**flags), engine=given(packs=packs))
    if settings.agent.join is not None and "port" not in settings.agent.model_fields_set:
        # Nobody calls it there: many of them may share a machine.
        free = settings.agent.model_copy(update={"port": 0})
        settings = settings.model_copy(update={"agent": free})
    # The engine, which runs other people's code, does not inherit it.
    os.environ.pop("EASEL_AGENT__TOKEN", None)
    from easel.agent.command import agent_wanted, choose, exec_engine

    data_dir = settings.agent.data_dir
    if not agent_wanted(os.environ):
        words = list(command)
        if engine == "builtin" and not words:
            words = [sys.executable, "-m", "easel", "engine", "--host", settings.agent.host]
            words += ["--data-dir", str(data_dir / "engine")]
            words += [word for pack in settings.engine.packs for word in ("--pack", pack)]
        exec_engine(words, settings.agent.port, os.environ)
    choice = choose(
        engine=engine,
        comfyui=comfyui,
        command=command,
        builtin=settings.engine,
        # An instance's engine works on its service's files.
        data_dir=settings.agent.storage or data_dir / "engine",
        environ=os.environ,
    )
    from easel.agent.serve import serve

    if with_parent:
        end_with_parent()
    run_server(serve(settings.agent, choice))
    return 0


def end_with_parent() -> None:
    """Stop in order when our parent is gone."""
    threading.Thread(target=_end_with_input, daemon=True).start()


def _end_with_input() -> None:
    """Stop in order when standard input, a pipe that only our parent holds, is closed: the parent is gone."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def run_server(server: Coroutine[Any, Any, Any]) -> Any:
    """Run a server on the quickest event loop there is."""
    if sys.platform == "win32":
        return asyncio.run(server)
    import uvloop

    return uvloop.run(server)
